//! Sparse deltas of all adapters of a step in two parallel regions: rows of x that share an adapter are laid side by side,
//! rounded as GEMMs read them; then each output column is summed for all of them at once.
//!
//! S is walked once for up to [`MOST_LANES`] rows, so that prompts do not read it row by row.
#![allow(unsafe_code)]

use super::CpuBackend;
use super::gemm::Outputs;
use super::isa::{Arithmetic, dispatched};
use super::lowrank::assert_grouped;
use super::math::round_bf16_bits;
use super::memory::{Buffer, at_least};
use super::numerics::ComputeDtype;
use super::scratch::{SparseBlock, SparseScratch, SparseTask};
use super::sparse_matrix::{MOST_LANES, sum_outputs};
use crate::ops::{RowPlan, SiteTable};

/// Outputs whose sums are kept before they are added to y.
const TILE: usize = 64;
/// Multiply-adds of a task worth handing out on its own.
const TASK_WORK: usize = 32 * 1024;

type Table<'t> = SiteTable<'t, CpuBackend>;

impl CpuBackend {
    /// See [`sparse`](crate::ops::Backend::sparse).
    pub(super) fn add_sparse(&self, plan: &RowPlan, table: Table<'_>, x: &Buffer, y: &mut Buffer) {
        assert!(plan.len() <= y.rows());
        let mut scratch = self.scratch();
        let scratch = &mut scratch.sparse;
        scratch.collect(plan, table, x.cols, y.cols);
        scratch.lay_out(self, x);
        scratch.multiply(self, table, x.cols, Outputs::new(&mut y.data, y.cols, None));
    }
}

impl SparseScratch {
    /// List blocks and tasks.
    fn collect(&mut self, plan: &RowPlan, table: Table<'_>, inputs: usize, outputs: usize) {
        let Self { rows, blocks, tasks, x, work } = self;
        rows.clear();
        blocks.clear();
        tasks.clear();
        *work = 0;
        assert_grouped(plan);
        let mut numbers = 0;
        for segment in &plan.segments {
            let entries = table.sparse(Some(segment.slot));
            let held: usize = entries.iter().map(|entry| entry.matrix.numbers()).sum();
            for entry in entries {
                assert_eq!(entry.matrix.shape(), (inputs, entry.columns.len()), "S does not fit its entry");
            }
            for of_block in plan.rows_of(segment).chunks(MOST_LANES).filter(|_| held > 0) {
                let lanes = [1, 4].into_iter().find(|lanes| of_block.len() <= *lanes).unwrap_or(MOST_LANES);
                let each = outputs.div_ceil((held * lanes).div_ceil(TASK_WORK));
                let task = |first| SparseTask { block: blocks.len(), columns: first..(first + each).min(outputs) };
                tasks.extend((0..outputs).step_by(each).map(task));
                let first = rows.len();
                rows.extend_from_slice(of_block);
                blocks.push(SparseBlock { slot: segment.slot, rows: first..rows.len(), lanes, x: numbers });
                numbers += inputs * lanes;
                *work += held * lanes;
            }
        }
        at_least(x, numbers);
    }

    /// x of every block, rounded, the numbers of one input side by side.
    fn lay_out(&mut self, backend: &CpuBackend, x: &Buffer) {
        let Self { rows, blocks, x: laid_out, .. } = self;
        let is_rounded = backend.numerics.compute == ComputeDtype::Bf16;
        let to = Outputs::new(laid_out, 0, None);
        backend.pool.run(rows.len() * x.cols, blocks.len(), |index| {
            let block = &blocks[index];
            let numbers = x.cols * block.lanes;
            let own = to.part(block.x, numbers);
            // SAFETY: `run` calls with each block once, and blocks have numbers of their own.
            let to = unsafe { own.columns(0, 0, numbers) };
            for (lane, row) in rows[block.rows.clone()].iter().enumerate() {
                lay_row(backend.isa, is_rounded, x.row(*row as usize), block.lanes, &mut to[lane..]);
            }
        });
    }

    fn multiply(&self, backend: &CpuBackend, table: Table<'_>, inputs: usize, y: Outputs<'_>) {
        backend.pool.run(self.work, self.tasks.len(), |index| {
            let task = &self.tasks[index];
            let SparseBlock { slot, rows, lanes, x } = &self.blocks[task.block];
            let x = &self.x[*x..][..inputs * lanes];
            for entry in table.sparse(Some(*slot)) {
                let end = task.columns.end.min(entry.columns.end);
                for first in (task.columns.start.max(entry.columns.start)..end).step_by(TILE) {
                    let outputs = first - entry.columns.start..end.min(first + TILE) - entry.columns.start;
                    let mut sums = [0.0; TILE * MOST_LANES];
                    sum_outputs(backend.isa, &entry.matrix, outputs.clone(), x, *lanes, &mut sums);
                    for (lane, row) in self.rows[rows.clone()].iter().enumerate() {
                        // SAFETY: `assert_grouped` made every row belong to one segment, so to one block; the tasks of a block
                        // hold other columns each.
                        let y = unsafe { y.columns(*row as usize, first, outputs.len()) };
                        for (at, (y, output)) in y.iter_mut().zip(outputs.clone()).enumerate() {
                            if !entry.matrix.held(output).is_empty() {
                                *y += sums[at * lanes + lane];
                            }
                        }
                    }
                }
            }
        });
    }
}

dispatched! {
    /// Write a row of x, its numbers `lanes` apart.
    fn lay_row(is_rounded: bool, x: &[f32], lanes: usize, to: &mut [f32]) = lay
}

#[inline(always)]
fn lay<A: Arithmetic>(is_rounded: bool, x: &[f32], lanes: usize, to: &mut [f32]) {
    for (to, x) in to.iter_mut().step_by(lanes).zip(x) {
        *to = if is_rounded { f32::from_bits(round_bf16_bits(*x)) } else { *x };
    }
}
