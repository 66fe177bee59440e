//! Tiles of 256-bit FMA, with at least eight sums in flight (two FMA a cycle of four cycles' latency), better twelve.
//!
//! A tile that has its panels to itself waits for memory: it reads few rows of several panels, or up to 6 rows by one.
//! Tiles that take turns at their panels are bound by arithmetic (`avx2_lines`): up to 4 rows by three *stripes*, half
//! panels of one register each, or 6 rows by two.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::avx2_lines::{self, Operands, SUMS, add_lines};
use super::tile::{Ahead, Kernel, Store, Tile, WORDS, by_shape};

/// f32 weights, or bf16 ones widened by a shift (lower k) and a mask (upper k).
pub(in crate::ops::cpu) struct Avx2<const BF16: bool>;

impl<const BF16: bool> Kernel for Avx2<BF16> {
    const ROWS: usize = avx2_lines::ROWS;
    const ROW_BLOCK: usize = 48;
    const K_BLOCK: usize = if BF16 { 1024 } else { 512 };

    fn panels(rows: usize) -> usize {
        match rows {
            1 => 4,
            2 => 2,
            // Three rows by two panels of bf16 take more registers than there are.
            3 => 2 - BF16 as usize,
            _ => 1,
        }
    }

    fn shared_panels(rows: usize) -> usize {
        if rows <= THREE_STRIPES { 3 } else { 1 }
    }

    #[inline]
    unsafe fn tile(rows: usize, panels: usize, tile: &Tile) {
        // SAFETY: the caller keeps the contract of `Kernel::tile`, AVX2 and FMA included.
        unsafe {
            by_shape!(
                tile_of,
                rows,
                panels,
                tile,
                [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (5, 1), (6, 1)]
            )
        }
    }

    #[inline]
    unsafe fn shared_tile(rows: usize, panels: usize, tile: &Tile, ahead: &Ahead) {
        let stripes = if rows <= THREE_STRIPES && panels == 3 { 3 } else { 2 };
        for first in (0..2 * panels).step_by(stripes) {
            // SAFETY: the caller keeps the contract of `Kernel::shared_tile`, AVX2 and FMA included. Several tiles have
            // more rows than one of 6, so none has fewer than 3.
            unsafe {
                match (rows, stripes) {
                    (3, 2) => stripes_of::<BF16, 3, 2>(tile, ahead, first),
                    (4, 2) => stripes_of::<BF16, 4, 2>(tile, ahead, first),
                    (5, 2) => stripes_of::<BF16, 5, 2>(tile, ahead, first),
                    (6, 2) => stripes_of::<BF16, 6, 2>(tile, ahead, first),
                    (3, 3) => stripes_of::<BF16, 3, 3>(tile, ahead, first),
                    (4, 3) => stripes_of::<BF16, 4, 3>(tile, ahead, first),
                    _ => unreachable!("no tile of {rows} rows and {stripes} stripes"),
                }
            }
        }
    }
}

/// Most rows of a tile of three stripes.
const THREE_STRIPES: usize = 4;
/// Numbers of a stripe.
const LANES: usize = 8;

/// Some stripes of a tile, from the `first` on.
#[target_feature(enable = "avx2,fma")]
unsafe fn stripes_of<const BF16: bool, const R: usize, const S: usize>(tile: &Tile, ahead: &Ahead, first: usize) {
    // SAFETY: the contract of `Kernel::shared_tile`: x and w are readable over k, y has `width` columns, ours alone.
    unsafe {
        let k_of_line = 1 + BF16 as usize;
        let line = tile.k.start / k_of_line;
        let lines = tile.k.len() / k_of_line;
        let stripe = |stripe: usize| {
            let stripe = first + stripe;
            tile.w[stripe / 2].add(line * WORDS + stripe % 2 * LANES)
        };
        // The panel in the middle of three belongs to both halves of them; the first asks for it.
        let ahead_of = [ahead.w[first.div_ceil(2)], ahead.w[if first == 0 { 1 } else { first.div_ceil(2) }]];
        let operands = Operands {
            x: std::array::from_fn(|row| if row < R { tile.x[row].add(tile.k.start) } else { std::ptr::null() }),
            w: std::array::from_fn(|index| if index < S { stripe(index) } else { std::ptr::null() }),
            ahead: ahead_of,
            step: ahead.step,
            lines,
        };
        let mut sums = [_mm256_setzero_ps(); SUMS];
        for row in 0..R {
            for index in 0..S {
                sums[row * S + index] = begin(tile, row, first + index);
            }
        }
        add_lines::<BF16, R, S>(&operands, &mut sums);
        if lines * k_of_line < tile.k.len() {
            // An odd last k of bf16.
            for index in 0..S {
                let w = widen::<LOW>(_mm256_loadu_si256(stripe(index).add(lines * WORDS).cast()));
                for row in 0..R {
                    let x = _mm256_broadcast_ss(&*tile.x[row].add(tile.k.end - 1).cast::<f32>());
                    sums[row * S + index] = _mm256_fmadd_ps(w, x, sums[row * S + index]);
                }
            }
        }
        for row in 0..R {
            for index in 0..S {
                finish(tile, row, first + index, sums[row * S + index]);
            }
        }
    }
}

type Sums<const R: usize, const P: usize> = [[[__m256; 2]; P]; R];

/// How far ahead weights are asked for, in bytes.
const AHEAD: usize = 1024;

