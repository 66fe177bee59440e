//! Why a call is not answered with what it asked for.

use std::time::Duration;

use axum::body::Body;
use axum::response::IntoResponse;
use http::{Response, StatusCode};

use super::error;
use crate::admission::{AdmissionError, GenerationError, Lost};
use crate::types::{Class, Problem, Subject, ToProblem};
use crate::wire::Exhausted;

/// Refusals of this door, and those of the rooms behind it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// No such path.
    #[error("there is nothing at {path}")]
    NoRoute {
        /// Shortened.
        path: String,
    },
    /// A path that takes other methods.
    #[error("{path} does not take {method}")]
    NoMethod {
        /// Shortened.
        path: String,
        /// As given.
        method: String,
    },
    /// A browser sends other types without asking first, for any page.
    #[error("the content type of a request is application/json")]
    ContentType,
    /// More than is taken.
    #[error("the body has more than {max} bytes (--max-message-bytes)")]
    TooLarge {
        /// Limit.
        max: usize,
    },
    /// No memory for another body now.
    #[error("no memory for the body now: {0}")]
    NoRoom(Exhausted),
    /// It took too long to come.
    #[error("the body did not arrive within {limit:?}; {received} bytes came")]
    TooSlow {
        /// What was allowed.
        limit: Duration,
        /// Bytes that came.
        received: usize,
    },
    /// The client stopped half-way.
    #[error("the body broke off: {reason}")]
    BrokenOff {
        /// What the connection says.
        reason: String,
    },
    /// Not JSON, or not an object.
    #[error("the body is not an object of JSON: {reason}")]
    Json {
        /// What is wrong with it.
        reason: String,
    },
    /// A field that is wrong.
    #[error("{field}: {reason}")]
    Field {
        /// Its path.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A field that must be there.
    #[error("{field} is required")]
    Missing {
        /// Its path.
        field: &'static str,
    },
    /// A field that nobody knows.
    #[error("Unrecognized request argument supplied: {field}")]
    Unknown {
        /// Shortened.
        field: String,
    },
    /// A field that would change the answer.
    #[error("{field} is not supported here")]
    Unsupported {
        /// Its path.
        field: String,
    },
    /// Two fields that contradict each other.
    #[error("{field} and {other} do not go together")]
    Together {
        /// One.
        field: &'static str,
        /// The other.
        other: &'static str,
    },
    /// Neither the base nor an adapter.
    #[error("the model {model:?} does not exist")]
    NoModel {
        /// Shortened.
        model: String,
    },
    /// The gate's.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// It was admitted and failed.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// A defect, contained.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// A defect: a handler was called by no call.
    #[error("the call has no context")]
    NoCall,
}

impl Refused {
    /// A field that is wrong.
    pub(super) fn field(field: impl Into<String>, reason: impl ToString) -> Self {
        Self::Field { field: field.into(), reason: reason.to_string() }
    }
}

impl ToProblem for Refused {
    fn to_problem(&self) -> Problem {
        let invalid = |field: &str| Problem::invalid("INVALID_FIELD", field, self);
        match self {
            Self::NoRoute { .. } => Problem::new(Class::NotFound, "NO_ROUTE", self),
            Self::NoMethod { .. } => Problem::new(Class::Invalid, "METHOD_NOT_ALLOWED", self),
            Self::ContentType => Problem::new(Class::Invalid, "CONTENT_TYPE", self),
            Self::TooLarge { max } => Problem::new(Class::TooLarge, "MESSAGE_TOO_LARGE", self).with("max", max),
            Self::NoRoom(refused) => refused.problem("MESSAGE_MEMORY_FULL", "no memory for the body now"),
            Self::TooSlow { .. } => Problem::new(Class::TooSlow, "MESSAGE_TOO_SLOW", self),
            Self::BrokenOff { .. } => Problem::new(Class::Invalid, "BROKEN_OFF", self),
            Self::Json { .. } => Problem::new(Class::Invalid, "INVALID_JSON", self),
            Self::Field { field, .. } => invalid(field),
            Self::Missing { field } | Self::Together { field, .. } => invalid(field),
            Self::Unknown { field } => Problem::invalid("UNKNOWN_FIELD", field, self),
            Self::Unsupported { field } => Problem::invalid("UNSUPPORTED_FIELD", field, self),
            Self::NoModel { model } => {
                Problem::new(Class::NotFound, "MODEL_NOT_FOUND", self).about(Subject::Adapter(model.clone()))
            }
            Self::Admission(error) => error.to_problem(),
            Self::Generation(error) => error.to_problem(),
            Self::Lost(error) => error.to_problem(),
            Self::NoCall => Problem::internal("a call of HTTP", self),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response<Body> {
        let mut response = error::of(&self);
        // What HTTP has a status of its own for.
        match self {
            Self::NoMethod { .. } => *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED,
            Self::ContentType => *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE,
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_http_alone_have_its_own_statuses() {
        let status = |refused: Refused| refused.into_response().status().as_u16();
        assert_eq!(status(Refused::ContentType), 415);
        assert_eq!(status(Refused::NoMethod { path: "/x".into(), method: "PUT".into() }), 405);
        assert_eq!(status(Refused::NoRoute { path: "/x".into() }), 404);
        assert_eq!(status(Refused::TooLarge { max: 1 }), 413);
        assert_eq!(status(Refused::NoModel { model: "x".into() }), 404);
        assert_eq!(status(Refused::Missing { field: "prompt" }), 400);
        assert_eq!(status(Refused::NoCall), 500);
    }
}
