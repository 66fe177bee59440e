//! Where adapters live for good: names, and the files of the versions they are bound to.
//!
//! A store keeps two kinds of things. *Objects* are the files of a version, immutable, addressed by content. *Names*
//! are bindings to versions, changed by compare and set. An upload is acknowledged when both are durable.

mod folder;
mod manifest;
mod recovery;

pub use folder::FolderStore;
pub use recovery::{Quarantined, RecoveryReport};

use std::path::Path;

use super::error::AdapterError;
use super::files::{CONFIG_FILE, Expected, StoredFile, WEIGHTS_FILE};
use crate::types::{AdapterName, AdapterVersion};

/// A name and what it is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAdapter {
    /// The name.
    pub name: AdapterName,
    /// Bound to.
    pub version: AdapterVersion,
    /// The files of the version, sorted by path.
    pub files: Vec<StoredFile>,
    /// When the name was bound to this version, in ms since the Unix epoch.
    pub created_ms: u64,
    /// Keep it on the device once loaded.
    pub pinned: bool,
}

impl StoredAdapter {
    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// The content of a version, its digests verified.
#[derive(Clone, PartialEq, Eq)]
pub struct AdapterBytes {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`.
    pub weights: Vec<u8>,
}

impl AdapterBytes {
    /// How many bytes [`AdapterBytes::read_staged`] will read.
    ///
    /// # Errors
    /// The disk.
    pub fn staged_bytes(dir: &Path) -> Result<u64, AdapterError> {
        let size = |path: &str| std::fs::metadata(dir.join(path)).map_err(AdapterError::io("looking at a staged file"));
        Ok(size(CONFIG_FILE)?.len().saturating_add(size(WEIGHTS_FILE)?.len()))
    }

    /// The two files of a staged upload, whose sizes and digests have been verified. Blocks.
    ///
    /// # Errors
    /// The disk.
    pub fn read_staged(dir: &Path) -> Result<Self, AdapterError> {
        let read = |path: &str| std::fs::read(dir.join(path)).map_err(AdapterError::io("reading a staged file"));
        Ok(Self { config: read(CONFIG_FILE)?, weights: read(WEIGHTS_FILE)? })
    }
}

impl std::fmt::Debug for AdapterBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdapterBytes")
            .field("config", &self.config.len())
            .field("weights", &self.weights.len())
            .finish()
    }
}

/// What a publication found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The binding as it is now.
    pub adapter: StoredAdapter,
    /// The version the name was bound to before.
    pub previous: Option<AdapterVersion>,
}

/// A durable home for adapters. All calls block; the registry makes those that change something one at a time.
pub trait AdapterStore: Send + Sync {
    /// A local folder for uploads in progress, on a file system from which [`AdapterStore::publish`] can take files.
    fn staging(&self) -> &Path;

    /// Make the verified and synced files in the folder `dir` the object `adapter.version`, durably; then bind the name,
    /// durably. Nothing has changed if it fails before the name is bound.
    ///
    /// # Errors
    /// The compare and set ([`AdapterError::AlreadyExists`], [`AdapterError::VersionMismatch`]), quotas, the disk.
    fn publish(&self, dir: &Path, adapter: StoredAdapter, expected: Expected) -> Result<Bound, AdapterError>;

    /// Remove a name, durably. The object stays until [`AdapterStore::remove_object`].
    ///
    /// # Errors
    /// [`AdapterError::NotFound`], the compare and set, the disk.
    fn unbind(&self, name: &AdapterName, expected: Expected) -> Result<StoredAdapter, AdapterError>;

    /// Change whether a name is pinned, durably.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`], the disk.
    fn set_pinned(&self, name: &AdapterName, pinned: bool) -> Result<StoredAdapter, AdapterError>;

    /// Remove the files of a version that no name is bound to. False: a name is bound to it, or there is none such.
    ///
    /// # Errors
    /// The disk.
    fn remove_object(&self, version: AdapterVersion) -> Result<bool, AdapterError>;

    /// Read the files of a version, checking sizes before allocating and digests after reading.
    ///
    /// # Errors
    /// [`AdapterError::UnknownVersion`], [`AdapterError::Corrupt`], the disk.
    fn read(&self, version: AdapterVersion) -> Result<AdapterBytes, AdapterError>;

    /// The binding of a name.
    fn get(&self, name: &AdapterName) -> Option<StoredAdapter>;

    /// All bindings, sorted by name.
    fn list(&self) -> Vec<StoredAdapter>;
}

#[cfg(test)]
mod tests;
