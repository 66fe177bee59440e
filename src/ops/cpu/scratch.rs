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
    pub(super) items: Vec<Item>,
    /// What every thread needs for an item of attention.
    pub(super) attention: Vec<Line>,
    pub(super) low_rank: LowRankScratch,
    pub(super) samplers: Vec<RowSampler>,
}

/// What a step needs in between, kept from step to step.
#[derive(Debug, Default)]
pub(super) struct LowRankScratch {
    /// Rows of y of all segments with entries, segment by segment.
    pub(super) rows: Vec<u32>,
    pub(super) segments: Vec<Segment>,
    pub(super) pairs: Vec<Pair>,
    pub(super) tasks: Vec<Task>,
    /// A x of all pairs.
    pub(super) values: Vec<f32>,
    /// The same as inputs of the expand.
    pub(super) words: Vec<u32>,
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

/// A thread's sampler, and what it has chosen for which row.
#[derive(Debug)]
pub(super) struct RowSampler {
    pub(super) sampler: Sampler,
    pub(super) chosen: Vec<(usize, SampleOutcome)>,
}
