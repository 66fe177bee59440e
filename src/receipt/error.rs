//! What a receipt can be refused for.

use super::document::FORMAT;
use crate::types::Sha256Digest;

/// Why a text is not taken for a receipt.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// No JSON object, or one of something else.
    #[error("it is no receipt of polydelta: {reason}")]
    NotAReceipt {
        /// What it is or lacks.
        reason: String,
    },
    /// Of another format, of a later program as far as this one knows.
    #[error("it has format {format}, this program reads format {FORMAT}")]
    Format {
        /// As given.
        format: u64,
    },
    /// A field that is missing, unknown, or holds what it cannot.
    #[error("it was changed after it was made: {reason}")]
    Field {
        /// Which, and what is wrong with it.
        reason: String,
    },
    /// Its digest is not that of its content.
    #[error("it was changed after it was made: its content has the digest {found}, it says {said}")]
    Changed {
        /// In the receipt.
        said: String,
        /// Of the receipt.
        found: Sha256Digest,
    },
}
