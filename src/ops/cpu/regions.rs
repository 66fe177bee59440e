//! The parallel regions that many ops share.

use super::CpuBackend;
use super::gemm::{Chunks, InputForm, Inputs, prepare_row};
use super::memory::{Buffer, at_least};
use super::rows;
use crate::ops::{RowPlan, SiteTable};

impl CpuBackend {
    /// The first `count` rows of x in the form the GEMM reads.
    pub(super) fn prepare<'a>(&self, words: &'a mut Vec<u32>, x: &Buffer, count: usize) -> Inputs<'a> {
        let form = InputForm::of(self.isa, self.numerics);
        let stride = form.stride(x.cols);
        let words = at_least(words, count * stride);
        let rows_each = count.div_ceil(self.pool.threads() * 4).max(1);
        self.pool.for_blocks(count * x.cols, words, rows_each * stride, |block, words| {
            for (index, words) in words.chunks_exact_mut(stride).enumerate() {
                prepare_row(self.isa, form, x.row(block * rows_each + index), words);
            }
        });
        Inputs::new(words, form, x.cols)
    }

    /// Run all chunks of a GEMM, threads taking chunks.
    pub(super) fn multiply_chunks(&self, chunks: &Chunks<'_>) {
        self.pool.run(chunks.work(), chunks.len(), |chunk| {
            #[allow(unsafe_code)]
            // SAFETY: `run` calls with each chunk once; the caller of this op holds y.
            unsafe {
                chunks.compute(self.isa, chunk);
            }
        });
    }

    /// Call `body` with each of the first `rows` rows of y; `cost` is the work per number, in multiply-adds.
    pub(super) fn for_rows(&self, rows: usize, cost: usize, y: &mut Buffer, body: impl Fn(usize, &mut [f32]) + Sync) {
        let cols = y.cols.max(1);
        let rows_each = rows.div_ceil(self.pool.threads() * 4).max(1);
        self.pool.for_blocks(rows * cols * cost, &mut y.data[..rows * cols], rows_each * cols, |block, part| {
            for (index, row) in part.chunks_exact_mut(cols).enumerate() {
                body(block * rows_each + index, row);
            }
        });
    }

    /// Apply `op` to each number of y that a vector of the row's slot covers.
    pub(super) fn for_entries(
        &self,
        plan: &RowPlan,
        deltas: SiteTable<'_, Self>,
        y: &mut Buffer,
        op: impl Fn(&mut f32, f32) + Sync,
    ) {
        self.for_rows(plan.len(), 1, y, |row, y| {
            for entry in deltas.vectors(plan.slots[row]) {
                y[entry.columns.clone()].iter_mut().zip(&entry.values).for_each(|(y, value)| op(y, *value));
            }
        });
    }

    /// See [`rotate_outputs`](crate::ops::Backend::rotate_outputs).
    pub(super) fn turn_outputs(&self, plan: &RowPlan, deltas: SiteTable<'_, Self>, y: &mut Buffer) {
        self.for_rows(plan.len(), 2, y, |row, y| {
            for entry in deltas.column_rotations(plan.slots[row]) {
                rows::turn_pairs(self.isa, &entry.c, entry.group, &mut y[entry.columns.clone()]);
            }
        });
    }
}
