//! Sequences in order of rank. Membership only; the sequences themselves live in the scheduler.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::policy::Rank;

/// A set of sequences, most senior first.
#[derive(Debug, Default)]
pub(super) struct RankQueue(BTreeSet<Rank>);

impl RankQueue {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn insert(&mut self, rank: Rank) {
        self.0.insert(rank);
    }

    pub(super) fn remove(&mut self, rank: Rank) {
        self.0.remove(&rank);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Rank> {
        self.0.iter().copied()
    }

    /// The one that yields first.
    pub(super) fn most_junior(&self) -> Option<Rank> {
        self.0.last().copied()
    }

    /// The most senior one after `rank`, or of all: lets a caller change the queue while it walks.
    pub(super) fn next_after(&self, rank: Option<Rank>) -> Option<Rank> {
        let start = rank.map_or(Bound::Unbounded, Bound::Excluded);
        self.0.range((start, Bound::Unbounded)).next().copied()
    }
}
