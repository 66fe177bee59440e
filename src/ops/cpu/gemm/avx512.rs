//! Tiles of 512-bit FMA and of `vdpbf16ps`: a panel is one register. Up to 8 rows by 2 panels, or few rows by more
//! panels, so that at least eight sums are in flight.
//!
//! Helpers are inlined into the tiles by force and take their instruction set from them: a call inside the loop over k
//! would cost more than the loop. The build machine need not have AVX-512; the tests run these tiles wherever the
//! processor does.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::tile::{Kernel, Store, Tile, WORDS, by_shape};

/// f32 weights, or bf16 ones widened by a shift (lower k) and a mask (upper k).
pub(in crate::ops::cpu) struct Avx512<const BF16: bool>;

/// bf16 weights and x in pairs, multiplied and summed two k at a time by `vdpbf16ps`.
pub(in crate::ops::cpu) struct Avx512Dot;

fn panels_for(rows: usize) -> usize {
    match rows {
        1 => 8,
        2..=4 => 4,
        _ => 2,
    }
}

macro_rules! shapes {
    ($tile:ident, $rows:expr, $panels:expr, $operands:expr) => {
        by_shape!(
            $tile,
            $rows,
            $panels,
            $operands,
            [
                (1, 1),
                (1, 2),
                (1, 3),
                (1, 4),
                (1, 5),
                (1, 6),
                (1, 7),
                (1, 8),
                (2, 1),
                (2, 2),
                (2, 3),
                (2, 4),
                (3, 1),
                (3, 2),
                (3, 3),
                (3, 4),
                (4, 1),
                (4, 2),
                (4, 3),
                (4, 4),
                (5, 1),
                (5, 2),
                (6, 1),
                (6, 2),
                (7, 1),
                (7, 2),
                (8, 1),
                (8, 2),
            ]
        )
    };
}

impl<const BF16: bool> Kernel for Avx512<BF16> {
    const ROWS: usize = 8;
    const ROW_BLOCK: usize = 96;
    const K_BLOCK: usize = 256;

    fn panels(rows: usize) -> usize {
        panels_for(rows)
    }

    #[inline]
    unsafe fn tile(rows: usize, panels: usize, tile: &Tile) {
        // SAFETY: the caller keeps the contract of `Kernel::tile`, AVX-512F included.
        unsafe { shapes!(widened, rows, panels, tile) }
    }
}

impl Kernel for Avx512Dot {
    const ROWS: usize = 8;
    const ROW_BLOCK: usize = 96;
    const K_BLOCK: usize = 256;

    fn panels(rows: usize) -> usize {
        panels_for(rows)
    }

    #[inline]
    unsafe fn tile(rows: usize, panels: usize, tile: &Tile) {
        const BF16: bool = true;
        // SAFETY: the caller keeps the contract of `Kernel::tile`, AVX512-BF16 included.
        unsafe { shapes!(dotted, rows, panels, tile) }
    }
}

type Sums<const R: usize, const P: usize> = [[__m512; P]; R];

/// Rows from which on a tile computes so long on a line that hardware's own reading ahead falls behind.
const ASKING_ROWS: usize = 5;
/// How far ahead such a tile asks for weights, in bytes: far enough for memory, and only into the second-level cache,
/// as requests of the first hold up one another.
const AHEAD: usize = 8192;

#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn widened<const BF16: bool, const R: usize, const P: usize>(tile: &Tile) {
    // SAFETY: the contract of `Kernel::tile`, for this function and all it calls.
    unsafe {
        let mut sums = begin::<R, P>(tile);
        let (mut k, end) = (tile.k.start, tile.k.end);
        if BF16 {
            if k % 2 == 1 && k < end {
                step::<HIGH, R, P>(tile, &lines::<R, P>(tile, k / 2), k, &mut sums);
                k += 1;
            }
            while k + 1 < end {
                let w = lines::<R, P>(tile, k / 2);
                step::<LOW, R, P>(tile, &w, k, &mut sums);
                step::<HIGH, R, P>(tile, &w, k + 1, &mut sums);
                k += 2;
            }
            if k < end {
                step::<LOW, R, P>(tile, &lines::<R, P>(tile, k / 2), k, &mut sums);
            }
        } else {
            while k < end {
                step::<WHOLE, R, P>(tile, &lines::<R, P>(tile, k), k, &mut sums);
                k += 1;
            }
        }
        finish::<R, P>(tile, &sums);
    }
}

