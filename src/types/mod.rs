//! Plain data shared by every room: identifiers, requests, batches, events.
//!
//! Nothing here decides or computes anything, and nothing here imports another room. The border between the wing
//! that decides (scheduler, cache, adapters) and the wing that computes (model, delta, ops, sampler) is made of the
//! types in [`batch`]: a [`ScheduledBatch`] goes in, a [`StepOutput`] comes out.

pub mod adapter;
pub mod batch;
pub mod client;
pub mod digest;
pub mod event;
pub mod generate;
pub mod ids;
pub mod pool;
pub mod problem;
pub mod request;
pub mod rope;
pub mod sampling;
pub mod tokens;

pub use adapter::{
    AdapterFacts, AdapterFault, AdapterTask, DeltaGroup, MAX_ADDED_TOKENS, OpClass, OpClasses, RowsByClass,
};
pub use batch::{
    BlockCopy, JoinedSequence, MAX_SCORED_ROWS, Output, PrefixWrite, RowSource, SampleSpec, SampledToken,
    ScheduledBatch, ScheduledSequence, ScoredTokens, SequenceFailure, StepOutput, TokenCounts,
};
pub use client::{ClientKey, ConnectionId, Party};
pub use digest::Sha256Digest;
pub use event::{FinishReason, RequestFailure, SequenceEvent, TokenLogprob, Usage};
pub use generate::{
    Chat, ChatMessage, GenerateInput, OutputOptions, PromptInput, SamplingInput, StoppingInput, TemplateValue,
};
pub use ids::{
    AdapterName, AdapterSlot, AdapterVersion, BaseDigest, BlockId, InvalidAdapterName, InvalidAdapterVersion,
    RequestId, SequenceId,
};
pub use pool::{EmbedOptions, MAX_LABELS, PoolInput, PoolRows, PoolSpec, PoolWanted, PooledVector, Pooling};
pub use problem::{Class, Problem, Report, Subject, ToProblem};
pub use request::{AdapterBinding, EngineRequest, VirtualTokens};
pub use rope::LongRope;
pub use sampling::{SamplingParams, StoppingParams};
pub use tokens::Tokens;
