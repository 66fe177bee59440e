//! The store in a folder.
//!
//! ```text
//! root/LOCK                                             held while a process uses the store
//! root/objects/<version>/adapter_config.json            immutable
//!                       /adapter_model.safetensors
//! root/names/<sha256 of the name>.json                  a binding, replaced by rename
//! root/staging/upload-<n>/…                             uploads in progress; emptied at start
//! root/quarantine/<n>-…                                 what was found damaged at start
//! ```
//!
//! Publication, in the order that makes a crash at any point harmless: files and their folder are synced; the folder
//! is renamed into `objects/`, which is synced; the manifest is written beside its place, synced, renamed over the
//! old one, and `names/` is synced. A name therefore never refers to files that are not there.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::super::error::AdapterError;
use super::super::files::{CONFIG_FILE, Expected, Sha256Digest, StoreLimits, StoredFile, WEIGHTS_FILE};
use super::super::fs::{DiskFs, StoreFs};
use super::super::sync::lock;
use super::manifest::{self, TEMPORARY};
use super::recovery::{self, RecoveryReport};
use super::{AdapterBytes, AdapterStore, Bound, StoredAdapter};
use crate::types::{AdapterName, AdapterVersion};

/// The folders of a store.
pub(super) struct Layout {
    pub(super) root: PathBuf,
    pub(super) objects: PathBuf,
    pub(super) names: PathBuf,
    pub(super) staging: PathBuf,
    pub(super) quarantine: PathBuf,
}

impl Layout {
    fn new(root: &Path) -> Self {
        let folder = |name| root.join(name);
        Self {
            root: root.to_owned(),
            objects: folder("objects"),
            names: folder("names"),
            staging: folder("staging"),
            quarantine: folder("quarantine"),
        }
    }

    /// Create what is missing; refuse what is there but no folder.
    fn prepare(&self, fs: &dyn StoreFs) -> Result<(), AdapterError> {
        let io = AdapterError::io;
        for path in [&self.objects, &self.names, &self.staging, &self.quarantine] {
            match fs::symlink_metadata(path) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Err(AdapterError::NotAFolder { path: path.clone() }),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    fs.create_dir(path).map_err(io("creating a folder of the store"))?;
                }
                Err(error) => return Err(io("looking at a folder of the store")(error)),
            }
        }
        fs.sync_dir(&self.root).map_err(io("syncing the store"))
    }

    pub(super) fn object(&self, version: AdapterVersion) -> PathBuf {
        self.objects.join(version.to_string())
    }
}

/// An [`AdapterStore`] in a local folder.
pub struct FolderStore {
    layout: Layout,
    fs: Arc<dyn StoreFs>,
    limits: StoreLimits,
    state: Mutex<State>,
    /// The lock is given back when the file closes.
    _lock: File,
}

#[derive(Default)]
struct State {
    names: BTreeMap<AdapterName, StoredAdapter>,
    objects: HashMap<AdapterVersion, Vec<StoredFile>>,
    removals: u64,
}

impl State {
    fn bytes(&self) -> u64 {
        self.objects.values().flatten().map(|file| file.size).sum()
    }

    fn is_bound(&self, version: AdapterVersion) -> bool {
        self.names.values().any(|adapter| adapter.version == version)
    }
}

impl FolderStore {
    /// Open the store in `root`, creating it if need be, and put aside whatever a crash or a fault left behind.
    ///
    /// # Errors
    /// [`AdapterError::StoreLocked`], [`AdapterError::NotAFolder`], the disk. Damaged adapters are no error: they are
    /// in the report.
    pub fn open(root: &Path, limits: StoreLimits) -> Result<(Self, RecoveryReport), AdapterError> {
        Self::open_with(root, limits, Arc::new(DiskFs))
    }

    /// As [`FolderStore::open`], on another disk.
    ///
    /// # Errors
    /// As [`FolderStore::open`].
    pub fn open_with(
        root: &Path,
        limits: StoreLimits,
        fs: Arc<dyn StoreFs>,
    ) -> Result<(Self, RecoveryReport), AdapterError> {
        fs::create_dir_all(root).map_err(AdapterError::io("creating the store"))?;
        let guard = lock_root(root)?;
        let layout = Layout::new(root);
        layout.prepare(fs.as_ref())?;
        let (adapters, report) = recovery::recover(&layout, fs.as_ref())?;
        let mut state = State::default();
        for adapter in adapters {
            state.objects.insert(adapter.version, adapter.files.clone());
            state.names.insert(adapter.name.clone(), adapter);
        }
        Ok((Self { layout, fs, limits, state: Mutex::new(state), _lock: guard }, report))
    }

