//! Tiles of 256-bit FMA: up to 6 rows by 16 columns in twelve accumulators, or few rows by several panels, so that
//! at least eight sums are in flight (two FMA a cycle of four cycles' latency).
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{Kernel, Store, Tile, WORDS, by_shape};

/// f32 weights, or bf16 ones widened by a shift (lower k) and a mask (upper k).
pub(in crate::ops::cpu) struct Avx2<const BF16: bool>;

impl<const BF16: bool> Kernel for Avx2<BF16> {
    const ROWS: usize = 6;

    fn panels(rows: usize) -> usize {
        match rows {
            1 => 4,
            2 | 3 => 2,
            _ => 1,
        }
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
}

type Sums<const R: usize, const P: usize> = [[[__m256; 2]; P]; R];

/// How far ahead weights are asked for, in bytes.
const AHEAD: usize = 1024;

#[target_feature(enable = "avx2,fma")]
unsafe fn tile_of<const BF16: bool, const R: usize, const P: usize>(tile: &Tile) {
    // SAFETY: the contract of `Kernel::tile`, for this function and all it calls.
    unsafe {
        let mut sums = begin::<R, P>(tile);
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
        finish::<R, P>(tile, &sums);
    }
}

/// Ask for the weights some lines further on, where a tile neither leaves that to hardware, as that of one row does, nor
/// hides the wait behind its sums.
#[inline(always)]
unsafe fn ask_ahead<const R: usize, const P: usize>(tile: &Tile, line: usize) {
    // SAFETY: the contract of `Kernel::tile`: the instruction set; a prefetch may go anywhere.
    unsafe {
        if (2..=4).contains(&R) {
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
                let words = tile.w[panel].add(line * WORDS + half * 8);
                let words = _mm256_loadu_si256(words.cast());
                *w = _mm256_castsi256_ps(match PART {
                    LOW => _mm256_slli_epi32::<16>(words),
                    HIGH => _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32)),
                    _ => words,
                });
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

/// The sums before the first k.
#[inline(always)]
unsafe fn begin<const R: usize, const P: usize>(tile: &Tile) -> Sums<R, P> {
    // SAFETY: the contract of `Kernel::tile`: y has `width` columns.
    unsafe {
        let mut sums: Sums<R, P> = [[[_mm256_setzero_ps(); 2]; P]; R];
        if tile.store == Store::Continue {
            for row in 0..R {
                for panel in 0..P {
                    for half in 0..2 {
                        let start = panel * WORDS + half * 8;
                        let valid = tile.width.saturating_sub(start).min(8);
                        sums[row][panel][half] = load(tile.y[row].wrapping_add(start), valid);
                    }
                }
            }
        }
        sums
    }
}

/// Bring the sums to y.
#[inline(always)]
unsafe fn finish<const R: usize, const P: usize>(tile: &Tile, sums: &Sums<R, P>) {
    // SAFETY: the contract of `Kernel::tile`: y has `width` columns, ours alone.
    unsafe {
        for row in 0..R {
            for panel in 0..P {
                for half in 0..2 {
                    let start = panel * WORDS + half * 8;
                    let valid = tile.width.saturating_sub(start).min(8);
                    let y = tile.y[row].wrapping_add(start);
                    let sum = match tile.store {
                        Store::Overwrite | Store::Continue => sums[row][panel][half],
                        Store::AddScaled(scale) => {
                            _mm256_fmadd_ps(_mm256_set1_ps(scale), sums[row][panel][half], load(y, valid))
                        }
                    };
                    store(y, valid, sum);
                }
            }
        }
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
    unsafe { if valid == 8 { _mm256_loadu_ps(y) } else { _mm256_maskload_ps(y, mask(valid)) } }
}

#[inline(always)]
unsafe fn store(y: *mut f32, valid: usize, numbers: __m256) {
    // SAFETY: `valid` numbers are writable; a masked store touches no others.
    unsafe { if valid == 8 { _mm256_storeu_ps(y, numbers) } else { _mm256_maskstore_ps(y, mask(valid), numbers) } }
}
