//! What this room's errors are to whoever asked.

use std::time::Duration;

use super::error::AdmissionError;
use super::generation::GenerationError;
use super::validate::InvalidRequest;
use crate::text::{ChatError, TokenizerError};
use crate::types::{AdapterName, Class, Problem, Subject, ToProblem};

/// A wait after which a place among the requests may be free: a few steps.
const RETRY: Duration = Duration::from_millis(250);

impl ToProblem for AdmissionError {
    fn to_problem(&self) -> Problem {
        use AdmissionError as E;
        let bad = |reason, field: &str| Problem::invalid(reason, field, self);
        let full = || Problem::new(Class::Exhausted, "QUEUE_FULL", self).retry_after(RETRY);
        match self {
            E::TooManyRequests { limit } => full().with("limit", limit),
            E::ShareOfRequests { holder, held, limit } => {
                full().with("share_of", holder.as_str()).with("held", held).with("limit", limit)
            }
            E::Invalid(invalid) => invalid.to_problem(),
            E::EmptyPrompt { field } => bad("EMPTY_PROMPT", field),
            E::NoChatTemplate => unmet(self, "NO_CHAT_TEMPLATE", None),
            E::Chat { adapter, source } => chat(self, adapter.as_ref(), source),
            E::Tokenizer(TokenizerError::Control { .. }) => bad("CONTROL_TOKEN", "chat.messages"),
            E::Tokenizer(TokenizerError::Encode { .. }) => bad("TOKENIZER_FAILED", "prompt"),
            E::Tokenizer(TokenizerError::Decode { .. }) => bad("TOKENIZER_FAILED", "token_ids"),
            E::Adapter(error) => error.to_problem(),
            E::NotLinear { name, class, reason } => Problem::new(Class::Unmet, "NOT_LINEAR", self)
                .about(Subject::Condition { kind: "LINEAR_ADAPTER", of: name.to_string() })
                .about(Subject::Adapter(name.to_string()))
                .with("adapter", name)
                .with("op_class", class.as_str())
                .with("cause", reason),
            E::NoSentAdapters => Problem::new(Class::Unsupported, "INLINE_ADAPTERS_OFF", self)
                .about(Subject::Field("inline_adapter".to_owned())),
            E::Sent(error) => error.to_problem().saying(self),
            E::ChatTemplates { one, other } => {
                unmet(self, "CHAT_TEMPLATES_DIFFER", Some(other)).with("one", one).with("other", other)
            }
            E::OwnTokensDiffer { one, other } => {
                tokenizer(self, "OWN_TOKENS_DIFFER", other).with("one", one).with("other", other)
            }
            E::OwnTokens { adapter, source: _ } => tokenizer(self, "OWN_TOKENS_UNUSABLE", adapter),
            E::Submit(error) => error.to_problem(),
            E::Task { adapter, task, wanted: _ } => Problem::new(Class::Unmet, "WRONG_TASK", self)
                .about(Subject::Adapter(adapter.to_string()))
                .about(Subject::Condition { kind: "TASK", of: adapter.to_string() })
                .with("task", task.as_str()),
            E::Input { index, error } => within(*index, error.to_problem()).saying(self),
            E::DeadlineExceeded => Problem::deadline_exceeded(),
            E::Tokenizer(
                TokenizerError::Read { .. }
                | TokenizerError::Missing { .. }
                | TokenizerError::Settings { .. }
                | TokenizerError::Format { .. }
                | TokenizerError::Gguf(_)
                | TokenizerError::Panicked,
            )
            | E::TokenizerPanicked
            | E::DigestLost => Problem::internal("admission", self),
        }
    }
}

/// A problem of one of several inputs: fields are that input's.
fn within(index: usize, problem: Problem) -> Problem {
    let path = |subject| match subject {
        Subject::Field(field) => Subject::Field(format!("inputs[{index}].{field}")),
        subject => subject,
    };
    Problem { subjects: problem.subjects.into_iter().map(path).collect(), ..problem }
}

/// A template that is not there or does not work; `None`: the model's.
fn unmet(error: &AdmissionError, reason: &'static str, adapter: Option<&AdapterName>) -> Problem {
    let of = adapter.map_or_else(|| "model".to_owned(), ToString::to_string);
    Problem::new(Class::Unmet, reason, error).about(Subject::Condition { kind: "CHAT_TEMPLATE", of })
}

/// Tokens that an adapter brings and that cannot be used.
fn tokenizer(error: &AdmissionError, reason: &'static str, adapter: &AdapterName) -> Problem {
    Problem::new(Class::Unmet, reason, error)
        .about(Subject::Condition { kind: "TOKENIZER", of: adapter.to_string() })
        .with("adapter", adapter)
}