    fn check_quota(&self, state: &State, adapter: &StoredAdapter) -> Result<(), AdapterError> {
        let (count, max) = (state.names.len(), self.limits.max_adapters);
        if !state.names.contains_key(&adapter.name) && count >= max {
            return Err(AdapterError::TooManyAdapters { count, max });
        }
        let (requested, used, max) = (adapter.bytes(), state.bytes(), self.limits.max_store_bytes);
        if !state.objects.contains_key(&adapter.version) && used.saturating_add(requested) > max {
            return Err(AdapterError::StoreFull { requested, used, max });
        }
        Ok(())
    }

    fn store_object(&self, dir: &Path, adapter: &StoredAdapter, exists: bool) -> Result<(), AdapterError> {
        let io = AdapterError::io;
        let object = self.layout.object(adapter.version);
        if exists {
            // The same content is there: replacing it file by file keeps every moment valid and heals damage.
            for file in &adapter.files {
                self.fs
                    .rename(&dir.join(&file.path), &object.join(&file.path))
                    .map_err(io("moving a file into the store"))?;
            }
            return self.fs.sync_dir(&object).map_err(io("syncing an object"));
        }
        self.fs.rename(dir, &object).map_err(io("moving an upload into the store"))?;
        self.fs.sync_dir(&self.layout.objects).map_err(io("syncing the objects"))
    }

    /// Write the manifest and put it in the place of the old one. An error after the rename leaves the new binding
    /// visible without knowing that it is durable; the caller is told of the failure all the same.
    fn bind(&self, state: &mut State, adapter: &StoredAdapter) -> Result<(), AdapterError> {
        let io = AdapterError::io;
        let bytes = manifest::encode(adapter)
            .map_err(|error| AdapterError::Io { action: "encoding a manifest", source: error.into() })?;
        let place = self.layout.names.join(manifest::file_name(&adapter.name));
        let temporary = self.layout.names.join(format!("{}{TEMPORARY}", manifest::file_name(&adapter.name)));
        if fs::symlink_metadata(&temporary).is_ok() {
            self.discard(&temporary);
        }
        let written = self.write_file(&temporary, &bytes).and_then(|()| {
            self.fs.rename(&temporary, &place).map_err(io("putting a manifest in place"))
        });
        if let Err(error) = written {
            self.discard(&temporary);
            return Err(error);
        }
        state.names.insert(adapter.name.clone(), adapter.clone());
        self.fs.sync_dir(&self.layout.names).map_err(io("syncing the names"))
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
        let io = AdapterError::io;
        let mut file = self.fs.create_file(path).map_err(io("creating a manifest"))?;
        file.append(bytes).map_err(io("writing a manifest"))?;
        file.sync().map_err(io("syncing a manifest"))
    }

    fn discard(&self, temporary: &Path) {
        match self.fs.remove_file(temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "could not remove a temporary manifest");
            }
            _ => {}
        }
    }
}

