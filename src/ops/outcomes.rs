//! What became of the rows of a step of which something was wanted.

use super::PooledRows;
use crate::types::{PooledVector, SampledToken, SequenceFailure};

/// Of all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutcomes {
    /// Of each sampled row.
    pub sampled: Vec<SampleOutcome>,
    /// Of each span of pooled rows.
    pub pooled: Vec<PoolOutcome>,
}

/// What became of a sampled row.
pub type SampleOutcome = Result<SampledToken, SequenceFailure>;

/// What became of a span of pooled rows.
pub type PoolOutcome = Result<PooledVector, SequenceFailure>;

/// A vector that leaves the device, where all of its numbers are finite.
pub(super) fn pooled(numbers: &[f32]) -> PoolOutcome {
    if numbers.iter().all(|number| number.is_finite()) { Ok(numbers.into()) } else { Err(SequenceFailure::NonFinite) }
}

/// See [`Backend::collect`](super::Backend::collect), where `hidden` and `logits` give rows on the host.
pub(super) fn collect<'a>(
    group: &PooledRows,
    hidden: impl Fn(usize) -> &'a [f32],
    logits: impl Fn(usize) -> &'a [f32],
    outcomes: &mut Vec<PoolOutcome>,
) {
    outcomes.extend(group.spans.iter().enumerate().map(|(row, span)| match span.labels {
        Some(labels) => pooled(&logits(row)[..labels as usize]),
        None => pooled(hidden(row)),
    }));
}
