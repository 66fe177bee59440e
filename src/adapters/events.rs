//! What happened to adapters, in order, for `WatchAdapters`; and the hooks by which the outside learns of it.
//!
//! This wing knows no async runtime: whoever wants to wait registers an [`AdapterObserver`] and bridges it to its own
//! kind of waiting.

use std::collections::VecDeque;
use std::ops::BitOrAssign;
use std::sync::{Arc, Mutex, RwLock};
use std::task::Waker;

use super::sync::lock;
use crate::types::{AdapterName, AdapterVersion};

/// Hooks for the hall and the server. Called from any thread, with no lock of this room held. They must return at
/// once: set a flag, bump a watch channel.
pub trait AdapterObserver: Send + Sync {
    /// The event log now ends at `revision`.
    fn on_event(&self, revision: u64) {
        let _ = revision;
    }
    /// There may be something for [`Residency::take_removal`](super::Residency::take_removal), or for
    /// [`Residency::take_forgotten`](super::Residency::take_forgotten).
    fn on_removal(&self) {}
    /// [`AdapterRegistry::collect_garbage`](super::AdapterRegistry::collect_garbage) has files to remove.
    fn on_garbage(&self) {}
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterEventKind {
    /// The name was bound for the first time.
    Created,
    /// The name was bound to another version.
    Replaced {
        /// The version before.
        previous: AdapterVersion,
    },
    /// The name is gone.
    Deleted,
    /// The name was pinned or unpinned.
    Pinned {
        /// The new setting.
        pinned: bool,
    },
    /// What the version compiled to, or for which base, was written down anew.
    Described,
    /// The version is being brought to the device.
    Loading,
    /// The version is on the device.
    Resident,
    /// The version has left the device.
    Evicted,
    /// The version could not be loaded.
    LoadFailed,
    /// The version has failed too many requests in a row: new ones are refused.
    SetAside,
    /// It has another chance.
    Reinstated,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterEvent {
    /// Counts from 1 without gaps.
    pub revision: u64,
    /// Absent for events of a version, which may have several names or none.
    pub name: Option<AdapterName>,
    /// The version concerned.
    pub version: AdapterVersion,
    /// What happened.
    pub kind: AdapterEventKind,
}

/// The log no longer reaches back that far: list everything again, then watch from the revision given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("events after revision {asked} are asked for, the oldest kept is {oldest}")]
pub struct EventsLost {
    /// Given.
    pub asked: u64,
    /// First revision still kept.
    pub oldest: u64,
}

/// What the observers are to be told, gathered while locks are held and handed to [`EventLog::ring`] when none is.
#[derive(Debug, Default)]
#[must_use = "whoever waits for it waits for ever"]
pub(super) struct Signals {
    pub(super) events: bool,
    pub(super) removals: bool,
    pub(super) garbage: bool,
    /// Of those who wait for what has changed, and of nobody else.
    pub(super) wakers: Vec<Waker>,
}

impl BitOrAssign for Signals {
    fn bitor_assign(&mut self, other: Self) {
        self.events |= other.events;
        self.removals |= other.removals;
        self.garbage |= other.garbage;
        self.wakers.extend(other.wakers);
    }
}

/// A bounded log of events with revisions, and the observers.
pub struct EventLog {
    capacity: usize,
    history: Mutex<History>,
    observers: RwLock<Vec<Arc<dyn AdapterObserver>>>,
}

struct History {
    revision: u64,
    events: VecDeque<AdapterEvent>,
}

impl EventLog {
    /// A log of the last `capacity` events (at least 1).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            history: Mutex::new(History { revision: 0, events: VecDeque::new() }),
            observers: RwLock::new(Vec::new()),
        }
    }

    /// Register an observer for the life of the log.
    pub fn observe(&self, observer: Arc<dyn AdapterObserver>) {
        self.observers.write().unwrap_or_else(std::sync::PoisonError::into_inner).push(observer);
    }

    /// How many events are kept.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Revision of the newest event; 0 before the first.
    #[must_use]
    pub fn revision(&self) -> u64 {
        lock(&self.history).revision
    }

    /// Events after `revision`, oldest first. A revision of the future gives none.
    ///
    /// # Errors
    /// [`EventsLost`] when events after `revision` have been dropped.
    pub fn since(&self, revision: u64) -> Result<Vec<AdapterEvent>, EventsLost> {
        let history = lock(&self.history);
        let oldest = history.revision + 1 - history.events.len() as u64;
        if revision.saturating_add(1) < oldest {
            return Err(EventsLost { asked: revision, oldest });
        }
        // Revisions have no gaps: how many are new says where they begin.
        let new = usize::try_from(history.revision.saturating_sub(revision)).unwrap_or(usize::MAX);
        let seen = history.events.len().saturating_sub(new);
        Ok(history.events.range(seen..).cloned().collect())
    }

    /// Append; observers are told by [`EventLog::ring`], once the caller holds no lock.
    pub(super) fn push(&self, name: Option<AdapterName>, version: AdapterVersion, kind: AdapterEventKind) {
        let mut history = lock(&self.history);
        history.revision += 1;
        let revision = history.revision;
        if history.events.len() == self.capacity {
            history.events.pop_front();
        }
        history.events.push_back(AdapterEvent { revision, name, version, kind });
    }

    /// Tell the observers, and wake who waits. The caller holds no lock of this room: an observer may do anything.
    pub(super) fn ring(&self, signals: Signals) {
        if signals.events {
            let revision = self.revision();
            self.each(|observer| observer.on_event(revision));
        }
        if signals.removals {
            self.each(|observer| observer.on_removal());
        }
        if signals.garbage {
            self.each(|observer| observer.on_garbage());
        }
        signals.wakers.into_iter().for_each(Waker::wake);
    }

    fn each(&self, call: impl Fn(&dyn AdapterObserver)) {
        // Cloned, so that an observer may register another.
        let observers = self.observers.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        observers.iter().for_each(|observer| call(observer.as_ref()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: AdapterVersion = AdapterVersion([7; 32]);

    #[test]
    fn a_watcher_reads_on_from_its_revision() {
        let log = EventLog::new(8);
        assert_eq!(log.since(0), Ok(vec![]));
        log.push(None, V, AdapterEventKind::Loading);
        log.push(None, V, AdapterEventKind::Resident);
        let kinds: Vec<_> = log.since(1).unwrap().into_iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [AdapterEventKind::Resident]);
        assert_eq!(log.since(2), Ok(vec![]));
        assert_eq!(log.since(u64::MAX), Ok(vec![]));
    }

    #[test]
    fn a_watcher_that_fell_behind_is_told_so() {
        let log = EventLog::new(2);
        for _ in 0..5 {
            log.push(None, V, AdapterEventKind::Loading);
        }
        assert_eq!(log.since(2), Err(EventsLost { asked: 2, oldest: 4 }));
        assert_eq!(log.since(3).unwrap().len(), 2);
    }
}
