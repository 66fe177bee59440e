//! Low-rank deltas of all adapters of a step in two parallel regions, the second shared with the base's GEMM, on its
//! tiles.
//!
//! *Shrink* computes v = A x for every (segment, entry), *expand* adds s · B v, both for all segments at once, however
//! many adapters there are. With a base, whoever has computed some columns of y adds the deltas of those columns at once:
//! another thread would first have to fetch them. A segment of one row runs the code of a segment of many. Work is cut into tasks of rows and
//! panels; entries of one adapter that share output columns stay in one task, in order.
#![allow(unsafe_code)]

use std::ops::Range;

use super::CpuBackend;
use super::gemm::{Chunks, InputForm, Inputs, Outputs, Part, Store, ask_for, multiply, prepare_row};
use super::memory::{Buffer, at_least};
use super::pack::{PANEL, PackedWeight};
use super::scratch::{LowRankScratch, Pair, Scratch, Segment, Task};
use crate::ops::{LowRankPair, RowPlan, SiteTable};
use crate::types::AdapterSlot;

/// Multiply-adds of a task worth handing out on its own.
const TASK_WORK: usize = 32 * 1024;
/// Most rows of a step that asks for B ahead of its use.
const ASKING_ROWS: usize = 32;
/// Most rows of a task that reads A, or rows in place of the base's.
pub(super) const TASK_ROWS: usize = 48;

fn value_stride(rank: usize) -> usize {
    rank.next_multiple_of(PANEL)
}

type Table<'t> = SiteTable<'t, CpuBackend>;

/// Where a slot's pairs of A and B lie.
pub(super) trait Pairs<'t>: Copy + Sync {
    fn pair(self, slot: AdapterSlot, entry: usize) -> &'t LowRankPair<CpuBackend>;
}

impl<'t> Pairs<'t> for Table<'t> {
    fn pair(self, slot: AdapterSlot, entry: usize) -> &'t LowRankPair<CpuBackend> {
        &self.low_rank(Some(slot))[entry]
    }
}

/// Those of experts.
#[derive(Clone, Copy)]
pub(super) struct OfExperts<'t>(pub(super) Table<'t>);

impl<'t> Pairs<'t> for OfExperts<'t> {
    fn pair(self, slot: AdapterSlot, entry: usize) -> &'t LowRankPair<CpuBackend> {
        &self.0.expert_pairs(Some(slot))[entry].pair
    }
}

impl CpuBackend {
    /// See [`low_rank`](crate::ops::Backend::low_rank); with a base, [`gemm_low_rank`](crate::ops::Backend::gemm_low_rank).
    pub(super) fn add_low_rank(
        &self,
        rows: &RowPlan,
        table: Table<'_>,
        x: &Buffer,
        base: Option<&PackedWeight>,
        y: &mut Buffer,
    ) {
        assert!(rows.len() <= y.rows());
        let mut scratch = self.scratch();
        let Scratch { x: words, low_rank: scratch, .. } = &mut *scratch;
        let found = scratch.collect(self, rows, table, |_| true);
        if !found && base.is_none() {
            return;
        }
        let x = self.prepare(words, x, rows.len());
        scratch.shrink(self, table, x);
        scratch.round(self, table);
        let y = Outputs::new(&mut y.data, y.cols, None);
        if let Some(w) = base {
            scratch.expand_with(self, table, &Chunks::new(x, rows.len(), w, 0..w.panels(), y, self.pool.threads()), y);
        }
        scratch.expand(self, table, 1.0, y);
    }