#[target_feature(enable = "avx2,fma")]
unsafe fn tile_of<const BF16: bool, const R: usize, const P: usize>(tile: &Tile) {
    // SAFETY: the contract of `Kernel::tile`, for this function and all it calls.
    unsafe {
        let mut sums: Sums<R, P> = [[[_mm256_setzero_ps(); 2]; P]; R];
        for row in 0..R {
            for stripe in 0..2 * P {
                sums[row][stripe / 2][stripe % 2] = begin(tile, row, stripe);
            }
        }
        let (mut k, end) = (tile.k.start, tile.k.end);
        if BF16 {
            if k % 2 == 1 && k < end {
                step::<HIGH, R, P>(tile, k / 2, k, &mut sums);
                k += 1;
            }
            while k + 1 < end {
                ask_ahead::<R, P>(tile, k / 2);
                step::<LOW, R, P>(tile, k / 2, k, &mut sums);
                step::<HIGH, R, P>(tile, k / 2, k + 1, &mut sums);
                k += 2;
            }
            if k < end {
                step::<LOW, R, P>(tile, k / 2, k, &mut sums);
            }
        } else {
            while k < end {
                ask_ahead::<R, P>(tile, k);
                step::<WHOLE, R, P>(tile, k, k, &mut sums);
                k += 1;
            }
        }
        for row in 0..R {
            for stripe in 0..2 * P {
                finish(tile, row, stripe, sums[row][stripe / 2][stripe % 2]);
            }
        }
    }
}

/// Ask for the weights some lines further on, unless a tile leaves that to hardware, as that of one row does.
#[inline(always)]
unsafe fn ask_ahead<const R: usize, const P: usize>(tile: &Tile, line: usize) {
    // SAFETY: the contract of `Kernel::tile`: the instruction set; a prefetch may go anywhere.
    unsafe {
        if R > 1 {
            for panel in 0..P {
                let words = tile.w[panel].wrapping_add(line * WORDS);
                _mm_prefetch::<_MM_HINT_T0>(words.cast::<i8>().wrapping_add(AHEAD));
            }
        }
    }
}

/// The number in a word of w: the word, or its lower or upper half as bf16.
const WHOLE: u8 = 0;
const LOW: u8 = 1;
const HIGH: u8 = 2;

/// One number of each word.
#[inline(always)]
unsafe fn widen<const PART: u8>(words: __m256i) -> __m256 {
    // SAFETY: the instruction set, by the contract of `Kernel::tile`.
    unsafe {
        _mm256_castsi256_ps(match PART {
            LOW => _mm256_slli_epi32::<16>(words),
            HIGH => _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32)),
            _ => words,
        })
    }
}

/// One k of all rows and panels.
#[inline(always)]
unsafe fn step<const PART: u8, const R: usize, const P: usize>(
    tile: &Tile,
    line: usize,
    k: usize,
    sums: &mut Sums<R, P>,
) {
    // SAFETY: the contract of `Kernel::tile`: w and x are readable over k.
    unsafe {
        let mut w = [[_mm256_setzero_ps(); 2]; P];
        for (panel, w) in w.iter_mut().enumerate() {
            for (half, w) in w.iter_mut().enumerate() {
                let words = tile.w[panel].add(line * WORDS + half * LANES);
                *w = widen::<PART>(_mm256_loadu_si256(words.cast()));
            }
        }
        for row in 0..R {
            let x = _mm256_broadcast_ss(&*tile.x[row].add(k).cast::<f32>());
            for panel in 0..P {
                for half in 0..2 {
                    sums[row][panel][half] = _mm256_fmadd_ps(w[panel][half], x, sums[row][panel][half]);
                }
            }
        }
    }
}

/// The sum of a row and stripe before the first k.
#[inline(always)]
unsafe fn begin(tile: &Tile, row: usize, stripe: usize) -> __m256 {
    // SAFETY: the contract of `Kernel::tile`: y has `width` columns.
    unsafe {
        if tile.store == Store::Continue {
            let valid = tile.width.saturating_sub(stripe * LANES).min(LANES);
            load(tile.y[row].wrapping_add(stripe * LANES), valid)
        } else {
            _mm256_setzero_ps()
        }
    }
}

/// Bring a sum to y.
#[inline(always)]
unsafe fn finish(tile: &Tile, row: usize, stripe: usize, sum: __m256) {
    // SAFETY: the contract of `Kernel::tile`: y has `width` columns, ours alone.
    unsafe {
        let valid = tile.width.saturating_sub(stripe * LANES).min(LANES);
        let y = tile.y[row].wrapping_add(stripe * LANES);
        let sum = match tile.store {
            Store::Overwrite | Store::Continue => sum,
            Store::AddScaled(scale) => _mm256_fmadd_ps(_mm256_set1_ps(scale), sum, load(y, valid)),
        };
        store(y, valid, sum);
    }
}

#[inline(always)]
unsafe fn mask(valid: usize) -> __m256i {
    // SAFETY: the instruction set, by the contract of `Kernel::tile`.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(valid as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

#[inline(always)]
unsafe fn load(y: *const f32, valid: usize) -> __m256 {
    // SAFETY: `valid` numbers are readable; a masked load touches no others.
    unsafe { if valid == LANES { _mm256_loadu_ps(y) } else { _mm256_maskload_ps(y, mask(valid)) } }
}

#[inline(always)]
unsafe fn store(y: *mut f32, valid: usize, numbers: __m256) {
    // SAFETY: `valid` numbers are writable; a masked store touches no others.
    unsafe { if valid == LANES { _mm256_storeu_ps(y, numbers) } else { _mm256_maskstore_ps(y, mask(valid), numbers) } }
}
