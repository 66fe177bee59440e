//! Why a request is not admitted.

use super::validate::InvalidRequest;
use crate::adapters::{AdapterError, LoadFailure};
use crate::engine::SubmitError;
use crate::scheduler::places::Holder;
use crate::text::{ChatError, OwnTokensError, TokenizerError};
use crate::types::{AdapterName, AdapterTask, OpClass};

/// Refusals of the gate.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// As many requests as allowed are in the server.
    #[error("{limit} requests are in the server, the limit is reached")]
    TooManyRequests {
        /// `--max-concurrent-requests`.
        limit: u32,
    },
    /// As many requests of the client, or for the adapter, are in the server as may be while so few places are left.
    #[error("{held} requests of the same {} are in the server, its share of {limit}", holder.as_str())]
    ShareOfRequests {
        /// Whose they are.
        holder: Holder,
        /// In the server now.
        held: usize,
        /// `--max-concurrent-requests`.
        limit: u32,
    },
    /// A field of the request is out of range, or does not go with another.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// The tokenizer makes no token of it.
    #[error("{field} has no tokens")]
    EmptyPrompt {
        /// Path of the form in which it came.
        field: &'static str,
    },
    /// A chat was sent to a model without a template.
    #[error("the model has no chat template; send a prompt")]
    NoChatTemplate,
    /// The chat template does not take it.
    #[error("{}{source}", adapter.as_ref().map(|name| format!("adapter {name}: ")).unwrap_or_default())]
    Chat {
        /// Whose own template it is; `None`: the model's.
        adapter: Option<AdapterName>,
        /// What it says.
        source: ChatError,
    },
    /// The tokenizer failed.
    #[error("tokenizing the prompt: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// A defect of the tokenizer, contained.
    #[error("the tokenizer panicked")]
    TokenizerPanicked,
    /// The adapter cannot be had.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// What an adapter does cannot be weighted and added to what others do.
    #[error("adapter {name} cannot be part of a mix: its {} {reason}", class.as_str())]
    NotLinear {
        /// A part of the mix.
        name: AdapterName,
        /// Class of an op of it.
        class: OpClass,
        /// End of a sentence about the class.
        reason: &'static str,
    },
    /// The request brings an adapter, and none are taken that way.
    #[error("adapters within requests are not taken here (--max-inline-adapter-bytes): upload it, and name it")]
    NoSentAdapters,
    /// A defect, contained.
    #[error("the digest of an adapter was lost")]
    DigestLost,
    /// The adapter that the request brings is refused, or could not be loaded.
    #[error("inline_adapter: {0}")]
    Sent(LoadFailure),
    /// A chat for a mix of which nothing says how it is to be rendered.
    #[error(
        "adapters {one} and {other} of the mix do not have the same chat template: render the chat and send it as a prompt"
    )]
    ChatTemplates {
        /// A part of the mix.
        one: AdapterName,
        /// Another.
        other: AdapterName,
    },
    /// A text for a mix of which nothing says how it is to be read.
    #[error("adapters {one} and {other} of the mix bring tokens of their own, and not the same: send token ids")]
    OwnTokensDiffer {
        /// A part of the mix.
        one: AdapterName,
        /// Another.
        other: AdapterName,
    },
    /// The tokens that an adapter brings do not go with the base's tokenizer, which is another one than when they came.
    #[error("adapter {adapter}: {source}: upload it again")]
    OwnTokens {
        /// Whose they are.
        adapter: AdapterName,
        /// What is wrong with them.
        source: Box<OwnTokensError>,
    },
    /// The engine does not take it.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The adapter is for something else.
    #[error("adapter {adapter} is for {} and {}", task.as_str(), wanted.refusal())]
    Task {
        /// Its name.
        adapter: AdapterName,
        /// What it is for.
        task: AdapterTask,
        /// What was asked of it.
        wanted: Wanted,
    },
    /// One of several inputs.
    #[error("inputs[{index}]: {error}")]
    Input {
        /// Which.
        index: usize,
        /// Why.
        #[source]
        error: Box<AdmissionError>,
    },
    /// The deadline had passed when it came.
    #[error("the deadline passed before the request was queued")]
    DeadlineExceeded,
}

/// What a request wants of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Tokens.
    Tokens,
    /// Hidden states, which every adapter has.
    Embeddings,
    /// Logits of its head.
    Scores,
}

impl Wanted {
    /// Whether an adapter for this task has it.
    #[must_use]
    pub fn is_had_by(self, task: AdapterTask) -> bool {
        match self {
            Self::Tokens => task.labels() == 0,
            Self::Embeddings => true,
            Self::Scores => task.labels() > 0,
        }
    }

    fn refusal(self) -> &'static str {
        match self {
            Self::Tokens => "generates no text: ask for its scores",
            Self::Embeddings => "has no embeddings",
            Self::Scores => "has no head that scores",
        }
    }
}

impl AdmissionError {
    /// The kind of refusal in one word, for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooManyRequests { .. } | Self::Submit(SubmitError::QueueFull { .. }) => "capacity",
            Self::Chat {
                source: ChatError::Render { .. } | ChatError::Limit { .. } | ChatError::Template(_) | ChatError::NotText,
                ..
            } => "template",
            Self::ShareOfRequests { .. } | Self::Submit(SubmitError::QueueShare { .. }) => "share",
            Self::Invalid(_)
            | Self::EmptyPrompt { .. }
            | Self::NoChatTemplate
            | Self::ChatTemplates { .. }
            | Self::OwnTokensDiffer { .. }
            | Self::Chat { .. }
            | Self::Tokenizer(_) => "invalid",
            Self::Adapter(_)
            | Self::OwnTokens { .. }
            | Self::NotLinear { .. }
            | Self::Task { .. }
            | Self::Sent(_)
            | Self::NoSentAdapters => "adapter",
            Self::Input { error, .. } => error.reason(),
            Self::Submit(SubmitError::Stopped) => "draining",
            Self::DeadlineExceeded => "deadline",
            Self::TokenizerPanicked | Self::DigestLost => "internal",
        }
    }
}
