//! The seam to where the files of versions are kept.

use std::path::Path;

use super::super::error::AdapterError;
use super::super::files::StoredFile;
use super::super::stored::AdapterBytes;
use crate::types::AdapterVersion;

/// A durable home for objects: the files of a version, immutable, addressed by their content. All calls block.
pub trait ObjectStore: Send + Sync {
    /// A local folder for uploads in progress, on a file system from which [`ObjectStore::put`] can take files.
    fn staging(&self) -> &Path;

    /// Make the verified and synced `files` in the folder `dir` the object `version`, durably. What is there already is
    /// replaced by the same content.
    ///
    /// # Errors
    /// The quota, the disk.
    fn put(&self, dir: &Path, version: AdapterVersion, files: &[StoredFile]) -> Result<(), AdapterError>;

    /// A name that could not be read is bound to this object, which is there.
    fn recognize(&self, version: AdapterVersion, files: &[StoredFile]);

    /// Remove an object. False: there is none such.
    ///
    /// # Errors
    /// The disk.
    fn remove(&self, version: AdapterVersion) -> Result<bool, AdapterError>;

    /// Read config and weights of a version, checking sizes before allocating and digests after reading.
    ///
    /// # Errors
    /// [`AdapterError::UnknownVersion`], [`AdapterError::FilesMissing`], [`AdapterError::Corrupt`], the disk.
    fn read(&self, version: AdapterVersion) -> Result<AdapterBytes, AdapterError>;

    /// Read a file that not every version has: its chat template, its own tokens. It is verified as [`ObjectStore::read`]
    /// does it. `None`: the version has none.
    ///
    /// # Errors
    /// As [`ObjectStore::read`].
    fn read_optional(&self, version: AdapterVersion, path: &str) -> Result<Option<Vec<u8>>, AdapterError>;
}
