//! What a store says of a name and of a version: plain data.

use std::sync::Arc;

use super::files::{CHAT_TEMPLATE_FILE, StoredFile, TOKENIZER_FILE};
use crate::types::{AdapterFacts, AdapterName, AdapterVersion, BaseDigest};

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

    /// The tokens that it has and its base does not, where there are any.
    #[must_use]
    pub fn own_tokens(&self) -> Option<&StoredFile> {
        self.files.iter().find(|file| file.path == TOKENIZER_FILE)
    }
}

/// The content of a version: as it is stored, its digests verified, or as a request brought it.
#[derive(Clone, PartialEq, Eq)]
pub struct AdapterBytes {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`.
    pub weights: Vec<u8>,
}

impl AdapterBytes {
    /// Of both files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.config.len() + self.weights.len()) as u64
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