fn chat(error: &AdmissionError, adapter: Option<&AdapterName>, source: &ChatError) -> Problem {
    match (source, adapter) {
        (ChatError::Refused { .. }, _) => Problem::invalid("CHAT_REFUSED", "chat.messages", error),
        // The template is at fault, not the client, and not for this server to mend.
        (ChatError::Render { .. }, _) | (ChatError::Template(_) | ChatError::NotText, Some(_)) => {
            unmet(error, "CHAT_TEMPLATE_FAILED", adapter)
        }
        (ChatError::Limit { .. }, _) => unmet(error, "CHAT_TEMPLATE_LIMIT", adapter),
        // The model's own were read and compiled at start.
        (ChatError::Template(_) | ChatError::NotText, None) | (ChatError::Read { .. } | ChatError::Tokens(_), _) => {
            Problem::internal("admission", error)
        }
    }
}

impl ToProblem for InvalidRequest {
    /// What does not fit the context has a reason of its own: a client can shorten the prompt and try again.
    fn to_problem(&self) -> Problem {
        use InvalidRequest as E;
        let invalid = || Problem::invalid("INVALID_FIELD", self.field(), self);
        let too_long = || Problem::invalid("CONTEXT_LENGTH_EXCEEDED", self.field(), self);
        match self {
            E::NotFinite { .. } | E::Zero { .. } | E::Empty { .. } | E::Reserved { .. } => invalid(),
            E::TooDeep { depth, max, .. } => invalid().with("depth", depth).with("max", max),
            E::OutOfRange { value, interval, .. } => invalid().with("value", value).with("expected", interval),
            E::Priority { priority, max } => invalid().with("value", priority).with("max", max),
            E::TooLarge { value, max, .. } => invalid().with("value", value).with("max", max),
            E::MixParts { count, min, max } => invalid().with("count", count).with("min", min).with("max", max),
            E::TooMany { count, max, .. } => invalid().with("count", count).with("max", max),
            E::TooLong { bytes, max, .. } => invalid().with("bytes", bytes).with("max", max),
            E::NotInVocabulary { id, token, vocab_size, .. } => {
                let problem = invalid().with("token_id", id).with("vocab_size", vocab_size);
                match token {
                    Some(token) => problem.with("token", token),
                    None => problem,
                }
            }
            E::Repeated { id, .. } => invalid().with("token_id", id),
            E::MinTokens { min_tokens, max_tokens } => {
                invalid().with("min_tokens", min_tokens).with("max_tokens", max_tokens)
            }
            E::NothingToSample { vocab_size } => invalid().with("vocab_size", vocab_size),
            E::AnswerTooLarge { logprobs, max_bytes } => {
                invalid().with("logprobs", logprobs).with("max_bytes", max_bytes)
            }
            E::ReceiptTokens { tokens, max } => invalid().with("tokens", tokens).with("max", max),
            E::InputTokens { tokens, max } => invalid().with("tokens", tokens).with("max", max),
            E::AnswerNumbers { numbers, max_bytes } => invalid().with("numbers", numbers).with("max_bytes", max_bytes),
            E::TotalTokens { max_tokens, choices, max } => {
                invalid().with("max_tokens", max_tokens).with("choices", choices).with("max", max)
            }
            E::TextTooLong { bytes, more_than, context_length, .. } => too_long()
                .with("bytes", bytes)
                .with("more_than_tokens", more_than)
                .with("context_length", context_length),
            E::PromptTooLong { prompt_tokens, virtual_tokens, context_length, .. } => too_long()
                .with("prompt_tokens", prompt_tokens)
                .with("virtual_tokens", virtual_tokens)
                .with("context_length", context_length),
            E::MaxTokens { max_tokens, prompt_tokens, virtual_tokens, context_length } => {
                let problem = too_long()
                    .with("max_tokens", max_tokens)
                    .with("virtual_tokens", virtual_tokens)
                    .with("context_length", context_length);
                match prompt_tokens {
                    Some(prompt_tokens) => problem.with("prompt_tokens", prompt_tokens),
                    None => problem,
                }
            }
        }
    }
}

impl ToProblem for GenerationError {
    fn to_problem(&self) -> Problem {
        match self {
            Self::Failed(failure) => failure.to_problem(),
            // The server ends with its engine: the request may be made again, elsewhere.
            Self::EngineGone => Problem::draining().report("a request was lost", self),
            Self::Text(_) => Problem::internal("generation", self),
        }
    }
}
