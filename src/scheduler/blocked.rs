//! The start that found no room.

use super::policy::Rank;

/// The start that everybody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocked {
    pub(super) rank: Rank,
    /// Blocks it needs that are neither free nor reclaimable.
    pub(super) missing: usize,
}
