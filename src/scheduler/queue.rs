//! Sequences in order of rank, and by party. Membership only; the sequences themselves live in the scheduler.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::fair_share::PartyId;
use super::policy::Rank;

/// A set of sequences, most senior first.
#[derive(Debug, Default)]
pub(super) struct RankQueue(BTreeSet<Rank>);

impl RankQueue {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn insert(&mut self, rank: Rank) {
        self.0.insert(rank);
    }

    /// False where it was not here.
    pub(super) fn remove(&mut self, rank: Rank) -> bool {
        self.0.remove(&rank)
    }

    /// The most senior one.
    pub(super) fn first(&self) -> Option<Rank> {
        self.0.first().copied()
    }

    pub(super) fn contains(&self, rank: Rank) -> bool {
        self.0.contains(&rank)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Rank> {
        self.0.iter().copied()
    }

    /// The most senior one after `rank`, or of all: lets a caller change the queue while it walks.
    pub(super) fn next_after(&self, rank: Option<Rank>) -> Option<Rank> {
        let start = rank.map_or(Bound::Unbounded, Bound::Excluded);
        self.0.range((start, Bound::Unbounded)).next().copied()
    }
}

/// What waits: one queue for each party. A party without a waiting sequence is not here.
#[derive(Debug, Default)]
pub(super) struct PartyQueues {
    queues: BTreeMap<PartyId, RankQueue>,
    len: usize,
}

impl PartyQueues {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn insert(&mut self, party: PartyId, rank: Rank) {
        self.queues.entry(party).or_default().insert(rank);
        self.len += 1;
    }

    pub(super) fn remove(&mut self, party: PartyId, rank: Rank) {
        let Some(queue) = self.queues.get_mut(&party) else { return };
        self.len -= usize::from(queue.remove(rank));
        if queue.is_empty() {
            self.queues.remove(&party);
        }
    }

    /// Each party with how many of its sequences wait.
    pub(super) fn parties(&self) -> impl Iterator<Item = (PartyId, usize)> {
        self.queues.iter().map(|(party, queue)| (*party, queue.len()))
    }

    /// The most senior one of a party after `rank`, or of all of them.
    pub(super) fn next_after(&self, party: PartyId, rank: Option<Rank>) -> Option<Rank> {
        self.queues.get(&party)?.next_after(rank)
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = Rank> {
        self.queues.values().flat_map(RankQueue::iter)
    }
}