    /// See [`embedding_low_rank`](crate::ops::Backend::embedding_low_rank): the shrink is a row of A.
    pub(super) fn add_embedding_low_rank(
        &self,
        ids: &[Option<u32>],
        rows: &RowPlan,
        table: Table<'_>,
        scale: f32,
        y: &mut Buffer,
    ) {
        let mut scratch = self.scratch();
        let scratch = &mut scratch.low_rank;
        let has = |id: u32, row: u32| {
            let entries = table.low_rank(rows.slots[row as usize]);
            entries.iter().all(|entry| (id as usize) < entry.a.columns())
        };
        if !scratch.collect(self, rows, table, |row| ids[row as usize].is_some_and(|id| has(id, row))) {
            return;
        }
        scratch.look_up(table, ids);
        scratch.round(self, table);
        scratch.expand(self, table, scale, Outputs::new(&mut y.data, y.cols, None));
    }
}

impl LowRankScratch {
    /// List segments, their rows that are `wanted`, and pairs; true if there is something to do.
    pub(super) fn collect(
        &mut self,
        backend: &CpuBackend,
        plan: &RowPlan,
        table: Table<'_>,
        wanted: impl Fn(u32) -> bool,
    ) -> bool {
        self.clear();
        assert_grouped(plan);
        let form = InputForm::of(backend.isa, backend.numerics);
        for segment in &plan.segments {
            let entries = table.low_rank(Some(segment.slot)).len();
            let first = self.rows.len();
            if entries > 0 {
                self.rows.extend(plan.rows_of(segment).iter().filter(|row| wanted(**row)));
            }
            self.add_segment(form, table, segment.slot, first, 0..entries);
        }
        self.make_room()
    }

