//! What keeps a GGUF file from being served, each with the way out.

use crate::files::gguf::GgufError;

/// Why a GGUF file is no base.
#[derive(Debug, thiserror::Error)]
pub enum GgufRefusal {
    /// Its header.
    #[error(transparent)]
    Header(#[from] GgufError),
    /// It holds something else than a model.
    #[error("it holds `{found}`, not a model; an adapter is uploaded as PEFT saved it")]
    Kind {
        /// `general.type`.
        found: String,
    },
    /// A network that is not read from GGUF.
    #[error(
        "its architecture is {found:?}; from GGUF llama, qwen2 and qwen3 are served. Serve the model's folder as \
         Hugging Face has it"
    )]
    Architecture {
        /// `general.architecture`, shortened.
        found: String,
    },
    /// One of several files.
    #[error("it is one of {parts} parts; `llama-gguf-split --merge` makes one file of them")]
    Split {
        /// `split.count`.
        parts: u64,
    },
    /// Something of the architecture that is not known, and may change what is computed.
    #[error("`{key}` is not known here; serve the model's folder as Hugging Face has it")]
    UnknownKey {
        /// In the metadata.
        key: String,
    },
    /// A value that is valid elsewhere and not implemented here.
    #[error("`{key}` is {found}, which is not served{hint}")]
    Unsupported {
        /// In the metadata.
        key: String,
        /// The value.
        found: String,
        /// What is served instead, or nothing.
        hint: &'static str,
    },
    /// A tensor that the decoder has no place for.
    #[error("it has a tensor `{name}`, for which a network of its architecture has no place")]
    UnknownTensor {
        /// In the file.
        name: String,
    },
    /// A tensor of numbers that are not read.
    #[error(
        "tensor `{name}` is of type {kind}; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K are read. \
         `llama-quantize` makes a Q8_0 or Q4_K_M of the original"
    )]
    TensorType {
        /// In the file.
        name: String,
        /// ggml's name.
        kind: String,
    },
    /// Rows that are no whole blocks.
    #[error("tensor `{name}` has {columns} columns; {format} has {block} numbers in a block")]
    Columns {
        /// In the file.
        name: String,
        /// Of a row.
        columns: usize,
        /// ggml's name.
        format: &'static str,
        /// Numbers.
        block: usize,
    },
    /// A gap before a tensor, or an overlap with the one before it.
    #[error("tensor `{name}` begins at {offset}, what is before it ends at {expected}")]
    Place {
        /// In the file.
        name: String,
        /// Counted from the tensors' first byte.
        offset: u64,
        /// End of the tensor before it, padded.
        expected: u64,
    },
    /// Bytes behind the last tensor.
    #[error("its tensors end at byte {end}, the file at {bytes}")]
    Behind {
        /// Of the last tensor.
        end: u64,
        /// Of the file.
        bytes: u64,
    },
    /// Divisors of the rotary frequencies that cannot be.
    #[error("`rope_freqs.weight` has {found}, expected {expected} finite numbers above 0")]
    RopeFactors {
        /// In words.
        found: String,
        /// Half a head.
        expected: usize,
    },
    /// Divisors of the rotary frequencies beside another way to stretch them.
    #[error("`rope_freqs.weight` and `{key}` both stretch the rotary embedding, of which one is served")]
    RopeTwice {
        /// In the metadata.
        key: String,
    },
}
