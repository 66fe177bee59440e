//! The store in a folder.
//!
//! ```text
//! root/LOCK                                             locked, like root itself, while a process uses the store
//! root/store.json                                       what the store knows of itself as a whole
//! root/objects/<version>/adapter_config.json            immutable
//!                       /adapter_model.safetensors
//!                       /chat_template.jinja            where the adapter has one of its own
//! root/names/<sha256 of the name>.json                  a binding, replaced by rename
//! root/staging/upload-<n>/…                             uploads in progress; emptied at start
//! root/quarantine/<n>-…                                 what was found damaged at start
//! ```
//!
//! Publication, in the order that makes a crash at any point harmless: files and their folder are synced; the folder
//! is renamed into `objects/`, which is synced; the manifest is written beside its place, synced, renamed over the
//! old one, and `names/` is synced. A name therefore never refers to files that are not there.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::super::disk::Patience;
use super::super::error::AdapterError;
use super::super::files::{
    CHAT_TEMPLATE_FILE, CONFIG_FILE, Expected, Sha256Digest, StoreLimits, StoredFile, WEIGHTS_FILE,
};
use super::super::fs::{DiskFs, FoundKind, StoreFs};
use super::super::sync::lock;
use super::layout::Layout;
use super::manifest::{self, TEMPORARY};
use super::record::Record;
use super::recovery::{self, Held, RecoveryReport};
use super::survey::{self, Flaw};
use super::{AdapterBytes, AdapterStore, Bound, Compiled, StoreOptions, StoredAdapter};
use crate::types::{AdapterName, AdapterVersion, BaseDigest};

/// An [`AdapterStore`] in a local folder.
pub struct FolderStore {
    layout: Layout,
    fs: Arc<dyn StoreFs>,
    limits: StoreLimits,
    state: Mutex<State>,
    /// Manifests, by file name, that stand for a name nobody knows. A lock of its own: requests ask it, and must not
    /// wait for the disk.
    flawed: Mutex<BTreeMap<String, Flaw>>,
    /// The locks are given back when the files close.
    _locks: Vec<File>,
}

struct State {
    names: BTreeMap<AdapterName, StoredAdapter>,
    objects: HashMap<AdapterVersion, Vec<StoredFile>>,
    /// Bytes of objects that no name refers to and that are kept.
    nameless: HashMap<AdapterVersion, u64>,
    held: Held,
    record: Result<Record, Flaw>,
    /// The base that is served.
    present: Option<BaseDigest>,
    removals: u64,
    /// Objects moved out of the way that the disk would not let go.
    leftovers: Vec<PathBuf>,
}

impl State {
    fn bytes(&self) -> u64 {
        let objects: u64 = self.objects.values().flatten().map(|file| file.size).sum();
        self.nameless.values().fold(objects, |sum, bytes| sum.saturating_add(*bytes))
    }

    fn is_bound(&self, version: AdapterVersion) -> bool {
        self.names.values().any(|adapter| adapter.version == version)
    }
}

impl FolderStore {
    /// Open the store in `root`, creating it if need be, with the defaults of [`StoreOptions`].
    ///
    /// # Errors
    /// As [`FolderStore::open_with`].
    pub fn open(root: &Path, limits: StoreLimits) -> Result<(Self, RecoveryReport), AdapterError> {
        Self::open_with(root, &StoreOptions::new(limits), Arc::new(DiskFs))
    }

    /// Open the store in `root`, creating it if need be. What a crash has left unfinished is removed, what is damaged
    /// is put aside, and what cannot be read is left as it is: the report has all of it.
    ///
    /// # Errors
    /// [`AdapterError::StoreLocked`], [`AdapterError::NotALock`], [`AdapterError::NotAFolder`]; where a folder of the
    /// store cannot be listed, the disk; with [`OnStoreError::Refuse`](super::OnStoreError::Refuse)
    /// [`AdapterError::StoreUnreadable`] and [`AdapterError::NamesMissing`].
    pub fn open_with(
        root: &Path,
        options: &StoreOptions,
        fs: Arc<dyn StoreFs>,
    ) -> Result<(Self, RecoveryReport), AdapterError> {
        let layout = Layout::new(root);
        let mut patience = Patience::long();
        create_root(fs.as_ref(), &mut patience, root)?;
        let locks = layout.lock(fs.as_ref(), &mut patience)?;
        let recovered = recovery::recover(&layout, fs.as_ref(), options, &mut patience)?;
        let names: BTreeMap<_, _> =
            recovered.names.into_iter().map(|adapter| (adapter.name.clone(), adapter)).collect();
        let there = names.values().filter(|adapter| recovered.objects.contains(&adapter.version));
        let state = State {
            objects: there.map(|adapter| (adapter.version, adapter.files.clone())).collect(),
            names,
            nameless: recovered.nameless,
            held: recovered.held,
            record: recovered.record,
            present: None,
            removals: 0,
            leftovers: Vec::new(),
        };
        let (limits, state, flawed) = (options.limits.clone(), Mutex::new(state), Mutex::new(recovered.flawed));
        Ok((Self { layout, fs, limits, state, flawed, _locks: locks }, recovered.report))
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
        write_record(&self.layout, self.fs.as_ref(), record)
    }

