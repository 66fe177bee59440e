//! Sequences in order of rank, by party and by connection. Membership only; the sequences themselves live in the
//! scheduler.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::fair_share::PartyId;
use super::policy::Rank;
use crate::types::ConnectionId;

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

/// What one party sends over one connection; the id means nothing once the last sequence of the party has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Flow {
    pub(super) party: PartyId,
    pub(super) connection: ConnectionId,
}

/// A flow in the line of its party: the one with the fewest running sequences is first, then the one whose most senior
/// waiting sequence is. A flow without a running sequence is passed by a bounded number of others, so each moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    running: usize,
    first: Rank,
    connection: ConnectionId,
}

#[derive(Debug, Default)]
struct FlowQueue {
    waiting: RankQueue,
    running: usize,
}

#[derive(Debug, Default)]
struct PartyQueue {
    flows: BTreeMap<ConnectionId, FlowQueue>,
    /// Flows of which something waits.
    line: BTreeSet<Place>,
    waiting: usize,
}

impl PartyQueue {
    fn place(&self, connection: ConnectionId) -> Option<Place> {
        let FlowQueue { waiting, running } = self.flows.get(&connection)?;
        waiting.first().map(|first| Place { running: *running, first, connection })
    }

    /// Change a flow, and its place with it.
    fn change<T>(&mut self, connection: ConnectionId, change: impl FnOnce(&mut FlowQueue) -> T) -> T {
        if let Some(place) = self.place(connection) {
            self.line.remove(&place);
        }
        let flow = self.flows.entry(connection).or_default();
        let changed = change(flow);
        if flow.waiting.is_empty() && flow.running == 0 {
            self.flows.remove(&connection);
        }
        self.line.extend(self.place(connection));
        changed
    }
}

/// What waits: a queue for each flow, in lines for each party. A party of which nothing waits or runs is not here.
#[derive(Debug, Default)]
pub(super) struct PartyQueues {
    parties: BTreeMap<PartyId, PartyQueue>,
    waiting: usize,
}

impl PartyQueues {
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    fn change<T>(&mut self, flow: Flow, change: impl FnOnce(&mut FlowQueue) -> T) -> T {
        let party = self.parties.entry(flow.party).or_default();
        let changed = party.change(flow.connection, change);
        if party.flows.is_empty() {
            self.parties.remove(&flow.party);
        }
        changed
    }

    /// A sequence that is not here begins to wait.
    pub(super) fn insert(&mut self, flow: Flow, rank: Rank) {
        self.change(flow, |queue| queue.waiting.insert(rank));
        self.waiting += 1;
        if let Some(party) = self.parties.get_mut(&flow.party) {
            party.waiting += 1;
        }
    }

    /// A sequence does not wait any more, if it did.
    pub(super) fn remove(&mut self, flow: Flow, rank: Rank) {
        if !self.parties.contains_key(&flow.party) {
            return;
        }
        let removed = usize::from(self.change(flow, |queue| queue.waiting.remove(rank)));
        self.waiting -= removed;
        if let Some(party) = self.parties.get_mut(&flow.party) {
            party.waiting -= removed;
        }
    }

    /// A sequence of the flow runs now.
    pub(super) fn started(&mut self, flow: Flow) {
        self.change(flow, |queue| queue.running += 1);
    }

    /// A sequence of the flow has given its KV back.
    pub(super) fn stopped(&mut self, flow: Flow) {
        self.change(flow, |queue| queue.running -= 1);
    }

    /// Running sequences of a flow.
    pub(super) fn running(&self, flow: Flow) -> usize {
        let queue = self.parties.get(&flow.party).and_then(|party| party.flows.get(&flow.connection));
        queue.map_or(0, |queue| queue.running)
    }

    /// Each party of which something waits, with how many of its sequences wait and whose turn it is.
    pub(super) fn parties(&self) -> impl Iterator<Item = (PartyId, usize, Flow)> {
        self.parties.iter().filter_map(|(party, queue)| {
            let first = queue.line.first()?;
            Some((*party, queue.waiting, Flow { party: *party, connection: first.connection }))
        })
    }

    /// Whose turn it is in a party: after the flow at `place` has been passed over from there on, or of all. Within a
    /// flow the one after `passed`.
    pub(super) fn next_after(
        &self,
        party: PartyId,
        place: Option<Place>,
        passed: impl Fn(Flow) -> Option<Rank>,
    ) -> Option<(Place, Rank)> {
        let queue = self.parties.get(&party)?;
        let start = place.map_or(Bound::Unbounded, Bound::Included);
        queue.line.range((start, Bound::Unbounded)).find_map(|place| {
            let passed = passed(Flow { party, connection: place.connection });
            let rank = queue.flows.get(&place.connection)?.waiting.next_after(passed)?;
            Some((*place, rank))
        })
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = Rank> {
        self.parties.values().flat_map(|party| party.flows.values()).flat_map(|flow| flow.waiting.iter())
    }
}
