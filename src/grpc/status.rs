//! The one place where a [`Problem`] becomes a gRPC status.
//!
//! Every match here is exhaustive, so that a new class or subject does not compile before somebody has chosen what it is
//! in gRPC. A status carries `google.rpc.ErrorInfo` with the stable reason and the numbers as metadata, and what else
//! helps a client to react. INTERNAL tells the client nothing beyond the request id; the log has the whole chain.

use std::collections::HashMap;
use std::fmt::Display;

use http::HeaderMap;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::types::{Class, Problem, Subject, ToProblem};

/// `ErrorInfo.domain` of every status.
const DOMAIN: &str = "polydelta.dev";

/// Resources of the protocol, as `ResourceInfo.resource_type` names them.
const ADAPTER: &str = "polydelta.v1.Adapter";
const UPLOAD: &str = "polydelta.v1.Upload";

/// Read by retry policies of grpc clients (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Bytes of one text in a status. Some clients take no more than 8 KiB of trailers, and texts of the client (names,
/// fields of a config) come back in them, twice: as the message and, in base64, in the details.
const MAX_TEXT: usize = 512;

/// What an error is to the client; the log gets what it is to the operator.
pub(super) fn of(error: &dyn ToProblem) -> Status {
    of_problem(error.to_problem())
}

/// As [`of`], of a problem that no error stands for.
pub(super) fn of_problem(problem: Problem) -> Status {
    let Problem { class, reason, message, subjects, numbers, retry, report } = problem;
    if let Some(report) = report {
        tracing::error!(reason, error = report.error, "{}", report.what);
    }
    let message = clipped(message);
    let numbers: HashMap<String, String> =
        numbers.into_iter().map(|(name, value)| (name.to_owned(), clipped(value))).collect();
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, numbers);
    for subject in subjects {
        tell(&mut details, subject, &message);
    }
    let mut trailers = MetadataMap::new();
    if let Some(delay) = retry {
        details.set_retry_info(Some(delay));
        trailers.insert(PUSHBACK, MetadataValue::from(delay.as_millis() as u64));
    }
    Status::with_error_details_and_metadata(code(class), message, details, trailers)
}

fn code(class: Class) -> Code {
    match class {
        Class::Invalid => Code::InvalidArgument,
        Class::OutOfRange => Code::OutOfRange,
        Class::NotFound => Code::NotFound,
        Class::AlreadyExists => Code::AlreadyExists,
        Class::Conflict | Class::TooSlow => Code::Aborted,
        Class::Unmet => Code::FailedPrecondition,
        Class::TooLarge | Class::Exhausted => Code::ResourceExhausted,
        Class::Unsupported => Code::Unimplemented,
        Class::Unavailable => Code::Unavailable,
        Class::DeadlineExceeded => Code::DeadlineExceeded,
        Class::DataLoss => Code::DataLoss,
        Class::Internal => Code::Internal,
    }
}

fn tell(details: &mut ErrorDetails, subject: Subject, message: &str) {
    match subject {
        Subject::Field(field) => details.add_bad_request_violation(clipped(field), message),
        Subject::Adapter(name) => details.set_resource_info(ADAPTER, clipped(name), "", message),
        Subject::Upload(id) => details.set_resource_info(UPLOAD, clipped(id), "", message),
        Subject::Condition { kind, of } => details.add_precondition_failure_violation(kind, clipped(of), message),
        Subject::Quota(quota) => details.add_quota_failure_violation(quota, message),
    };
}

fn clipped(text: impl Display) -> String {
    let mut text = text.to_string();
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text
}

/// Log `error` and say no more than that something failed.
pub(super) fn internal_error(context: &'static str, error: &dyn std::error::Error) -> Status {
    of_problem(Problem::internal(context, error))
}

/// A stream whose client took nothing for too long.
pub(super) fn stalled() -> Status {
    of_problem(Problem::new(Class::TooSlow, "STREAM_STALLED", "the stream was not read for too long"))
}

/// A watcher fell behind and is to list again.
pub(super) fn watcher_lagged() -> Status {
    of_problem(Problem::new(Class::Conflict, "WATCH_LAGGED", "events were lost; begin the watch again"))
}

/// Put what tonic says by itself into the words of this server. `headers` are the trailers of a call, or the head of one
/// that has nothing else.
pub(super) fn normalize(headers: &mut HeaderMap) {
    let Some(status) = Status::from_header_map(headers).as_ref().and_then(of_transport) else { return };
    headers.remove("grpc-message");
    // A code, a short message and base64 are always valid header values.
    let _ = status.add_header(headers);
}

/// What a client's message stream breaks with: its own cancellation, a message too large, bytes that are no message.
pub(super) fn of_message_stream(status: Status) -> Status {
    of_transport(&status).unwrap_or(status)
}

/// A status that no handler made, known by its having no details; `None` for any other.
///
/// tonic answers a message above the limit with OUT_OF_RANGE, where every other implementation has RESOURCE_EXHAUSTED.
fn of_transport(status: &Status) -> Option<Status> {
    let message = status.message();
    if !status.details().is_empty() {
        return None;
    }
    let problem = match status.code() {
        Code::OutOfRange => {
            Problem::new(Class::TooLarge, "MESSAGE_TOO_LARGE", message).about(Subject::Quota("max_message_bytes"))
        }
        // It says something of a request that it knows how to read, and nothing of one that it does not know.
        Code::Unimplemented if message.is_empty() => {
            Problem::new(Class::Unsupported, "UNKNOWN_METHOD", "this server has no such method")
        }
        Code::Unimplemented => Problem::new(Class::Unsupported, "UNSUPPORTED", message),
        _ => return None,
    };
    Some(of_problem(problem))
}

#[cfg(test)]
mod tests;
