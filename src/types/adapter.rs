//! What an adapter is, in plain data: the result of compiling it, as the registry, the scheduler and clients see it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::request::VirtualTokens;

/// The closed set of delta operations. A step runs one class at a time for all rows at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OpClass {
    /// y += s·B(Ax).
    LowRank,
    /// e += s·B·A[:, id] at the embedding.
    EmbeddingLowRank,
    /// y = g∘y.
    OutputScale,
    /// x = g∘x.
    InputScale,
    /// y += b.
    Bias,
    /// The norm weight of a row.
    Gain,
    /// Saved K and V at the head of the block table.
    Prefix,
    /// Learned embeddings at the head of the prompt.
    PromptEmbeds,
}

impl OpClass {
    /// Its name in the API and in `inspect`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LowRank => "LowRank",
            Self::EmbeddingLowRank => "EmbeddingLowRank",
            Self::OutputScale => "OutputScale",
            Self::InputScale => "InputScale",
            Self::Bias => "Bias",
            Self::Gain => "Gain",
            Self::Prefix => "Prefix",
            Self::PromptEmbeds => "PromptEmbeds",
        }
    }
}

/// What an adapter compiled to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterFacts {
    /// For people: `LoRA`, `rsLoRA`, `DoRA`, `IA3`, `prefix tuning`, `prompt tuning`, `LN tuning`.
    pub kind: String,
    /// Smallest rank of any low-rank op; 0 without one.
    pub min_rank: u32,
    /// Largest rank of any low-rank op; 0 without one.
    pub max_rank: u32,
    /// Number of ops of each class present.
    pub ops: BTreeMap<OpClass, u32>,
    /// The sites it changes, without their layers: `q`, `gate`, `lm_head` ….
    pub targets: Vec<String>,
    /// Bytes it takes on the device.
    pub device_bytes: u64,
    /// Learned numbers in the upload.
    pub parameters: u64,
    /// Present for prefix and prompt tuning.
    pub virtual_tokens: Option<VirtualTokens>,
    /// Fields of its config that nobody here knows and that the operator has let pass.
    #[serde(default)]
    pub unknown_fields: Vec<String>,
}

/// What a version did to a request that ran on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AdapterFault {
    /// The request's rows became NaN or infinite.
    #[error("rows of it are not finite")]
    NonFinite,
    /// The request's rows made their step fail, and only with the adapter.
    #[error("rows of it make their step fail")]
    StepFailed,
}