    fn check_quota(&self, state: &State, adapter: &StoredAdapter) -> Result<(), AdapterError> {
        let (count, max) = (state.names.len() + lock(&self.flawed).len(), self.limits.max_adapters);
        if !state.names.contains_key(&adapter.name) && count >= max {
            return Err(AdapterError::TooManyAdapters { count, max });
        }
        let (requested, used, max) = (adapter.bytes(), state.bytes(), self.limits.max_store_bytes);
        let there = state.objects.contains_key(&adapter.version) || state.nameless.contains_key(&adapter.version);
        if !there && used.saturating_add(requested) > max {
            return Err(AdapterError::StoreFull { requested, used, max });
        }
        Ok(())
    }

    /// The disk is asked for the object, not the state: an earlier failure may have left it without a name.
    fn store_object(&self, dir: &Path, adapter: &StoredAdapter) -> Result<(), AdapterError> {
        let io = AdapterError::io;
        let object = self.layout.object(adapter.version);
        let fs = self.fs.as_ref();
        match Patience::short().look(fs, &object).map_err(io("looking at an object"))?.map(|found| found.kind) {
            Some(FoundKind::Folder) => {
                // The same content is there: replacing it file by file keeps every moment valid and heals damage.
                for file in &adapter.files {
                    fs.rename(&dir.join(&file.path), &object.join(&file.path))
                        .map_err(io("moving a file into the store"))?;
                }
                return fs.sync_dir(&object).map_err(io("syncing an object"));
            }
            Some(_) => {
                recovery::put_aside(&self.layout, fs, &mut Patience::short(), &object)
                    .map_err(io("putting a damaged object aside"))?;
            }
            None => {}
        }
        fs.rename(dir, &object).map_err(io("moving an upload into the store"))?;
        fs.sync_dir(&self.layout.objects).map_err(io("syncing the objects"))
    }

    /// Write the manifest and put it in the place of the old one. An error after the rename leaves the new binding
    /// visible without knowing that it is durable; the caller is told of the failure all the same.
    fn bind(&self, state: &mut State, adapter: &StoredAdapter) -> Result<(), AdapterError> {
        let bytes =
            manifest::encode(adapter).map_err(|source| AdapterError::Encoding { what: "a manifest", source })?;
        let file = manifest::file_name(&adapter.name);
        put_in_place(self.fs.as_ref(), &self.layout.names, &file, &bytes)?;
        state.names.insert(adapter.name.clone(), adapter.clone());
        lock(&self.flawed).remove(&file);
        self.fs.sync_dir(&self.layout.names).map_err(AdapterError::io("syncing the names"))
    }

    /// Where a name has no binding: is that certain?
    fn absent(&self, name: &AdapterName) -> AdapterError {
        self.trouble(name).unwrap_or_else(|| AdapterError::NotFound { name: name.clone() })
    }

    fn reread_record(&self, state: &mut State) {
        let reread = match &state.record {
            Ok(_) => return,
            Err(_) => survey::read_record(self.fs.as_ref(), &mut Patience::short(), &self.layout.record),
        };
        if let Ok(mut record) = reread {
            if record.adopted.is_none() {
                record.adopted = state.present;
            }
            state.record = Ok(record);
        }
    }
}

/// The root is the operator's own where it exists, and for the server's user alone where it does not.
fn create_root(fs: &dyn StoreFs, patience: &mut Patience, root: &Path) -> Result<(), AdapterError> {
    let io = AdapterError::io;
    if root.is_dir() {
        return Ok(());
    }
    if patience.look(fs, root).map_err(io("looking at the store"))?.is_some() {
        return Err(AdapterError::NotAFolder { path: root.to_owned() });
    }
    if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(io("creating the store"))?;
    }
    fs.create_dir(root).map_err(io("creating the store"))
}

pub(super) fn write_record(layout: &Layout, fs: &dyn StoreFs, record: &Record) -> Result<(), AdapterError> {
    let bytes = record.encode().map_err(|source| AdapterError::Encoding { what: "the store's record", source })?;
    put_in_place(fs, &layout.root, "store.json", &bytes)?;
    fs.sync_dir(&layout.root).map_err(AdapterError::io("syncing the store"))
}

