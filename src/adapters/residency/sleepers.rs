//! Who waits for which version, and how to wake them: only those whose next poll may give another answer.

use std::collections::{BTreeSet, HashMap};
use std::task::Waker;

use super::line::WaiterId;
use crate::types::AdapterVersion;

#[derive(Default)]
pub(super) struct Sleepers {
    wakers: HashMap<WaiterId, (AdapterVersion, Waker)>,
    by_version: BTreeSet<(AdapterVersion, WaiterId)>,
    /// To be woken once the lock is free.
    due: Vec<Waker>,
}

impl Sleepers {
    /// Its poll gave no answer; it is woken once.
    pub(super) fn sleep(&mut self, waiter: WaiterId, version: AdapterVersion, waker: &Waker) {
        self.wakers.insert(waiter, (version, waker.clone()));
        self.by_version.insert((version, waiter));
    }

    /// It polls again, or does not wait any more.
    pub(super) fn forget(&mut self, waiter: WaiterId) -> Option<Waker> {
        let (version, waker) = self.wakers.remove(&waiter)?;
        self.by_version.remove(&(version, waiter));
        Some(waker)
    }

    pub(super) fn wake(&mut self, waiter: WaiterId) {
        let waker = self.forget(waiter);
        self.due.extend(waker);
    }

    /// Something has changed for all who wait for this version.
    pub(super) fn wake_all_for(&mut self, version: AdapterVersion) {
        let from = self.by_version.range((version, WaiterId::FIRST)..);
        let waiters: Vec<_> = from.take_while(|(other, _)| *other == version).map(|(_, waiter)| *waiter).collect();
        waiters.into_iter().for_each(|waiter| self.wake(waiter));
    }

    /// Something has changed for everybody.
    pub(super) fn wake_all(&mut self) {
        self.by_version.clear();
        self.due.extend(self.wakers.drain().map(|(_, (_, waker))| waker));
    }

    pub(super) fn take_due(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.due)
    }
}
