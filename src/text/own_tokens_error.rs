//! Why the tokens that were saved with an adapter are not taken, and in which file it is wrong.

use super::error::TokenizerError;
use crate::types::{MAX_ADDED_TOKENS, Problem, ToProblem};

/// Has the added tokens of a tokenizer, and all else of it.
pub(super) const TOKENIZER_FILE: &str = "tokenizer.json";
/// Describes them too, and says which ends an answer.
pub(super) const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// Longest text of an own token in bytes.
pub(super) const MAX_TOKEN_BYTES: usize = 1024;

/// Why the tokens that were saved with an adapter are not taken.
#[derive(Debug, thiserror::Error)]
pub enum OwnTokensError {
    /// A file that is not what transformers writes, or cannot be read.
    #[error("{file}: {reason}")]
    File {
        /// Which.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A token is no text.
    #[error("added_tokens: the token of id {id} is empty")]
    Empty {
        /// Its id.
        id: u32,
    },
    /// A token is a long text.
    #[error("added_tokens: the token of id {id} has {bytes} bytes, of at most {MAX_TOKEN_BYTES}")]
    TooLong {
        /// Its id.
        id: u32,
        /// Of its text.
        bytes: usize,
    },
    /// One text is two tokens.
    #[error("added_tokens: {token:?} is there twice")]
    Repeated {
        /// The text.
        token: String,
    },
    /// One id is two tokens.
    #[error("added_tokens: {token:?} has the id {id}, which {other:?} has too")]
    SameId {
        /// A token.
        token: String,
        /// Its id.
        id: u32,
        /// Whose it is too.
        other: String,
    },
    /// The base has the token under another id.
    #[error(
        "added_tokens: {token:?} has the id {id}, and to the base it is {base_id}: its tokenizer is of another base"
    )]
    OtherId {
        /// The token.
        token: String,
        /// Of the adapter.
        id: u32,
        /// Of the base.
        base_id: u32,
    },
    /// The base has another token under this id.
    #[error(
        "added_tokens: {token:?} has the id {id}, which is {other:?} to the base: its tokenizer is of another base"
    )]
    Taken {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// The base's token.
        other: String,
    },
    /// There are more than an adapter may add.
    #[error("added_tokens: {count} tokens are not the base's, of at most {MAX_ADDED_TOKENS}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// The adapter has no row for it.
    #[error("added_tokens: {token:?} has the id {id}, and the adapter has rows for {rows} tokens")]
    NoRow {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Of the adapter's vocabulary, or the most that there may be.
        rows: u32,
    },
    /// The library cannot look for them.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl ToProblem for OwnTokensError {
    fn to_problem(&self) -> Problem {
        let file = match self {
            Self::File { file, .. } => *file,
            _ => TOKENIZER_FILE,
        };
        let invalid = || Problem::invalid("INVALID_TOKENIZER", file, self);
        match self {
            Self::File { .. } | Self::Tokenizer(_) => invalid(),
            Self::Empty { id } => invalid().with("token_id", id),
            Self::TooLong { id, bytes } => invalid().with("token_id", id).with("bytes", bytes),
            Self::Repeated { token } => invalid().with("token", token),
            Self::SameId { token, id, other } | Self::Taken { token, id, other } => {
                invalid().with("token", token).with("token_id", id).with("other", other)
            }
            Self::OtherId { token, id, base_id } => {
                invalid().with("token", token).with("token_id", id).with("base_token_id", base_id)
            }
            Self::TooMany { count } => invalid().with("count", count).with("max", MAX_ADDED_TOKENS),
            Self::NoRow { token, id, rows } => {
                invalid().with("token", token).with("token_id", id).with("vocab_size", rows)
            }
        }
    }
}
