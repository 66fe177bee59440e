//! What can be wrong with a base model's folder.

use std::path::PathBuf;

use super::source::GgufRefusal;
use crate::files::JsonError;
use crate::ops::OpsError;

/// Errors of reading a base model. All of them stop the start of the server.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A JSON file is not JSON, or not of the expected form.
    #[error("{file} is not valid: {source}")]
    Json {
        /// `config.json` or `model.safetensors.index.json`.
        file: &'static str,
        /// Where and why.
        source: JsonError,
    },
    /// The index of a checkpoint in shards names no files, or one that is not its to name.
    #[error("model.safetensors.index.json is not valid: {reason}")]
    BadIndex {
        /// Which entry, and why.
        reason: String,
    },
    /// A weight file whose header cannot be relied on.
    #[error("{path} is no safetensors file that can be served: {reason}")]
    NotSafetensors {
        /// Which file.
        path: PathBuf,
        /// The first rule it breaks.
        reason: String,
    },
    /// A GGUF file that is not served.
    #[error("{path} cannot be served: {reason}")]
    Gguf {
        /// Which file.
        path: PathBuf,
        /// The first rule it breaks, and what to do.
        reason: GgufRefusal,
    },
    /// A GGUF file that describes a network that cannot be. `reason` names fields as config.json does.
    #[error("{path}, read as a config.json, cannot be served: {reason}")]
    GgufNetwork {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: Box<ModelError>,
    },
    /// Quantized numbers that could not be widened.
    #[error("numbers of {format} could not be widened: {reason}")]
    Widen {
        /// ggml's name of the format.
        format: &'static str,
        /// What the library said.
        reason: String,
    },
    /// A weight file is shorter than its header says, or than it was.
    #[error("{path} is truncated: it should have {expected} bytes and has {found}")]
    Truncated {
        /// Which file.
        path: PathBuf,
        /// By its header, or when it was opened.
        expected: u64,
        /// There.
        found: u64,
    },
    /// A weight file was written to while the server used it.
    #[error("{path} has changed since the server opened it")]
    Changed {
        /// Which file.
        path: PathBuf,
    },
    /// A config field is missing.
    #[error("config.json has no `{field}`")]
    MissingField {
        /// Dotted path of the field.
        field: String,
    },
    /// A config field has a value of the wrong type or out of range.
    #[error("config.json: `{field}` is {found}, expected {expected}")]
    BadField {
        /// Dotted path of the field.
        field: String,
        /// The value, shortened.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A value that is valid in transformers and not implemented here.
    #[error("config.json: `{field}` = {found} is not supported{hint}")]
    Unsupported {
        /// Dotted path of the field.
        field: String,
        /// The value.
        found: String,
        /// What is supported instead, or nothing.
        hint: &'static str,
    },
    /// No weights in the folder.
    #[error("{path} holds neither model.safetensors nor model.safetensors.index.json")]
    NoWeights {
        /// The model folder.
        path: PathBuf,
    },
    /// A tensor the decoder needs is not in the checkpoint.
    #[error("the checkpoint has no tensor `{name}`")]
    MissingTensor {
        /// Full name.
        name: String,
    },
    /// A tensor has another shape than the config says.
    #[error("tensor `{name}` has shape {found:?}, config.json says {expected:?}")]
    TensorShape {
        /// Full name.
        name: String,
        /// In the file.
        found: Vec<usize>,
        /// By the config.
        expected: Vec<usize>,
    },
    /// A tensor is neither f32, f16 nor bf16.
    #[error("tensor `{name}` has dtype {found}; f32, f16 and bf16 are served")]
    TensorDtype {
        /// Full name.
        name: String,
        /// In the file.
        found: String,
    },
    /// The device refused memory.
    #[error(transparent)]
    Ops(#[from] OpsError),
}
