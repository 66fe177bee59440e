//! The names of adapters, a manifest each, and what the store knows of itself as a whole. Knows no files of adapters.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::super::catalog::Catalog;
use super::super::disk::Patience;
use super::super::error::AdapterError;
use super::super::files::Expected;
use super::super::stored::{Binding, Bound, Compiled, StoredAdapter};
use super::super::sync::lock;
use super::layout::Folder;
use super::manifest;
use super::name_store::NameStore;
use super::record::Record;
use super::recovery::Held;
use super::survey::{self, Flaw};
use super::write::{put_in_place, write_record};
use crate::types::{AdapterName, AdapterVersion, BaseDigest};

/// A [`NameStore`] in a local folder.
pub struct FolderNames {
    folder: Arc<Folder>,
    state: Mutex<State>,
    /// Manifests, by file name, that stand for a name nobody knows. A lock of its own: requests ask it, and must not
    /// wait for the disk.
    flawed: Mutex<BTreeMap<String, Flaw>>,
}

struct State {
    catalog: Catalog,
    held: Held,
    record: Result<Record, Flaw>,
    /// The base that is served.
    present: Option<BaseDigest>,
}

impl FolderNames {
    pub(super) fn new(
        folder: Arc<Folder>,
        names: Vec<StoredAdapter>,
        flawed: BTreeMap<String, Flaw>,
        held: Held,
        record: Result<Record, Flaw>,
    ) -> Self {
        let state = State { catalog: Catalog::new(names), held, record, present: None };
        Self { folder, state: Mutex::new(state), flawed: Mutex::new(flawed) }
    }

    /// The digest of the base whose files are identified by `files`, if it was remembered.
    #[must_use]
    pub fn known_base(&self, files: &str) -> Option<BaseDigest> {
        lock(&self.state).record.as_ref().ok()?.base(files)
    }

    /// Remember the digest of the base whose files are identified by `files`, so that the next start need not read them.
    ///
    /// # Errors
    /// The disk.
    pub fn remember_base(&self, files: String, digest: BaseDigest) -> Result<(), AdapterError> {
        let mut state = lock(&self.state);
        let Ok(record) = &mut state.record else { return Ok(()) };
        record.remember_base(files, digest);
        write_record(&self.folder.layout, self.folder.fs.as_ref(), record)
    }

    fn check_in(&self, state: &State, name: &AdapterName, expected: Expected) -> Result<(), AdapterError> {
        let previous = state.catalog.get(name).map(|before| before.version);
        if previous.is_none() && expected != Expected::Any {
            self.trouble(name).map_or(Ok(()), Err)?;
        }
        expected.check(name, previous)?;
        let (count, max) = (state.catalog.len() + self.troubled(), self.folder.limits.max_adapters);
        if previous.is_none() && count >= max {
            return Err(AdapterError::TooManyAdapters { count, max });
        }
        Ok(())
    }

    /// Write the manifest and put it in the place of the old one. An error after the rename leaves the new binding
    /// visible without knowing that it is durable; the caller is told of the failure all the same.
    fn write(&self, state: &mut State, adapter: &StoredAdapter) -> Result<(), AdapterError> {
        let bytes =
            manifest::encode(adapter).map_err(|source| AdapterError::Encoding { what: "a manifest", source })?;
        let file = manifest::file_name(&adapter.name);
        let Folder { layout, fs, .. } = &*self.folder;
        put_in_place(fs.as_ref(), &layout.names, &file, &bytes)?;
        state.catalog.insert(adapter.clone());
        lock(&self.flawed).remove(&file);
        fs.sync_dir(&layout.names).map_err(AdapterError::io("syncing the names"))
    }

    /// Where a name has no binding: is that certain?
    fn absent(&self, name: &AdapterName) -> AdapterError {
        self.trouble(name).unwrap_or_else(|| AdapterError::NotFound { name: name.clone() })
    }

    fn reread_record(&self, state: &mut State) {
        let Folder { layout, fs, .. } = &*self.folder;
        let reread = match &state.record {
            Ok(_) => return,
            Err(_) => survey::read_record(fs.as_ref(), &mut Patience::short(), &layout.record),
        };
        if let Ok(mut record) = reread {
            if record.adopted.is_none() {
                record.adopted = state.present;
            }
            state.record = Ok(record);
        }
    }
}

impl NameStore for FolderNames {
    fn check(&self, name: &AdapterName, expected: Expected) -> Result<(), AdapterError> {
        self.check_in(&lock(&self.state), name, expected)
    }

    fn bind(&self, adapter: StoredAdapter, expected: Expected) -> Result<Bound, AdapterError> {
        let mut state = lock(&self.state);
        self.check_in(&state, &adapter.name, expected)?;
        let before = state.catalog.get(&adapter.name).cloned();
        let previous = before.as_ref().map(|before| before.version);
        let adapter = match before {
            // Nothing to change: the first publication was the real one.
            Some(before) if StoredAdapter { created_ms: before.created_ms, ..adapter.clone() } == before => {
                return Ok(Bound { adapter: before, previous });
            }
            Some(before) if before.version == adapter.version => {
                StoredAdapter { created_ms: before.created_ms, ..adapter }
            }
            _ => adapter,
        };
        self.write(&mut state, &adapter)?;
        Ok(Bound { adapter, previous })
    }

