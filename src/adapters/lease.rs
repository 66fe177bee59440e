//! Leases on versions: while one lives, the files of its version stay in the store, whatever happens to the names.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};

use super::events::{EventLog, Signals};
use super::sync::lock;
use crate::types::AdapterVersion;

/// Counts leases per version and remembers which versions have lost their last name.
pub struct LeaseTable {
    state: Mutex<State>,
    events: Arc<EventLog>,
}

#[derive(Default)]
struct State {
    counts: HashMap<AdapterVersion, usize>,
    total: usize,
    retired: BTreeSet<AdapterVersion>,
}

impl LeaseTable {
    /// An empty table.
    #[must_use]
    pub fn new(events: Arc<EventLog>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), events })
    }

    /// Count one more user of `version`. The caller makes sure that the version exists at this moment.
    #[must_use]
    pub fn lease(self: &Arc<Self>, version: AdapterVersion) -> AdapterLease {
        let mut state = lock(&self.state);
        *state.counts.entry(version).or_insert(0) += 1;
        state.total += 1;
        drop(state);
        AdapterLease { table: Arc::clone(self), version }
    }

    /// Leases alive on `version`.
    #[must_use]
    pub fn count(&self, version: AdapterVersion) -> usize {
        lock(&self.state).counts.get(&version).copied().unwrap_or(0)
    }

    /// Leases alive on all versions.
    #[must_use]
    pub fn total(&self) -> usize {
        lock(&self.state).total
    }

    /// No name refers to `version` any more: it may be removed once its last lease ends.
    pub(super) fn retire(&self, version: AdapterVersion) -> Signals {
        let mut state = lock(&self.state);
        state.retired.insert(version);
        Signals { garbage: !state.counts.contains_key(&version), ..Signals::default() }
    }

    /// A name refers to `version` again.
    pub(super) fn revive(&self, version: AdapterVersion) {
        lock(&self.state).retired.remove(&version);
    }

    /// Take the retired versions without leases out of the table. The caller removes their files before any name is
    /// bound to them again.
    pub(super) fn take_garbage(&self) -> Vec<AdapterVersion> {
        let mut state = lock(&self.state);
        let State { counts, retired, .. } = &mut *state;
        let idle: Vec<_> = retired.iter().copied().filter(|version| !counts.contains_key(version)).collect();
        idle.iter().for_each(|version| {
            retired.remove(version);
        });
        idle
    }
}

/// RAII: its version stays loadable while it lives. Cloning counts once more.
pub struct AdapterLease {
    table: Arc<LeaseTable>,
    version: AdapterVersion,
}

impl AdapterLease {
    /// The leased version.
    #[must_use]
    pub fn version(&self) -> AdapterVersion {
        self.version
    }
}

impl Clone for AdapterLease {
    fn clone(&self) -> Self {
        self.table.lease(self.version)
    }
}

impl Drop for AdapterLease {
    fn drop(&mut self) {
        let garbage = {
            let mut state = lock(&self.table.state);
            let State { counts, total, retired } = &mut *state;
            *total -= 1;
            match counts.get_mut(&self.version) {
                Some(count) if *count > 1 => {
                    *count -= 1;
                    false
                }
                _ => {
                    counts.remove(&self.version);
                    retired.contains(&self.version)
                }
            }
        };
        self.table.events.ring(Signals { garbage, ..Signals::default() });
    }
}

impl fmt::Debug for AdapterLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AdapterLease").field(&self.version).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_version_is_garbage_only_after_its_last_lease() {
        let table = LeaseTable::new(Arc::new(EventLog::new(1)));
        let version = AdapterVersion([1; 32]);
        let first = table.lease(version);
        let second = first.clone();
        assert_eq!((table.count(version), table.total()), (2, 2));
        assert!(!table.retire(version).garbage);
        assert!(table.take_garbage().is_empty());
        drop(first);
        assert!(table.take_garbage().is_empty());
        drop(second);
        assert_eq!(table.total(), 0);
        assert_eq!(table.take_garbage(), [version]);
        assert!(table.take_garbage().is_empty(), "taken once");
    }

    #[test]
    fn a_version_named_again_is_no_garbage() {
        let table = LeaseTable::new(Arc::new(EventLog::new(1)));
        let version = AdapterVersion([2; 32]);
        assert!(table.retire(version).garbage);
        table.revive(version);
        assert!(table.take_garbage().is_empty());
    }
}
