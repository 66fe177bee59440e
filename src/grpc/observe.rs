//! Counts calls: which method, how it ended, how long it took.

use std::time::Instant;

use http::HeaderMap;
use tonic::Code;
use tracing::Span;
use tracing::field::Empty;

use crate::telemetry::metrics::{Metrics, RpcFacts};

/// How a call behaves when the server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Refused while draining; a drain waits for it.
    Work,
    /// Refused while draining, and no drain waits for it: it ends when its client wants, or never.
    Watch,
    /// Served to the end, so that a drain can be watched: health, reflection, and what the server says of itself.
    Observe,
}

/// A method as metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Method {
    pub service: &'static str,
    pub name: &'static str,
    pub kind: &'static str,
    pub role: Role,
}

impl Method {
    /// The client may send more than one message.
    pub(super) fn streams_requests(self) -> bool {
        matches!(self.kind, CLIENT_STREAM | BIDI_STREAM)
    }
}

const GENERATION: &str = "polydelta.v1.GenerationService";
const POOLING: &str = "polydelta.v1.PoolingService";
const ADAPTERS: &str = "polydelta.v1.AdapterService";
const SERVER: &str = "polydelta.v1.ServerService";
const HEALTH: &str = "grpc.health.v1.Health";

const UNARY: &str = "unary";
const CLIENT_STREAM: &str = "client_stream";
const SERVER_STREAM: &str = "server_stream";
const BIDI_STREAM: &str = "bidi_stream";

const METHODS: [Method; 19] = [
    method(GENERATION, "Generate", UNARY, Role::Work),
    method(GENERATION, "GenerateStream", SERVER_STREAM, Role::Work),
    method(GENERATION, "Tokenize", UNARY, Role::Work),
    method(GENERATION, "Detokenize", UNARY, Role::Work),
    method(POOLING, "Embed", UNARY, Role::Work),
    method(POOLING, "Score", UNARY, Role::Work),
    method(ADAPTERS, "UploadAdapter", CLIENT_STREAM, Role::Work),
    method(ADAPTERS, "GetUpload", UNARY, Role::Work),
    method(ADAPTERS, "GetAdapter", UNARY, Role::Work),
    method(ADAPTERS, "ListAdapters", UNARY, Role::Work),
    method(ADAPTERS, "DeleteAdapter", UNARY, Role::Work),
    method(ADAPTERS, "LoadAdapter", UNARY, Role::Work),
    method(ADAPTERS, "UnloadAdapter", UNARY, Role::Work),
    method(ADAPTERS, "WatchAdapters", SERVER_STREAM, Role::Watch),
    method(SERVER, "GetServerInfo", UNARY, Role::Observe),
    method(SERVER, "GetStats", UNARY, Role::Observe),
    method(HEALTH, "Check", UNARY, Role::Observe),
    method(HEALTH, "List", UNARY, Role::Observe),
    method(HEALTH, "Watch", SERVER_STREAM, Role::Observe),
];

/// Any other path is one label, so that a client cannot make metrics grow.
const OTHER: Method = method("other", "other", UNARY, Role::Work);
const REFLECTION: Method = method("grpc.reflection", "ServerReflectionInfo", BIDI_STREAM, Role::Observe);

const fn method(service: &'static str, name: &'static str, kind: &'static str, role: Role) -> Method {
    Method { service, name, kind, role }
}

/// The method of a path `/service/method`.
pub(super) fn method_of(path: &str) -> Method {
    if path.starts_with("/grpc.reflection.") {
        return REFLECTION;
    }
    let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    let known = |(service, name): (&str, &str)| {
        METHODS.iter().find(|method| method.service == service && method.name == name).copied()
    };
    parts.and_then(known).unwrap_or(OTHER)
}

/// RAII: one call. What has not said how it ended when it drops was cancelled by its client.
pub(super) struct CallRecord {
    metrics: Metrics,
    method: Method,
    started: Instant,
    code: Code,
    span: Span,
}

impl CallRecord {
    pub(super) fn start(metrics: Metrics, method: Method, started: Instant, request_id: &str) -> Self {
        let Method { service, name, kind, role: _ } = method;
        metrics.record_rpc_start(service, name, kind);
        // Of level error, so that every line of the log that belongs to the call can be found by its id, whatever the
        // filter is.
        let span = tracing::error_span!("call", service, method = name, request_id, generation_id = Empty);
        Self { metrics, method, started, code: Code::Cancelled, span }
    }

    /// What is logged of the call is logged in this span.
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn ended(&mut self, code: Code) {
        self.code = code;
    }

    /// Take the code from trailers, or from the head of a response that has no body.
    pub(super) fn ended_by(&mut self, headers: &HeaderMap) {
        if let Some(value) = headers.get("grpc-status") {
            self.code = Code::from_bytes(value.as_bytes());
        }
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        let (Method { service, name: method, kind, role: _ }, code) = (self.method, code_name(self.code));
        let duration = self.started.elapsed();
        self.span.in_scope(|| tracing::debug!(code, ?duration, "call ended"));
        self.metrics.record_rpc(&RpcFacts { service, method, kind, code, duration });
    }
}

/// As go-grpc-middleware spells them, whose names the metrics have.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_protocol_is_known() {
        use prost::Message;
        let set = prost_types::FileDescriptorSet::decode(super::super::pb::FILE_DESCRIPTOR_SET).unwrap();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let kind = match (method.client_streaming(), method.server_streaming()) {
                        (false, false) => UNARY,
                        (false, true) => SERVER_STREAM,
                        (true, false) => CLIENT_STREAM,
                        (true, true) => BIDI_STREAM,
                    };
                    let known = method_of(&path);
                    assert_ne!(known, OTHER, "{path}");
                    assert_eq!(known.kind, kind, "{path}");
                }
            }
        }
        assert_eq!(method_of("/polydelta.v1.GenerationService/Nothing"), OTHER);
        assert_eq!(method_of("nonsense"), OTHER);
    }
}
