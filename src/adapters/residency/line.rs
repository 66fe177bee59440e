//! The line of those who wait for room, by start-time fair queueing (SFQ; Goyal, Vin and Cheng, SIGCOMM'96) between
//! clients: a client that has had many adapters loaded waits behind one that has had few, so that one who asks for a
//! thousand adapters does not keep everybody else from theirs. One client's requests keep the order of their arrival.

use std::collections::{BTreeSet, HashMap};

use crate::types::ClientKey;

/// Who waits. Grows with the time of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WaiterId(pub(super) u64);

impl WaiterId {
    /// Not after any other.
    pub(super) const FIRST: Self = Self(0);
}

#[derive(Default)]
pub(super) struct Line {
    /// By virtual start, then by arrival.
    order: BTreeSet<(u64, WaiterId)>,
    /// Everybody who may stand in line, and where they do.
    waiters: HashMap<WaiterId, (ClientKey, Option<u64>)>,
    /// Virtual start of the last load.
    now: u64,
    /// Where the next in line of each client would start; those not beyond `now` are as good as unknown.
    next: HashMap<ClientKey, u64>,
}

impl Line {
    /// Somebody may come to stand in line.
    pub(super) fn arrive(&mut self, waiter: WaiterId, client: ClientKey) {
        self.waiters.insert(waiter, (client, None));
    }

    /// and will not any more.
    pub(super) fn depart(&mut self, waiter: WaiterId) {
        self.waiters.remove(&waiter);
    }

    /// Stand in line; whoever does keeps the place.
    pub(super) fn join(&mut self, waiter: WaiterId) {
        let Some((client, place @ None)) = self.waiters.get_mut(&waiter) else { return };
        let next = self.next.entry(*client).or_default();
        let start = (*next).max(self.now);
        *next = start + 1;
        *place = Some(start);
        self.order.insert((start, waiter));
    }

    /// Leave the line without a load, which then costs nothing. True where it was first.
    pub(super) fn leave(&mut self, waiter: WaiterId) -> bool {
        let Some((client, place)) = self.waiters.get_mut(&waiter) else { return false };
        let (client, Some(start)) = (*client, place.take()) else { return false };
        if let Some(next) = self.next.get_mut(&client) {
            *next = next.saturating_sub(1).max(self.now);
        }
        self.remove(start, waiter)
    }

    /// Leave the line with a load. True where it was first.
    pub(super) fn serve(&mut self, waiter: WaiterId) -> bool {
        let Some((_, place)) = self.waiters.get_mut(&waiter) else { return false };
        let Some(start) = place.take() else { return false };
        self.now = self.now.max(start);
        self.remove(start, waiter)
    }

    fn remove(&mut self, start: u64, waiter: WaiterId) -> bool {
        let was_first = self.first() == Some(waiter);
        self.order.remove(&(start, waiter));
        if self.next.len() > 2 * self.order.len() + 64 {
            let now = self.now;
            self.next.retain(|_, next| *next > now);
        }
        was_first
    }

    pub(super) fn first(&self) -> Option<WaiterId> {
        self.order.first().map(|(_, waiter)| *waiter)
    }

    /// Whether somebody is, or would be, before this waiter.
    pub(super) fn has_before(&self, waiter: WaiterId) -> bool {
        let Some((client, place)) = self.waiters.get(&waiter) else { return !self.order.is_empty() };
        let start = place.unwrap_or_else(|| self.next.get(client).copied().unwrap_or(0).max(self.now));
        self.order.first().is_some_and(|first| *first < (start, waiter))
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}
