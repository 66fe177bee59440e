//! From a name to a version that somebody uses.

use super::super::error::AdapterError;
use super::super::files::{CHAT_TEMPLATE_FILE, TOKENIZER_FILE};
use super::super::lease::{AdapterLease, Content};
use super::super::residency::{SetAside, Want};
use super::super::stored::{AdapterBytes, StoredAdapter};
use super::super::sync::lock;
use super::AdapterRegistry;
use super::alias::{Alias, OwnChatTemplate, OwnTokensFile};
use crate::types::{AdapterName, AdapterTask, AdapterVersion, ClientKey};

/// A name resolved to a version, which is kept while this lives.
#[derive(Clone, Debug)]
pub struct ResolvedAdapter {
    /// The name.
    pub name: AdapterName,
    /// A user of the version.
    pub lease: AdapterLease,
    /// The version's own chat template, where it has one.
    pub chat_template: Option<OwnChatTemplate>,
    /// The tokens that the version has and the base does not, where there are any.
    pub tokens: Option<OwnTokensFile>,
    /// What the version is for; `None` where that shows once it is loaded.
    pub task: Option<AdapterTask>,
    /// Tokens of its vocabulary where the base has another number of them.
    pub vocab_size: Option<u32>,
    /// Of the files.
    pub(super) bytes: u64,
}

impl AdapterRegistry {
    /// Resolve a name and count a user of its version, in one step. With `version`, the name must stand for it.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`], [`AdapterError::Unreadable`], [`AdapterError::NewerFormat`],
    /// [`AdapterError::VersionMismatch`], [`AdapterError::BaseMismatch`].
    pub fn lease(&self, name: &AdapterName, version: Option<AdapterVersion>) -> Result<AdapterLease, AdapterError> {
        self.resolve(name, version).map(|resolved| resolved.lease)
    }

    /// As [`AdapterRegistry::lease`], with what a request must know of the version. Costs a look into a table.
    ///
    /// # Errors
    /// As [`AdapterRegistry::lease`].
    pub fn resolve(
        &self,
        name: &AdapterName,
        version: Option<AdapterVersion>,
    ) -> Result<ResolvedAdapter, AdapterError> {
        // The guard on the alias is held until the lease is counted, so a version whose alias is gone gains no users.
        let Some(alias) = self.aliases.get(name) else { return Err(self.absent(name)) };
        let actual = alias.version;
        if let Some(expected) = version.filter(|expected| *expected != actual) {
            return Err(AdapterError::VersionMismatch { name: name.clone(), expected, actual: Some(actual) });
        }
        self.check_base(name, *alias)?;
        let Alias { chat_template, tokens, bytes, task, vocab_size, .. } = *alias;
        let lease = self.leases.lease(actual);
        Ok(ResolvedAdapter { name: name.clone(), lease, chat_template, tokens, task, vocab_size, bytes })
    }

    /// Resolve a name and ask for its version on the device, for a client.
    ///
    /// # Errors
    /// As [`AdapterRegistry::lease`], and [`AdapterError::SetAside`].
    pub fn want(
        &self,
        name: &AdapterName,
        version: Option<AdapterVersion>,
        client: ClientKey,
    ) -> Result<Want, AdapterError> {
        self.want_resolved(self.resolve(name, version)?, client)
    }

    /// Ask for a version on the device, for a client, whatever its name stands for by now. Until it has been compiled
    /// once, its size there is taken to be that of its files.
    ///
    /// # Errors
    /// [`AdapterError::SetAside`].
    pub fn want_resolved(&self, adapter: ResolvedAdapter, client: ClientKey) -> Result<Want, AdapterError> {
        self.check_set_aside(&adapter)?;
        Ok(self.residency.want(adapter.lease, adapter.bytes, client))
    }

    pub(super) fn check_set_aside(&self, adapter: &ResolvedAdapter) -> Result<(), AdapterError> {
        let (name, version) = (&adapter.name, adapter.lease.version());
        match self.residency.set_aside(version) {
            Some(SetAside { faults, fault }) => {
                Err(AdapterError::SetAside { name: name.clone(), version, faults, fault })
            }
            None => Ok(()),
        }
    }

    /// Give the version that a name stands for another chance, if it was set aside.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`].
    pub fn reinstate(&self, name: &AdapterName) -> Result<(), AdapterError> {
        let version = self.lease(name, None)?.version();
        self.events.ring(self.residency.pardon(version));
        Ok(())
    }

    /// Bytes of the files of a leased version, or of all parts of a mix: what [`AdapterRegistry::read`] will read. 0 for one
    /// whose last name is gone.
    #[must_use]
    pub fn file_bytes(&self, lease: &AdapterLease) -> u64 {
        match lease.content() {
            Content::Stored => {}
            Content::Mix(parts) => {
                return parts.iter().map(|part| self.file_bytes(&part.lease)).fold(0, u64::saturating_add);
            }
            Content::Sent(files) => return files.bytes(),
        }
        lock(&self.catalog).of_version(lease.version()).next().map_or(0, StoredAdapter::bytes)
    }

    /// Read the own chat template of a leased version, size and digest verified. Blocks.
    ///
    /// # Errors
    /// As [`AdapterRegistry::read`]; [`AdapterError::Corrupt`] where it has none.
    pub fn read_chat_template(&self, lease: &AdapterLease) -> Result<Vec<u8>, AdapterError> {
        let version = lease.version();
        let none = || AdapterError::Corrupt { version, path: CHAT_TEMPLATE_FILE.to_owned() };
        self.store.objects.read_optional(version, CHAT_TEMPLATE_FILE)?.ok_or_else(none)
    }

    /// Read the own tokens of a leased version, size and digest verified. Blocks.
    ///
    /// # Errors
    /// As [`AdapterRegistry::read`]; [`AdapterError::Corrupt`] where it has none.
    pub fn read_own_tokens(&self, lease: &AdapterLease) -> Result<Vec<u8>, AdapterError> {
        let version = lease.version();
        let none = || AdapterError::Corrupt { version, path: TOKENIZER_FILE.to_owned() };
        self.store.objects.read_optional(version, TOKENIZER_FILE)?.ok_or_else(none)
    }

    /// Read the files of a leased version, sizes and digests verified. Blocks.
    ///
    /// # Errors
    /// [`AdapterError::Corrupt`], [`AdapterError::UnknownVersion`], the disk.
    pub fn read(&self, lease: &AdapterLease) -> Result<AdapterBytes, AdapterError> {
        self.store.objects.read(lease.version())
    }
}
