//! Counts calls: which method, how it ended, how long it took.

use std::time::Instant;

use http::HeaderMap;
use tonic::Code;

use crate::telemetry::metrics::{Metrics, RpcFacts};

/// How a call behaves when the server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Refused while draining; a drain waits for it.
    Work,
    /// Refused while draining, and no drain waits for it: it ends when its client wants, or never.
    Watch,
    /// Served to the end: health and reflection.
    Observe,
}

/// A method as metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Method {
    pub service: &'static str,
    pub name: &'static str,
    pub role: Role,
}

const GENERATION: &str = "polydelta.v1.GenerationService";
const ADAPTERS: &str = "polydelta.v1.AdapterService";
const SERVER: &str = "polydelta.v1.ServerService";
const HEALTH: &str = "grpc.health.v1.Health";

const METHODS: [Method; 16] = [
    method(GENERATION, "Generate", Role::Work),
    method(GENERATION, "GenerateStream", Role::Work),
    method(GENERATION, "Tokenize", Role::Work),
    method(ADAPTERS, "UploadAdapter", Role::Work),
    method(ADAPTERS, "GetUpload", Role::Work),
    method(ADAPTERS, "GetAdapter", Role::Work),
    method(ADAPTERS, "ListAdapters", Role::Work),
    method(ADAPTERS, "DeleteAdapter", Role::Work),
    method(ADAPTERS, "LoadAdapter", Role::Work),
    method(ADAPTERS, "UnloadAdapter", Role::Work),
    method(ADAPTERS, "WatchAdapters", Role::Watch),
    method(SERVER, "GetServerInfo", Role::Work),
    method(SERVER, "GetStats", Role::Work),
    method(HEALTH, "Check", Role::Observe),
    method(HEALTH, "List", Role::Observe),
    method(HEALTH, "Watch", Role::Observe),
];

/// Any other path is one label, so that a client cannot make metrics grow.
const OTHER: Method = method("other", "other", Role::Work);
const REFLECTION: Method = method("grpc.reflection", "ServerReflectionInfo", Role::Observe);

const fn method(service: &'static str, name: &'static str, role: Role) -> Method {
    Method { service, name, role }
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
}

impl CallRecord {
    pub(super) fn start(metrics: Metrics, method: Method, started: Instant) -> Self {
        metrics.record_rpc_start(method.service, method.name);
        Self { metrics, method, started, code: Code::Cancelled }
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
        self.metrics.record_rpc(&RpcFacts {
            service: self.method.service,
            method: self.method.name,
            code: code_name(self.code),
            duration: self.started.elapsed(),
        });
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
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
                    assert_ne!(method_of(&path), OTHER, "{path}");
                }
            }
        }
        assert_eq!(method_of("/polydelta.v1.GenerationService/Nothing"), OTHER);
        assert_eq!(method_of("nonsense"), OTHER);
    }
}
