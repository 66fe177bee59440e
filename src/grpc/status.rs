//! The one place where an error becomes a gRPC status.
//!
//! Every match here is exhaustive, so that a new error does not compile before somebody has chosen its code. A status
//! carries `google.rpc.ErrorInfo` with a stable reason and the numbers as metadata, and what else helps a client to
//! react. INTERNAL tells the client nothing beyond the request id; the log has the whole chain.

mod adapters;
mod admission;
mod refusal;

use std::any::Any;
use std::time::Duration;

use http::HeaderMap;
use tonic::{Code, Status};

use self::refusal::Refusal;
use super::body::BodyRefused;
use super::convert::BadMessage;
use super::deadline::BadTimeout;
use super::page::BadPage;
use crate::wire::Exhausted;

pub(super) use self::adapters::{from_adapter, from_upload_stream, load_failed};
pub(super) use self::admission::{from_admission, from_failure, from_stats};

/// A wait after which something that was used up may be free.
const RETRY: Duration = Duration::from_millis(500);

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

pub(super) fn interrupted(interrupted: Interrupted) -> Status {
    match interrupted {
        Interrupted::DeadlineExceeded => deadline_exceeded(),
        Interrupted::Cut => draining(),
        Interrupted::Panicked { message } => {
            tracing::error!(message, "a call panicked");
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

pub(super) fn too_many_watchers(exhausted: &Exhausted) -> Status {
    of_exhausted("TOO_MANY_WATCHERS", "too many watchers", exhausted).into_status()
}

pub(super) fn too_many_calls(exhausted: &Exhausted) -> Status {
    of_exhausted("TOO_MANY_CALLS", "too many calls", exhausted).into_status()
}

fn of_exhausted(reason: &'static str, what: &str, exhausted: &Exhausted) -> Refusal {
    let (Exhausted::Total { limit } | Exhausted::Peer { limit, .. }) = exhausted;
    Refusal::new(Code::ResourceExhausted, reason, format_args!("{what}: {exhausted}"))
        .with("limit", limit)
        .retry_after(RETRY)
}

/// A request whose messages take too much memory, or too long to come.
pub(super) fn from_body(refused: &BodyRefused) -> Status {
    let refusal = match refused {
        BodyRefused::NoRoom { bytes, refused: exhausted } => {
            of_exhausted("MESSAGE_MEMORY_FULL", "no memory for the message now", exhausted).with("bytes", bytes)
        }
        BodyRefused::TooSlow { limit, received } => Refusal::new(Code::Aborted, "MESSAGE_TOO_SLOW", refused)
            .with("limit_ms", limit.as_millis())
            .with("received_bytes", received),
    };
    refusal.into_status()
}

/// A stream whose client took nothing for too long.
pub(super) fn stalled() -> Status {
    Refusal::new(Code::Aborted, "STREAM_STALLED", "the stream was not read for too long").into_status()
}

/// What a client's message stream breaks with: its own cancellation, a message too large, bytes that are no message.
pub(super) fn of_message_stream(status: Status) -> Status {
    of_transport(&status).unwrap_or(status)
}

/// A watcher fell behind and is to list again.
pub(super) fn watcher_lagged() -> Status {
    Refusal::new(Code::Aborted, "WATCH_LAGGED", "events were lost; begin the watch again").into_status()
}

/// Put what tonic says by itself into the words of this server. `headers` are the trailers of a call, or the head of one
/// that has nothing else.
pub(super) fn normalize(headers: &mut HeaderMap) {
    let Some(status) = Status::from_header_map(headers).as_ref().and_then(of_transport) else { return };
    headers.remove("grpc-message");
    // A code, a short message and base64 are always valid header values.
    let _ = status.add_header(headers);
}

/// A status that no handler made; `None` for any other.
///
/// tonic answers a message above the limit with OUT_OF_RANGE, where every other implementation has RESOURCE_EXHAUSTED,
/// and bytes that are no message with INTERNAL, which would make a client's mistake look like a defect of the server.
fn of_transport(status: &Status) -> Option<Status> {
    let message = status.message();
    if !status.details().is_empty() {
        return None;
    }
    let refusal = match status.code() {
        Code::OutOfRange if message.contains("message length too large") => {
            Refusal::new(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", message).quota("max_message_bytes", message)
        }
        Code::Internal if message.starts_with(UNDECODABLE) => {
            Refusal::new(Code::InvalidArgument, "MALFORMED_MESSAGE", message).field(undecodable_field(message), message)
        }
        Code::Unimplemented if message.is_empty() => {
            Refusal::new(Code::Unimplemented, "UNKNOWN_METHOD", "this server has no such method")
        }
        Code::Unimplemented => Refusal::new(Code::Unimplemented, "UNSUPPORTED", message),
        _ => return None,
    };
    Some(refusal.into_status())
}

/// How prost begins to say that bytes are no message.
const UNDECODABLE: &str = "failed to decode Protobuf message: ";

/// prost goes on with the way to the field from within, `SamplingParams.top_k: GenerateRequest.sampling: `, and then
/// says why.
fn undecodable_field(message: &str) -> String {
    let way = message.strip_prefix(UNDECODABLE).unwrap_or_default().split(": ");
    let names = way.map_while(|step| step.split_once('.').filter(|_| !step.contains(' ')));
    let mut path: Vec<&str> = names.map(|(_, field)| field).collect();
    path.reverse();
    if path.is_empty() { "message".to_owned() } else { path.join(".") }
}

#[cfg(test)]
mod tests;
