//! The experts of a sparse layer: every expert's weights are read once for all rows that chose it, on the tiles of the
//! GEMM.
//!
//! Three parallel regions for some experts at a time: gate and up of all their pairs, the activation with the inputs of
//! down, and down. Then each row adds what its experts gave, ascending, whichever of them came together: so it has the
//! same bits whatever other rows chose.
//!
//! Deltas of experts are added behind gate and up, and behind down, by the shrink and expand of low-rank deltas (`lowrank`):
//! pairs of an expert whose rows have one adapter are a segment there.
#![allow(unsafe_code)]

use std::ops::Range;

use super::CpuBackend;
use super::gemm::{InputForm, Inputs, Outputs, Part, Store, multiply, panels_each, prepare_row};
use super::lowrank::OfExperts;
use super::memory::Buffer;
use super::pack::{PANEL, PackedWeight};
use super::routes::{ExpertsWork, Task, choose};
use super::rows;
use super::scratch::{LowRankScratch, Scratch};
use crate::ops::{Expert, ExpertDeltas, ExpertsSpec, RowPlan, SiteTable};

/// Experts that are computed together, and which rows of their inputs and outputs are each one's.
#[derive(Clone)]
struct AtHand<'a> {
    experts: Range<usize>,
    firsts: &'a [u32],
}

impl AtHand<'_> {
    fn rows_of(&self, expert: usize) -> Range<usize> {
        let row = |expert: usize| (self.firsts[expert] - self.firsts[self.experts.start]) as usize;
        row(expert)..row(expert + 1)
    }

    /// Those that any row chose.
    fn chosen(&self) -> impl Iterator<Item = usize> {
        self.experts.clone().filter(|expert| !self.rows_of(*expert).is_empty())
    }
}

impl CpuBackend {
    /// See [`Backend::experts`](crate::ops::Backend::experts).
    #[allow(clippy::too_many_arguments)]
    pub(super) fn run_experts(
        &self,
        plan: &RowPlan,
        spec: &ExpertsSpec,
        logits: &Buffer,
        experts: &[Expert<Self>],
        deltas: ExpertDeltas<'_, Self>,
        x: &Buffer,
        work: &mut ExpertsWork,
        y: &mut Buffer,
    ) {
        let rows = plan.len();
        assert!(rows <= y.rows() && spec.experts == experts.len() && spec.experts == logits.cols);
        self.choose_experts(rows, spec, logits, work);
        work.group(rows, spec);
        let mut scratch = self.scratch();
        let Scratch { x: words, low_rank: scratch, .. } = &mut *scratch;
        let x = self.prepare(words, x, rows);
        let mut next = 0;
        while next < spec.experts {
            let at_hand = work.fitting(next, spec);
            next = at_hand.end;
            let mut added = Added { backend: self, plan, deltas, scratch };
            self.compute_experts(at_hand.clone(), spec, experts, &mut added, x, work, y.cols);
            self.add_experts(rows, at_hand, spec, work, y);
        }
    }

    fn choose_experts(&self, rows: usize, spec: &ExpertsSpec, logits: &Buffer, work: &mut ExpertsWork) {
        let each = spec.experts_per_token;
        let choices = &mut work.choices[..rows * each];
        let rows_each = rows.div_ceil(self.pool.threads() * 4).max(1);
        self.pool.for_blocks(rows * spec.experts * (8 + each), choices, rows_each * each, |block, choices| {
            for (index, choices) in choices.chunks_exact_mut(each).enumerate() {
                choose(self.isa, logits.row(block * rows_each + index), spec.renormalise, choices);
            }
        });
    }

    /// What some experts give, a row of the work's outputs for each of their pairs.
    #[allow(clippy::too_many_arguments)] // As the op's own.
    fn compute_experts(
        &self,
        experts_at_hand: Range<usize>,
        spec: &ExpertsSpec,
        experts: &[Expert<Self>],
        added: &mut Added<'_>,
        x: Inputs<'_>,
        work: &mut ExpertsWork,
        hidden: usize,
    ) {
        let pairs = work.pairs_of(experts_at_hand.clone());
        let ExpertsWork { pairs: rows_of_pairs, firsts, tasks, inner, words, outputs, .. } = work;
        let at_hand = AtHand { experts: experts_at_hand, firsts };
        let width = spec.intermediate_size;
        let inner = Outputs::new(inner, 2 * width, None);
        let rows = &rows_of_pairs[pairs.clone()];
        self.multiply_experts(&at_hand, |expert| &experts[expert].gate_up, x.with_map(rows), tasks, inner);
        added.add_to_gate_up(&at_hand, rows, x, inner);

        let form = InputForm::of(self.isa, self.numerics);
        let stride = form.stride(width);
        let words = &mut words[..pairs.len() * stride];
        let pairs_each = pairs.len().div_ceil(self.pool.threads() * 4).max(1);
        self.pool.for_blocks(pairs.len() * width * 8, words, pairs_each * stride, |block, words| {
            for (index, words) in words.chunks_exact_mut(stride).enumerate() {
                // SAFETY: `for_blocks` calls with each block once, so this row is this thread's alone.
                let (gate, up) = unsafe { inner.columns(block * pairs_each + index, 0, 2 * width) }.split_at_mut(width);
                rows::gate_in_place(self.isa, spec.activation, gate, up);
                prepare_row(self.isa, form, gate, words);
            }
        });
        let activated = Inputs::new(words, form, width);
        let outputs = Outputs::new(outputs, hidden, None);
        self.multiply_experts(&at_hand, |expert| &experts[expert].down, activated, tasks, outputs);
        added.add_to_down(&at_hand, rows, activated, outputs);
    }

