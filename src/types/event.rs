//! What the engine tells a request while it runs.

use std::time::Instant;

use super::pool::PooledVector;
use super::problem::{Class, Problem, ToProblem};

/// Why a sequence ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An eos or stop id was generated (that id is not part of the text), or a stop string matched.
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
}

/// The log-probability of a generated token, or of one of the prompt, under the model's distribution, before temperature
/// and filters.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Natural logarithm of the token's probability.
    pub logprob: f32,
    /// The most likely tokens, best first: (id, log-probability). As many as asked for.
    pub top: Vec<(u32, f32)>,
}

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt ids, virtual tokens not counted.
    pub prompt_tokens: u32,
    /// Generated ids over all choices.
    pub completion_tokens: u32,
    /// Prompt ids whose KV came from the prefix cache.
    pub cached_tokens: u32,
}

/// Why a request ended without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailure {
    /// The engine is stopping; the request may be sent again elsewhere.
    #[error("the server is shutting down")]
    Draining,
    /// The request's deadline passed.
    #[error("the deadline passed")]
    DeadlineExceeded,
    /// A row of this request became NaN or infinite.
    #[error("the logits of this request are not finite")]
    NonFinite,
    /// This request made its step fail, alone too; the log has the cause. Its neighbours went on.
    #[error("the engine failed in a step of this request")]
    EngineFailed,
}

impl ToProblem for RequestFailure {
    fn to_problem(&self) -> Problem {
        match self {
            Self::Draining => Problem::draining(),
            Self::DeadlineExceeded => Problem::deadline_exceeded(),
            // The client is told: it is its adapter, or its request, that overflowed.
            Self::NonFinite => Problem::new(Class::Internal, "NON_FINITE", self),
            Self::EngineFailed => Problem::internal("generation", self),
        }
    }
}

/// One event of a request's channel.
#[derive(Clone, Debug, PartialEq)]
pub enum SequenceEvent {
    /// The request's first row entered a step.
    Started {
        /// When; queue time ends here.
        at: Instant,
        /// Prompt ids found in the prefix cache by its first choice.
        cached_tokens: u32,
    },
    /// What the prompt's next token is worth, where asked for: said in order of every token but the first, before the
    /// first token of any choice.
    PromptLogprob {
        /// The token.
        token: u32,
        /// As the model has it.
        logprob: TokenLogprob,
    },
    /// What tokens of the prompt have become, where asked for: one vector of the whole prompt, or more of one for each of its
    /// tokens, in order. Before the end of the choice.
    Pooled(Vec<PooledVector>),
    /// One token of one choice. `finish` is set on the choice's last event.
    Token {
        /// Choice index.
        choice: u32,
        /// The id; absent when a stop id ended the choice (the stop id is not output), or when it was to have no token.
        token: Option<u32>,
        /// Present where asked for and `token` is.
        logprob: Option<TokenLogprob>,
        /// Set on the last event of the choice.
        finish: Option<(FinishReason, Option<u32>)>,
        /// When the step that made it ended.
        at: Instant,
    },
    /// The request failed; nothing follows.
    Failed(RequestFailure),
}
