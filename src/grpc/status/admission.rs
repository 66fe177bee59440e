//! Requests: admission, the engine, and what went wrong while they ran.

use std::fmt::Display;
use std::time::Duration;

use tonic::{Code, Status};

use super::refusal::Refusal;
use super::{deadline_exceeded, draining, from_adapter, internal_error};
use crate::admission::{AdmissionError, GenerationError, InvalidRequest};
use crate::engine::SubmitError;
use crate::scheduler::places::Holder;
use crate::text::{ChatError, TokenizerError};
use crate::types::RequestFailure;

/// A wait after which a place in the queue may be free: a few steps.
const RETRY: Duration = Duration::from_millis(250);

pub(in crate::grpc) fn from_failure(error: &GenerationError) -> Status {
    match error {
        GenerationError::Failed(RequestFailure::Draining) => draining(),
        GenerationError::Failed(RequestFailure::DeadlineExceeded) => deadline_exceeded(),
        GenerationError::Failed(RequestFailure::NonFinite) => {
            // The client is told: it is its adapter, or its request, that overflowed.
            Refusal::new(Code::Internal, "NON_FINITE", error).into_status()
        }
        GenerationError::EngineGone => {
            // The server ends with its engine: the request may be made again, elsewhere.
            tracing::error!(%error, "a request was lost");
            draining()
        }
        GenerationError::Failed(RequestFailure::EngineFailed) | GenerationError::Text(_) => {
            internal_error("generation", error)
        }
    }
}

fn from_submit(error: &SubmitError) -> Status {
    match error {
        SubmitError::QueueFull { queued, limit } => Refusal::new(Code::ResourceExhausted, "QUEUE_FULL", error)
            .with("queued", queued)
            .with("limit", limit)
            .retry_after(RETRY)
            .into_status(),
        SubmitError::QueueShare { holder, held, limit } => {
            share_full(error, *holder, *held).with("limit", limit).into_status()
        }
        SubmitError::Stopped => draining(),
    }
}

/// There would be places, but not for one more of this client or adapter.
fn share_full(error: impl Display, holder: Holder, held: usize) -> Refusal {
    Refusal::new(Code::ResourceExhausted, "QUEUE_FULL", error)
        .with("share_of", holder.as_str())
        .with("held", held)
        .retry_after(RETRY)
}

pub(in crate::grpc) fn from_stats(error: &SubmitError) -> Status {
    from_submit(error)
}

pub(in crate::grpc) fn from_admission(error: &AdmissionError) -> Status {
    use AdmissionError as E;
    let bad = |reason, field: &str| Refusal::new(Code::InvalidArgument, reason, error).field(field, error);
    let unmet = |reason, subject: &dyn std::fmt::Display| {
        Refusal::new(Code::FailedPrecondition, reason, error).precondition("CHAT_TEMPLATE", subject, error)
    };
    let refusal = match error {
        E::TooManyRequests { limit } => {
            Refusal::new(Code::ResourceExhausted, "QUEUE_FULL", error).with("limit", limit).retry_after(RETRY)
        }
        E::ShareOfRequests { holder, held, limit } => share_full(error, *holder, *held).with("limit", limit),
        E::Invalid(invalid) => return from_invalid(invalid),
        E::EmptyPrompt { field } => bad("EMPTY_PROMPT", field),
        E::NoChatTemplate => unmet("NO_CHAT_TEMPLATE", &"model"),
        E::Chat { adapter, source } => match (source, adapter) {
            (ChatError::Refused { .. }, _) => bad("CHAT_REFUSED", "chat.messages"),
            // The template is at fault, not the client, and not for this server to mend.
            (ChatError::Render { .. } | ChatError::Template(_) | ChatError::NotText, Some(name)) => {
                unmet("CHAT_TEMPLATE_FAILED", name)
            }
            (ChatError::Render { .. }, None) => unmet("CHAT_TEMPLATE_FAILED", &"model"),
            (ChatError::Limit { .. }, Some(name)) => unmet("CHAT_TEMPLATE_LIMIT", name),
            (ChatError::Limit { .. }, None) => unmet("CHAT_TEMPLATE_LIMIT", &"model"),
            // The model's own were read and compiled at start.
            (ChatError::Template(_) | ChatError::NotText, None)
            | (ChatError::Read { .. } | ChatError::Tokens(_), _) => {
                return internal_error("admission", error);
            }
        },
        E::Tokenizer(TokenizerError::Control { .. }) => bad("CONTROL_TOKEN", "chat.messages"),
        E::Tokenizer(TokenizerError::Encode { .. }) => bad("TOKENIZER_FAILED", "prompt"),
        E::Tokenizer(TokenizerError::Decode { .. }) => bad("TOKENIZER_FAILED", "token_ids"),
        E::Adapter(error) => return from_adapter(error),
        E::Submit(error) => return from_submit(error),
        E::DeadlineExceeded => return deadline_exceeded(),
        E::Tokenizer(
            TokenizerError::Read { .. }
            | TokenizerError::Missing { .. }
            | TokenizerError::Settings { .. }
            | TokenizerError::Format { .. }
            | TokenizerError::Gguf(_),
        )
        | E::TokenizerPanicked => return internal_error("admission", error),
    };
    refusal.into_status()
}

