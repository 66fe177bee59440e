//! What varies from step to step, as flat arrays built once per step on the host and uploaded at once.
//!
//! Running example used below: block size 4, three sequences. S0 decodes with adapter slot 2 (one row at KV index 5),
//! S1 prefills three tokens of the base from index 0, S2 decodes with slot 2 (one row at index 1).

use std::ops::Range;

use crate::types::{AdapterSlot, Output};

/// Consecutive entries of [`RowPlan::order`] that share one adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The adapter; rows of the base form no segment.
    pub slot: AdapterSlot,
    /// Range in [`RowPlan::order`]. Example: slot 2 owns 0..2.
    pub range: Range<usize>,
}

/// Rows of a buffer and the adapter of each, grouped by slot once per step.
#[derive(Clone, Debug, Default, PartialEq)]
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
        let mut keyed: Vec<(AdapterSlot, u32)> =
            slots.iter().enumerate().filter_map(|(row, slot)| slot.map(|slot| (slot, row as u32))).collect();
        keyed.sort_unstable();
        let mut segments: Vec<Segment> = Vec::new();
        for (at, (slot, _)) in keyed.iter().enumerate() {
            match segments.last_mut() {
                Some(last) if last.slot == *slot => last.range.end = at + 1,
                _ => segments.push(Segment { slot: *slot, range: at..at + 1 }),
            }
        }
        let order = keyed.into_iter().map(|(_, row)| row).collect();
        Self { slots, order, segments }
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
}

/// Sampled rows that go through the head together: their number bounds the logits.
#[derive(Clone, Debug, PartialEq)]
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
        let group = |sources: &[u32]| {
            let slots = sources.iter().map(|row| step.slots[*row as usize]).collect();
            Self { sources: sources.to_vec(), rows: RowPlan::new(slots) }
        };
        sampled.chunks(Self::MOST).map(group).collect()
    }
}

/// One sequence's rows and its KV pages.
#[derive(Clone, Debug, PartialEq)]
pub struct SequencePlan {
    /// Rows of the step. Example: S1 has 1..4.
    pub rows: Range<usize>,
    /// KV index of the first of them. Example: S0 has 5.
    pub start: u32,
    /// Block table: block `i` holds KV indices `i * block_size ..`.
    pub blocks: Vec<u32>,
}

/// All a step's kernels read besides weights and activations.
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// What is wanted of the logits of each sampled row, in order; empty where they are only looked at.
    pub outputs: Vec<Output>,
}

impl StepPlan {
    /// The plan of the rows that an op works on.
    #[must_use]
    pub fn of(&self, rows: Rows) -> &RowPlan {
        match rows {
            Rows::All => &self.rows,
            Rows::Sampled(group) => &self.sampled[group].rows,
        }
    }

    /// Where a row lies among all of the step.
    #[must_use]
    pub fn source(&self, rows: Rows, row: usize) -> usize {
        match rows {
            Rows::All => row,
            Rows::Sampled(group) => self.sampled[group].sources[row] as usize,
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
