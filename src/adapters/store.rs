//! Where adapters live for good: names, and the files of the versions they are bound to.
//!
//! A store keeps two kinds of things, each behind a seam of its own. *Objects* ([`ObjectStore`]) are the files of a
//! version, immutable, addressed by content. *Names* ([`NameStore`]) are bindings to versions, changed by compare and set.
//! An upload is acknowledged when both are durable ([`AdapterStore`]).

mod check;
mod folder;
mod layout;
mod manifest;
mod name_store;
mod names;
mod object_store;
mod objects;
mod options;
mod record;
mod recovery;
mod repair;
mod seal;
mod survey;
mod write;

pub use check::{CheckedName, IdleStore, NamelessObject, QuarantinedContent, QuarantinedEntry, StoreCheck};
pub use folder::FolderStore;
pub use name_store::NameStore;
pub use names::FolderNames;
pub use object_store::ObjectStore;
pub use objects::FolderObjects;
pub(super) use options::unix_ms;
pub use options::{OnStoreError, StoreOptions};
pub use recovery::{Quarantined, RecoveryReport, StoreFault};
pub use repair::{Mend, RepairError, RepairWishes};
pub use survey::Flaw;

use std::path::Path;
use std::sync::Arc;

use super::error::AdapterError;
use super::files::Expected;
use super::stored::{Binding, Bound, StoredAdapter};
use crate::types::{AdapterName, AdapterVersion};

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