/// The number in a word of w: the word, or its lower or upper half as bf16.
const WHOLE: u8 = 0;
const LOW: u8 = 1;
const HIGH: u8 = 2;

/// One k of all rows and panels.
#[inline(always)]
unsafe fn step<const PART: u8, const R: usize, const P: usize>(
    tile: &Tile,
    lines: &[__m512i; P],
    k: usize,
    sums: &mut Sums<R, P>,
) {
    // SAFETY: the contract of `Kernel::tile`: the instruction set, and x readable over k.
    unsafe {
        let mut w = [_mm512_setzero_ps(); P];
        for panel in 0..P {
            w[panel] = _mm512_castsi512_ps(match PART {
                LOW => _mm512_slli_epi32::<16>(lines[panel]),
                HIGH => _mm512_and_si512(lines[panel], _mm512_set1_epi32(0xffff_0000_u32 as i32)),
                _ => lines[panel],
            });
        }
        for row in 0..R {
            let x = _mm512_set1_ps(*tile.x[row].add(k).cast::<f32>());
            for panel in 0..P {
                sums[row][panel] = _mm512_fmadd_ps(w[panel], x, sums[row][panel]);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
unsafe fn dotted<const BF16: bool, const R: usize, const P: usize>(tile: &Tile) {
    // SAFETY: the contract of `Kernel::tile`; `__m512bh` is any 512 bits.
    unsafe {
        let mut sums = begin::<R, P>(tile);
        // k starts at a pair in every GEMM, and an odd last k is paired with zeros on both sides.
        for pair in tile.k.start / 2..tile.k.end.div_ceil(2) {
            let w = lines::<R, P>(tile, pair);
            for row in 0..R {
                let x = _mm512_set1_epi32(*tile.x[row].add(pair) as i32);
                for panel in 0..P {
                    let (x, w) = (
                        std::mem::transmute::<__m512i, __m512bh>(x),
                        std::mem::transmute::<__m512i, __m512bh>(w[panel]),
                    );
                    sums[row][panel] = _mm512_dpbf16_ps(sums[row][panel], w, x);
                }
            }
        }
        finish::<R, P>(tile, &sums);
    }
}

/// One line of every panel, the lines to come asked for.
#[inline(always)]
unsafe fn lines<const R: usize, const P: usize>(tile: &Tile, line: usize) -> [__m512i; P] {
    // SAFETY: the contract of `Kernel::tile`: w is readable at this line in every panel; a prefetch may go anywhere.
    unsafe {
        let mut w = [_mm512_setzero_si512(); P];
        for (panel, w) in w.iter_mut().enumerate() {
            let words = tile.w[panel].add(line * WORDS);
            if R >= ASKING_ROWS {
                _mm_prefetch::<_MM_HINT_T1>(words.cast::<i8>().wrapping_add(AHEAD));
            }
            *w = _mm512_loadu_si512(words.cast());
        }
        w
    }
}

#[inline(always)]
unsafe fn begin<const R: usize, const P: usize>(tile: &Tile) -> Sums<R, P> {
    // SAFETY: the contract of `Kernel::tile`: the mask keeps loads to the valid columns.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); P]; R];
        if tile.store == Store::Continue {
            for row in 0..R {
                for panel in 0..P {
                    sums[row][panel] =
                        _mm512_maskz_loadu_ps(mask(tile, panel), tile.y[row].wrapping_add(panel * WORDS));
                }
            }
        }
        sums
    }
}

#[inline(always)]
unsafe fn finish<const R: usize, const P: usize>(tile: &Tile, sums: &Sums<R, P>) {
    // SAFETY: the contract of `Kernel::tile`: the mask keeps loads and stores to the valid columns.
    unsafe {
        for row in 0..R {
            for panel in 0..P {
                let (mask, y) = (mask(tile, panel), tile.y[row].wrapping_add(panel * WORDS));
                let sum = match tile.store {
                    Store::Overwrite | Store::Continue => sums[row][panel],
                    Store::AddScaled(scale) => {
                        _mm512_fmadd_ps(_mm512_set1_ps(scale), sums[row][panel], _mm512_maskz_loadu_ps(mask, y))
                    }
                };
                _mm512_mask_storeu_ps(y, mask, sum);
            }
        }
    }
}

/// The columns of a panel that y has.
#[inline(always)]
fn mask(tile: &Tile, panel: usize) -> __mmask16 {
    let valid = tile.width.saturating_sub(panel * WORDS).min(WORDS);
    ((1_u32 << valid) - 1) as __mmask16
}