/// What does not fit the context has a reason of its own: a client can shorten the prompt and try again.
fn from_invalid(invalid: &InvalidRequest) -> Status {
    use InvalidRequest as E;
    let bad = |reason| Refusal::new(Code::InvalidArgument, reason, invalid).field(invalid.field(), invalid);
    let refusal = match invalid {
        E::NotFinite { .. } | E::Zero { .. } | E::Empty { .. } | E::Reserved { .. } => bad("INVALID_FIELD"),
        E::TooDeep { depth, max, .. } => bad("INVALID_FIELD").with("depth", depth).with("max", max),
        E::OutOfRange { value, interval, .. } => bad("INVALID_FIELD").with("value", value).with("expected", interval),
        E::Priority { priority, max } => bad("INVALID_FIELD").with("value", priority).with("max", max),
        E::TooLarge { value, max, .. } => bad("INVALID_FIELD").with("value", value).with("max", max),
        E::TooMany { count, max, .. } => bad("INVALID_FIELD").with("count", count).with("max", max),
        E::TooLong { bytes, max, .. } => bad("INVALID_FIELD").with("bytes", bytes).with("max", max),
        E::NotInVocabulary { id, token, vocab_size, .. } => {
            let refusal = bad("INVALID_FIELD").with("token_id", id).with("vocab_size", vocab_size);
            match token {
                Some(token) => refusal.with("token", token),
                None => refusal,
            }
        }
        E::Repeated { id, .. } => bad("INVALID_FIELD").with("token_id", id),
        E::MinTokens { min_tokens, max_tokens } => {
            bad("INVALID_FIELD").with("min_tokens", min_tokens).with("max_tokens", max_tokens)
        }
        E::NothingToSample { vocab_size } => bad("INVALID_FIELD").with("vocab_size", vocab_size),
        E::TotalTokens { max_tokens, choices, max } => {
            bad("INVALID_FIELD").with("max_tokens", max_tokens).with("choices", choices).with("max", max)
        }
        E::TextTooLong { bytes, more_than, context_length, .. } => bad("CONTEXT_LENGTH_EXCEEDED")
            .with("bytes", bytes)
            .with("more_than_tokens", more_than)
            .with("context_length", context_length),
        E::PromptTooLong { prompt_tokens, virtual_tokens, context_length, .. } => bad("CONTEXT_LENGTH_EXCEEDED")
            .with("prompt_tokens", prompt_tokens)
            .with("virtual_tokens", virtual_tokens)
            .with("context_length", context_length),
        E::MaxTokens { max_tokens, prompt_tokens, virtual_tokens, context_length } => {
            let refusal = bad("CONTEXT_LENGTH_EXCEEDED")
                .with("max_tokens", max_tokens)
                .with("virtual_tokens", virtual_tokens)
                .with("context_length", context_length);
            match prompt_tokens {
                Some(prompt_tokens) => refusal.with("prompt_tokens", prompt_tokens),
                None => refusal,
            }
        }
    };
    refusal.into_status()
}
