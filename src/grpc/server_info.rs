//! What a server says of itself: plain data.

use crate::receipt::NumericsClass;

/// What a server says of itself. Does not change while it runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerInfo {
    /// The base model.
    pub model: ModelInfo,
    /// Number format of weights and KV cache, for example `bf16`.
    pub dtype: String,
    /// Where the model runs, for example `cpu`.
    pub device: String,
    /// Instruction set path chosen at start; empty where there is none.
    pub isa: String,
    /// Threads that compute.
    pub threads: usize,
    /// Blocks of the KV cache.
    pub kv_blocks: usize,
    /// Tokens a block holds.
    pub kv_block_size: usize,
    /// Limits on requests and uploads.
    pub limits: ServerLimits,
    /// Delta methods that can be uploaded.
    pub adapter_kinds: Vec<String>,
    /// What of it can change a bit of an answer.
    pub numerics: NumericsClass,
}

/// The frozen base.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelInfo {
    /// Name it is served under.
    pub name: String,
    /// sha256 over its config and weights.
    pub digest: String,
    /// Of its config.json, for example `LlamaForCausalLM`.
    pub architecture: String,
    /// Learned numbers.
    pub parameters: u64,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Most tokens of prompt and output together.
    pub context_length: usize,
    /// Whether it has a chat template.
    pub has_chat_template: bool,
    /// sha256 over its config.json.
    pub config_digest: String,
}

/// Limits a client may want to know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerLimits {
    /// Sequences computed at the same time.
    pub max_sequences: usize,
    /// Rows of a step.
    pub max_batched_tokens: usize,
    /// Requests that may wait.
    pub max_queued_requests: usize,
    /// `max_tokens` where a request leaves it unset.
    pub default_max_tokens: u32,
    /// Choices of a request.
    pub max_choices: u32,
    /// Top alternatives per token.
    pub max_logprobs: u32,
    /// Bytes of a prompt.
    pub max_prompt_bytes: usize,
    /// Adapters on the device.
    pub max_resident_adapters: u32,
    /// Largest rank.
    pub max_adapter_rank: u32,
    /// Bytes of an upload.
    pub max_upload_bytes: u64,
    /// Bytes of a chunk.
    pub max_chunk_bytes: usize,
    /// Stop strings of a request.
    pub max_stop_strings: u32,
    /// Bytes of one stop string.
    pub max_stop_bytes: u64,
    /// Tokens a request may ask for over all its choices.
    pub max_request_tokens: u64,
    /// Texts of a request that has texts read.
    pub max_inputs: u32,
    /// Bytes of an adapter that a request brings.
    pub max_inline_adapter_bytes: u64,
    /// Tokens of a request with a receipt.
    pub max_receipt_tokens: u64,
}
