//! The store in a folder.
//!
//! ```text
//! root/LOCK                                             locked, like root itself, while a process uses the store
//! root/store.json                                       what the store knows of itself as a whole
//! root/objects/<version>/adapter_config.json            immutable
//!                       /adapter_model.safetensors
//!                       /chat_template.jinja            where the adapter has one of its own
//!                       /tokenizer.json                 where it has tokens that the base does not have: these
//! root/names/<sha256 of the name>.json                  a binding, replaced by rename
//! root/staging/upload-<n>/…                             uploads in progress; emptied at start
//! root/quarantine/<n>-…                                 what was found damaged at start
//! ```
//!
//! Publication, in the order that makes a crash at any point harmless: files and their folder are synced; the folder
//! is renamed into `objects/`, which is synced; the manifest is written beside its place, synced, renamed over the
//! old one, and `names/` is synced. A name therefore never refers to files that are not there.

use std::path::Path;
use std::sync::Arc;

use super::super::disk::Patience;
use super::super::error::AdapterError;
use super::super::files::StoreLimits;
use super::super::fs::{DiskFs, StoreFs};
use super::layout::{Folder, Layout};
use super::names::FolderNames;
use super::objects::FolderObjects;
use super::options::StoreOptions;
use super::recovery::{self, RecoveryReport};

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
        let folder = Arc::new(Folder::new(layout, fs, options.limits.clone(), locks));
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
