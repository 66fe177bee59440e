//! Versions that the store does not have: mixes, and what came with a request. What is known of one lasts as long as somebody wants it or it is on the
//! device, and no longer: there is no end to what requests may bring.

use std::collections::HashMap;

use crate::types::AdapterVersion;

struct Derived {
    parts: Vec<AdapterVersion>,
    /// Wishes for it.
    wants: usize,
}

/// All that are wanted or on the device.
#[derive(Default)]
pub(super) struct DerivedVersions {
    versions: HashMap<AdapterVersion, Derived>,
}

impl DerivedVersions {
    /// Somebody wants a version, which is made of `parts`.
    pub(super) fn arrive(&mut self, version: AdapterVersion, parts: Vec<AdapterVersion>) {
        self.versions.entry(version).or_insert(Derived { parts, wants: 0 }).wants += 1;
    }

    /// A wish for a version has ended.
    pub(super) fn depart(&mut self, version: AdapterVersion) {
        if let Some(derived) = self.versions.get_mut(&version) {
            derived.wants -= 1;
        }
    }

    /// What it is a mix of, if it is one.
    pub(super) fn parts(&self, version: AdapterVersion) -> &[AdapterVersion] {
        self.versions.get(&version).map_or(&[], |derived| &derived.parts)
    }

    /// Those that a version is a part of.
    pub(super) fn with_part(&self, part: AdapterVersion) -> Vec<AdapterVersion> {
        let has = |(version, derived): (&AdapterVersion, &Derived)| derived.parts.contains(&part).then_some(*version);
        self.versions.iter().filter_map(has).collect()
    }

    /// Forget a version that nobody wants; whether there was one.
    pub(super) fn remove_unwanted(&mut self, version: AdapterVersion) -> bool {
        let unwanted = self.versions.get(&version).is_some_and(|derived| derived.wants == 0);
        unwanted && self.versions.remove(&version).is_some()
    }
}
