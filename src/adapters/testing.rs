//! A disk that fails: it stops after a chosen number of changes, as a killed process does, or forgets what was not
//! synced as well, as a machine without power does; or one operation fails and the process lives on.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use super::files::{CONFIG_FILE, Expected, FileHeader, Sha256Digest, UploadHeader, UploadId, WEIGHTS_FILE};
use super::fs::{DiskFs, StoreFile, StoreFs};
use super::sync::lock;
use crate::types::AdapterFacts;

/// How the disk fails at the chosen change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Never.
    None,
    /// This and every later change fails; all earlier ones are on disk.
    Kill,
    /// As `Kill`, and changes that were not synced are undone.
    PowerLoss,
    /// This change fails with no space left; later ones work.
    DiskFull,
    /// This change fails; later ones work.
    Error,
}

#[derive(Clone)]
pub(super) struct FaultyFs {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    fault: Fault,
    /// Changes until the fault.
    left: usize,
    changes: usize,
    crashed: bool,
    /// Files with content that was not synced.
    dirty: Vec<PathBuf>,
    /// Changes of folders that were not synced, oldest first.
    unsynced: Vec<Undo>,
}

enum Undo {
    /// The entry appeared here.
    Created(PathBuf),
    /// It moved; a file that was replaced had this content.
    Renamed { from: PathBuf, to: PathBuf, replaced: Option<Vec<u8>> },
    /// A file with this content was removed.
    Removed(PathBuf, Vec<u8>),
}

