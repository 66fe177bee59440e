//! Where adapters live for good: names, and the files of the versions they are bound to.
//!
//! A store keeps two kinds of things, each behind a seam of its own. *Objects* ([`ObjectStore`]) are the files of a
//! version, immutable, addressed by content. *Names* ([`NameStore`]) are bindings to versions, changed by compare and set.
//! An upload is acknowledged when both are durable ([`AdapterStore`]).

mod check;
mod folder;
mod layout;
mod manifest;
mod names;
mod objects;
mod record;
mod recovery;
mod repair;
mod seal;
mod survey;

pub use check::{CheckedName, IdleStore, NamelessObject, QuarantinedContent, QuarantinedEntry, StoreCheck};
pub use folder::FolderStore;
pub use names::FolderNames;
pub use objects::FolderObjects;
pub use recovery::{Quarantined, RecoveryReport, StoreFault};
pub use repair::{Mend, RepairError, RepairWishes};
pub use survey::Flaw;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::AdapterError;
use super::files::{CHAT_TEMPLATE_FILE, Expected, StoreLimits, StoredFile};
use crate::types::{AdapterFacts, AdapterName, AdapterVersion, BaseDigest};

/// What to do when parts of a store cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStoreError {
    /// Serve what can be read; the rest answers that it cannot be read now, and is tried again.
    #[default]
    Degraded,
    /// Do not open the store.
    Refuse,
}

/// How a store is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Quotas.
    pub limits: StoreLimits,
    /// What to do when parts of it cannot be read.
    pub errors: OnStoreError,
    /// How long an object without a name is kept, at least, before a start removes it.
    pub grace: Duration,
    /// The time of opening, in ms since the Unix epoch.
    pub now_ms: u64,
}

impl StoreOptions {
    /// A week after which objects without a name are removed: time to notice that a name was lost by accident.
    pub const GRACE: Duration = Duration::from_secs(7 * 24 * 3600);

    /// The defaults, now.
    #[must_use]
    pub fn new(limits: StoreLimits) -> Self {
        Self { limits, errors: OnStoreError::default(), grace: Self::GRACE, now_ms: unix_ms(SystemTime::now()) }
    }

    fn grace_ms(&self) -> u64 {
        u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Milliseconds since the Unix epoch.
pub(super) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

/// What a version compiled to, and for which base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The base it was checked against.
    pub base: BaseDigest,
    /// Bytes of one number of A and B on the device that `facts.device_bytes` counts with.
    pub weight_bytes: usize,
    /// What it compiled to.
    pub facts: Arc<AdapterFacts>,
}

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
    /// What the version compiled to. `None`: stored by a version of the server that did not keep it, and not compiled
    /// since.
    pub compiled: Option<Compiled>,
}

impl StoredAdapter {
    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Its own chat template, where it has one.
    #[must_use]
    pub fn chat_template(&self) -> Option<&StoredFile> {
        self.files.iter().find(|file| file.path == CHAT_TEMPLATE_FILE)
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

/// Whether a version has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// At least one.
    Bound,
    /// None that is known; one that cannot be read may be bound to it.
    Unknown,
    /// None.
    None,
}

/// A durable home for names. All calls block but those that only look.
pub trait NameStore: Send + Sync {
    /// Whether a name could be bound now.
    ///
    /// # Errors
    /// The compare and set ([`AdapterError::AlreadyExists`], [`AdapterError::VersionMismatch`]), the quota.
    fn check(&self, name: &AdapterName, expected: Expected) -> Result<(), AdapterError>;

    /// Bind a name to a version whose object is durable, durably.
    ///
    /// # Errors
    /// As [`NameStore::check`]; the disk.
    fn bind(&self, adapter: StoredAdapter, expected: Expected) -> Result<Bound, AdapterError>;

    /// Remove a name, durably.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`], the compare and set, the disk.
    fn unbind(&self, name: &AdapterName, expected: Expected) -> Result<StoredAdapter, AdapterError>;

