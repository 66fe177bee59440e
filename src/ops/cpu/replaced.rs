//! Rows of a matrix that adapters have in place of the base's: of the embedding, looked up; of the head, multiplied.
//!
//! The columns that an entry replaces lie anywhere in y, so its sums are computed side by side and whoever has computed
//! some puts them where they belong. They are the sums of `gemm`: a row in place of an equal one changes no bit.
#![allow(unsafe_code)]

use super::CpuBackend;
use super::gemm::{Outputs, Part, Store, multiply};
use super::lowrank::{TASK_ROWS, assert_grouped, cut};
use super::memory::{Buffer, at_least};
use super::pack::PANEL;
use super::scratch::{LowRankScratch, Pair, Scratch};
use crate::ops::{RowPlan, SiteTable};

impl CpuBackend {
    /// See [`replace_embeddings`](crate::ops::Backend::replace_embeddings).
    pub(super) fn embed_replaced(
        &self,
        ids: &[Option<u32>],
        rows: &RowPlan,
        table: SiteTable<'_, Self>,
        scale: f32,
        y: &mut Buffer,
    ) {
        self.for_rows(ids.len(), 8, y, |row, y| {
            if let (Some(id), Some(entry)) = (ids[row], table.replaced(rows.slots[row]).first())
                && let Ok(index) = entry.ids.binary_search(&id)
            {
                entry.rows.widen_row(index, scale, y);
            }
        });
    }

    /// See [`replace_columns`](crate::ops::Backend::replace_columns).
    pub(super) fn multiply_replaced(&self, rows: &RowPlan, table: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        let mut scratch = self.scratch();
        let Scratch { x: words, low_rank: scratch, .. } = &mut *scratch;
        let Some(work) = scratch.list_replaced(rows, table, x.cols) else { return };
        let LowRankScratch { pairs, tasks, values, .. } = &mut *scratch;
        let x = self.prepare(words, x, rows.len());
        let (values, y) = (Outputs::new(values, 0, None), Outputs::new(&mut y.data, y.cols, None));
        self.pool.run(work, tasks.len(), |index| {
            let task = &tasks[index];
            let pair = &pairs[task.pairs.start];
            let segment = &rows.segments[pair.segment];
            let Some(entry) = table.replaced(Some(segment.slot)).first() else { return };
            let sums = values.part(pair.values, entry.rows.panels() * PANEL);
            let part = Part {
                x: x.with_map(rows.rows_of(segment)),
                w: &entry.rows,
                panels: task.panels.clone(),
                rows: task.rows.clone(),
                y: sums,
                column: 0,
                store: Store::Overwrite,
            };
            let columns = task.panels.start * PANEL..entry.ids.len().min(task.panels.end * PANEL);
            // SAFETY: entries have sums of their own, and the tasks of one other rows or panels each. Every row belongs to
            // one segment, and an entry has an id once (both asserted), so other tasks write other numbers of y, too.
            unsafe {
                multiply(self.isa, &part);
                for row in task.rows.clone() {
                    let sums = sums.columns(row, columns.start, columns.len());
                    let target = rows.rows_of(segment)[row] as usize;
                    for (id, sum) in entry.ids[columns.clone()].iter().zip(sums) {
                        y.at(target, *id as usize, 1).write(*sum);
                    }
                }
            }
        });
    }
}

impl LowRankScratch {
    /// List segments with rows at the site as pairs, and tasks; the multiply-adds of all of them.
    fn list_replaced(&mut self, plan: &RowPlan, table: SiteTable<'_, CpuBackend>, depth: usize) -> Option<usize> {
        assert_grouped(plan);
        self.pairs.clear();
        self.tasks.clear();
        let (mut values, mut work) = (0, 0);
        for (index, segment) in plan.segments.iter().enumerate() {
            let Some(entry) = table.replaced(Some(segment.slot)).first() else { continue };
            let ascending = entry.ids.is_sorted_by(|a, b| a < b);
            let fits = entry.rows.columns() == entry.ids.len() && entry.rows.depth() == depth;
            assert!(ascending && fits, "rows do not fit their entry");
            let (count, panels, pair) = (segment.range.len(), entry.rows.panels(), self.pairs.len());
            self.pairs.push(Pair { segment: index, entry: 0, values, words: 0 });
            cut(&mut self.tasks, pair..pair + 1, count, TASK_ROWS, panels, depth);
            values += count * panels * PANEL;
            work += count * panels * PANEL * depth;
        }
        at_least(&mut self.values, values);
        (work > 0).then_some(work)
    }
}
