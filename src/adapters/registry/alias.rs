//! What is kept of a name, and of the base, for the request path.

use super::super::stored::StoredAdapter;
use crate::types::{AdapterTask, AdapterVersion, BaseDigest, Sha256Digest};

/// A chat template that an adapter brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnChatTemplate {
    /// Of its content.
    pub sha256: Sha256Digest,
    /// Of its file.
    pub bytes: u64,
}

/// Tokens that an adapter has and the base does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnTokensFile {
    /// Of its content.
    pub sha256: Sha256Digest,
    /// Of its file.
    pub bytes: u64,
}

/// What the request path knows of a name.
#[derive(Clone, Copy)]
pub(super) struct Alias {
    pub(super) version: AdapterVersion,
    pub(super) chat_template: Option<OwnChatTemplate>,
    pub(super) tokens: Option<OwnTokensFile>,
    /// Of the files: what the version is taken to need on the device before it was ever compiled.
    pub(super) bytes: u64,
    pub(super) base: Option<BaseDigest>,
    /// What it is for; `None` where the version was never compiled.
    pub(super) task: Option<AdapterTask>,
    /// Tokens of its vocabulary where the base has another number of them.
    pub(super) vocab_size: Option<u32>,
}

impl Alias {
    pub(super) fn of(stored: &StoredAdapter) -> Self {
        let base = stored.compiled.as_ref().map(|compiled| compiled.base);
        let template = stored.chat_template().map(|file| OwnChatTemplate { sha256: file.sha256, bytes: file.size });
        let tokens = stored.own_tokens().map(|file| OwnTokensFile { sha256: file.sha256, bytes: file.size });
        let facts = stored.compiled.as_ref().map(|compiled| &compiled.facts);
        let (task, vocab_size) = (facts.map(|facts| facts.task), facts.and_then(|facts| facts.vocab_size));
        let (version, bytes) = (stored.version, stored.bytes());
        Self { version, chat_template: template, tokens, bytes, base, task, vocab_size }
    }
}

/// The base that is served.
#[derive(Clone, Copy)]
pub(super) struct Present {
    pub(super) base: BaseDigest,
    /// Bytes of one number of A and B on the device.
    pub(super) weight_bytes: usize,
    /// The base of adapters that do not say.
    pub(super) adopted: BaseDigest,
}