    /// Change whether a name is pinned, durably.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`], the disk.
    fn set_pinned(&self, name: &AdapterName, pinned: bool) -> Result<StoredAdapter, AdapterError>;

    /// Keep what a version compiled to with a name that is bound to it, durably. False: the name is bound to another
    /// version by now, or this is known.
    ///
    /// # Errors
    /// The disk.
    fn set_compiled(
        &self,
        name: &AdapterName,
        version: AdapterVersion,
        compiled: &Compiled,
    ) -> Result<bool, AdapterError>;

    /// Say which base is served; returns the one that adapters without [`StoredAdapter::compiled`] belong to. The first
    /// base that is named to a store with such adapters adopts them, durably where the disk allows it.
    fn adopt(&self, present: BaseDigest) -> BaseDigest;

    /// Why a name without binding may have one all the same: it cannot be read.
    fn trouble(&self, name: &AdapterName) -> Option<AdapterError>;

    /// How many names there are, or may be, of which [`NameStore::trouble`] knows.
    fn troubled(&self) -> usize;

    /// Try to read what could not be read; returns what is bound now.
    fn heal(&self) -> Vec<StoredAdapter>;

    /// Whether a version has a name, without looking at all of them.
    fn binding(&self, version: AdapterVersion) -> Binding;

    /// The binding of a name.
    fn get(&self, name: &AdapterName) -> Option<StoredAdapter>;

    /// All bindings, sorted by name.
    fn list(&self) -> Vec<StoredAdapter>;
}

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

    /// Read the chat template of a version, verified as [`ObjectStore::read`] does it. `None`: it has none of its own.
    ///
    /// # Errors
    /// As [`ObjectStore::read`].
    fn read_chat_template(&self, version: AdapterVersion) -> Result<Option<Vec<u8>>, AdapterError>;
}

/// Names and objects together: what takes both, in the order that makes a crash at any point harmless. The registry makes
/// changes one at a time.
#[derive(Clone)]
pub struct AdapterStore {
    /// The names.
    pub names: Arc<dyn NameStore>,
    /// The objects.
    pub objects: Arc<dyn ObjectStore>,
}

impl From<FolderStore> for AdapterStore {
    fn from(FolderStore { names, objects }: FolderStore) -> Self {
        Self { names, objects }
    }
}

impl AdapterStore {
    /// Make the verified and synced files in the folder `dir` the object `adapter.version`, durably; then bind the name,
    /// durably. Nothing has changed if it fails before the name is bound.
    ///
    /// # Errors
    /// The compare and set ([`AdapterError::AlreadyExists`], [`AdapterError::VersionMismatch`]), quotas, the disk.
    pub fn publish(&self, dir: &Path, adapter: StoredAdapter, expected: Expected) -> Result<Bound, AdapterError> {
        self.names.check(&adapter.name, expected)?;
        self.objects.put(dir, adapter.version, &adapter.files)?;
        self.names.bind(adapter, expected)
    }

    /// Try to read what could not be read; returns the names that are bound now.
    pub fn heal(&self) -> Vec<AdapterName> {
        let healed = self.names.heal();
        healed.iter().for_each(|adapter| self.objects.recognize(adapter.version, &adapter.files));
        healed.into_iter().map(|adapter| adapter.name).collect()
    }

    /// Remove the files of a version that no name is bound to. False: a name is bound to it or may be, or there is none
    /// such.
    ///
    /// # Errors
    /// The disk.
    pub fn remove_object(&self, version: AdapterVersion) -> Result<bool, AdapterError> {
        match self.names.binding(version) {
            Binding::Bound => Ok(false),
            Binding::Unknown => {
                tracing::info!(%version, "kept the files of a version without a name: a name that cannot be read may be theirs");
                Ok(false)
            }
            Binding::None => self.objects.remove(version),
        }
    }
}

#[cfg(test)]
mod tests;
