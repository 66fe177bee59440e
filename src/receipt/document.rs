//! What a receipt says: plain data, whose fields stand in the text in the order in which they stand here.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::{
    AdapterName, AdapterVersion, BaseDigest, FinishReason, SamplingParams, Sha256Digest, StoppingParams,
};

/// The format that this program writes, and the only one that it reads.
pub const FORMAT: u32 = 1;

/// What an answer was computed from, and what came of it. Two answers to one request of one adapter version have the same
/// receipt wherever the numbers are the same to the bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// [`FORMAT`].
    pub polydelta_receipt: u32,
    /// Who computed it.
    pub origin: Origin,
    /// What it was computed with beside the base.
    pub delta: DeltaRecord,
    /// The first token of the prompt that the adapter works on; `None` where it works on none, or there is none.
    #[serde(deserialize_with = "Option::deserialize")]
    pub active_from: Option<u32>,
    /// The prompt, whatever form it came in.
    pub prompt_token_ids: Vec<u32>,
    /// How tokens were chosen.
    pub sampling: SamplingRecord,
    /// When a choice was to end.
    pub stopping: StoppingRecord,
    /// Of the log-probabilities of the prompt's tokens from the second on, where they were asked for.
    #[serde(deserialize_with = "Option::deserialize")]
    pub prompt_logprobs_sha256: Option<Sha256Digest>,
    /// In order of index; as many as were asked for.
    pub choices: Vec<ChoiceRecord>,
}

/// What of a server decides about the bits of its answers, apart from adapters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Version of polydelta.
    pub program: String,
    /// Of the base's weights.
    #[serde(with = "as_text")]
    pub base_sha256: BaseDigest,
    /// Of the base's config.json, blanks aside and keys in order of their bytes: the weights do not say what is computed with
    /// them.
    pub config_sha256: Sha256Digest,
    /// How it computes.
    pub numerics: NumericsClass,
}

/// How a server computes, as far as it can change a bit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumericsClass {
    /// Kind of device: `cpu`, `cuda` or `reference`.
    pub device: String,
    /// Instruction set path; of a GPU its compute capability too, and a library that multiplies.
    pub isa: String,
    /// Machine and system the program was built for: the system's library has the sines of the rotary tables.
    pub target: String,
    /// Number format of matrices.
    pub weights: String,
    /// Number format of the inputs of products.
    pub compute: String,
    /// Number format of the KV cache.
    pub kv: String,
    /// Places of the KV cache that attention takes together.
    pub kv_tile: u32,
}

impl fmt::Display for NumericsClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, isa, target, weights, compute, kv, kv_tile } = self;
        write!(f, "{device} {isa}, {compute} on {weights} weights, KV {kv} by {kv_tile}, {target}")
    }
}

/// What an answer was computed with beside the base.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum DeltaRecord {
    /// Nothing.
    Base,
    /// One adapter.
    Adapter {
        /// The name asked for.
        #[serde(with = "as_text")]
        name: AdapterName,
        /// What it stood for.
        #[serde(with = "as_text")]
        version: AdapterVersion,
    },
    /// Σ weight · adapter.
    Mix {
        /// Digest of parts and weights.
        #[serde(with = "as_text")]
        version: AdapterVersion,
        /// As they were asked for.
        parts: Vec<PartRecord>,
    },
    /// One that the request brought.
    Inline {
        /// Digest of its files.
        #[serde(with = "as_text")]
        version: AdapterVersion,
    },
}

/// A part of a mix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartRecord {
    /// The name asked for.
    #[serde(with = "as_text")]
    pub name: AdapterName,
    /// What it stood for.
    #[serde(with = "as_text")]
    pub version: AdapterVersion,
    /// How much of it.
    pub weight: f32,
}

/// How tokens were chosen, every default applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingRecord {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// In (0, 1].
    pub top_p: f32,
    /// In [0, 1].
    pub min_p: f32,
    /// As the request had it, else as it was drawn; 0 where no token is drawn. As text: many readers of JSON have no numbers of
    /// 64 bits.
    #[serde(with = "as_text")]
    pub seed: u64,
    /// 1 is neutral.
    pub repetition_penalty: f32,
    /// 0 is neutral.
    pub presence_penalty: f32,
    /// 0 is neutral.
    pub frequency_penalty: f32,
    /// By token id.
    pub logit_bias: BTreeMap<u32, f32>,
}

impl From<&SamplingParams> for SamplingRecord {
    fn from(params: &SamplingParams) -> Self {
        Self {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            seed: if params.temperature > 0.0 { params.seed } else { 0 },
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            logit_bias: params.logit_bias.clone(),
        }
    }
}

/// When a choice was to end, every default applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoppingRecord {
    /// Most tokens of a choice.
    pub max_tokens: u32,
    /// Least tokens of a choice.
    pub min_tokens: u32,
    /// Texts that end it.
    pub stop: Vec<String>,
    /// Ids that end it: the request's, and the model's ends of sequence where they were not ignored. Ascending.
    pub stop_token_ids: Vec<u32>,
}

impl StoppingRecord {
    /// Of a request with these texts.
    #[must_use]
    pub fn new(params: &StoppingParams, stop: &[String]) -> Self {
        let StoppingParams { max_tokens, min_tokens, stop_token_ids } = params.clone();
        Self { max_tokens, min_tokens, stop: stop.to_vec(), stop_token_ids }
    }
}

/// What became of a choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChoiceRecord {
    /// The generated tokens, up to the one that completed a stop string; a stop id is none of them.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishRecord,
    /// What ended it, where that was a stop.
    #[serde(deserialize_with = "Option::deserialize")]
    pub stop_match: Option<StopRecord>,
    /// Of the log-probabilities of its tokens ([`LogprobHasher`](super::LogprobHasher)).
    pub logprobs_sha256: Sha256Digest,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishRecord {
    /// The model ended it, or a stop id or stop string did.
    Stop,
    /// `max_tokens` was reached.
    Length,
}

impl From<FinishReason> for FinishRecord {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
        }
    }
}

/// What ended a choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopRecord {
    /// A stop string of the request.
    Text(String),
    /// An end of sequence or a stop id.
    TokenId(u32),
}

/// A value by its text.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| D::Error::custom(format_args!("{text:?}: {error}")))
    }
}
