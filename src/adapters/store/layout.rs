//! The folders of a store, its lock, and what all parts of an open one have in common.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::disk::Patience;
use super::super::disk_fault::DiskFault;
use super::super::error::AdapterError;
use super::super::files::StoreLimits;
use super::super::fs::{FoundKind, StoreFs};
use crate::types::AdapterVersion;

/// The folders of a store.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
    pub(super) objects: PathBuf,
    pub(super) names: PathBuf,
    pub(super) staging: PathBuf,
    pub(super) quarantine: PathBuf,
    pub(super) record: PathBuf,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        let inside = |name| root.join(name);
        Self {
            root: root.to_owned(),
            objects: inside("objects"),
            names: inside("names"),
            staging: inside("staging"),
            quarantine: inside("quarantine"),
            record: inside("store.json"),
        }
    }

    pub(super) fn folders(&self) -> [&PathBuf; 4] {
        [&self.objects, &self.names, &self.staging, &self.quarantine]
    }

    pub(super) fn object(&self, version: AdapterVersion) -> PathBuf {
        self.objects.join(version.to_string())
    }

    /// The path of an entry as people see it.
    pub(super) fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// The folders that are not there. What is there but no folder is refused.
    pub(super) fn missing(&self, fs: &dyn StoreFs, patience: &mut Patience) -> Result<Vec<PathBuf>, AdapterError> {
        let mut missing = Vec::new();
        for path in self.folders() {
            let found = patience.look(fs, path).map_err(AdapterError::io("looking at a folder of the store"))?;
            match found.map(|found| found.kind) {
                Some(FoundKind::Folder) => {}
                Some(_) => return Err(AdapterError::NotAFolder { path: path.clone() }),
                None => missing.push(path.clone()),
            }
        }
        Ok(missing)
    }

    /// Lock the store for this process, as long as the handles live. The lock is on the folder itself, so that it holds
    /// when somebody removes or replaces the file `LOCK`, which is locked too, for versions that know only that.
    pub(super) fn lock(&self, fs: &dyn StoreFs, patience: &mut Patience) -> Result<Vec<File>, AdapterError> {
        self.take_lock(fs, patience, true)
    }

    /// As [`Layout::lock`], creating nothing.
    pub(super) fn lock_present(&self, fs: &dyn StoreFs, patience: &mut Patience) -> Result<Vec<File>, AdapterError> {
        self.take_lock(fs, patience, false)
    }

    fn take_lock(&self, fs: &dyn StoreFs, patience: &mut Patience, create: bool) -> Result<Vec<File>, AdapterError> {
        let locked = || AdapterError::StoreLocked { root: self.root.clone() };
        let folder = match patience.attempt(fs, || fs.lock(&self.root)) {
            Ok(Some(folder)) => Some(folder),
            Ok(None) => return Err(locked()),
            // Some network file systems lock files only.
            Err(error) if error.kind() == ErrorKind::Unsupported || error.raw_os_error() == Some(9) => None,
            Err(error) => return Err(AdapterError::io("locking the store")(error)),
        };
        let path = self.root.join("LOCK");
        if !create && matches!(patience.look(fs, &path), Ok(None)) {
            return Ok(folder.into_iter().collect());
        }
        match self.lock_file(fs, patience, &path) {
            Ok(Some(file)) => Ok(folder.into_iter().chain([file]).collect()),
            Ok(None) => Err(locked()),
            Err(error) if error.kind() == ErrorKind::InvalidInput => Err(AdapterError::NotALock { path }),
            // Nobody can have made it there, and the folder is locked.
            Err(error) if folder.is_some() && DiskFault::of(&error) == DiskFault::ReadOnly => {
                Ok(folder.into_iter().collect())
            }
            Err(error) => Err(AdapterError::io("locking the store")(error)),
        }
    }

    fn lock_file(&self, fs: &dyn StoreFs, patience: &mut Patience, path: &Path) -> io::Result<Option<File>> {
        match patience.look(fs, path)?.map(|found| found.kind) {
            Some(FoundKind::File) => {}
            Some(_) => return Err(ErrorKind::InvalidInput.into()),
            None => match fs.create_file(path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            },
        }
        patience.attempt(fs, || fs.lock(path))
    }
}

/// What both parts of a store in a folder have of it.
pub(super) struct Folder {
    pub(super) layout: Layout,
    pub(super) fs: Arc<dyn StoreFs>,
    pub(super) limits: StoreLimits,
    /// The locks are given back when the files close.
    _locks: Vec<File>,
}

impl Folder {
    pub(super) fn new(layout: Layout, fs: Arc<dyn StoreFs>, limits: StoreLimits, locks: Vec<File>) -> Self {
        Self { layout, fs, limits, _locks: locks }
    }
}
