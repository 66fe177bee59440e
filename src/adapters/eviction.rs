//! Who leaves the device first: the least recently used.

use std::collections::{BTreeMap, HashMap};

use crate::types::AdapterVersion;

/// Versions in the order of their last use. Whether one may leave (leases, pins) is the caller's question.
#[derive(Debug, Default)]
pub(super) struct LruOrder {
    clock: u64,
    by_age: BTreeMap<u64, AdapterVersion>,
    used_at: HashMap<AdapterVersion, u64>,
}

impl LruOrder {
    /// `version` is used now.
    pub(super) fn touch(&mut self, version: AdapterVersion) {
        self.remove(version);
        self.clock += 1;
        self.by_age.insert(self.clock, version);
        self.used_at.insert(version, self.clock);
    }

    pub(super) fn remove(&mut self, version: AdapterVersion) {
        if let Some(age) = self.used_at.remove(&version) {
            self.by_age.remove(&age);
        }
    }

    /// Least recently used first.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = AdapterVersion> + '_ {
        self.by_age.values().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_touched_version_goes_last() {
        let [a, b, c] = [1, 2, 3].map(|i| AdapterVersion([i; 32]));
        let mut order = LruOrder::default();
        [a, b, c, a].into_iter().for_each(|version| order.touch(version));
        assert_eq!(order.oldest_first().collect::<Vec<_>>(), [b, c, a]);
        order.remove(c);
        order.remove(c);
        assert_eq!(order.oldest_first().collect::<Vec<_>>(), [b, a]);
    }
}
