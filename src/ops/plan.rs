//! What varies from step to step, as flat arrays built once per step on the host and uploaded at once.
//!
//! Running example used below: block size 4, three sequences. S0 decodes with adapter slot 2 (one row at KV index 5),
//! S1 prefills three tokens of the base from index 0, S2 decodes with slot 2 (one row at index 1).

use std::ops::Range;
use std::sync::Arc;

use crate::types::{AdapterSlot, Output, PooledVector};

/// Consecutive entries of [`RowPlan::order`] that share one adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The adapter; rows of the base form no segment.
    pub slot: AdapterSlot,
    /// Range in [`RowPlan::order`]. Example: slot 2 owns 0..2.
    pub range: Range<usize>,
}

/// Rows of a buffer and the adapter of each, grouped by slot once per step.
#[derive(Debug, Default, PartialEq)]
pub struct RowPlan {
    /// Adapter of each row. Example: `[Some(2), None, None, None, Some(2)]`.
    pub slots: Vec<Option<AdapterSlot>>,
    /// Rows that have an adapter, sorted by slot, ascending within it. Example: `[0, 4]`.
    pub order: Vec<u32>,
    /// Runs of `order` with one slot, ascending. Example: `[{slot 2, 0..2}]`.
    pub segments: Vec<Segment>,
}

impl RowPlan {
    /// Group rows by slot.
    #[must_use]
    pub fn new(slots: Vec<Option<AdapterSlot>>) -> Self {
        let mut plan = Self { slots, ..Self::default() };
        plan.group();
        plan
    }

    /// Group rows by slot anew, after `slots` has changed.
    pub fn group(&mut self) {
        let Self { slots, order, segments } = self;
        order.clear();
        order.extend((0..slots.len() as u32).filter(|row| slots[*row as usize].is_some()));
        order.sort_unstable_by_key(|row| (slots[*row as usize], *row));
        segments.clear();
        for (at, row) in order.iter().enumerate() {
            let Some(slot) = slots[*row as usize] else { continue };
            match segments.last_mut() {
                Some(last) if last.slot == slot => last.range.end = at + 1,
                _ => segments.push(Segment { slot, range: at..at + 1 }),
            }
        }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True without rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The rows of a segment, ascending.
    #[must_use]
    pub fn rows_of(&self, segment: &Segment) -> &[u32] {
        &self.order[segment.range.clone()]
    }
}

/// Which rows an op works on. Row `i` of its buffers is row `i` of these; how many they are, which adapters they have
/// and where they lie was uploaded with the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All rows of the step.
    All,
    /// The sampled rows of one group, by its place in [`StepPlan::sampled`].
    Sampled(usize),
    /// The pooled rows of one group, by its place in [`StepPlan::pooled`].
    Pooled(usize),
}

/// Sampled rows that go through the head together: their number bounds the logits.
#[derive(Debug, Default, PartialEq)]
pub struct SampledRows {
    /// Rows of the step, ascending. Example: `[0, 4]`.
    pub sources: Vec<u32>,
    /// Their adapters; row `i` here is row `sources[i]` of the step.
    pub rows: RowPlan,
}

impl SampledRows {
    /// Most rows of a group.
    pub const MOST: usize = 64;

    /// Groups of the rows `sampled` of a step, ascending.
    #[must_use]
    pub fn groups(step: &RowPlan, sampled: &[u32]) -> Vec<Self> {
        let mut groups = Vec::new();
        Self::group_into(&mut groups, step, sampled);
        groups
    }

    /// As [`Self::groups`], in the memory of other groups.
    pub fn group_into(groups: &mut Vec<Self>, step: &RowPlan, sampled: &[u32]) {
        groups.resize_with(sampled.len().div_ceil(Self::MOST), Self::default);
        for (group, sources) in groups.iter_mut().zip(sampled.chunks(Self::MOST)) {
            group.sources.clear();
            group.sources.extend_from_slice(sources);
            group.rows.slots.clear();
            group.rows.slots.extend(sources.iter().map(|row| step.slots[*row as usize]));
            group.rows.group();
        }
    }
}

/// Consecutive rows of a sequence that become one.
#[derive(Clone, Debug, PartialEq)]
pub struct PooledSpan {
    /// Rows of the step, at least one. More than one are summed.
    pub rows: Range<u32>,
    /// The sum that they go on from, as wide as they are; without one it begins with the first of them.
    pub onto: Option<PooledVector>,
    /// How many logits of the head of the rows' adapter are wanted; `None`: the row itself.
    pub labels: Option<u32>,
}

