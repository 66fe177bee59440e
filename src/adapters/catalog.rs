//! The names that are bound, in order, which of them stand for a version, and which are pinned. These questions are asked
//! for every change of every version, so none may look at all names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use super::stored::StoredAdapter;
use crate::types::{AdapterName, AdapterVersion};

/// Bindings by name, with an index by version and one of what is pinned.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    by_name: BTreeMap<AdapterName, StoredAdapter>,
    by_version: HashMap<AdapterVersion, BTreeSet<AdapterName>>,
    pinned: BTreeSet<AdapterName>,
}

impl Catalog {
    pub(super) fn new(adapters: Vec<StoredAdapter>) -> Self {
        let mut catalog = Self::default();
        for adapter in adapters {
            catalog.insert(adapter);
        }
        catalog
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(super) fn get(&self, name: &AdapterName) -> Option<&StoredAdapter> {
        self.by_name.get(name)
    }

    /// In the order of their names.
    pub(super) fn all(&self) -> impl Iterator<Item = &StoredAdapter> {
        self.by_name.values()
    }

    /// Those after a name, or all.
    pub(super) fn after(&self, name: Option<&AdapterName>) -> impl Iterator<Item = &StoredAdapter> {
        let start = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_name.range::<AdapterName, _>((start, Bound::Unbounded)).map(|(_, adapter)| adapter)
    }

    /// Those that are pinned.
    pub(super) fn pinned(&self) -> impl Iterator<Item = &StoredAdapter> {
        self.pinned.iter().filter_map(|name| self.by_name.get(name))
    }

    /// The bindings to a version.
    pub(super) fn of_version(&self, version: AdapterVersion) -> impl Iterator<Item = &StoredAdapter> {
        let names = self.by_version.get(&version).into_iter().flatten();
        names.filter_map(|name| self.by_name.get(name))
    }

    /// Bind a name; what it was bound to before.
    pub(super) fn insert(&mut self, adapter: StoredAdapter) -> Option<StoredAdapter> {
        let before = self.remove(&adapter.name.clone());
        self.by_version.entry(adapter.version).or_default().insert(adapter.name.clone());
        if adapter.pinned {
            self.pinned.insert(adapter.name.clone());
        }
        self.by_name.insert(adapter.name.clone(), adapter);
        before
    }

    /// Unbind a name; what it was bound to.
    pub(super) fn remove(&mut self, name: &AdapterName) -> Option<StoredAdapter> {
        let before = self.by_name.remove(name)?;
        self.pinned.remove(name);
        if let Some(names) = self.by_version.get_mut(&before.version) {
            names.remove(name);
            if names.is_empty() {
                self.by_version.remove(&before.version);
            }
        }
        Some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(name: &str, version: u8) -> StoredAdapter {
        StoredAdapter {
            name: name.parse().unwrap(),
            version: AdapterVersion([version; 32]),
            files: Vec::new(),
            created_ms: 0,
            pinned: false,
            compiled: None,
        }
    }

    fn names(catalog: &Catalog, version: u8) -> Vec<&str> {
        catalog.of_version(AdapterVersion([version; 32])).map(|found| found.name.as_str()).collect()
    }

    #[test]
    fn a_version_knows_its_names_as_they_come_move_and_go() {
        let mut catalog = Catalog::new(vec![adapter("b", 1), adapter("a", 1), adapter("c", 2)]);
        assert_eq!((names(&catalog, 1), names(&catalog, 2)), (vec!["a", "b"], vec!["c"]));
        let before = catalog.insert(adapter("a", 2)).unwrap();
        assert_eq!(before.version, AdapterVersion([1; 32]));
        assert_eq!((names(&catalog, 1), names(&catalog, 2)), (vec!["b"], vec!["a", "c"]));
        assert!(catalog.remove(&"b".parse().unwrap()).is_some());
        assert!(catalog.remove(&"b".parse().unwrap()).is_none());
        assert_eq!((names(&catalog, 1).len(), catalog.by_version.len(), catalog.len()), (0, 1, 2));
    }

    #[test]
    fn pinned_names_are_known_as_they_are_pinned_unpinned_and_removed() {
        let pinned = |name| StoredAdapter { pinned: true, ..adapter(name, 1) };
        let names = |catalog: &Catalog| catalog.pinned().map(|found| found.name.to_string()).collect::<Vec<_>>();
        let mut catalog = Catalog::new(vec![pinned("b"), adapter("a", 1), pinned("c")]);
        assert_eq!(names(&catalog), ["b", "c"]);
        catalog.insert(pinned("a"));
        catalog.insert(adapter("b", 2));
        assert_eq!(names(&catalog), ["a", "c"]);
        catalog.remove(&"c".parse().unwrap());
        assert_eq!(names(&catalog), ["a"]);
    }
}
