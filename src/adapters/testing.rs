//! A disk that fails: it stops after a chosen number of changes, as a killed process does, or forgets what was not
//! synced as well, as a machine without power does; or operations fail, reads included, and the process lives on.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::files::{CHAT_TEMPLATE_FILE, CONFIG_FILE, Expected, FileHeader, UploadHeader, WEIGHTS_FILE};
use super::fs::{DiskFs, Found, StoreFile, StoreFs};
use super::sync::lock;
use super::upload_id::UploadId;
use crate::types::{AdapterFacts, AdapterTask, ClientKey, DeltaGroup, Sha256Digest};

pub(super) const EIO: i32 = 5;
pub(super) const EACCES: i32 = 13;
pub(super) const EMFILE: i32 = 24;
pub(super) const ENOSPC: i32 = 28;
pub(super) const EROFS: i32 = 30;
pub(super) const EDQUOT: i32 = 122;

/// How the disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Never.
    None,
    /// The chosen change and every later operation fails; all earlier ones are on disk.
    Kill,
    /// As `Kill`, and changes that were not synced are undone.
    PowerLoss,
    /// The chosen operation, reads included, and as many after it as `times` says fail with this number; later ones work.
    Errno { number: i32, times: usize },
    /// As `Errno`, of changes only: reads work.
    ChangeErrno { number: i32, times: usize },
    /// The first file opened from the chosen operation on ends halfway, without an error.
    ShortRead,
}

impl Fault {
    pub(super) fn once(number: i32) -> Self {
        Self::Errno { number, times: 1 }
    }
}

#[derive(Clone)]
pub(super) struct FaultyFs {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    fault: Fault,
    /// Changes, or operations, until the fault.
    left: usize,
    changes: usize,
    operations: usize,
    crashed: bool,
    /// Files and folders on which every operation fails.
    denied: Vec<(PathBuf, i32)>,
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

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Look,
    Open,
    Change,
}