/// Pooled rows that go through the adapters' heads together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PooledRows {
    /// What becomes of each; row `i` of their buffers is made of span `i`.
    pub spans: Vec<PooledSpan>,
    /// Their adapters.
    pub rows: RowPlan,
}

impl PooledRows {
    /// Most rows of a group.
    pub const MOST: usize = SampledRows::MOST;

    /// Groups of the spans of a step, in their order; `spans` is empty then.
    #[must_use]
    pub fn groups(step: &RowPlan, spans: &mut Vec<PooledSpan>) -> Vec<Self> {
        let mut groups = Vec::new();
        while !spans.is_empty() {
            let rest = spans.split_off(spans.len().min(Self::MOST));
            let spans = std::mem::replace(spans, rest);
            let rows = RowPlan::new(spans.iter().map(|span| step.slots[span.rows.start as usize]).collect());
            groups.push(Self { spans, rows });
        }
        groups
    }
}

/// One sequence's rows and its KV pages.
#[derive(Clone, Debug, PartialEq)]
pub struct SequencePlan {
    /// Rows of the step. Example: S1 has 1..4.
    pub rows: Range<usize>,
    /// KV index of the first of them. Example: S0 has 5.
    pub start: u32,
    /// Block table: block `i` holds KV indices `i * block_size ..`. Shared with whoever keeps it from step to step, who can
    /// append without copying once the step has let go of it.
    pub blocks: Arc<Vec<u32>>,
}

/// All a step's kernels read besides weights and activations.
#[derive(Debug, Default, PartialEq)]
pub struct StepPlan {
    /// Rows of the pass and their adapters.
    pub rows: RowPlan,
    /// Token id of each row; absent for prompt embeddings.
    pub ids: Vec<Option<u32>>,
    /// KV index, and position, of each row. Example: `[5, 0, 1, 2, 1]`.
    pub positions: Vec<u32>,
    /// Row of the rotary tables of each row, where that is not its position; empty where all are. Tables of a model with
    /// two sets of frequencies lie one behind the other.
    pub rope_rows: Vec<u32>,
    /// Place in the KV cache of each row: `block * block_size + offset`.
    pub kv_slots: Vec<u32>,
    /// Sequences, in row order.
    pub sequences: Vec<SequencePlan>,
    /// Rows whose logits are wanted: a token is chosen from them, or a known one scored.
    pub sampled: Vec<SampledRows>,
    /// Rows whose hidden states are wanted.
    pub pooled: Vec<PooledRows>,
    /// What is wanted of the logits of each sampled row, in order; empty where they are only looked at.
    pub outputs: Vec<Output>,
}

/// Cloning into what was used before allocates nothing that it has room for already: this is what an upload is where the
/// device is the host.
macro_rules! clone_in_place {
    ($plan:ident { $($field:ident),* }) => {
        impl Clone for $plan {
            fn clone(&self) -> Self {
                Self { $($field: self.$field.clone()),* }
            }

            fn clone_from(&mut self, source: &Self) {
                let Self { $($field),* } = source;
                $(self.$field.clone_from($field);)*
            }
        }
    };
}

clone_in_place!(RowPlan { slots, order, segments });
clone_in_place!(SampledRows { sources, rows });
clone_in_place!(StepPlan { rows, ids, positions, rope_rows, kv_slots, sequences, sampled, pooled, outputs });

impl StepPlan {
    /// Empty it of rows and sequences, and keep the memory.
    pub fn clear(&mut self) {
        let Self { rows, ids, positions, rope_rows, kv_slots, sequences, sampled: _, pooled, outputs } = self;
        rows.slots.clear();
        rows.group();
        ids.clear();
        positions.clear();
        rope_rows.clear();
        kv_slots.clear();
        sequences.clear();
        pooled.clear();
        outputs.clear();
    }

    /// The step is over: let go of what it shares with those who keep it from step to step, so that they change it
    /// without copying it.
    pub fn release(&mut self) {
        self.sequences.clear();
        self.pooled.clear();
        self.outputs.clear();
    }

    /// The plan of the rows that an op works on.
    #[must_use]
    pub fn of(&self, rows: Rows) -> &RowPlan {
        match rows {
            Rows::All => &self.rows,
            Rows::Sampled(group) => &self.sampled[group].rows,
            Rows::Pooled(group) => &self.pooled[group].rows,
        }
    }

