//! Why the tokenizer of a GGUF file is not served.

use super::words::Words;
use crate::files::gguf::GgufError;

/// Why the tokenizer of a GGUF file is not served.
#[derive(Debug, thiserror::Error)]
pub enum GgufTokenizerError {
    /// A value is not what it should be, or not there.
    #[error(transparent)]
    Value(#[from] GgufError),
    /// A kind of tokenizer that is not read.
    #[error(
        "`tokenizer.ggml.model` is {found:?}; gpt2 and llama are served. Serve the model's folder as Hugging Face has it"
    )]
    Model {
        /// Shortened.
        found: String,
    },
    /// A way to split a text that is not known.
    #[error(
        "`tokenizer.ggml.pre` is {found:?}; served: {}. Serve the model's folder as Hugging Face has it",
        Words::NAMES.join(", ")
    )]
    Pre {
        /// Shortened; `none` where the file is older than the key.
        found: String,
    },
    /// Lists that should be of one length.
    #[error("`{key}` has {found} entries, there are {tokens} tokens")]
    Length {
        /// In the metadata.
        key: &'static str,
        /// Entries.
        found: usize,
        /// Entries of `tokenizer.ggml.tokens`.
        tokens: usize,
    },
    /// An id beyond the vocabulary.
    #[error("`{key}` is {id}, there are {tokens} tokens")]
    Id {
        /// In the metadata.
        key: &'static str,
        /// There.
        id: u64,
        /// Entries of `tokenizer.ggml.tokens`.
        tokens: usize,
    },
    /// Two tokens of one text.
    #[error("tokens {first} and {second} are both {token:?}")]
    Twice {
        /// Shortened.
        token: String,
        /// Its id.
        first: u32,
        /// The other's.
        second: u32,
    },
    /// A kind of token that llama.cpp does not have.
    #[error("token {id} is of the unknown kind {found}")]
    TokenKind {
        /// Its id.
        id: usize,
        /// In `tokenizer.ggml.token_type`.
        found: f64,
    },
    /// A merge that is not two tokens that make a third.
    #[error("merge {index} is {found:?}, which is not two tokens that make a third")]
    Merge {
        /// In `tokenizer.ggml.merges`.
        index: usize,
        /// Shortened.
        found: String,
    },
    /// A setting that is not implemented.
    #[error("`{key}` is {found}, which is not served for {model}; serve the model's folder as Hugging Face has it")]
    Unsupported {
        /// In the metadata.
        key: &'static str,
        /// The value.
        found: String,
        /// Of the tokenizer.
        model: &'static str,
    },
    /// The vocabulary is none to the library.
    #[error("its vocabulary is no tokenizer: {reason}")]
    Library {
        /// What the library said.
        reason: String,
    },
}