/// One process at a time.
fn lock_root(root: &Path) -> Result<File, AdapterError> {
    let io = AdapterError::io;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(root.join("LOCK"))
        .map_err(io("opening the lock of the store"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(AdapterError::StoreLocked { root: root.to_owned() }),
        Err(fs::TryLockError::Error(error)) => Err(io("locking the store")(error)),
    }
}

impl AdapterStore for FolderStore {
    fn staging(&self) -> &Path {
        &self.layout.staging
    }

    fn publish(&self, dir: &Path, adapter: StoredAdapter, expected: Expected) -> Result<Bound, AdapterError> {
        let mut state = lock(&self.state);
        let before = state.names.get(&adapter.name).cloned();
        let previous = before.as_ref().map(|before| before.version);
        expected.check(&adapter.name, previous)?;
        self.check_quota(&state, &adapter)?;
        // The disk is asked, not the state: an earlier failure may have left the object without a name.
        let exists = fs::symlink_metadata(self.layout.object(adapter.version)).is_ok();
        self.store_object(dir, &adapter, exists)?;
        state.objects.insert(adapter.version, adapter.files.clone());
        match before {
            // Nothing to change: the first publication was the real one.
            Some(before) if before.version == adapter.version && before.pinned == adapter.pinned => {
                Ok(Bound { adapter: before, previous })
            }
            _ => {
                self.bind(&mut state, &adapter)?;
                Ok(Bound { adapter, previous })
            }
        }
    }

    fn unbind(&self, name: &AdapterName, expected: Expected) -> Result<StoredAdapter, AdapterError> {
        let io = AdapterError::io;
        let mut state = lock(&self.state);
        let adapter = state.names.get(name).cloned().ok_or_else(|| AdapterError::NotFound { name: name.clone() })?;
        expected.check(name, Some(adapter.version))?;
        let place = self.layout.names.join(manifest::file_name(name));
        self.fs.remove_file(&place).map_err(io("removing a manifest"))?;
        state.names.remove(name);
        self.fs.sync_dir(&self.layout.names).map_err(io("syncing the names"))?;
        Ok(adapter)
    }

    fn set_pinned(&self, name: &AdapterName, pinned: bool) -> Result<StoredAdapter, AdapterError> {
        let mut state = lock(&self.state);
        let mut adapter =
            state.names.get(name).cloned().ok_or_else(|| AdapterError::NotFound { name: name.clone() })?;
        if adapter.pinned != pinned {
            adapter.pinned = pinned;
            self.bind(&mut state, &adapter)?;
        }
        Ok(adapter)
    }

    fn remove_object(&self, version: AdapterVersion) -> Result<bool, AdapterError> {
        let io = AdapterError::io;
        let mut state = lock(&self.state);
        if state.is_bound(version) || !state.objects.contains_key(&version) {
            return Ok(false);
        }
        // Out of the way first, so that no object is ever half there.
        state.removals += 1;
        let away = self.layout.staging.join(format!("removed-{}", state.removals));
        self.fs.rename(&self.layout.object(version), &away).map_err(io("moving an object away"))?;
        state.objects.remove(&version);
        drop(state);
        self.fs.sync_dir(&self.layout.objects).map_err(io("syncing the objects"))?;
        self.fs.remove_dir_all(&away).map_err(io("removing an object"))?;
        Ok(true)
    }

    fn read(&self, version: AdapterVersion) -> Result<AdapterBytes, AdapterError> {
        let files = lock(&self.state).objects.get(&version).cloned();
        let files = files.ok_or(AdapterError::UnknownVersion { version })?;
        let object = self.layout.object(version);
        let read = |path: &str| match files.iter().find(|file| file.path == path) {
            Some(file) => read_verified(&object, file, version),
            None => Err(AdapterError::Corrupt { version, path: path.to_owned() }),
        };
        Ok(AdapterBytes { config: read(CONFIG_FILE)?, weights: read(WEIGHTS_FILE)? })
    }

    fn get(&self, name: &AdapterName) -> Option<StoredAdapter> {
        lock(&self.state).names.get(name).cloned()
    }

    fn list(&self) -> Vec<StoredAdapter> {
        lock(&self.state).names.values().cloned().collect()
    }
}

fn read_verified(object: &Path, expected: &StoredFile, version: AdapterVersion) -> Result<Vec<u8>, AdapterError> {
    let io = AdapterError::io;
    let corrupt = || AdapterError::Corrupt { version, path: expected.path.clone() };
    let path = object.join(&expected.path);
    let found = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(corrupt()),
        found => found.map_err(io("looking at a stored file"))?,
    };
    if !found.is_file() || found.len() != expected.size {
        return Err(corrupt());
    }
    let size = usize::try_from(expected.size).map_err(|_| corrupt())?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(size)
        .map_err(|_| io("reading a stored file")(std::io::Error::from(std::io::ErrorKind::OutOfMemory)))?;
    let file = File::open(&path).map_err(io("opening a stored file"))?;
    file.take(expected.size).read_to_end(&mut bytes).map_err(io("reading a stored file"))?;
    if bytes.len() == size && Sha256Digest::of(&bytes) == expected.sha256 { Ok(bytes) } else { Err(corrupt()) }
}
