//! Tiles in plain Rust, for machines without AVX2.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use super::tile::{Kernel, Store, Tile, WORDS, by_shape};
use crate::ops::cpu::isa::{Arithmetic, Plain};

/// f32 weights, or bf16 ones widened by a shift.
pub(in crate::ops::cpu) struct Portable<A, const BF16: bool>(PhantomData<A>);

impl<const BF16: bool> Kernel for Portable<Plain, BF16> {
    const ROWS: usize = 4;
    const ROW_BLOCK: usize = 96;
    const K_BLOCK: usize = 256;

    fn panels(_rows: usize) -> usize {
        1
    }

    unsafe fn tile(rows: usize, panels: usize, tile: &Tile) {
        // SAFETY: the caller keeps the contract of `Kernel::tile`.
        unsafe { by_shape!(tile_of, rows, panels, tile, [(1, 1), (2, 1), (3, 1), (4, 1)]) }
    }
}

unsafe fn tile_of<const BF16: bool, const R: usize, const P: usize>(tile: &Tile) {
    let width = tile.width.min(WORDS);
    let mut sums = [[0.0_f32; WORDS]; R];
    if tile.store == Store::Continue {
        for (sums, y) in sums.iter_mut().zip(tile.y) {
            // SAFETY: y is valid for `width` columns.
            unsafe { std::ptr::copy_nonoverlapping(y, sums.as_mut_ptr(), width) };
        }
    }
    for k in tile.k.clone() {
        let line = if BF16 { k / 2 } else { k };
        // SAFETY: w is readable over k; a line is 16 words.
        let words = unsafe { &*tile.w[0].add(line * WORDS).cast::<[u32; WORDS]>() };
        let w = words.map(|word| f32::from_bits(widen::<BF16>(word, k)));
        for (sums, x) in sums.iter_mut().zip(tile.x) {
            // SAFETY: x is readable over k.
            let x = f32::from_bits(unsafe { *x.add(k) });
            for lane in 0..WORDS {
                sums[lane] = Plain::mul_add(w[lane], x, sums[lane]);
            }
        }
    }
    for (sums, y) in sums.iter().zip(tile.y) {
        // SAFETY: y is valid for `width` columns and ours alone.
        let y = unsafe { std::slice::from_raw_parts_mut(y, width) };
        match tile.store {
            Store::Overwrite | Store::Continue => y.copy_from_slice(&sums[..width]),
            Store::AddScaled(scale) => y.iter_mut().zip(sums).for_each(|(y, sum)| *y = Plain::mul_add(scale, *sum, *y)),
        }
    }
}

#[inline(always)]
fn widen<const BF16: bool>(word: u32, k: usize) -> u32 {
    match (BF16, k % 2) {
        (false, _) => word,
        (true, 0) => word << 16,
        (true, _) => word & 0xffff_0000,
    }
}
