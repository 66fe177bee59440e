//! Low-rank deltas of all adapters of a step in two parallel regions, on the base GEMM's tiles.
//!
//! *Shrink* computes v = A x for every (segment, entry), *expand* adds s · B v, both for all segments at once, however
//! many adapters there are. A segment of one row runs the code of a segment of many. Work is cut into tasks of rows and
//! panels; entries of one adapter that share output columns stay in one task, in order.
#![allow(unsafe_code)]

use std::ops::Range;

use super::CpuBackend;
use super::gemm::{InputForm, Inputs, Outputs, Part, Store, multiply, prepare_row};
use super::memory::{Buffer, at_least};
use super::pack::PANEL;
use crate::ops::{Backend, LowRank, RowPlan, SlotTable};
use crate::types::AdapterSlot;

/// Multiply-adds of a task worth handing out on its own.
const TASK_WORK: usize = 32 * 1024;
/// Most rows of a task that reads A.
const TASK_ROWS: usize = 48;

/// What a step needs in between, kept from step to step.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Rows of y of all segments with entries, segment by segment.
    rows: Vec<u32>,
    segments: Vec<Segment>,
    pairs: Vec<Pair>,
    tasks: Vec<Task>,
    /// x of `rows`.
    x: Vec<u32>,
    /// A x of all pairs.
    values: Vec<f32>,
    /// The same as inputs of the expand.
    words: Vec<u32>,
}

#[derive(Debug)]
struct Segment {
    slot: AdapterSlot,
    /// Range in [`Scratch::rows`].
    rows: Range<usize>,
    /// Range in [`Scratch::pairs`].
    pairs: Range<usize>,
}

/// A segment and one of its entries.
#[derive(Debug)]
struct Pair {
    segment: usize,
    entry: usize,
    /// Start of its v in [`Scratch::values`], rows [`value_stride`] apart.
    values: usize,
    /// Start of its v in [`Scratch::words`].
    words: usize,
}

#[derive(Debug)]
struct Task {
    pairs: Range<usize>,
    /// Rows counted from the segment's first.
    rows: Range<usize>,
    panels: Range<usize>,
}

fn value_stride(rank: usize) -> usize {
    rank.next_multiple_of(PANEL)
}

type Table = SlotTable<LowRank<CpuBackend>>;

impl CpuBackend {
    /// See [`Backend::low_rank`].
    pub(super) fn add_low_rank(&self, rows: &RowPlan, table: &Table, x: &Buffer, y: &mut Buffer) {
        let mut scratch = self.scratch();
        let scratch = &mut scratch.low_rank;
        if !scratch.collect(self, rows, table, |_| true) {
            return;
        }
        scratch.shrink(self, table, x);
        scratch.expand(self, table, 1.0, y);
    }

    /// See [`Backend::embedding_low_rank`]: the shrink is a row of A.
    pub(super) fn add_embedding_low_rank(
        &self,
        ids: &[Option<u32>],
        rows: &RowPlan,
        table: &Table,
        scale: f32,
        y: &mut Buffer,
    ) {
        let mut scratch = self.scratch();
        let scratch = &mut scratch.low_rank;
        if !scratch.collect(self, rows, table, |row| ids[row as usize].is_some()) {
            return;
        }
        scratch.look_up(table, ids);
        scratch.round(self, table);
        scratch.expand(self, table, scale, y);
    }
}

impl Scratch {
    /// List segments, their rows that are `wanted`, and pairs; true if there is something to do.
    fn collect(&mut self, backend: &CpuBackend, plan: &RowPlan, table: &Table, wanted: impl Fn(u32) -> bool) -> bool {
        self.rows.clear();
        self.segments.clear();
        self.pairs.clear();
        if table.is_empty() {
            return false;
        }
        assert_grouped(plan);
        let form = InputForm::of(backend.isa, backend.dtype());
        let (mut values, mut words) = (0, 0);
        for segment in &plan.segments {
            let entries = table.get(Some(segment.slot));
            let first = self.rows.len();
            if !entries.is_empty() {
                self.rows.extend(plan.rows_of(segment).iter().filter(|row| wanted(**row)));
            }
            let count = self.rows.len() - first;
            if count == 0 {
                continue;
            }
            let first_pair = self.pairs.len();
            for (entry, op) in entries.iter().enumerate() {
                assert!(op.b.columns() == op.columns.len() && op.b.depth() == op.rank, "B does not fit its entry");
                self.pairs.push(Pair { segment: self.segments.len(), entry, values, words });
                values += count * value_stride(op.rank);
                words += count * form.stride(op.rank);
            }
            let pairs = first_pair..self.pairs.len();
            self.segments.push(Segment { slot: segment.slot, rows: first..self.rows.len(), pairs });
        }
        at_least(&mut self.values, values);
        at_least(&mut self.words, words);
        !self.pairs.is_empty()
    }