impl FaultyFs {
    /// Fail at change number `at`, counted from 0; for [`Fault::Errno`] at operation number `at`.
    pub(super) fn new(fault: Fault, at: usize) -> Self {
        let shared = Shared {
            fault,
            left: at,
            changes: 0,
            operations: 0,
            crashed: false,
            denied: Vec::new(),
            dirty: Vec::new(),
            unsynced: Vec::new(),
        };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    pub(super) fn changes(&self) -> usize {
        lock(&self.shared).changes
    }

    pub(super) fn operations(&self) -> usize {
        lock(&self.shared).operations
    }

    /// Arm a fault `after` further changes or operations.
    pub(super) fn arm(&self, fault: Fault, after: usize) {
        let mut shared = lock(&self.shared);
        (shared.fault, shared.left) = (fault, after);
    }

    /// Every operation on this file, or on this folder and what is in it, fails from now on.
    pub(super) fn deny(&self, path: &Path, number: i32) {
        lock(&self.shared).denied.push((path.to_owned(), number));
    }

    /// The disk is well again.
    pub(super) fn mend(&self) {
        let mut shared = lock(&self.shared);
        shared.denied.clear();
        shared.fault = Fault::None;
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

    fn change(&self, path: &Path) -> io::Result<()> {
        self.operate(path, Kind::Change).map(drop)
    }

    /// True: a file that is opened now ends halfway.
    fn operate(&self, path: &Path, kind: Kind) -> io::Result<bool> {
        let mut shared = lock(&self.shared);
        if shared.crashed {
            return Err(io::Error::other("the process is gone"));
        }
        shared.operations += 1;
        shared.changes += usize::from(kind == Kind::Change);
        if let Some((_, number)) = shared.denied.iter().find(|(denied, _)| path.starts_with(denied)) {
            return Err(io::Error::from_raw_os_error(*number));
        }
        let counts = match shared.fault {
            Fault::None => false,
            Fault::Kill | Fault::PowerLoss | Fault::ChangeErrno { .. } => kind == Kind::Change,
            Fault::Errno { .. } | Fault::ShortRead => true,
        };
        if !counts {
            return Ok(false);
        }
        if shared.left > 0 {
            shared.left -= 1;
            return Ok(false);
        }
        match &mut shared.fault {
            Fault::None => Ok(false),
            Fault::Kill | Fault::PowerLoss => {
                shared.crashed = true;
                Err(io::Error::other("killed"))
            }
            Fault::Errno { number, times } | Fault::ChangeErrno { number, times } => {
                let error = io::Error::from_raw_os_error(*number);
                *times -= 1;
                if *times == 0 {
                    shared.fault = Fault::None;
                }
                Err(error)
            }
            Fault::ShortRead if kind == Kind::Open => {
                shared.fault = Fault::None;
                Ok(true)
            }
            Fault::ShortRead => Ok(false),
        }
    }

    fn note(&self, undo: Undo) {
        lock(&self.shared).unsynced.push(undo);
    }
}

impl StoreFs for FaultyFs {
    fn metadata(&self, path: &Path) -> io::Result<Found> {
        self.operate(path, Kind::Look)?;
        DiskFs.metadata(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.operate(path, Kind::Look)?;
        DiskFs.list(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        let short = self.operate(path, Kind::Open)?;
        let file = DiskFs.open(path)?;
        let bytes = DiskFs.metadata(path)?.bytes;
        let file = if short { Box::new(file.take(bytes / 2)) } else { file };
        Ok(Box::new(FaultyReader { fs: self.clone(), path: path.to_owned(), file }))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<fs::File>> {
        self.operate(path, Kind::Look)?;
        DiskFs.lock(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.change(path)?;
        DiskFs.create_dir(path)?;
        self.note(Undo::Created(path.to_owned()));
        Ok(())
    }

    fn create_file(&self, path: &Path) -> io::Result<Box<dyn StoreFile>> {
        self.change(path)?;
        let file = DiskFs.create_file(path)?;
        self.note(Undo::Created(path.to_owned()));
        Ok(Box::new(FaultyFile { fs: self.clone(), path: path.to_owned(), file }))
    }

    fn make_private(&self, path: &Path) -> io::Result<()> {
        self.change(path)?;
        DiskFs.make_private(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(from)?;
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
        self.change(path)?;
        lock(&self.shared).unsynced.retain(|undo| {
            let entry = match undo {
                Undo::Created(entry) | Undo::Renamed { to: entry, .. } | Undo::Removed(entry, _) => entry,
            };
            entry.parent() != Some(path)
        });
        DiskFs.sync_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change(path)?;
        let content = fs::read(path).unwrap_or_default();
        DiskFs.remove_file(path)?;
        self.note(Undo::Removed(path.to_owned(), content));
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.change(path)?;
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

    fn pause(&self, _: Duration) {}
}

struct FaultyReader {
    fs: FaultyFs,
    path: PathBuf,
    file: Box<dyn Read + Send>,
}

impl Read for FaultyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fs.operate(&self.path, Kind::Look)?;
        self.file.read(buffer)
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
        if let Err(error) = self.fs.change(&self.path) {
            // A torn write.
            self.file.append(&data[..data.len() / 2])?;
            return Err(error);
        }
        self.file.append(data)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.fs.change(&self.path)?;
        lock(&self.fs.shared).dirty.retain(|path| *path != self.path);
        self.file.sync()
    }
}

/// Contents for an upload: a config and weights that differ by `seed`, and a chat template where that is even.
pub(crate) fn contents(seed: u8) -> Vec<(&'static str, Vec<u8>)> {
    let mut files = vec![(CONFIG_FILE, format!("{{\"r\": {seed}}}").into_bytes()), (WEIGHTS_FILE, vec![seed; 1000])];
    if seed.is_multiple_of(2) {
        files.push((CHAT_TEMPLATE_FILE, format!("{seed}{{{{ messages[0].content }}}}").into_bytes()));
    }
    files
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
        client: ClientKey::LOCAL,
    }
}

pub(crate) fn facts(device_bytes: u64) -> AdapterFacts {
    AdapterFacts {
        kind: "LoRA".into(),
        group: Some(DeltaGroup::Reparameterization),
        task: AdapterTask::Generation,
        min_rank: 8,
        max_rank: 8,
        ops: std::collections::BTreeMap::new(),
        targets: Vec::new(),
        device_bytes,
        parameters: 1,
        virtual_tokens: None,
        invocation_tokens: Vec::new(),
        keeps_base_kv: false,
        base_layers: 0,
        vocab_size: None,
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