    fn unbind(&self, name: &AdapterName, expected: Expected) -> Result<StoredAdapter, AdapterError> {
        let io = AdapterError::io;
        let Folder { layout, fs, .. } = &*self.folder;
        let mut state = lock(&self.state);
        let adapter = state.catalog.get(name).cloned().ok_or_else(|| self.absent(name))?;
        expected.check(name, Some(adapter.version))?;
        match fs.remove_file(&layout.names.join(manifest::file_name(name))) {
            // Somebody else removed it: what was asked for is so.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.map_err(io("removing a manifest"))?,
        }
        state.catalog.remove(name);
        fs.sync_dir(&layout.names).map_err(io("syncing the names"))?;
        Ok(adapter)
    }

    fn set_pinned(&self, name: &AdapterName, pinned: bool) -> Result<StoredAdapter, AdapterError> {
        let mut state = lock(&self.state);
        let mut adapter = state.catalog.get(name).cloned().ok_or_else(|| self.absent(name))?;
        if adapter.pinned != pinned {
            adapter.pinned = pinned;
            self.write(&mut state, &adapter)?;
        }
        Ok(adapter)
    }

    fn set_compiled(
        &self,
        name: &AdapterName,
        version: AdapterVersion,
        compiled: &Compiled,
    ) -> Result<bool, AdapterError> {
        let mut state = lock(&self.state);
        let bound = state.catalog.get(name).filter(|bound| bound.version == version);
        let Some(bound) = bound.filter(|bound| bound.compiled.as_ref() != Some(compiled)) else { return Ok(false) };
        let adapter = StoredAdapter { compiled: Some(compiled.clone()), ..bound.clone() };
        self.write(&mut state, &adapter)?;
        Ok(true)
    }

    fn adopt(&self, present: BaseDigest) -> BaseDigest {
        let mut state = lock(&self.state);
        state.present = Some(present);
        let orphans = state.catalog.all().filter(|adapter| adapter.compiled.is_none()).count();
        let Ok(record) = &mut state.record else { return present };
        if let Some(adopted) = record.adopted {
            return adopted;
        }
        if orphans > 0 {
            record.adopted = Some(present);
            tracing::info!(adapters = orphans, base = %present, "adapters that do not say what base they belong to are taken to belong to this one");
            if let Err(error) = write_record(&self.folder.layout, self.folder.fs.as_ref(), record) {
                tracing::warn!(%error, "that could not be written down: the next base may adopt them");
            }
        }
        present
    }

    fn trouble(&self, name: &AdapterName) -> Option<AdapterError> {
        let flawed = lock(&self.flawed);
        if flawed.is_empty() {
            return None;
        }
        let name = name.clone();
        flawed.get(&manifest::file_name(&name)).map(|flaw| match flaw {
            Flaw::Newer(format) => AdapterError::NewerFormat { name, format: *format, known: manifest::FORMAT },
            flaw => AdapterError::Unreadable { name, reason: flaw.to_string() },
        })
    }

    fn troubled(&self) -> usize {
        lock(&self.flawed).len()
    }

    fn heal(&self) -> Vec<StoredAdapter> {
        let flawed: Vec<_> = lock(&self.flawed).keys().cloned().collect();
        if flawed.is_empty() {
            return Vec::new();
        }
        let (fs, mut patience) = (self.folder.fs.as_ref(), Patience::none());
        let mut state = lock(&self.state);
        self.reread_record(&mut state);
        let mut healed = Vec::new();
        for file in flawed {
            let path = self.folder.layout.names.join(&file);
            let read = match patience.look(fs, &path) {
                Ok(Some(found)) => survey::read_manifest(fs, &mut patience, &path, &file, found),
                Ok(None) => Err(Flaw::Missing("the manifest".to_owned())),
                Err(error) => Err(Flaw::Unreadable(error.to_string())),
            };
            match read {
                Ok(adapter) if adapter.compiled.is_none() && state.record.is_err() => {}
                Ok(adapter) => {
                    tracing::info!(adapter = %adapter.name, "an adapter can be read again");
                    lock(&self.flawed).remove(&file);
                    state.catalog.insert(adapter.clone());
                    healed.push(adapter);
                }
                Err(flaw) => drop(lock(&self.flawed).insert(file, flaw)),
            }
        }
        healed
    }

    fn binding(&self, version: AdapterVersion) -> Binding {
        let state = lock(&self.state);
        match state.catalog.of_version(version).next() {
            Some(_) => Binding::Bound,
            None if state.held.holds(version) => Binding::Unknown,
            None => Binding::None,
        }
    }

    fn get(&self, name: &AdapterName) -> Option<StoredAdapter> {
        lock(&self.state).catalog.get(name).cloned()
    }

    fn list(&self) -> Vec<StoredAdapter> {
        lock(&self.state).catalog.all().cloned().collect()
    }
}
