//! The files of versions, in a folder each. Knows no names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::super::disk::Patience;
use super::super::error::AdapterError;
use super::super::files::{CONFIG_FILE, StoredFile, WEIGHTS_FILE};
use super::super::fs::FoundKind;
use super::super::stored::AdapterBytes;
use super::super::sync::lock;
use super::layout::Folder;
use super::object_store::ObjectStore;
use super::recovery;
use crate::types::{AdapterVersion, Sha256Digest};

/// An [`ObjectStore`] in a local folder.
pub struct FolderObjects {
    folder: Arc<Folder>,
    state: Mutex<State>,
}

struct State {
    objects: HashMap<AdapterVersion, Object>,
    /// Bytes of objects that no name refers to and that are kept.
    nameless: HashMap<AdapterVersion, u64>,
    /// Of all that are there. Wide enough for whatever sizes manifests claim.
    bytes: u128,
    removals: u64,
    /// Objects moved out of the way that the disk would not let go.
    leftovers: Vec<PathBuf>,
}

struct Object {
    files: Vec<StoredFile>,
    /// A name may be bound to files that are missing.
    there: bool,
}

impl Object {
    fn bytes(&self) -> u128 {
        if self.there { self.files.iter().map(|file| u128::from(file.size)).sum() } else { 0 }
    }
}

impl State {
    /// An object is there; whatever was known of it before.
    fn insert(&mut self, version: AdapterVersion, object: Object) {
        self.bytes += object.bytes();
        let before = self.objects.insert(version, object);
        self.bytes -= before.map_or(0, |before| before.bytes());
        self.bytes -= self.nameless.remove(&version).map_or(0, u128::from);
    }

    fn remove(&mut self, version: AdapterVersion) {
        self.bytes -= self.objects.remove(&version).map_or(0, |object| object.bytes());
    }

    fn is_there(&self, version: AdapterVersion) -> bool {
        self.objects.get(&version).is_some_and(|object| object.there)
    }
}

impl FolderObjects {
    /// `named`: the files of versions that have a name, and whether they are there; `nameless`: bytes of the others.
    pub(super) fn new(
        folder: Arc<Folder>,
        named: impl Iterator<Item = (AdapterVersion, Vec<StoredFile>, bool)>,
        nameless: HashMap<AdapterVersion, u64>,
    ) -> Self {
        let bytes = nameless.values().copied().map(u128::from).sum();
        let mut state = State { objects: HashMap::new(), nameless, bytes, removals: 0, leftovers: Vec::new() };
        for (version, files, there) in named {
            state.insert(version, Object { files, there });
        }
        Self { folder, state: Mutex::new(state) }
    }

    /// Bytes of all objects.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::try_from(lock(&self.state).bytes).unwrap_or(u64::MAX)
    }

    fn check_quota(&self, state: &State, version: AdapterVersion, files: &[StoredFile]) -> Result<(), AdapterError> {
        if state.is_there(version) || state.nameless.contains_key(&version) {
            return Ok(());
        }
        let requested = files.iter().fold(0u64, |sum, file| sum.saturating_add(file.size));
        let (used, max) = (u64::try_from(state.bytes).unwrap_or(u64::MAX), self.folder.limits.max_store_bytes);
        if used.saturating_add(requested) > max {
            return Err(AdapterError::StoreFull { requested, used, max });
        }
        Ok(())
    }

    /// The disk is asked for the object, not the state: an earlier failure may have left it without a name.
    fn move_in(&self, dir: &Path, version: AdapterVersion, files: &[StoredFile]) -> Result<(), AdapterError> {
        let io = AdapterError::io;
        let Folder { layout, fs, .. } = &*self.folder;
        let (object, fs) = (layout.object(version), fs.as_ref());
        match Patience::short().look(fs, &object).map_err(io("looking at an object"))?.map(|found| found.kind) {
            Some(FoundKind::Folder) => {
                // The same content is there: replacing it file by file keeps every moment valid and heals damage.
                for file in files {
                    fs.rename(&dir.join(&file.path), &object.join(&file.path))
                        .map_err(io("moving a file into the store"))?;
                }
                return fs.sync_dir(&object).map_err(io("syncing an object"));
            }
            Some(_) => {
                recovery::put_aside(layout, fs, &mut Patience::short(), &object)
                    .map_err(io("putting a damaged object aside"))?;
            }
            None => {}
        }
        fs.rename(dir, &object).map_err(io("moving an upload into the store"))?;
        fs.sync_dir(&layout.objects).map_err(io("syncing the objects"))
    }

    /// A path in `staging/` where nothing is.
    fn free_place(&self, state: &mut State) -> Result<PathBuf, AdapterError> {
        loop {
            state.removals += 1;
            let place = self.folder.layout.staging.join(format!("removed-{}", state.removals));
            let found = Patience::short().look(self.folder.fs.as_ref(), &place);
            if found.map_err(AdapterError::io("looking at the staging folder"))?.is_none() {
                return Ok(place);
            }
        }
    }

    /// Remove what was moved out of the way, now and when the disk refused it. What cannot be removed is tried again with
    /// the next, or at the next start.
    fn sweep(&self, mut leftovers: Vec<PathBuf>) -> Result<(), AdapterError> {
        let io = AdapterError::io;
        let Folder { layout, fs, .. } = &*self.folder;
        let synced = fs.sync_dir(&layout.objects).map_err(io("syncing the objects"));
        let swept = synced.and_then(|()| {
            while let Some(path) = leftovers.last() {
                match fs.remove_dir_all(path) {
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

    fn files_of(&self, version: AdapterVersion) -> Result<Vec<StoredFile>, AdapterError> {
        let state = lock(&self.state);
        let files = state.objects.get(&version).map(|object| object.files.clone());
        files.ok_or(AdapterError::UnknownVersion { version })
    }

    fn read_verified(&self, expected: &StoredFile, version: AdapterVersion) -> Result<Vec<u8>, AdapterError> {
        let io = AdapterError::io;
        let corrupt = || AdapterError::Corrupt { version, path: expected.path.clone() };
        let (fs, mut patience) = (self.folder.fs.as_ref(), Patience::short());
        let object = self.folder.layout.object(version);
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

impl ObjectStore for FolderObjects {
    fn staging(&self) -> &Path {
        &self.folder.layout.staging
    }

    fn put(&self, dir: &Path, version: AdapterVersion, files: &[StoredFile]) -> Result<(), AdapterError> {
        let mut state = lock(&self.state);
        self.check_quota(&state, version, files)?;
        self.move_in(dir, version, files)?;
        state.insert(version, Object { files: files.to_vec(), there: true });
        Ok(())
    }

    fn recognize(&self, version: AdapterVersion, files: &[StoredFile]) {
        lock(&self.state).insert(version, Object { files: files.to_vec(), there: true });
    }

    fn remove(&self, version: AdapterVersion) -> Result<bool, AdapterError> {
        let mut state = lock(&self.state);
        if !state.is_there(version) {
            return Ok(false);
        }
        // Out of the way first, so that no object is ever half there.
        let away = self.free_place(&mut state)?;
        let moved = self.folder.fs.rename(&self.folder.layout.object(version), &away);
        moved.map_err(AdapterError::io("moving an object away"))?;
        state.remove(version);
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

    fn read_optional(&self, version: AdapterVersion, path: &str) -> Result<Option<Vec<u8>>, AdapterError> {
        let files = self.files_of(version)?;
        let found = files.iter().find(|file| file.path == path);
        found.map(|file| self.read_verified(file, version)).transpose()
    }
}