impl FaultyFs {
    /// Fail at change number `at`, counted from 0.
    pub(super) fn new(fault: Fault, at: usize) -> Self {
        let (dirty, unsynced) = (Vec::new(), Vec::new());
        let shared = Shared { fault, left: at, changes: 0, crashed: false, dirty, unsynced };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    pub(super) fn changes(&self) -> usize {
        lock(&self.shared).changes
    }

    /// Arm a fault `after` further changes.
    pub(super) fn arm(&self, fault: Fault, after: usize) {
        let mut shared = lock(&self.shared);
        (shared.fault, shared.left) = (fault, after);
    }

    /// What the disk looks like when the machine comes back.
    pub(super) fn reboot(&self) {
        let mut shared = lock(&self.shared);
        if shared.fault != Fault::PowerLoss {
            return;
        }
        for path in std::mem::take(&mut shared.dirty) {
            if let Ok(content) = fs::read(&path) {
                fs::write(&path, &content[..content.len() / 2]).unwrap();
            }
        }
        while let Some(undo) = shared.unsynced.pop() {
            match undo {
                Undo::Created(path) if path.is_dir() => fs::remove_dir_all(path).unwrap(),
                Undo::Created(path) => drop(fs::remove_file(path)),
                Undo::Renamed { from, to, replaced } => {
                    fs::rename(&to, &from).unwrap();
                    if let Some(content) = replaced {
                        fs::write(&to, content).unwrap();
                    }
                }
                Undo::Removed(path, content) => fs::write(path, content).unwrap(),
            }
        }
    }

    fn change(&self) -> io::Result<()> {
        let mut shared = lock(&self.shared);
        if shared.crashed {
            return Err(io::Error::other("the process is gone"));
        }
        shared.changes += 1;
        if shared.fault == Fault::None {
            return Ok(());
        }
        if shared.left > 0 {
            shared.left -= 1;
            return Ok(());
        }
        match shared.fault {
            Fault::None => Ok(()),
            Fault::Kill | Fault::PowerLoss => {
                shared.crashed = true;
                Err(io::Error::other("killed"))
            }
            Fault::DiskFull => {
                shared.fault = Fault::None;
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            Fault::Error => {
                shared.fault = Fault::None;
                Err(io::Error::other("input/output error"))
            }
        }
    }

    fn note(&self, undo: Undo) {
        lock(&self.shared).unsynced.push(undo);
    }
}

impl StoreFs for FaultyFs {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        DiskFs.create_dir(path)?;
        self.note(Undo::Created(path.to_owned()));
        Ok(())
    }

    fn create_file(&self, path: &Path) -> io::Result<Box<dyn StoreFile>> {
        self.change()?;
        let file = DiskFs.create_file(path)?;
        self.note(Undo::Created(path.to_owned()));
        Ok(Box::new(FaultyFile { fs: self.clone(), path: path.to_owned(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change()?;
        let replaced = fs::read(to).ok();
        DiskFs.rename(from, to)?;
        let mut shared = lock(&self.shared);
        for path in &mut shared.dirty {
            if let Ok(rest) = path.strip_prefix(from) {
                *path = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            }
        }
        shared.unsynced.push(Undo::Renamed { from: from.to_owned(), to: to.to_owned(), replaced });
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        lock(&self.shared).unsynced.retain(|undo| {
            let entry = match undo {
                Undo::Created(entry) | Undo::Renamed { to: entry, .. } | Undo::Removed(entry, _) => entry,
            };
            entry.parent() != Some(path)
        });
        DiskFs.sync_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        let content = fs::read(path).unwrap_or_default();
        DiskFs.remove_file(path)?;
        self.note(Undo::Removed(path.to_owned(), content));
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        let mut shared = lock(&self.shared);
        shared.dirty.retain(|dirty| !dirty.starts_with(path));
        shared.unsynced.retain(|undo| match undo {
            Undo::Created(entry) | Undo::Removed(entry, _) | Undo::Renamed { to: entry, .. } => {
                !entry.starts_with(path)
            }
        });
        drop(shared);
        DiskFs.remove_dir_all(path)
    }
}

struct FaultyFile {
    fs: FaultyFs,
    path: PathBuf,
    file: Box<dyn StoreFile>,
}

impl StoreFile for FaultyFile {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        lock(&self.fs.shared).dirty.push(self.path.clone());
        if let Err(error) = self.fs.change() {
            // A torn write.
            self.file.append(&data[..data.len() / 2])?;
            return Err(error);
        }
        self.file.append(data)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.fs.change()?;
        lock(&self.fs.shared).dirty.retain(|path| *path != self.path);
        self.file.sync()
    }
}

/// Contents for an upload: a config and weights that differ by `seed`.
pub(crate) fn contents(seed: u8) -> Vec<(&'static str, Vec<u8>)> {
    vec![(CONFIG_FILE, format!("{{\"r\": {seed}}}").into_bytes()), (WEIGHTS_FILE, vec![seed; 1000])]
}

pub(crate) fn header(name: &str, files: &[(&str, Vec<u8>)], upload_id: Option<&str>) -> UploadHeader {
    let file = |(path, content): &(&str, Vec<u8>)| FileHeader {
        path: (*path).to_owned(),
        size: content.len() as u64,
        sha256: Sha256Digest(Sha256::digest(content).into()).to_string(),
    };
    UploadHeader {
        name: name.parse().unwrap(),
        files: files.iter().map(file).collect(),
        upload_id: upload_id.map(|id| id.parse::<UploadId>().unwrap()),
        expected: Expected::Any,
        validate_only: false,
        pin: false,
    }
}

pub(crate) fn facts(device_bytes: u64) -> AdapterFacts {
    AdapterFacts {
        kind: "LoRA".into(),
        min_rank: 8,
        max_rank: 8,
        ops: std::collections::BTreeMap::new(),
        targets: Vec::new(),
        device_bytes,
        parameters: 1,
        virtual_tokens: None,
        unknown_fields: Vec::new(),
    }
}

/// Everything below a folder, as (relative path, content).
pub(super) fn tree(root: &Path) -> HashMap<PathBuf, Vec<u8>> {
    let mut found = HashMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let content = fs::read(&path).unwrap();
                found.insert(path.strip_prefix(root).unwrap().to_owned(), content);
            }
        }
    }
    found
}