/// Write a small file beside its place and rename it over what was there. The caller syncs the folder. What an earlier
/// attempt left behind is in nobody's way.
pub(super) fn put_in_place(fs: &dyn StoreFs, folder: &Path, file: &str, bytes: &[u8]) -> Result<(), AdapterError> {
    let io = AdapterError::io;
    let (temporary, mut open) = create_temporary(fs, folder, file).map_err(io("creating a manifest"))?;
    let written = open.append(bytes).map_err(io("writing a manifest"));
    let written = written.and_then(|()| open.sync().map_err(io("syncing a manifest")));
    drop(open);
    let written =
        written.and_then(|()| fs.rename(&temporary, &folder.join(file)).map_err(io("putting a manifest in place")));
    written.inspect_err(|_| match fs.remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, "could not remove a temporary manifest; the next start does");
        }
        _ => {}
    })
}

fn create_temporary(
    fs: &dyn StoreFs,
    folder: &Path,
    file: &str,
) -> std::io::Result<(PathBuf, Box<dyn super::super::fs::StoreFile>)> {
    let mut number = 0;
    loop {
        let path = folder.join(format!("{file}.{number}{TEMPORARY}"));
        match fs.create_file(&path) {
            Ok(open) => return Ok((path, open)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < 1000 => number += 1,
            Err(error) => return Err(error),
        }
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
        if previous.is_none() && expected != Expected::Any {
            self.trouble(&adapter.name).map_or(Ok(()), Err)?;
        }
        expected.check(&adapter.name, previous)?;
        self.check_quota(&state, &adapter)?;
        self.store_object(dir, &adapter)?;
        state.nameless.remove(&adapter.version);
        state.objects.insert(adapter.version, adapter.files.clone());
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
        self.bind(&mut state, &adapter)?;
        Ok(Bound { adapter, previous })
    }

    fn unbind(&self, name: &AdapterName, expected: Expected) -> Result<StoredAdapter, AdapterError> {
        let io = AdapterError::io;
        let mut state = lock(&self.state);
        let adapter = state.names.get(name).cloned().ok_or_else(|| self.absent(name))?;
        expected.check(name, Some(adapter.version))?;
        let place = self.layout.names.join(manifest::file_name(name));
        match self.fs.remove_file(&place) {
            // Somebody else removed it: what was asked for is so.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.map_err(io("removing a manifest"))?,
        }
        state.names.remove(name);
        self.fs.sync_dir(&self.layout.names).map_err(io("syncing the names"))?;
        Ok(adapter)
    }

    fn set_pinned(&self, name: &AdapterName, pinned: bool) -> Result<StoredAdapter, AdapterError> {
        let mut state = lock(&self.state);
        let mut adapter = state.names.get(name).cloned().ok_or_else(|| self.absent(name))?;
        if adapter.pinned != pinned {
            adapter.pinned = pinned;
            self.bind(&mut state, &adapter)?;
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
        let bound = state.names.get(name).filter(|bound| bound.version == version);
        let Some(bound) = bound.filter(|bound| bound.compiled.as_ref() != Some(compiled)) else { return Ok(false) };
        let adapter = StoredAdapter { compiled: Some(compiled.clone()), ..bound.clone() };
        self.bind(&mut state, &adapter)?;
        Ok(true)
    }

    fn adopt(&self, present: BaseDigest) -> BaseDigest {
        let mut state = lock(&self.state);
        state.present = Some(present);
        let orphans = state.names.values().filter(|adapter| adapter.compiled.is_none()).count();
        let Ok(record) = &mut state.record else { return present };
        if let Some(adopted) = record.adopted {
            return adopted;
        }
        if orphans > 0 {
            record.adopted = Some(present);
            tracing::info!(adapters = orphans, base = %present, "adapters that do not say what base they belong to are taken to belong to this one");
            if let Err(error) = write_record(&self.layout, self.fs.as_ref(), record) {
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

    fn heal(&self) -> Vec<AdapterName> {
        let flawed: Vec<_> = lock(&self.flawed).keys().cloned().collect();
        if flawed.is_empty() {
            return Vec::new();
        }
        let (fs, mut patience) = (self.fs.as_ref(), Patience::none());
        let mut state = lock(&self.state);
        self.reread_record(&mut state);
        let mut healed = Vec::new();
        for file in flawed {
            let path = self.layout.names.join(&file);
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
                    healed.push(adapter.name.clone());
                    state.nameless.remove(&adapter.version);
                    state.objects.insert(adapter.version, adapter.files.clone());
                    state.names.insert(adapter.name.clone(), adapter);
                }
                Err(flaw) => drop(lock(&self.flawed).insert(file, flaw)),
            }
        }
        healed
    }

    fn remove_object(&self, version: AdapterVersion) -> Result<bool, AdapterError> {
        let io = AdapterError::io;
        let mut state = lock(&self.state);
        if state.is_bound(version) || !state.objects.contains_key(&version) {
            return Ok(false);
        }
        if state.held.holds(version) {
            let files = state.objects.remove(&version).unwrap_or_default();
            state.nameless.insert(version, files.iter().map(|file| file.size).sum());
            tracing::info!(%version, "kept the files of a version without a name: a name that cannot be read may be theirs");
            return Ok(false);
        }
        // Out of the way first, so that no object is ever half there.
        let away = self.free_place(&mut state)?;
        self.fs.rename(&self.layout.object(version), &away).map_err(io("moving an object away"))?;
        state.objects.remove(&version);
        state.leftovers.push(away);
        let leftovers = std::mem::take(&mut state.leftovers);
        drop(state);
        self.sweep(leftovers)?;
        Ok(true)
    }

    fn read(&self, version: AdapterVersion) -> Result<AdapterBytes, AdapterError> {
        let files = self.files_of(version)?;
        let read = |path: &str| match files.iter().find(|file| file.path == path) {
            Some(file) => self.read_verified(file, version),
            None => Err(AdapterError::Corrupt { version, path: path.to_owned() }),
        };
        Ok(AdapterBytes { config: read(CONFIG_FILE)?, weights: read(WEIGHTS_FILE)? })
    }

    fn read_chat_template(&self, version: AdapterVersion) -> Result<Option<Vec<u8>>, AdapterError> {
        let files = self.files_of(version)?;
        let template = files.iter().find(|file| file.path == CHAT_TEMPLATE_FILE);
        template.map(|file| self.read_verified(file, version)).transpose()
    }

    fn get(&self, name: &AdapterName) -> Option<StoredAdapter> {
        lock(&self.state).names.get(name).cloned()
    }

    fn list(&self) -> Vec<StoredAdapter> {
        lock(&self.state).names.values().cloned().collect()
    }
}

impl FolderStore {
    /// A path in `staging/` where nothing is.
    fn free_place(&self, state: &mut State) -> Result<PathBuf, AdapterError> {
        loop {
            state.removals += 1;
            let place = self.layout.staging.join(format!("removed-{}", state.removals));
            let found = Patience::short().look(self.fs.as_ref(), &place);
            if found.map_err(AdapterError::io("looking at the staging folder"))?.is_none() {
                return Ok(place);
            }
        }
    }

    fn files_of(&self, version: AdapterVersion) -> Result<Vec<StoredFile>, AdapterError> {
        let state = lock(&self.state);
        let named = || state.names.values().find(|adapter| adapter.version == version);
        let files = state.objects.get(&version).cloned().or_else(|| named().map(|adapter| adapter.files.clone()));
        files.ok_or(AdapterError::UnknownVersion { version })
    }

    /// Remove what was moved out of the way, now and when the disk refused it. What cannot be removed is tried again with
    /// the next, or at the next start.
    fn sweep(&self, mut leftovers: Vec<PathBuf>) -> Result<(), AdapterError> {
        let io = AdapterError::io;
        let synced = self.fs.sync_dir(&self.layout.objects).map_err(io("syncing the objects"));
        let swept = synced.and_then(|()| {
            while let Some(path) = leftovers.last() {
                match self.fs.remove_dir_all(path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(io("removing an object")(error));
                    }
                    _ => drop(leftovers.pop()),
                }
            }
            Ok(())
        });
        lock(&self.state).leftovers.append(&mut leftovers);
        swept
    }

    fn read_verified(&self, expected: &StoredFile, version: AdapterVersion) -> Result<Vec<u8>, AdapterError> {
        let io = AdapterError::io;
        let corrupt = || AdapterError::Corrupt { version, path: expected.path.clone() };
        let (fs, mut patience) = (self.fs.as_ref(), Patience::short());
        let object = self.layout.object(version);
        let path = object.join(&expected.path);
        let Some(found) = patience.look(fs, &path).map_err(io("looking at a stored file"))? else {
            let object = patience.look(fs, &object).map_err(io("looking at an object"))?;
            return Err(object.map_or(AdapterError::FilesMissing { version }, |_| corrupt()));
        };
        if found.kind != FoundKind::File || found.bytes != expected.size {
            return Err(corrupt());
        }
        let bytes = patience.read(fs, &path, expected.size).map_err(io("reading a stored file"))?;
        if Sha256Digest::of(&bytes) == expected.sha256 { Ok(bytes) } else { Err(corrupt()) }
    }
}