    /// `y = W x` for the rows of each expert at hand, W being the expert's.
    fn multiply_experts<'w>(
        &self,
        at_hand: &AtHand<'_>,
        weight: impl Fn(usize) -> &'w PackedWeight + Sync,
        x: Inputs<'_>,
        tasks: &mut Vec<Task>,
        y: Outputs<'_>,
    ) {
        let threads = self.pool.threads();
        let panels: usize = at_hand.chosen().map(|expert| weight(expert).panels()).sum();
        let mut operations = 0;
        tasks.clear();
        for expert in at_hand.chosen() {
            let (rows, w) = (at_hand.rows_of(expert).len(), weight(expert));
            operations += rows * w.depth() * w.panels() * PANEL;
            let each = panels_each(panels, rows, threads);
            let starts = (0..w.panels()).step_by(each);
            tasks.extend(starts.map(|first| Task { expert, panels: first..(first + each).min(w.panels()) }));
        }
        self.pool.run(operations, tasks.len(), |index| {
            let Task { expert, panels } = &tasks[index];
            let part = Part {
                x,
                w: weight(*expert),
                panels: panels.clone(),
                rows: at_hand.rows_of(*expert),
                y,
                column: 0,
                store: Store::Overwrite,
            };
            // SAFETY: `run` calls with each task once. Experts have rows of their own, tasks of one expert other panels.
            unsafe { multiply(self.isa, &part) };
        });
    }

    /// Add what some experts gave to the rows that chose them.
    fn add_experts(&self, rows: usize, at_hand: Range<usize>, spec: &ExpertsSpec, work: &ExpertsWork, y: &mut Buffer) {
        let each = spec.experts_per_token;
        let first_pair = work.pairs_of(at_hand.clone()).start;
        self.for_rows(rows, each, y, |row, y| {
            if at_hand.start == 0 {
                y.fill(0.0);
            }
            let choices = &work.choices[row * each..][..each];
            for choice in choices.iter().filter(|choice| at_hand.contains(&(choice.expert as usize))) {
                let output = &work.outputs[(choice.pair as usize - first_pair) * y.len()..][..y.len()];
                y.iter_mut().zip(output).for_each(|(y, output)| *y += choice.weight * output);
            }
        });
    }
}

/// What adapters add to what experts give.
struct Added<'a> {
    backend: &'a CpuBackend,
    plan: &'a RowPlan,
    deltas: ExpertDeltas<'a, CpuBackend>,
    scratch: &'a mut LowRankScratch,
}

impl Added<'_> {
    /// To gate and up of the pairs at hand, of which `rows` are the rows of x.
    fn add_to_gate_up(&mut self, at_hand: &AtHand<'_>, rows: &[u32], x: Inputs<'_>, y: Outputs<'_>) {
        let Some(table) = self.deltas.gate_up else { return };
        if self.collect(table, at_hand, rows) {
            let LowRankScratch { rows: pairs, sources, .. } = &mut *self.scratch;
            sources.extend(pairs.iter().map(|pair| rows[*pair as usize]));
            self.add(OfExperts(table), x, y);
        }
    }

    /// To down of the pairs at hand, of which `x` has a row each.
    fn add_to_down(&mut self, at_hand: &AtHand<'_>, rows: &[u32], x: Inputs<'_>, y: Outputs<'_>) {
        let Some(table) = self.deltas.down else { return };
        if self.collect(table, at_hand, rows) {
            self.add(OfExperts(table), x, y);
        }
    }

    fn add(&mut self, table: OfExperts<'_>, x: Inputs<'_>, y: Outputs<'_>) {
        self.scratch.shrink(self.backend, table, x);
        self.scratch.round(self.backend, table);
        self.scratch.expand(self.backend, table, 1.0, y);
    }

    /// List the pairs of rows with each expert by adapter, where that has any of A and B for the expert; true if one has.
    fn collect(&mut self, table: SiteTable<'_, CpuBackend>, at_hand: &AtHand<'_>, rows: &[u32]) -> bool {
        let form = InputForm::of(self.backend.isa, self.backend.numerics);
        let scratch = &mut *self.scratch;
        scratch.clear();
        let mut by_slot = std::mem::take(&mut scratch.by_slot);
        for expert in at_hand.chosen() {
            let slots =
                at_hand.rows_of(expert).filter_map(|pair| Some((self.plan.slots[rows[pair] as usize]?, pair as u32)));
            by_slot.clear();
            by_slot.extend(slots);
            by_slot.sort_unstable();
            for of_slot in by_slot.chunk_by(|(slot, _), (next, _)| slot == next) {
                let slot = of_slot[0].0;
                let entries = table.pairs_of_expert(Some(slot), expert as u32);
                let first = scratch.rows.len();
                if !entries.is_empty() {
                    scratch.rows.extend(of_slot.iter().map(|(_, pair)| *pair));
                }
                scratch.add_segment(form, OfExperts(table), slot, first, entries);
            }
        }
        scratch.by_slot = by_slot;
        scratch.make_room()
    }
}
