//! Builds a status with its google.rpc details.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// `ErrorInfo.domain` of every status.
pub(in crate::grpc) const DOMAIN: &str = "polydelta.dev";

/// Read by retry policies of grpc clients (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Bytes of one text in a status. Some clients take no more than 8 KiB of trailers, and texts of the client (names,
/// fields of a config) come back in them, twice: as the message and, in base64, in the details.
const MAX_TEXT: usize = 512;

pub(super) struct Refusal {
    code: Code,
    reason: &'static str,
    message: String,
    metadata: HashMap<String, String>,
    details: ErrorDetails,
    retry_after: Option<Duration>,
}

impl Refusal {
    /// `reason` is UPPER_SNAKE_CASE and stable: clients match on it.
    pub(super) fn new(code: Code, reason: &'static str, message: impl Display) -> Self {
        Self {
            code,
            reason,
            message: clipped(message),
            metadata: HashMap::new(),
            details: ErrorDetails::new(),
            retry_after: None,
        }
    }

    /// A variable part of the message, for programs.
    pub(super) fn with(mut self, key: &str, value: impl Display) -> Self {
        self.metadata.insert(key.to_owned(), clipped(value));
        self
    }

    /// The field of the request that is wrong, as a path in the proto.
    pub(super) fn field(mut self, field: impl Display, description: impl Display) -> Self {
        self.details.add_bad_request_violation(clipped(field), clipped(description));
        self
    }

    /// The thing it is about.
    pub(super) fn resource(mut self, kind: &str, name: impl Display, description: impl Display) -> Self {
        self.details.set_resource_info(kind, clipped(name), "", clipped(description));
        self
    }

    /// What must change before it can work.
    pub(super) fn precondition(mut self, kind: &str, subject: impl Display, description: impl Display) -> Self {
        self.details.add_precondition_failure_violation(kind, clipped(subject), clipped(description));
        self
    }

    /// What is used up, where trying again does not help.
    pub(super) fn quota(mut self, subject: impl Display, description: impl Display) -> Self {
        self.details.add_quota_failure_violation(clipped(subject), clipped(description));
        self
    }

    /// When to try again.
    pub(super) fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    pub(super) fn into_status(mut self) -> Status {
        self.details.set_error_info(self.reason, DOMAIN, self.metadata);
        let mut trailers = MetadataMap::new();
        if let Some(delay) = self.retry_after {
            self.details.set_retry_info(Some(delay));
            trailers.insert(PUSHBACK, MetadataValue::from(delay.as_millis() as u64));
        }
        Status::with_error_details_and_metadata(self.code, self.message, self.details, trailers)
    }
}

fn clipped(text: impl Display) -> String {
    let mut text = text.to_string();
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text
}
