//! What happens when a store is opened: whatever a crash, a fault or a stranger left behind is removed or put aside,
//! and everything intact is served. Sizes and manifests are checked here, contents when they are read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::path::Path;

use super::super::error::AdapterError;
use super::super::files::Sha256Digest;
use super::super::fs::StoreFs;
use super::StoredAdapter;
use super::folder::Layout;
use super::manifest::{self, MAX_MANIFEST_BYTES, TEMPORARY};
use crate::types::AdapterVersion;

/// Something that was put into the quarantine folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Its name in the quarantine folder.
    pub entry: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What opening a store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Names served.
    pub adapters: usize,
    /// Damaged or foreign entries, put aside.
    pub quarantined: Vec<Quarantined>,
    /// Objects no name refers to, removed.
    pub removed_objects: usize,
    /// Unfinished uploads, removed.
    pub removed_uploads: usize,
}

pub(super) fn recover(
    layout: &Layout,
    fs: &dyn StoreFs,
) -> Result<(Vec<StoredAdapter>, RecoveryReport), AdapterError> {
    let mut recovery = Recovery { layout, fs, report: RecoveryReport::default(), next: 0 };
    recovery.empty_staging()?;
    let mut adapters = recovery.read_names()?;
    let suspicious = !recovery.report.quarantined.is_empty();
    recovery.check_objects(&mut adapters, suspicious)?;
    for folder in [&layout.names, &layout.objects, &layout.quarantine] {
        fs.sync_dir(folder).map_err(AdapterError::io("syncing the store"))?;
    }
    recovery.report.adapters = adapters.len();
    Ok((adapters.into_values().collect(), recovery.report))
}

/// Bindings by the file name of their manifest.
type Manifests = BTreeMap<String, StoredAdapter>;

struct Recovery<'a> {
    layout: &'a Layout,
    fs: &'a dyn StoreFs,
    report: RecoveryReport,
    next: u64,
}

impl Recovery<'_> {
    fn empty_staging(&mut self) -> Result<(), AdapterError> {
        for entry in entries(&self.layout.staging)? {
            self.remove(&entry)?;
            self.report.removed_uploads += 1;
        }
        Ok(())
    }

    fn read_names(&mut self) -> Result<Manifests, AdapterError> {
        let mut adapters = Manifests::new();
        for entry in entries(&self.layout.names)? {
            let file_name = entry.file_name().to_string_lossy().into_owned();
            if file_name.ends_with(TEMPORARY) {
                self.remove(&entry)?;
                continue;
            }
            match read_manifest(&entry, &file_name) {
                Ok(adapter) => {
                    adapters.insert(file_name, adapter);
                }
                Err(reason) => self.quarantine(&entry.path(), reason)?,
            }
        }
        Ok(adapters)
    }

    /// `suspicious`: a manifest was put aside, so an object without a name may be its object, and is kept.
    fn check_objects(&mut self, adapters: &mut Manifests, suspicious: bool) -> Result<(), AdapterError> {
        let mut bound: BTreeMap<AdapterVersion, Vec<String>> = BTreeMap::new();
        for (file_name, adapter) in adapters.iter() {
            bound.entry(adapter.version).or_default().push(file_name.clone());
        }
        let mut intact = BTreeSet::new();
        for entry in entries(&self.layout.objects)? {
            let version = entry.file_name().to_string_lossy().parse::<AdapterVersion>().ok();
            let names = version.and_then(|version| bound.get(&version));
            let adapter = names.and_then(|names| adapters.get(names.first()?));
            match (version, adapter) {
                (None, _) => self.quarantine(&entry.path(), "not an object".to_owned())?,
                (Some(version), Some(adapter)) => match check_object(&entry, adapter) {
                    Ok(()) => {
                        intact.insert(version);
                    }
                    Err(reason) => self.quarantine(&entry.path(), reason)?,
                },
                (Some(_), None) if suspicious => {
                    self.quarantine(&entry.path(), "no intact name refers to it".to_owned())?;
                }
                (Some(_), None) => {
                    self.remove(&entry)?;
                    self.report.removed_objects += 1;
                }
            }
        }
        for (_, names) in bound.into_iter().filter(|(version, _)| !intact.contains(version)) {
            for file_name in names {
                adapters.remove(&file_name);
                self.quarantine(&self.layout.names.join(&file_name), "its object is missing or damaged".to_owned())?;
            }
        }
        Ok(())
    }

    fn remove(&self, entry: &DirEntry) -> Result<(), AdapterError> {
        // file_type does not follow symlinks.
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let path = entry.path();
        if folder { self.fs.remove_dir_all(&path) } else { self.fs.remove_file(&path) }
            .map_err(AdapterError::io("removing leftovers"))
    }

    fn quarantine(&mut self, path: &Path, reason: String) -> Result<(), AdapterError> {
        let io = AdapterError::io;
        let original = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let plain = original.len() <= 100
            && original.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
        let label = if plain { original } else { Sha256Digest::of(original.as_bytes()).to_string() };
        let entry = loop {
            self.next += 1;
            let entry = format!("{}-{label}", self.next);
            if fs::symlink_metadata(self.layout.quarantine.join(&entry)).is_err() {
                break entry;
            }
        };
        self.fs.rename(path, &self.layout.quarantine.join(&entry)).map_err(io("putting a damaged entry aside"))?;
        tracing::error!(entry, reason, "a damaged entry of the store was put into quarantine");
        self.report.quarantined.push(Quarantined { entry, reason });
        Ok(())
    }
}

/// Sorted, so that recovery does the same things in the same order every time.
fn entries(folder: &Path) -> Result<Vec<DirEntry>, AdapterError> {
    let list = || fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>();
    let mut entries = list().map_err(AdapterError::io("listing a folder of the store"))?;
    entries.sort_by_key(DirEntry::file_name);
    Ok(entries)
}

/// A symlink, FIFO or device is never opened; a file with another link could change under us.
fn check_regular(found: &Metadata) -> Result<(), String> {
    if !found.is_file() {
        return Err("not a regular file".to_owned());
    }
    #[cfg(unix)]
    if std::os::unix::fs::MetadataExt::nlink(found) != 1 {
        return Err("a file with several links".to_owned());
    }
    Ok(())
}

fn read_manifest(entry: &DirEntry, file_name: &str) -> Result<StoredAdapter, String> {
    let found = fs::symlink_metadata(entry.path()).map_err(|error| error.to_string())?;
    check_regular(&found)?;
    if found.len() > MAX_MANIFEST_BYTES {
        return Err(format!("{} bytes are too many for a manifest", found.len()));
    }
    let bytes = fs::read(entry.path()).map_err(|error| error.to_string())?;
    manifest::decode(&bytes, file_name).map_err(|error| error.to_string())
}

fn check_object(entry: &DirEntry, adapter: &StoredAdapter) -> Result<(), String> {
    let found = fs::symlink_metadata(entry.path()).map_err(|error| error.to_string())?;
    if !found.is_dir() {
        return Err("not a folder".to_owned());
    }
    for file in &adapter.files {
        let path = &file.path;
        let found = fs::symlink_metadata(entry.path().join(path)).map_err(|error| format!("{path}: {error}"))?;
        check_regular(&found).map_err(|reason| format!("{path}: {reason}"))?;
        if found.len() != file.size {
            return Err(format!("{path}: {} bytes instead of {}", found.len(), file.size));
        }
    }
    let present = fs::read_dir(entry.path()).map_err(|error| error.to_string())?.count();
    if present == adapter.files.len() { Ok(()) } else { Err(format!("{present} files instead of {}", adapter.files.len())) }
}
