//! Why a tokenizer is not read, or does not process a text.

use std::fmt;
use std::path::PathBuf;

use super::gguf::GgufTokenizerError;

/// A tokenizer that cannot be read, or text or ids it cannot process.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no `tokenizer.json`.
    #[error("{} is not there{}", path.display(), Legacy(.legacy))]
    Missing {
        /// The file.
        path: PathBuf,
        /// A tokenizer's file of another format that is there.
        legacy: Option<&'static str>,
    },
    /// A file beside `tokenizer.json` is not what transformers writes.
    #[error("{}: {reason}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A control token that a message holds is a token to the vocabulary too, and cannot be taken for text.
    #[error("{token:?} is always a control token to this tokenizer: leave it out, or allow special tokens")]
    Control {
        /// The token's text.
        token: String,
    },
    /// The file is not a tokenizer of the `tokenizers` library.
    #[error("not a tokenizer.json: {reason}")]
    Format {
        /// What the library said.
        reason: String,
    },
    /// The tokenizer of a GGUF file.
    #[error("the file's tokenizer: {0}")]
    Gguf(#[from] GgufTokenizerError),
    /// The file made the `tokenizers` library panic; the log has where.
    #[error("not a tokenizer.json: the tokenizers library fails on it")]
    Panicked,
    /// A text of this length could not be encoded.
    #[error("a text of {bytes} bytes cannot be encoded: {reason}")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// What the library said.
        reason: String,
    },
    /// These ids could not be decoded.
    #[error("{count} token ids cannot be decoded: {reason}")]
    Decode {
        /// How many ids.
        count: usize,
        /// What the library said.
        reason: String,
    },
}

/// What to do where a tokenizer has another format.
struct Legacy<'a>(&'a Option<&'static str>);

impl fmt::Display for Legacy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(file) = self.0 else { return Ok(()) };
        write!(
            f,
            ", only {file}: convert it with transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    }
}
