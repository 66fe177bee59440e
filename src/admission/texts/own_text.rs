//! What texts are read and written with for an adapter that has tokens of its own.

use std::sync::Arc;

use crate::text::{ChatTemplate, Tokenizer, TokenizerSettings};
use crate::types::Sha256Digest;

/// What texts for an adapter with tokens of its own are read and written with.
pub(in crate::admission) struct OwnText {
    pub(in crate::admission) tokenizer: Arc<Tokenizer>,
    /// The token that ends an answer, where the adapter's tokenizer names one.
    pub(in crate::admission) eos: Option<u32>,
    /// The model's template, for this tokenizer.
    pub(in crate::admission) chat_template: Option<Arc<ChatTemplate>>,
    /// The base's, with that token.
    pub(super) settings: TokenizerSettings,
    /// Of what the adapter has of them.
    pub(super) sha256: Sha256Digest,
}
