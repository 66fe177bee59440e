//! The hub's cache folder as its own tools lay it out. The crate writes blobs, snapshots and refs; what it cannot say,
//! whether a snapshot is complete, is read here.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::Repo;
use serde::Deserialize;

use super::error::HubError;
use super::wanted::{ADAPTER_INDEX, ADAPTER_WEIGHTS, INDEX, WEIGHTS, Wanted};
use crate::config::HubRepository;
use crate::files::{self, MAX_SETTINGS_BYTES};

/// Most bytes of a ref, which is a commit's name.
const MAX_REF_BYTES: u64 = 128;

/// The files of a repository at one commit.
pub(super) struct Snapshot {
    dir: PathBuf,
    absent: PathBuf,
}

impl Snapshot {
    pub(super) fn at(cache: &Path, repository: &str, sha: &str) -> Self {
        let home = cache.join(Repo::model(repository.to_owned()).folder_name());
        Self { dir: home.join("snapshots").join(sha), absent: home.join(".no_exist").join(sha) }
    }

    /// The snapshot that the revision's ref points to, or that of the commit which the revision is.
    pub(super) fn of(cache: &Path, repository: &HubRepository) -> Option<Self> {
        let revision = repository.revision();
        let home = cache.join(Repo::model(repository.name.clone()).folder_name());
        let named = files::read(&home.join("refs").join(revision), MAX_REF_BYTES).ok();
        let sha = match named.map(String::from_utf8) {
            Some(sha) => sha.ok()?,
            None if revision.len() == 40 => revision.to_owned(),
            None => return None,
        };
        let sha = sha.trim();
        is_commit(sha).then(|| Self::at(cache, &repository.name, sha))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Bytes of a file, if it is there and its blob too.
    pub(super) fn size(&self, file: &str) -> Option<u64> {
        fs::metadata(self.path(file)).ok().filter(fs::Metadata::is_file).map(|found| found.len())
    }

    fn has(&self, file: &str) -> bool {
        self.size(file).is_some()
    }

    /// Every file that is needed is there.
    pub(super) fn is_usable(&self, wanted: Wanted) -> bool {
        let weights: &[&str] = match wanted {
            Wanted::Model => &[WEIGHTS, INDEX],
            Wanted::Adapter => &ADAPTER_WEIGHTS,
        };
        let is_there = |name: &str| match name {
            INDEX | ADAPTER_INDEX => self.has_shards(name),
            name => self.has(name),
        };
        wanted.required().iter().all(|file| self.has(file)) && weights.iter().any(|name| is_there(name))
    }

    fn has_shards(&self, index: &str) -> bool {
        shard_names(&self.path(index), "").is_ok_and(|names| names.iter().all(|name| self.has(name)))
    }

    /// Every optional file is there, or is known not to be in the repository.
    pub(super) fn knows_optional_files(&self, wanted: Wanted) -> bool {
        wanted.optional().iter().all(|file| self.has(file) || self.absent.join(file).is_file())
    }

    /// Note that the repository has no such file.
    pub(super) fn note_absent(&self, file: &str) -> io::Result<()> {
        let place = self.absent.join(file);
        place.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(place, b"")
    }

    /// Take a bad file away, and the blob behind it.
    pub(super) fn discard(&self, file: &str) -> io::Result<()> {
        let path = self.path(file);
        let blob = fs::canonicalize(&path)?;
        fs::remove_file(&path)?;
        if blob == path || !blob.exists() { Ok(()) } else { fs::remove_file(blob) }
    }
}

/// A commit's name, which becomes part of a path.
pub(super) fn is_commit(sha: &str) -> bool {
    (7..=64).contains(&sha.len()) && sha.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The shards an index names, each a plain file name.
pub(super) fn shard_names(index: &Path, repository: &str) -> Result<BTreeSet<String>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let bad = |reason: String| HubError::BadIndex { repository: repository.to_owned(), reason };
    let bytes = files::read(index, MAX_SETTINGS_BYTES).map_err(|source| HubError::Cache { source })?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    let plain = |name: &String| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        name.ends_with(".safetensors") && !name.starts_with('.') && name.bytes().all(allowed)
    };
    match names.iter().find(|name| !plain(name)) {
        Some(name) => Err(bad(format!("{name:?} is not a plain file name that ends in .safetensors"))),
        None if names.is_empty() => Err(bad("it names no file".to_owned())),
        None => Ok(names),
    }
}
