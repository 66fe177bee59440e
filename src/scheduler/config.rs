//! What a scheduler is told at start, and what it refuses.

use super::fair_share::ShareConfig;
use crate::types::{LongRope, RequestId};

/// Limits of a scheduler. Fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Token places per KV block; at least 1.
    pub block_size: u32,
    /// KV blocks on the device; at least 1.
    pub num_blocks: u32,
    /// Most sequences in one step; at least 1. A virtual-token prefill counts as one.
    pub max_num_seqs: usize,
    /// Most rows in one step; at least `max_num_seqs`, so that every decode moves in every step.
    pub max_num_batched_tokens: usize,
    /// Most rows of one prefill in one step; `None` leaves it to the step's budget.
    pub max_prefill_chunk: Option<usize>,
    /// Context length: virtual tokens, prompt and output together.
    pub max_model_len: u32,
    /// Whether full blocks are kept for requests with the same beginning.
    pub prefix_cache: bool,
    /// The first so many layers are computed once for all whose adapters leave them as they are; `None` shares none. Needs
    /// `prefix_cache`.
    pub shared_layers: Option<u32>,
    /// Digest of the base model; part of the prefix cache's key.
    pub base_digest: [u8; 32],
    /// Set for a base with two sets of rotary frequencies.
    pub long_rope: Option<LongRope>,
    /// How service is shared out between clients and between adapters.
    pub share: ShareConfig,
}

impl SchedulerConfig {
    pub(super) fn check(&self) -> Result<(), SchedulerError> {
        let zero = |setting| Err(SchedulerError::ZeroSetting { setting });
        match self {
            Self { block_size: 0, .. } => zero("block_size"),
            Self { num_blocks: 0, .. } => zero("num_blocks"),
            Self { max_num_seqs: 0, .. } => zero("max_num_seqs"),
            Self { max_prefill_chunk: Some(0), .. } => zero("max_prefill_chunk"),
            Self { max_model_len: 0, .. } => zero("max_model_len"),
            Self { share: ShareConfig { input_weight: 0, .. }, .. } => zero("share.input_weight"),
            Self { share: ShareConfig { output_weight: 0, .. }, .. } => zero("share.output_weight"),
            Self { share: ShareConfig { step_tokens: 0, .. }, .. } => zero("share.step_tokens"),
            Self { max_num_batched_tokens, max_num_seqs, .. } if max_num_batched_tokens < max_num_seqs => {
                Err(SchedulerError::BudgetBelowSequences {
                    max_num_batched_tokens: *max_num_batched_tokens,
                    max_num_seqs: *max_num_seqs,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Why a configuration or a request is not taken. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchedulerError {
    /// A limit is 0.
    #[error("{setting} is 0, the least is 1")]
    ZeroSetting {
        /// Field of [`SchedulerConfig`].
        setting: &'static str,
    },
    /// A full batch of decodes would not fit one step.
    #[error("max_num_batched_tokens {max_num_batched_tokens} is less than max_num_seqs {max_num_seqs}")]
    BudgetBelowSequences {
        /// Rows per step.
        max_num_batched_tokens: usize,
        /// Sequences per step.
        max_num_seqs: usize,
    },
    /// The scheduler already has a live request with this id.
    #[error("request {} is already here", id.0)]
    DuplicateRequest {
        /// The id.
        id: RequestId,
    },
    /// A field that must be at least 1 is 0: `prompt`, `choices`, `max_tokens` or `virtual_tokens`.
    #[error("{field} of request {} is empty or 0", id.0)]
    EmptyField {
        /// The request.
        id: RequestId,
        /// Name of the field.
        field: &'static str,
    },
    /// No place is left in the context for one output token.
    #[error(
        "{virtual_tokens} virtual tokens and {prompt_tokens} prompt tokens leave no room for output in a context of \
         {max_model_len}"
    )]
    ContextTooLong {
        /// Virtual tokens of the adapter.
        virtual_tokens: usize,
        /// Prompt length.
        prompt_tokens: usize,
        /// Context length.
        max_model_len: usize,
    },
    /// One sequence of the request would not fit the KV cache even alone.
    #[error(
        "a sequence of {virtual_tokens} virtual, {prompt_tokens} prompt and {max_tokens} output tokens needs \
         {needed_blocks} KV blocks of {block_size}, there are {num_blocks}"
    )]
    PoolTooSmall {
        /// Virtual tokens of the adapter.
        virtual_tokens: usize,
        /// Prompt length.
        prompt_tokens: usize,
        /// Output tokens that may come, after the context limit.
        max_tokens: usize,
        /// Blocks for all of it.
        needed_blocks: usize,
        /// Blocks there are.
        num_blocks: usize,
        /// Places per block.
        block_size: usize,
    },
    /// [`Scheduler::drain`](super::Scheduler::drain) was called.
    #[error("the scheduler is draining")]
    Draining,
}
