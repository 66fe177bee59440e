//! Leases on versions: while one lives, the files of its version stay in the store, whatever happens to the names.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};

use super::events::{EventLog, Signals};
use super::stored::AdapterBytes;
use super::sync::lock;
use crate::types::{AdapterVersion, Sha256Digest};

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
        AdapterLease { table: Arc::clone(self), version, content: Content::Stored }
    }

    /// Count one more user of a mix, and with it of its parts. It has no files of its own: its version says which parts
    /// they are, with which weights, in whatever order they are given.
    #[must_use]
    pub(super) fn lease_mix(self: &Arc<Self>, mut parts: Vec<MixPart>) -> AdapterLease {
        parts.sort_by_key(MixPart::key);
        let version = version_of(&parts);
        let mut lease = self.lease(version);
        lease.content = Content::Mix(parts.into());
        lease
    }

    /// Count one more user of files that came with a request, whose version is their digest. Takes the time of that.
    #[must_use]
    pub(super) fn lease_sent(self: &Arc<Self>, files: Arc<AdapterBytes>) -> AdapterLease {
        let mut content = b"polydelta sent 1".to_vec();
        [&files.config, &files.weights].into_iter().for_each(|file| content.extend(Sha256Digest::of(file).0));
        let mut lease = self.lease(AdapterVersion(Sha256Digest::of(&content).0));
        lease.content = Content::Sent(files);
        lease
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

/// A part of a mix.
#[derive(Clone, Debug)]
pub struct MixPart {
    /// Keeps its version.
    pub lease: AdapterLease,
    /// How much of it.
    pub weight: f32,
}

impl MixPart {
    fn key(&self) -> (AdapterVersion, u32) {
        (self.lease.version, self.weight.to_bits())
    }
}

/// Digest of what a mix is made of, after a domain tag.
fn version_of(parts: &[MixPart]) -> AdapterVersion {
    let mut content = b"polydelta mix 1".to_vec();
    for (version, weight) in parts.iter().map(MixPart::key) {
        content.extend(version.0);
        content.extend(weight.to_le_bytes());
    }
    AdapterVersion(Sha256Digest::of(&content).0)
}

/// What a version is made from. Only the first lasts longer than those who use it.
#[derive(Clone, Debug)]
pub enum Content {
    /// Files of the store.
    Stored,
    /// Weighted parts, in the order in which they are added.
    Mix(Arc<[MixPart]>),
    /// Files that came with a request.
    Sent(Arc<AdapterBytes>),
}

/// RAII: its version stays loadable while it lives. Cloning counts once more.
pub struct AdapterLease {
    table: Arc<LeaseTable>,
    version: AdapterVersion,
    content: Content,
}

impl AdapterLease {
    /// The leased version.
    #[must_use]
    pub fn version(&self) -> AdapterVersion {
        self.version
    }

    /// What it is made from.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }
}

impl Clone for AdapterLease {
    fn clone(&self) -> Self {
        let mut lease = self.table.lease(self.version);
        lease.content.clone_from(&self.content);
        lease
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
    fn a_mix_is_its_parts_and_weights_in_any_order_and_keeps_its_parts() {
        let table = LeaseTable::new(Arc::new(EventLog::new(1)));
        let part = |id, weight| MixPart { lease: table.lease(AdapterVersion([id; 32])), weight };
        let mix = table.lease_mix(vec![part(1, 0.5), part(2, -0.5)]);
        let same = table.lease_mix(vec![part(2, -0.5), part(1, 0.5)]);
        let order = |mix: &AdapterLease| match mix.content() {
            Content::Mix(parts) => parts.iter().map(MixPart::key).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!((mix.version(), order(&mix)), (same.version(), order(&same)));
        let others =
            [vec![part(1, 0.5)], vec![part(1, -0.5), part(2, 0.5)], vec![part(1, 0.5), part(2, -0.5), part(2, 0.0)]];
        for other in others {
            assert_ne!(table.lease_mix(other).version(), mix.version());
        }
        drop(same);
        let clone = mix.clone();
        drop(mix);
        assert_eq!((table.count(AdapterVersion([1; 32])), table.count(clone.version())), (1, 1));
        let _ = table.retire(AdapterVersion([1; 32]));
        assert!(table.take_garbage().is_empty());
        drop(clone);
        assert_eq!((table.take_garbage(), table.total()), (vec![AdapterVersion([1; 32])], 0));
    }

    #[test]
    fn files_that_were_sent_are_their_content() {
        let table = LeaseTable::new(Arc::new(EventLog::new(1)));
        let sent = |config: &str, weights: &str| {
            table.lease_sent(Arc::new(AdapterBytes { config: config.into(), weights: weights.into() })).version()
        };
        assert_eq!(sent("a", "b"), sent("a", "b"));
        let others = [sent("", "ab"), sent("ab", ""), sent("b", "a"), sent("a", "b")];
        assert_eq!(others.into_iter().collect::<BTreeSet<_>>().len(), 4);
        assert_eq!(table.total(), 0);
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
