//! The seam to where names are kept.

use super::super::error::AdapterError;
use super::super::files::Expected;
use super::super::stored::{Binding, Bound, Compiled, StoredAdapter};
use crate::types::{AdapterName, AdapterVersion, BaseDigest};

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
