//! Rotations of inputs: a row at a time goes through its blocks, and from one rotation to the next by way of a second row.
//!
//! A number is one sum over the inputs of its block, ascending, in one lane, however many numbers are computed side by side.
//! Rows of one adapter next to each other take a block together, while it lies in the cache.
#![allow(unsafe_code)]

use std::mem::swap;

use super::CpuBackend;
use super::gemm::Outputs;
use super::isa::{Arithmetic, dispatched};
use super::memory::{Buffer, at_least};
use crate::ops::{ColumnVector, Rotation, RowPlan, SiteTable};
use crate::types::AdapterSlot;

type Table<'t> = SiteTable<'t, CpuBackend>;

impl CpuBackend {
    /// See [`rotate_input`](crate::ops::Backend::rotate_input).
    pub(super) fn rotate_rows(
        &self,
        rows: &RowPlan,
        scales: Option<Table<'_>>,
        rotations: Table<'_>,
        x: &Buffer,
        y: &mut Buffer,
    ) {
        let (count, cols) = (rows.len(), y.cols.max(1));
        let changes = |slot| Changes::of(slot, scales, rotations);
        let costs = rows.segments.iter().map(|segment| changes(Some(segment.slot)).cost());
        let (steps, work) = costs.fold((0, 1), max_of_both);
        let rows_each = count.div_ceil(self.pool.threads() * 4).max(1);
        let mut scratch = self.scratch();
        let between = if steps > 1 { count * cols } else { 0 };
        let between = Outputs::new(at_least(&mut scratch.rotated, between), rows_each * cols, None);
        self.pool.for_blocks(count * cols * work, &mut y.data[..count * cols], rows_each * cols, |block, y| {
            // SAFETY: `for_blocks` calls with each block once, and blocks are as far apart here as in y.
            let between = if steps > 1 { unsafe { between.columns(block, 0, y.len()) } } else { &mut [] };
            let (first, mut done) = (block * rows_each, 0);
            for run in rows.slots[first..first + y.len() / cols].chunk_by(PartialEq::eq) {
                let (start, end) = (done * cols, (done + run.len()) * cols);
                let between = between.get_mut(start..end).unwrap_or_default();
                let x = &x.data[first * cols..][start..end];
                changes(run[0]).apply(self, cols, x, &mut y[start..end], between);
                done += run.len();
            }
        });
    }
}

fn max_of_both(most: (usize, usize), one: (usize, usize)) -> (usize, usize) {
    (most.0.max(one.0), most.1.max(one.1))
}

/// What a slot does to the inputs of a site.
struct Changes<'t> {
    scales: &'t [ColumnVector<CpuBackend>],
    rotations: &'t [Rotation<CpuBackend>],
}

impl<'t> Changes<'t> {
    fn of(slot: Option<AdapterSlot>, scales: Option<Table<'t>>, rotations: Table<'t>) -> Self {
        Self { scales: scales.map_or(&[], |scales| scales.vectors(slot)), rotations: rotations.rotations(slot) }
    }

    /// Steps, and multiply-adds of a number.
    fn cost(&self) -> (usize, usize) {
        let steps = usize::from(!self.scales.is_empty()) + self.rotations.len();
        (steps, 1 + self.rotations.iter().map(|rotation| rotation.size).sum::<usize>())
    }

    /// Rows of x to rows of y, by way of as many in `between` where there are several steps.
    fn apply(&self, backend: &CpuBackend, cols: usize, x: &[f32], y: &mut [f32], between: &mut [f32]) {
        let (steps, _) = self.cost();
        // The last step ends in y, which is then the other one.
        let (mut to, mut other) = if steps % 2 == 1 { (y, between) } else { (between, y) };
        let mut is_first = true;
        if !self.scales.is_empty() {
            to.copy_from_slice(x);
            for to in to.chunks_exact_mut(cols) {
                for entry in self.scales {
                    to[entry.columns.clone()].iter_mut().zip(&entry.values).for_each(|(to, g)| *to *= g);
                }
            }
            swap(&mut to, &mut other);
            is_first = false;
        }
        for rotation in self.rotations {
            rotate(backend.isa, rotation, cols, if is_first { x } else { other }, to);
            swap(&mut to, &mut other);
            is_first = false;
        }
        if is_first {
            other.copy_from_slice(x);
        }
    }
}

dispatched! {
    /// `y = x R`, for rows of `cols` numbers.
    fn rotate(rotation: &Rotation<CpuBackend>, cols: usize, x: &[f32], y: &mut [f32]) = rotate_block_by_block
}

#[inline(always)]
fn rotate_block_by_block<A: Arithmetic>(rotation: &Rotation<CpuBackend>, cols: usize, x: &[f32], y: &mut [f32]) {
    let size = rotation.size;
    assert!(size > 0 && cols.is_multiple_of(size * rotation.interleaved), "blocks do not fit the inputs");
    // A block's inputs lie in two places, or in one.
    let cut = if rotation.interleaved == 1 { size } else { size / 2 };
    for block in 0..cols / size {
        let numbers = &rotation.blocks[rotation.first_number(block)..][..size * size];
        let first = rotation.input(block, 0);
        let second = if cut < size { rotation.input(block, cut) } else { first };
        for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)) {
            let x = [&x[first..][..cut], &x[second..][..size - cut]];
            columns::<A>(x, numbers, 0, &mut y[first..][..cut]);
            columns::<A>(x, numbers, cut, &mut y[second..][..size - cut]);
        }
    }
}

/// Some columns of x times a block, from column `from` on.
#[inline(always)]
fn columns<A: Arithmetic>(x: [&[f32]; 2], block: &[f32], mut from: usize, y: &mut [f32]) {
    let y = side_by_side::<A, 32>(x, block, &mut from, y);
    let y = side_by_side::<A, 8>(x, block, &mut from, y);
    let y = side_by_side::<A, 4>(x, block, &mut from, y);
    side_by_side::<A, 1>(x, block, &mut from, y);
}

/// As many columns as come in groups of `WIDE`; those that are left.
#[inline(always)]
fn side_by_side<'y, A: Arithmetic, const WIDE: usize>(
    x: [&[f32]; 2],
    block: &[f32],
    from: &mut usize,
    y: &'y mut [f32],
) -> &'y mut [f32] {
    let size = x[0].len() + x[1].len();
    let (groups, left) = y.as_chunks_mut::<WIDE>();
    for group in groups {
        let mut sums = [0.0; WIDE];
        let mut at = *from;
        for x in x {
            for x in x {
                let numbers = &block[at..][..WIDE];
                for lane in 0..WIDE {
                    sums[lane] = A::mul_add(*x, numbers[lane], sums[lane]);
                }
                at += size;
            }
        }
        *group = sums;
        *from += WIDE;
    }
    left
}
