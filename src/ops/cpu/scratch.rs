//! Memory of ops between two regions, kept from step to step.

use std::ops::Range;

use super::attention::Item;
use super::pack::Line;
use crate::ops::SampleOutcome;
use crate::sampler::Sampler;
use crate::types::AdapterSlot;

/// Memory of ops between two regions, kept from step to step: large enough once, it is not allocated again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) x: Vec<u32>,
    /// Rows between two rotations.
    pub(super) rotated: Vec<f32>,
    pub(super) items: Vec<Item>,
    /// What every thread needs for an item of attention.
    pub(super) attention: Vec<Line>,
    pub(super) low_rank: LowRankScratch,
    pub(super) sparse: SparseScratch,
    pub(super) dense: Vec<DenseTask>,
    pub(super) samplers: Vec<RowSampler>,
}

/// What a step needs in between, kept from step to step.
#[derive(Debug, Default)]
pub(super) struct LowRankScratch {
    /// Rows of y of all segments with entries, segment by segment.
    pub(super) rows: Vec<u32>,
    /// Rows of x of the same, where those are others.
    pub(super) sources: Vec<u32>,
    pub(super) segments: Vec<Segment>,
    pub(super) pairs: Vec<Pair>,
    pub(super) tasks: Vec<Task>,
    /// A x of all pairs.
    pub(super) values: Vec<f32>,
    /// The same as inputs of the expand.
    pub(super) words: Vec<u32>,
    /// How many values and words there are so far.
    pub(super) room: (usize, usize),
    /// Pairs of rows with one expert, by slot.
    pub(super) by_slot: Vec<(AdapterSlot, u32)>,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) slot: AdapterSlot,
    /// Range in [`LowRankScratch::rows`].
    pub(super) rows: Range<usize>,
    /// Range in [`LowRankScratch::pairs`].
    pub(super) pairs: Range<usize>,
    /// Expanded with the chunks of the base.
    pub(super) fused: bool,
}

/// A segment and one of its entries.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) segment: usize,
    pub(super) entry: usize,
    /// Start of its v in [`LowRankScratch::values`], rows `value_stride` apart.
    pub(super) values: usize,
    /// Start of its v in [`LowRankScratch::words`].
    pub(super) words: usize,
}

#[derive(Debug)]
pub(super) struct Task {
    pub(super) pairs: Range<usize>,
    /// Rows counted from the segment's first.
    pub(super) rows: Range<usize>,
    pub(super) panels: Range<usize>,
}

/// What a step with sparse deltas needs in between, kept from step to step.
#[derive(Debug, Default)]
pub(super) struct SparseScratch {
    /// Rows of y of all blocks, block by block.
    pub(super) rows: Vec<u32>,
    pub(super) blocks: Vec<SparseBlock>,
    pub(super) tasks: Vec<SparseTask>,
    /// x of all blocks, `[in][lanes]` each.
    pub(super) x: Vec<f32>,
    /// Multiply-adds of all tasks.
    pub(super) work: usize,
}

/// Rows of one adapter that are laid side by side.
#[derive(Debug)]
pub(super) struct SparseBlock {
    pub(super) slot: AdapterSlot,
    /// Range in [`SparseScratch::rows`].
    pub(super) rows: Range<usize>,
    /// Rows that are summed side by side: those of the block and maybe some that nobody asks for.
    pub(super) lanes: usize,
    /// Start of its x in [`SparseScratch::x`].
    pub(super) x: usize,
}

/// Some columns of y of a block.
#[derive(Debug)]
pub(super) struct SparseTask {
    pub(super) block: usize,
    pub(super) columns: Range<usize>,
}

/// Some panels of a full matrix, for all rows of a segment of the plan.
#[derive(Debug)]
pub(super) struct DenseTask {
    pub(super) segment: usize,
    /// Entry of the segment's slot.
    pub(super) entry: usize,
    pub(super) panels: Range<usize>,
}

/// A thread's sampler, and what it has chosen for which row.
#[derive(Debug)]
pub(super) struct RowSampler {
    pub(super) sampler: Sampler,
    /// Logits of a row that has some of its own.
    pub(super) whole: Vec<f32>,
    pub(super) chosen: Vec<(usize, SampleOutcome)>,
}
