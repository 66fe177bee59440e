//! What is in a store, without changing anything: each entry is intact, wrong beyond doubt, or not readable now. Sizes
//! and manifests are looked at here; contents when an adapter is read, and by `store check`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::super::disk::Patience;
use super::super::error::AdapterError;
use super::super::files::StoredFile;
use super::super::fs::{Found, FoundKind, StoreFs};
use super::super::stored::StoredAdapter;
use super::layout::Layout;
use super::manifest::{self, MAX_MANIFEST_BYTES, ManifestError, TEMPORARY};
use super::record::{Record, RecordError};
use crate::types::{AdapterName, AdapterVersion};

/// The most a record may be.
const MAX_RECORD_BYTES: u64 = 64 << 20;

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It was read, and is not what was written.
    Damaged(String),
    /// It, or a part of it, is not there.
    Missing(String),
    /// It could not be read; it may be in order.
    Unreadable(String),
    /// A later version of the server wrote it.
    Newer(u32),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(reason) => write!(f, "damaged: {reason}"),
            Self::Missing(what) => write!(f, "{what} is missing"),
            Self::Unreadable(reason) => write!(f, "not readable: {reason}"),
            Self::Newer(format) => write!(f, "of a later version of the server (format {format})"),
        }
    }
}

fn unreadable(error: &std::io::Error) -> Flaw {
    Flaw::Unreadable(error.to_string())
}

/// An entry of `objects/`.
pub(super) struct ObjectEntry {
    pub(super) entry: String,
    /// `None`: it is not named as an object is.
    pub(super) version: Option<AdapterVersion>,
    /// Bytes of its files.
    pub(super) bytes: u64,
    pub(super) flaw: Option<Flaw>,
}

/// Everything in a store.
pub(super) struct Survey {
    /// Folders that are not there.
    pub(super) missing: Vec<PathBuf>,
    /// Manifests by file name.
    pub(super) names: BTreeMap<String, Result<StoredAdapter, Flaw>>,
    pub(super) objects: Vec<ObjectEntry>,
    /// Objects could not be listed.
    pub(super) objects_unlisted: Option<Flaw>,
    /// Names of entries.
    pub(super) quarantine: Vec<String>,
    /// What unfinished work has left behind.
    pub(super) leftovers: Vec<PathBuf>,
    /// Files and folders that others than their owner have rights to.
    pub(super) shared: Vec<PathBuf>,
    pub(super) record: Result<Record, Flaw>,
}

impl Survey {
    /// Look at everything. What cannot even be listed is an error.
    pub(super) fn take(layout: &Layout, fs: &dyn StoreFs, patience: &mut Patience) -> Result<Self, AdapterError> {
        let missing = layout.missing(fs, patience)?;
        let mut look = Look { layout, fs, patience, shared: Vec::new() };
        look.folders(&missing);
        let mut leftovers = look.leftovers(&missing)?;
        let names = look.names(&missing, &mut leftovers)?;
        let (objects, objects_unlisted) = look.objects(&missing, &names);
        let quarantine = look.list(&layout.quarantine, &missing).unwrap_or_default();
        let record = look.record();
        let shared = look.shared;
        Ok(Self { missing, names, objects, objects_unlisted, quarantine, leftovers, shared, record })
    }

    pub(super) fn intact(&self) -> impl Iterator<Item = (&String, &StoredAdapter)> {
        self.names.iter().filter_map(|(file, found)| Some((file, found.as_ref().ok()?)))
    }

    /// May an object without a name be that of a name that cannot be read? Then nothing is without a name for certain.
    pub(super) fn in_doubt(&self) -> bool {
        let was_manifest =
            |entry: &String| entry.split_once('-').is_some_and(|(_, original)| manifest::is_file_name(original));
        self.names.values().any(Result::is_err)
            || self.objects_unlisted.is_some()
            || self.record.is_err()
            || self.quarantine.iter().any(was_manifest)
    }
}

struct Look<'a> {
    layout: &'a Layout,
    fs: &'a dyn StoreFs,
    patience: &'a mut Patience,
    shared: Vec<PathBuf>,
}

