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

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::disk::Patience;
use super::super::error::AdapterError;
use super::super::files::StoreLimits;
use super::super::fs::{DiskFs, StoreFs};
use super::StoreOptions;
use super::layout::Layout;
use super::manifest::TEMPORARY;
use super::names::FolderNames;
use super::objects::FolderObjects;
use super::record::Record;
use super::recovery::{self, RecoveryReport};

/// What both parts of a store in a folder have of it.
pub(super) struct Folder {
    pub(super) layout: Layout,
    pub(super) fs: Arc<dyn StoreFs>,
    pub(super) limits: StoreLimits,
    /// The locks are given back when the files close.
    _locks: Vec<File>,
}

/// A store in a local folder, open.
pub struct FolderStore {
    /// Its names.
    pub names: Arc<FolderNames>,
    /// Its objects.
    pub objects: Arc<FolderObjects>,
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
        let folder = Arc::new(Folder { layout, fs, limits: options.limits.clone(), _locks: locks });
        let there = &recovered.objects;
        let named = recovered.names.iter();
        let named = named.map(|adapter| (adapter.version, adapter.files.clone(), there.contains(&adapter.version)));
        let objects = Arc::new(FolderObjects::new(Arc::clone(&folder), named, recovered.nameless));
        let (names, flawed, held) = (recovered.names, recovered.flawed, recovered.held);
        let names = Arc::new(FolderNames::new(folder, names, flawed, held, recovered.record));
        Ok((Self { names, objects }, recovered.report))
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
