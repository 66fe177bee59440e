//! The porch: gRPC services, conversions, statuses, streams. The only room that knows tonic and generated code.
//!
//! | part | job |
//! |---|---|
//! | [`transport`] | accept loop, limits of connections, the end of the server |
//! | [`lifecycle`] | serving, draining, cut |
//! | `accept`, `limits`, `body` | what clients may have of it: connections, calls, memory, time |
//! | `metrics` | the page of metrics, on a port of its own |
//! | `call` | what surrounds every call: request id, deadline, panics, refusal while draining |
//! | `convert` | messages to plain data and back, no logic |
//! | `status` | the one map of errors to gRPC statuses |
//! | [`generation`], [`adapters`], [`info`] | the services |
//!
//! It decides nothing about requests or adapters; that is the gate's and the adapters room's.

mod accept;
pub mod adapters;
mod body;
mod call;
mod connection;
mod convert;
mod deadline;
mod decoding;
pub mod generation;
mod identity;
pub mod info;
pub mod lifecycle;
mod limits;
mod listeners;
mod metrics;
mod observe;
mod page;
mod peer;
mod request_id;
mod services;
mod status;
pub mod transport;

pub use adapters::Adapters;
pub use generation::Generator;
pub use identity::{ClientIdentity, InvalidHeaderName};
pub use info::{Informer, ModelInfo, ServerInfo, ServerLimits};
pub use lifecycle::{Lifecycle, Phase};
pub use listeners::Listeners;
pub use metrics::serve_metrics;
pub use services::Services;
pub use transport::serve;

/// Generated from `proto/polydelta/v1`; the messages are documented there.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod pb {
    tonic::include_proto!("polydelta.v1");

    /// Every message and service above, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