impl Look<'_> {
    fn folders(&mut self, missing: &[PathBuf]) {
        for folder in self.layout.folders().into_iter().filter(|folder| !missing.contains(folder)) {
            if let Ok(found) = self.patience.metadata(self.fs, folder) {
                self.note_shared(folder, found);
            }
        }
    }

    fn note_shared(&mut self, path: &Path, found: Found) {
        if found.shared && found.kind != FoundKind::Other {
            self.shared.push(path.to_owned());
        }
    }

    fn list(&mut self, folder: &Path, missing: &[PathBuf]) -> Result<Vec<String>, AdapterError> {
        if missing.iter().any(|gone| gone == folder) {
            return Ok(Vec::new());
        }
        let fs = self.fs;
        let names = self.patience.attempt(fs, || fs.list(folder));
        let names = names.map_err(AdapterError::io("listing a folder of the store"))?;
        Ok(names.into_iter().map(|name| name.to_string_lossy().into_owned()).collect())
    }

    /// A staging folder that cannot be listed holds nothing that anybody was promised.
    fn leftovers(&mut self, missing: &[PathBuf]) -> Result<Vec<PathBuf>, AdapterError> {
        let names = self.list(&self.layout.staging, missing).unwrap_or_default();
        let mut leftovers: Vec<_> = names.into_iter().map(|name| self.layout.staging.join(name)).collect();
        let fs = self.fs;
        let root = self.patience.attempt(fs, || fs.list(&self.layout.root));
        for name in root.map_err(AdapterError::io("listing the store"))? {
            if name.to_string_lossy().ends_with(TEMPORARY) {
                leftovers.push(self.layout.root.join(name));
            }
        }
        Ok(leftovers)
    }

    fn names(
        &mut self,
        missing: &[PathBuf],
        leftovers: &mut Vec<PathBuf>,
    ) -> Result<BTreeMap<String, Result<StoredAdapter, Flaw>>, AdapterError> {
        let mut names = BTreeMap::new();
        for file in self.list(&self.layout.names, missing)? {
            let path = self.layout.names.join(&file);
            if file.ends_with(TEMPORARY) {
                leftovers.push(path);
            } else {
                let found = self.manifest(&path, &file);
                names.insert(file, found);
            }
        }
        Ok(names)
    }

    fn manifest(&mut self, path: &Path, file: &str) -> Result<StoredAdapter, Flaw> {
        if !manifest::is_file_name(file) {
            return Err(Flaw::Damaged("not named as a manifest is".to_owned()));
        }
        let found = self.patience.metadata(self.fs, path).map_err(|error| unreadable(&error))?;
        self.note_shared(path, found);
        read_manifest(self.fs, self.patience, path, file, found)
    }

    fn objects(
        &mut self,
        missing: &[PathBuf],
        names: &BTreeMap<String, Result<StoredAdapter, Flaw>>,
    ) -> (Vec<ObjectEntry>, Option<Flaw>) {
        let entries = match self.list(&self.layout.objects, missing) {
            Ok(entries) => entries,
            Err(error) => return (Vec::new(), Some(Flaw::Unreadable(error.to_string()))),
        };
        let bound: BTreeMap<AdapterVersion, &StoredAdapter> =
            names.values().flatten().map(|adapter| (adapter.version, adapter)).collect();
        let look = |entry: String| {
            let version = entry.parse::<AdapterVersion>().ok();
            let path = self.layout.objects.join(&entry);
            let (bytes, flaw) = match version {
                None => (0, Some(Flaw::Damaged("not named as an object is".to_owned()))),
                Some(version) => {
                    let files = bound.get(&version).map(|adapter| adapter.files.as_slice());
                    match self.object(&path, files) {
                        Ok(bytes) => (bytes, None),
                        Err(flaw) => (0, Some(flaw)),
                    }
                }
            };
            ObjectEntry { entry, version, bytes, flaw }
        };
        (entries.into_iter().map(look).collect(), None)
    }

    /// Bytes of an object's files, which are `files` where a name says so.
    fn object(&mut self, path: &Path, files: Option<&[StoredFile]>) -> Result<u64, Flaw> {
        let found = self.patience.metadata(self.fs, path).map_err(|error| unreadable(&error))?;
        if found.kind != FoundKind::Folder {
            return Err(Flaw::Damaged("not a folder".to_owned()));
        }
        self.note_shared(path, found);
        let Some(files) = files else { return Ok(self.size(path)) };
        for StoredFile { path: name, size, .. } in files {
            let file = path.join(name);
            let found = self.patience.look(self.fs, &file).map_err(|error| unreadable(&error))?;
            let found = found.ok_or_else(|| Flaw::Missing(name.clone()))?;
            self.note_shared(&file, found);
            if found.kind != FoundKind::File {
                return Err(Flaw::Damaged(format!("{name} is not a regular file")));
            }
            if found.bytes != *size {
                return Err(Flaw::Damaged(format!("{name} has {} bytes instead of {size}", found.bytes)));
            }
        }
        Ok(files.iter().map(|file| file.size).sum())
    }

    /// Of an object that no name describes, as far as it can be seen.
    fn size(&mut self, object: &Path) -> u64 {
        let names = self.fs.list(object).unwrap_or_default();
        let sizes = names.iter().filter_map(|name| self.patience.metadata(self.fs, &object.join(name)).ok());
        sizes.map(|found| found.bytes).sum()
    }

    fn record(&mut self) -> Result<Record, Flaw> {
        let path = self.layout.record.clone();
        if let Ok(Some(found)) = self.patience.look(self.fs, &path) {
            self.note_shared(&path, found);
        }
        read_record(self.fs, self.patience, &path)
    }
}