    /// Forget all segments.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.sources.clear();
        self.segments.clear();
        self.pairs.clear();
        self.room = (0, 0);
    }

    /// Make the rows from `first` on a segment with some entries of its slot, where there are any of both.
    pub(super) fn add_segment<'t>(
        &mut self,
        form: InputForm,
        table: impl Pairs<'t>,
        slot: AdapterSlot,
        first: usize,
        entries: Range<usize>,
    ) {
        let count = self.rows.len() - first;
        if count == 0 || entries.is_empty() {
            return;
        }
        let first_pair = self.pairs.len();
        for entry in entries {
            let op = table.pair(slot, entry);
            assert!(op.b.columns() == op.columns.len() && op.b.depth() == op.rank, "B does not fit its entry");
            let (values, words) = self.room;
            self.pairs.push(Pair { segment: self.segments.len(), entry, values, words });
            self.room = (values + count * value_stride(op.rank), words + count * form.stride(op.rank));
        }
        let pairs = first_pair..self.pairs.len();
        self.segments.push(Segment { slot, rows: first..self.rows.len(), pairs, fused: false });
    }

    /// Room for v of all segments; true if there are any.
    pub(super) fn make_room(&mut self) -> bool {
        let (values, words) = self.room;
        at_least(&mut self.values, values);
        at_least(&mut self.words, words);
        !self.pairs.is_empty()
    }

    fn entry<'t>(segments: &[Segment], table: impl Pairs<'t>, pair: &Pair) -> &'t LowRankPair<CpuBackend> {
        table.pair(segments[pair.segment].slot, pair.entry)
    }

    /// v = A x of all pairs.
    pub(super) fn shrink<'t>(&mut self, backend: &CpuBackend, table: impl Pairs<'t>, x: Inputs<'_>) {
        let depth = x.depth();
        self.tasks.clear();
        let mut work = 0;
        for (index, pair) in self.pairs.iter().enumerate() {
            let op = Self::entry(&self.segments, table, pair);
            assert!(op.a.columns() == op.rank && op.a.depth() == depth, "A does not fit its entry");
            let rows = self.segments[pair.segment].rows.len();
            work += rows * depth * op.a.panels() * PANEL;
            cut(&mut self.tasks, index..index + 1, rows, TASK_ROWS, op.a.panels(), depth);
        }
        let Self { rows, sources, segments, pairs, tasks, values, .. } = self;
        let rows = if sources.is_empty() { rows } else { sources };
        let values = Outputs::new(values, 0, None);
        backend.pool.run(work, tasks.len(), |index| {
            let task = &tasks[index];
            let pair = &pairs[task.pairs.start];
            let (segment, op) = (&segments[pair.segment], Self::entry(segments, table, pair));
            let part = Part {
                x: x.with_map(&rows[segment.rows.clone()]),
                w: &op.a,
                panels: task.panels.clone(),
                rows: task.rows.clone(),
                y: values.part(pair.values, value_stride(op.rank)),
                column: 0,
                store: Store::Overwrite,
            };
            // SAFETY: pairs have values of their own, and the tasks of a pair other rows or panels each.
            unsafe { multiply(backend.isa, &part) };
        });
    }

    /// Call `body` with the slot and v of every row of every pair.
    pub(super) fn each_shrunk(&mut self, table: Table<'_>, body: impl Fn(AdapterSlot, &mut [f32])) {
        for pair in &self.pairs {
            let rank = Self::entry(&self.segments, table, pair).rank;
            let Segment { slot, rows, .. } = &self.segments[pair.segment];
            let values = &mut self.values[pair.values..][..rows.len() * value_stride(rank)];
            values.chunks_exact_mut(value_stride(rank)).for_each(|values| body(*slot, &mut values[..rank]));
        }
    }

    /// v as inputs of the expand: rounded in bf16 mode.
    pub(super) fn round<'t>(&mut self, backend: &CpuBackend, table: impl Pairs<'t>) {
        let form = InputForm::of(backend.isa, backend.numerics);
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
    fn look_up(&mut self, table: Table<'_>, ids: &[Option<u32>]) {
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

    /// The base's GEMM, and s · B v of every segment whose panels are the base's own.
    fn expand_with(&mut self, backend: &CpuBackend, table: Table<'_>, base: &Chunks<'_>, y: Outputs<'_>) {
        let mut work = base.work();
        for segment in &mut self.segments {
            let entries = table.low_rank(Some(segment.slot));
            segment.fused = entries.iter().all(|op| base.aligns(&op.columns));
            work += entries.iter().map(|op| segment.rows.len() * op.rank * op.b.columns()).sum::<usize>();
        }
        let this = &*self;
        // The base's sums leave memory time to spare: with few rows, B can come meanwhile.
        let few_rows = base.rows() <= ASKING_ROWS;
        backend.pool.run(work, base.len(), |chunk| {
            if few_rows {
                this.fused_parts(table, base, chunk).for_each(|(pair, panels)| {
                    let b = &Self::entry(&this.segments, table, pair).b;
                    ask_for(&b.lines()[panels.start * b.panel_stride()..panels.end * b.panel_stride()]);
                });
            }
            // SAFETY: `run` calls with each chunk once, so its columns of y are this thread's alone. No panel of a
            // fused B reaches beyond them: its panels are the base's, of which the chunk holds whole ones.
            unsafe {
                base.compute(backend.isa, chunk);
                for (pair, panels) in this.fused_parts(table, base, chunk) {
                    let rows = 0..this.segments[pair.segment].rows.len();
                    this.add_product(backend, table, pair, rows, panels, 1.0, y);
                }
            }
        });
    }

    /// The fused pairs that write columns of a chunk, and the panels of their B that do.
    fn fused_parts<'a>(
        &'a self,
        table: Table<'a>,
        base: &'a Chunks<'_>,
        chunk: usize,
    ) -> impl Iterator<Item = (&'a Pair, Range<usize>)> {
        base.columns_of(chunk).flat_map(move |columns| {
            self.pairs.iter().filter(|pair| self.segments[pair.segment].fused).filter_map(move |pair| {
                let held = &Self::entry(&self.segments, table, pair).columns;
                let first = columns.start.max(held.start) - held.start;
                let end = columns.end.min(held.end).saturating_sub(held.start);
                (first < end).then(|| (pair, first / PANEL..end.div_ceil(PANEL)))
            })
        })
    }

    /// s · B v of every segment that has not been expanded with the base.
    pub(super) fn expand<'t>(&mut self, backend: &CpuBackend, table: impl Pairs<'t>, scale: f32, y: Outputs<'_>) {
        self.tasks.clear();
        let mut work = 0;
        for segment in self.segments.iter().filter(|segment| !segment.fused) {
            let rows = segment.rows.len();
            let entry = |pair: &Pair| table.pair(segment.slot, pair.entry);
            let entries = self.pairs[segment.pairs.clone()].iter().map(entry);
            work += entries.clone().map(|op| rows * op.rank * op.b.columns()).sum::<usize>();
            if overlap(entries) {
                self.tasks.push(Task { pairs: segment.pairs.clone(), rows: 0..rows, panels: 0..usize::MAX });
            } else {
                for index in segment.pairs.clone() {
                    let op = Self::entry(&self.segments, table, &self.pairs[index]);
                    cut(&mut self.tasks, index..index + 1, rows, rows, op.b.panels(), op.rank);
                }
            }
        }
        let this = &*self;
        backend.pool.run(work, this.tasks.len(), |index| {
            let task = &this.tasks[index];
            for pair in &this.pairs[task.pairs.clone()] {
                let panels = Self::entry(&this.segments, table, pair).b.panels();
                let panels = task.panels.start..task.panels.end.min(panels);
                // SAFETY: every row belongs to one segment, by `assert_grouped` or, of experts, because a pair of a row
                // and an expert has one slot; within a segment tasks hold other columns each, or all entries are in one task.
                unsafe { this.add_product(backend, table, pair, task.rows.clone(), panels, scale, y) };
            }
        });
    }

    /// y += scale · s · B v for some rows of a pair's segment and some panels of its B.
    ///
    /// # Safety
    /// No other thread touches the columns of those panels in those rows of y meanwhile.
    #[allow(clippy::too_many_arguments)]
    unsafe fn add_product<'t>(
        &self,
        backend: &CpuBackend,
        table: impl Pairs<'t>,
        pair: &Pair,
        rows: Range<usize>,
        panels: Range<usize>,
        scale: f32,
        y: Outputs<'_>,
    ) {
        let (segment, op) = (&self.segments[pair.segment], Self::entry(&self.segments, table, pair));
        let form = InputForm::of(backend.isa, backend.numerics);
        let len = segment.rows.len() * form.stride(op.rank);
        let part = Part {
            x: Inputs::new(&self.words[pair.words..][..len], form, op.rank),
            w: &op.b,
            panels,
            rows,
            y: y.with_map(&self.rows[segment.rows.clone()]),
            column: op.columns.start,
            store: Store::AddScaled(scale * op.scaling),
        };
        // SAFETY: handed on.
        unsafe { multiply(backend.isa, &part) };
    }
}

/// Cut `rows` x `panels` of a weight of `depth` into tasks of about [`TASK_WORK`].
pub(super) fn cut(
    tasks: &mut Vec<Task>,
    pairs: Range<usize>,
    rows: usize,
    rows_each: usize,
    panels: usize,
    depth: usize,
) {
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
fn overlap<'t>(entries: impl Iterator<Item = &'t LowRankPair<CpuBackend>> + Clone) -> bool {
    entries.clone().enumerate().any(|(index, one)| {
        let mut before = entries.clone().take(index);
        before.any(|other| one.columns.start < other.columns.end && other.columns.start < one.columns.end)
    })
}

/// Every row belongs to at most one segment: slots ascend, rows ascend within them and have that slot.
pub(super) fn assert_grouped(plan: &RowPlan) {
    assert!(plan.segments.is_sorted_by(|a, b| a.slot < b.slot), "segments out of order");
    for segment in &plan.segments {
        let rows = plan.rows_of(segment);
        let own = rows.iter().all(|row| plan.slots[*row as usize] == Some(segment.slot));
        assert!(own && rows.is_sorted_by(|a, b| a < b), "rows of a segment out of order");
    }
}
