//! Requests: admission, the engine, and what went wrong while they ran.

use std::time::Duration;

use tonic::{Code, Status};

use super::refusal::Refusal;
use super::{deadline_exceeded, draining, from_adapter, internal_error};
use crate::admission::{AdmissionError, GenerationError, InvalidRequest};
use crate::engine::SubmitError;
use crate::text::{ChatError, TokenizerError};
use crate::types::RequestFailure;

/// A wait after which a place in the queue may be free: a few steps.
const RETRY: Duration = Duration::from_millis(250);

pub(in crate::server) fn from_failure(error: &GenerationError) -> Status {
    match error {
        GenerationError::Failed(RequestFailure::Draining) => draining(),
        GenerationError::Failed(RequestFailure::DeadlineExceeded) => deadline_exceeded(),
        GenerationError::Failed(RequestFailure::NonFinite) => {
            // The client is told: it is its adapter, or its request, that overflowed.
            Refusal::new(Code::Internal, "NON_FINITE", error).into_status()
        }
        GenerationError::Failed(RequestFailure::EngineFailed)
        | GenerationError::EngineGone
        | GenerationError::Text(_) => internal_error("generation", error),
    }
}

fn from_submit(error: &SubmitError) -> Status {
    match error {
        SubmitError::QueueFull { queued, limit } => Refusal::new(Code::ResourceExhausted, "QUEUE_FULL", error)
            .with("queued", queued)
            .with("limit", limit)
            .retry_after(RETRY)
            .into_status(),
        SubmitError::Stopped => draining(),
    }
}

pub(in crate::server) fn from_stats(error: &SubmitError) -> Status {
    from_submit(error)
}

pub(in crate::server) fn from_admission(error: &AdmissionError) -> Status {
    use AdmissionError as E;
    let bad = |reason, field: &str| Refusal::new(Code::InvalidArgument, reason, error).field(field, error);
    let refusal = match error {
        E::TooManyRequests { limit } => {
            Refusal::new(Code::ResourceExhausted, "QUEUE_FULL", error).with("limit", limit).retry_after(RETRY)
        }
        E::Invalid(invalid) => return from_invalid(invalid),
        E::EmptyPrompt => bad("EMPTY_PROMPT", "prompt"),
        E::NoChatTemplate => Refusal::new(Code::FailedPrecondition, "NO_CHAT_TEMPLATE", error).precondition(
            "CHAT_TEMPLATE",
            "model",
            error,
        ),
        E::Chat(ChatError::Refused { .. }) => bad("CHAT_REFUSED", "chat.messages"),
        E::Chat(ChatError::Render { .. }) => bad("CHAT_FAILED", "chat.messages"),
        E::Tokenizer(TokenizerError::Encode { .. }) => bad("TOKENIZER_FAILED", "prompt"),
        E::Tokenizer(TokenizerError::Decode { .. }) => bad("TOKENIZER_FAILED", "token_ids"),
        E::Adapter(error) => return from_adapter(error),
        E::Submit(error) => return from_submit(error),
        E::DeadlineExceeded => return deadline_exceeded(),
        E::Chat(ChatError::Read { .. } | ChatError::Config { .. } | ChatError::Template { .. })
        | E::Tokenizer(TokenizerError::Read { .. } | TokenizerError::Format { .. })
        | E::TokenizerPanicked => return internal_error("admission", error),
    };
    refusal.into_status()
}

fn from_invalid(invalid: &InvalidRequest) -> Status {
    Refusal::new(Code::InvalidArgument, "INVALID_FIELD", invalid).field(&invalid.field, invalid).into_status()
}