/// Read the record of a store; an empty one where there is none.
/// What is said of a name without files: it stays, for they may come back.
pub(super) fn missing_files(name: &AdapterName) -> String {
    format!("the files of {name} are missing: restore them, upload it again, or delete it")
}

pub(super) fn read_record(fs: &dyn StoreFs, patience: &mut Patience, path: &Path) -> Result<Record, Flaw> {
    let Some(found) = patience.look(fs, path).map_err(|error| unreadable(&error))? else {
        return Ok(Record::default());
    };
    if found.kind != FoundKind::File || found.bytes > MAX_RECORD_BYTES {
        return Err(Flaw::Damaged("not a record of a store".to_owned()));
    }
    let bytes = patience.read(fs, path, found.bytes).map_err(|error| unreadable(&error))?;
    Record::decode(&bytes).map_err(|error| match error {
        RecordError::Format(format) => Flaw::Newer(format),
        error => Flaw::Damaged(error.to_string()),
    })
}

/// Read and check a manifest. What is found wrong is read once more: only what is wrong twice in the same way is damage.
pub(super) fn read_manifest(
    fs: &dyn StoreFs,
    patience: &mut Patience,
    path: &Path,
    file: &str,
    found: Found,
) -> Result<StoredAdapter, Flaw> {
    if found.kind != FoundKind::File {
        return Err(Flaw::Damaged("not a regular file".to_owned()));
    }
    if found.bytes > MAX_MANIFEST_BYTES {
        return Err(Flaw::Damaged(format!("{} bytes are too many for a manifest", found.bytes)));
    }
    let bytes = patience.read(fs, path, found.bytes).map_err(|error| unreadable(&error))?;
    match manifest::decode(&bytes, file) {
        Ok(adapter) => Ok(adapter),
        Err(ManifestError::NewerFormat(format)) => Err(Flaw::Newer(format)),
        Err(error) => match patience.read(fs, path, found.bytes) {
            Ok(again) if again == bytes => Err(Flaw::Damaged(error.to_string())),
            Ok(again) => manifest::decode(&again, file)
                .map_err(|_| Flaw::Unreadable("two reads gave different bytes".to_owned())),
            Err(error) => Err(unreadable(&error)),
        },
    }
}