    fn entry<'t>(segments: &[Segment], table: &'t Table, pair: &Pair) -> &'t LowRank<CpuBackend> {
        &table.get(Some(segments[pair.segment].slot))[pair.entry]
    }

    fn shrink(&mut self, backend: &CpuBackend, table: &Table, x: &Buffer) {
        let depth = x.cols;
        self.tasks.clear();
        let mut work = 0;
        for (index, pair) in self.pairs.iter().enumerate() {
            let op = Self::entry(&self.segments, table, pair);
            assert!(op.a.columns() == op.rank && op.a.depth() == depth, "A does not fit its entry");
            let rows = self.segments[pair.segment].rows.len();
            work += rows * depth * op.a.panels() * PANEL;
            cut(&mut self.tasks, index..index + 1, rows, TASK_ROWS, op.a.panels(), depth);
        }
        let inputs = backend.prepare(&mut self.x, x, self.rows.len(), Some(&self.rows));
        let (segments, pairs, tasks) = (&self.segments, &self.pairs, &self.tasks);
        let values = Outputs::new(&mut self.values, 0, None);
        backend.pool.run(work, tasks.len(), |index| {
            let task = &tasks[index];
            let pair = &pairs[task.pairs.start];
            let (segment, op) = (&segments[pair.segment], Self::entry(segments, table, pair));
            let part = Part {
                x: inputs.starting_at(segment.rows.start),
                w: &op.a,
                panels: task.panels.clone(),
                rows: task.rows.clone(),
                y: values.part(pair.values, value_stride(op.rank)),
                column: 0,
                store: Store::Overwrite,
            };
            // SAFETY: pairs have values of their own, and the tasks of a pair other rows or panels each.
            unsafe { multiply(backend.isa, backend.dtype(), &part) };
        });
        self.round(backend, table);
    }

    /// v as inputs of the expand: rounded in bf16 mode.
    fn round(&mut self, backend: &CpuBackend, table: &Table) {
        let form = InputForm::of(backend.isa, backend.dtype());
        for pair in &self.pairs {
            let rank = Self::entry(&self.segments, table, pair).rank;
            let (stride, value_stride) = (form.stride(rank), value_stride(rank));
            for row in 0..self.segments[pair.segment].rows.len() {
                let values = &self.values[pair.values + row * value_stride..][..rank];
                prepare_row(backend.isa, form, values, &mut self.words[pair.words + row * stride..][..stride]);
            }
        }
    }

    /// v of an embedding: the row of A at each row's id.
    fn look_up(&mut self, table: &Table, ids: &[Option<u32>]) {
        for pair in &self.pairs {
            let segment = &self.segments[pair.segment];
            let op = Self::entry(&self.segments, table, pair);
            assert_eq!(op.a.depth(), op.rank, "A does not fit its entry");
            let stride = value_stride(op.rank);
            for (index, row) in self.rows[segment.rows.clone()].iter().enumerate() {
                if let Some(id) = ids[*row as usize] {
                    op.a.widen_row(id as usize, 1.0, &mut self.values[pair.values + index * stride..]);
                }
            }
        }
    }

    fn expand(&mut self, backend: &CpuBackend, table: &Table, scale: f32, y: &mut Buffer) {
        self.tasks.clear();
        let mut work = 0;
        for segment in &self.segments {
            let rows = segment.rows.len();
            let entries = table.get(Some(segment.slot));
            work += entries.iter().map(|op| rows * op.rank * op.b.columns()).sum::<usize>();
            if overlap(entries) {
                self.tasks.push(Task { pairs: segment.pairs.clone(), rows: 0..rows, panels: 0..usize::MAX });
            } else {
                for index in segment.pairs.clone() {
                    let op = Self::entry(&self.segments, table, &self.pairs[index]);
                    cut(&mut self.tasks, index..index + 1, rows, rows, op.b.panels(), op.rank);
                }
            }
        }
        let form = InputForm::of(backend.isa, backend.dtype());
        let Self { rows, segments, pairs, tasks, words, .. } = self;
        let y = Outputs::new(&mut y.data, y.cols, None);
        backend.pool.run(work, tasks.len(), |index| {
            let task = &tasks[index];
            for pair in &pairs[task.pairs.clone()] {
                let (segment, op) = (&segments[pair.segment], Self::entry(segments, table, pair));
                let len = segment.rows.len() * form.stride(op.rank);
                let part = Part {
                    x: Inputs::new(&words[pair.words..][..len], form, op.rank),
                    w: &op.b,
                    panels: task.panels.start..task.panels.end.min(op.b.panels()),
                    rows: task.rows.clone(),
                    y: y.with_map(&rows[segment.rows.clone()]),
                    column: op.columns.start,
                    store: Store::AddScaled(scale * op.scaling),
                };
                // SAFETY: `assert_grouped` made every row belong to one segment; within a segment tasks hold other
                // columns each, or all entries are in one task.
                unsafe { multiply(backend.isa, backend.dtype(), &part) };
            }
        });
    }
}

/// Cut `rows` x `panels` of a weight of `depth` into tasks of about [`TASK_WORK`].
fn cut(tasks: &mut Vec<Task>, pairs: Range<usize>, rows: usize, rows_each: usize, panels: usize, depth: usize) {
    let work_of_panel = rows.min(rows_each) * depth * PANEL;
    // Tiles of few rows take several panels side by side: whole groups of them.
    let panels_each = (TASK_WORK / work_of_panel.max(1)).max(1).next_multiple_of(4);
    for row in (0..rows).step_by(rows_each) {
        for panel in (0..panels).step_by(panels_each) {
            tasks.push(Task {
                pairs: pairs.clone(),
                rows: row..(row + rows_each).min(rows),
                panels: panel..(panel + panels_each).min(panels),
            });
        }
    }
}

/// True if two entries write the same output column.
fn overlap(entries: &[LowRank<CpuBackend>]) -> bool {
    entries.iter().enumerate().any(|(index, one)| {
        entries[..index]
            .iter()
            .any(|other| one.columns.start < other.columns.end && other.columns.start < one.columns.end)
    })
}

/// Every row belongs to at most one segment: slots ascend, rows ascend within them and have that slot.
fn assert_grouped(plan: &RowPlan) {
    assert!(plan.segments.is_sorted_by(|a, b| a.slot < b.slot), "segments out of order");
    for segment in &plan.segments {
        let rows = plan.rows_of(segment);
        let own = rows.iter().all(|row| plan.slots[*row as usize] == Some(segment.slot));
        assert!(own && rows.is_sorted_by(|a, b| a < b), "rows of a segment out of order");
    }
}