    /// Where a row lies among all of the step; the first of those that have become one.
    #[must_use]
    pub fn source(&self, rows: Rows, row: usize) -> usize {
        match rows {
            Rows::All => row,
            Rows::Sampled(group) => self.sampled[group].sources[row] as usize,
            Rows::Pooled(group) => self.pooled[group].spans[row].rows.start as usize,
        }
    }

    /// What is wanted of the logits of a group's rows.
    #[must_use]
    pub fn outputs_of(&self, group: usize) -> &[Output] {
        let first = self.sampled[..group].iter().map(|group| group.sources.len()).sum::<usize>();
        &self.outputs[first..][..self.sampled[group].sources.len()]
    }

    /// Row of the rotary tables of row `row`.
    #[must_use]
    pub fn rope_row(&self, row: usize) -> usize {
        self.rope_rows.get(row).unwrap_or(&self.positions[row]).to_owned() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sequences of one row each, both sampled.
    fn two_rows() -> StepPlan {
        let slots = vec![None, Some(AdapterSlot(1))];
        let rows = RowPlan::new(slots);
        StepPlan {
            ids: vec![Some(1), None],
            positions: vec![7, 8],
            rope_rows: vec![9, 10],
            kv_slots: vec![7, 18],
            sequences: (0..2)
                .map(|row| SequencePlan { rows: row..row + 1, start: 7, blocks: vec![row as u32].into() })
                .collect(),
            sampled: SampledRows::groups(&rows, &[0, 1]),
            pooled: Vec::new(),
            outputs: vec![Output::PromptLogprobs { target: 3, top: 1 }; 2],
            rows,
        }
    }

    #[test]
    fn a_plan_is_taken_over_whole_in_the_memory_of_another() {
        let (large, mut copy) = (two_rows(), StepPlan::default());
        copy.clone_from(&large);
        assert_eq!(copy, large);
        let memory = (copy.ids.as_ptr(), copy.rows.slots.as_ptr(), copy.sampled[0].sources.as_ptr());
        let small = StepPlan { ids: vec![None], rope_rows: Vec::new(), ..two_rows() };
        copy.clone_from(&small);
        assert_eq!(copy, small);
        assert_eq!((copy.ids.as_ptr(), copy.rows.slots.as_ptr(), copy.sampled[0].sources.as_ptr()), memory);
    }

    #[test]
    fn what_a_step_shares_is_its_owners_alone_when_it_is_over() {
        let mut plan = two_rows();
        let mut kept = plan.sequences[0].blocks.clone();
        assert!(Arc::get_mut(&mut kept).is_none());
        plan.release();
        assert!(Arc::get_mut(&mut kept).is_some());
        plan.clear();
        assert_eq!(StepPlan { sampled: Vec::new(), ..plan }, StepPlan::default());
    }

    #[test]
    fn rows_are_grouped_by_slot_and_stay_ascending() {
        let slot = |index| Some(AdapterSlot(index));
        let plan = RowPlan::new(vec![slot(2), None, slot(0), slot(2), None, slot(0)]);
        assert_eq!(plan.order, [2, 5, 0, 3]);
        assert_eq!(
            plan.segments,
            [Segment { slot: AdapterSlot(0), range: 0..2 }, Segment { slot: AdapterSlot(2), range: 2..4 }]
        );
        assert_eq!(plan.rows_of(&plan.segments[1]), [0, 3]);
        assert!(RowPlan::new(vec![None, None]).segments.is_empty());
    }

    #[test]
    fn sampled_rows_keep_their_adapters_and_outputs_through_the_groups() {
        let slots: Vec<_> = (0..200).map(|row| (row % 3 > 0).then_some(AdapterSlot(row % 3))).collect();
        let rows = RowPlan::new(slots.clone());
        let sampled: Vec<u32> = (0..200).step_by(2).collect();
        let output = |row: &u32| Output::PromptLogprobs { target: *row, top: 0 };
        let plan = StepPlan {
            sampled: SampledRows::groups(&rows, &sampled),
            outputs: sampled.iter().map(output).collect(),
            rows,
            ..StepPlan::default()
        };
        assert_eq!(plan.sampled.iter().map(|group| group.sources.len()).collect::<Vec<_>>(), [64, 36]);
        for (index, group) in plan.sampled.iter().enumerate() {
            assert_eq!(plan.outputs_of(index), group.sources.iter().map(output).collect::<Vec<_>>());
            let of_sources: Vec<_> = group.sources.iter().map(|row| slots[*row as usize]).collect();
            assert_eq!(plan.of(Rows::Sampled(index)).slots, of_sources);
        }
        assert_eq!(plan.of(Rows::All).slots, slots);
    }
}
