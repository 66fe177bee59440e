//! Why a request is not admitted.

use super::validate::InvalidRequest;
use crate::adapters::AdapterError;
use crate::engine::SubmitError;
use crate::scheduler::places::Holder;
use crate::text::{ChatError, TokenizerError};
use crate::types::AdapterName;

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
    /// The engine does not take it.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The deadline had passed when it came.
    #[error("the deadline passed before the request was queued")]
    DeadlineExceeded,
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
            | Self::Chat { .. }
            | Self::Tokenizer(_) => "invalid",
            Self::Adapter(_) => "adapter",
            Self::Submit(SubmitError::Stopped) => "draining",
            Self::DeadlineExceeded => "deadline",
            Self::TokenizerPanicked => "internal",
        }
    }
}
