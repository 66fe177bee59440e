//! Full matrices of adapters, in one parallel region for all of a step, on the tiles of the GEMM: each is read once for all
//! rows of its adapter, and a row alone runs the code of many.
#![allow(unsafe_code)]

use super::CpuBackend;
use super::gemm::{Outputs, Part, Store, multiply, panels_each};
use super::lowrank::assert_grouped;
use super::memory::Buffer;
use super::pack::PANEL;
use super::scratch::{DenseTask, Scratch};
use crate::ops::{DenseMatrix, RowPlan, SiteTable};

type Table<'t> = SiteTable<'t, CpuBackend>;

impl CpuBackend {
    /// See [`dense`](crate::ops::Backend::dense).
    pub(super) fn multiply_dense(&self, plan: &RowPlan, table: Table<'_>, x: &Buffer, y: &mut Buffer) {
        assert!(plan.len() <= y.rows());
        assert_grouped(plan);
        let mut scratch = self.scratch();
        let Scratch { x: words, dense: tasks, .. } = &mut *scratch;
        let work = list(tasks, plan, table, x.cols, self.pool.threads());
        if tasks.is_empty() {
            return;
        }
        let x = self.prepare(words, x, plan.len());
        let y = Outputs::new(&mut y.data, y.cols, None);
        self.pool.run(work, tasks.len(), |index| {
            let task = &tasks[index];
            let segment = &plan.segments[task.segment];
            let (rows, op) = (plan.rows_of(segment), &table.dense(Some(segment.slot))[task.entry]);
            let part = Part {
                x: x.with_map(rows),
                w: &op.weight,
                panels: task.panels.clone(),
                rows: 0..rows.len(),
                y: y.with_map(rows),
                column: op.columns.start,
                store: if op.replaces { Store::Overwrite } else { Store::AddScaled(op.scaling) },
            };
            // SAFETY: `run` calls with each task once. `assert_grouped` made every row belong to one segment; within a
            // segment entries have columns of their own, which `list` asserted, and tasks of one entry other panels.
            unsafe { multiply(self.isa, &part) };
        });
    }
}

/// List the tasks; returns their multiply-adds.
fn list(tasks: &mut Vec<DenseTask>, plan: &RowPlan, table: Table<'_>, inputs: usize, threads: usize) -> usize {
    tasks.clear();
    let entries_of = |segment: usize| table.dense(Some(plan.segments[segment].slot));
    let all: usize = (0..plan.segments.len()).flat_map(entries_of).map(|op| op.weight.panels()).sum();
    let mut work = 0;
    for segment in 0..plan.segments.len() {
        let (rows, entries) = (plan.segments[segment].range.len(), entries_of(segment));
        assert!(are_apart(entries), "full matrices on the same columns");
        for (entry, op) in entries.iter().enumerate() {
            let w = &op.weight;
            assert!(w.columns() == op.columns.len() && w.depth() == inputs, "a full matrix does not fit its entry");
            work += rows * inputs * w.panels() * PANEL;
            let each = panels_each(all, rows, threads);
            let starts = (0..w.panels()).step_by(each);
            tasks.extend(starts.map(|first| {
                let panels = first..(first + each).min(w.panels());
                DenseTask { segment, entry, panels }
            }));
        }
    }
    work
}

/// True if no two entries write the same output column.
fn are_apart(entries: &[DenseMatrix<CpuBackend>]) -> bool {
    entries.iter().enumerate().all(|(index, one)| {
        let apart =
            |other: &DenseMatrix<_>| other.columns.end <= one.columns.start || one.columns.end <= other.columns.start;
        entries[..index].iter().all(apart)
    })
}
