//! The one place where an error becomes a gRPC status.
//!
//! Every match here is exhaustive, so that a new error does not compile before somebody has chosen its code. A status
//! carries `google.rpc.ErrorInfo` with a stable reason and the numbers as metadata, and what else helps a client to
//! react. INTERNAL tells the client nothing beyond the request id; the log has the whole chain.

mod adapters;
mod admission;
mod refusal;

use std::any::Any;

use http::HeaderMap;
use tonic::{Code, Status};

use self::refusal::Refusal;
use super::convert::BadMessage;
use super::deadline::BadTimeout;
use super::page::BadPage;

pub(super) use self::adapters::{from_adapter, from_upload_stream, load_failed};
pub(super) use self::admission::{from_admission, from_failure, from_stats};

/// What ended a call from outside its handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Interrupted {
    /// The client's deadline.
    DeadlineExceeded,
    /// The server ended while the call ran.
    Cut,
    /// A defect of ours, contained in this call.
    Panicked {
        /// The panic's message.
        message: String,
    },
}

impl Interrupted {
    pub(super) fn panicked(payload: &(dyn Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without a message".to_owned());
        Self::Panicked { message }
    }
}

pub(super) fn interrupted(interrupted: Interrupted, path: &str) -> Status {
    match interrupted {
        Interrupted::DeadlineExceeded => deadline_exceeded(),
        Interrupted::Cut => draining(),
        Interrupted::Panicked { message } => {
            tracing::error!(path, message, "a call panicked");
            internal()
        }
    }
}

/// The server ends: the call may be made again, elsewhere.
pub(super) fn draining() -> Status {
    Refusal::new(Code::Unavailable, "SERVER_DRAINING", "the server is shutting down").into_status()
}

pub(super) fn deadline_exceeded() -> Status {
    Refusal::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the deadline of the call has passed").into_status()
}

pub(super) fn bad_timeout(bad: &BadTimeout) -> Status {
    Refusal::new(Code::InvalidArgument, "INVALID_TIMEOUT", bad).field("grpc-timeout", bad).into_status()
}

/// A defect or a broken machine; the caller has logged it.
pub(super) fn internal() -> Status {
    Refusal::new(Code::Internal, "INTERNAL", "internal error; the server's log has the cause").into_status()
}

/// Log the chain of `error` and say no more than that something failed.
pub(super) fn internal_error(context: &str, error: &dyn std::error::Error) -> Status {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        chain = format!("{chain}: {cause}");
        source = cause.source();
    }
    tracing::error!(context, error = chain, "internal error");
    internal()
}

pub(super) fn from_bad_message(bad: &BadMessage) -> Status {
    Refusal::new(Code::InvalidArgument, "INVALID_FIELD", bad).field(bad.field(), bad).into_status()
}

pub(super) fn from_bad_page(bad: &BadPage) -> Status {
    let field = match bad {
        BadPage::NegativeSize { .. } => "page_size",
        BadPage::BadToken => "page_token",
    };
    Refusal::new(Code::InvalidArgument, "INVALID_FIELD", bad).field(field, bad).into_status()
}

/// A stream whose client took nothing for too long.
pub(super) fn stalled() -> Status {
    Refusal::new(Code::Aborted, "STREAM_STALLED", "the stream was not read for too long").into_status()
}

/// What a client's message stream breaks with: its own cancellation, a message too large, bytes that are no message.
pub(super) fn of_message_stream(status: Status) -> Status {
    if is_oversized(&status) { oversized(status.message()) } else { status }
}

/// A watcher fell behind and is to list again.
pub(super) fn watcher_lagged() -> Status {
    Refusal::new(Code::Aborted, "WATCH_LAGGED", "events were lost; begin the watch again").into_status()
}

/// tonic answers a message above the limit with OUT_OF_RANGE, every other gRPC implementation with RESOURCE_EXHAUSTED.
/// `headers` are those of a response, or its trailers.
pub(super) fn normalize(headers: &mut HeaderMap) {
    let oversized = Status::from_header_map(headers).filter(is_oversized).map(|status| oversized(status.message()));
    if let Some(status) = oversized {
        headers.remove("grpc-message");
        // A code, a short ASCII message and base64 are always valid header values.
        let _ = status.add_header(headers);
    }
}

fn is_oversized(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("message length too large")
}

fn oversized(message: &str) -> Status {
    Refusal::new(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", message).into_status()
}

#[cfg(test)]
mod tests;
