//! Messages to plain data and back. Nothing is decided here: a message that cannot be expressed in `types` is refused
//! naming the field, everything else passes.

mod adapters;
mod generation;
mod info;
mod pooling;

use std::borrow::Cow;
use std::time::Duration;

use crate::types::{AdapterName, AdapterVersion, InvalidAdapterName, InvalidAdapterVersion, Problem, ToProblem};

pub(super) use self::adapters::{adapter, expected_for_delete, preview, published, upload, upload_header};
pub(super) use self::generation::{
    Collected, delta, detokenize_delta, finished, generate_request, prompt_logprobs, started, tokenize_input,
};
pub(super) use self::info::{server_info, stats};
pub(super) use self::pooling::{embed_request, embed_response, score_request, score_response};

/// A message that has no meaning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadMessage {
    /// A oneof without a member.
    #[error("{field} is required")]
    Missing {
        /// Path of the field.
        field: &'static str,
    },
    /// Not an adapter's name.
    #[error("{field}: {source}")]
    Name {
        /// Path of the field.
        field: &'static str,
        /// The rule.
        source: InvalidAdapterName,
    },
    /// Not a version.
    #[error("{field}: {source}")]
    Version {
        /// Path of the field.
        field: &'static str,
        /// The rule.
        source: InvalidAdapterVersion,
    },
    /// A version without the name that it belongs to.
    #[error("adapter_version is set and adapter is not")]
    VersionWithoutAdapter,
    /// Two ways to say what to compute with.
    #[error("{field} and {other} are both set: a request is computed with one of them")]
    Together {
        /// Path of the field.
        field: &'static str,
        /// The others that are set.
        other: &'static str,
    },
    /// Not usable as a request id.
    #[error("request_id is not 1 to 128 printable ASCII characters")]
    RequestId,
    /// A number that stands for nothing here.
    #[error("{field}: {value} is no value of it")]
    UnknownValue {
        /// Path of the field.
        field: &'static str,
        /// As given.
        value: i32,
    },
    /// One of several inputs.
    #[error("inputs[{index}].{bad}")]
    Input {
        /// Which.
        index: usize,
        /// What is wrong with it.
        bad: Box<BadMessage>,
    },
    /// An upload id that breaks the rule.
    #[error("header.upload_id: not of the form [A-Za-z0-9._:-]{{1,128}}")]
    UploadId,
    /// Template variables that are no JSON object.
    #[error("chat.template_kwargs_json: {reason}")]
    TemplateJson {
        /// What is wrong with the text.
        reason: String,
    },
    /// A template variable in both forms.
    #[error("chat.template_kwargs_json: {name:?} is in chat.template_kwargs too")]
    TemplateVariableTwice {
        /// The variable, shortened to 64 characters.
        name: String,
    },
}

impl BadMessage {
    /// Path of the field in the message.
    pub(super) fn field(&self) -> Cow<'static, str> {
        match self {
            Self::Missing { field }
            | Self::Name { field, .. }
            | Self::Version { field, .. }
            | Self::UnknownValue { field, .. }
            | Self::Together { field, .. } => Cow::Borrowed(field),
            Self::VersionWithoutAdapter => "adapter_version".into(),
            Self::RequestId => "request_id".into(),
            Self::UploadId => "header.upload_id".into(),
            Self::TemplateJson { .. } | Self::TemplateVariableTwice { .. } => "chat.template_kwargs_json".into(),
            Self::Input { index, bad } => format!("inputs[{index}].{}", bad.field()).into(),
        }
    }
}

impl ToProblem for BadMessage {
    fn to_problem(&self) -> Problem {
        Problem::invalid("INVALID_FIELD", self.field(), self)
    }
}

/// A client's own id for its request, where it has one.
fn request_id(id: String) -> Result<String, BadMessage> {
    if id.is_empty() || crate::wire::is_valid(&id) { Ok(id) } else { Err(BadMessage::RequestId) }
}

pub(super) fn adapter_name(field: &'static str, text: &str) -> Result<AdapterName, BadMessage> {
    text.parse().map_err(|source| BadMessage::Name { field, source })
}

fn adapter_version(field: &'static str, text: &str) -> Result<AdapterVersion, BadMessage> {
    text.parse().map_err(|source| BadMessage::Version { field, source })
}

/// Counts in messages are 32 bits wide; one that does not fit says "at least that many".
pub(super) fn saturate(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests;
