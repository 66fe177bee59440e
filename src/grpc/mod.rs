//! The gRPC door: services, conversions, statuses, streams. The only room below [`cli`](crate::cli) that knows tonic and
//! generated code.
//!
//! | part | job |
//! |---|---|
//! | [`services`] | the services of one server, with health and reflection |
//! | `call` | what surrounds every call: request id, deadline, panics, refusal while draining |
//! | `body`, `framing` | length-prefixed messages on their way in: memory and time that they may take |
//! | `codec`, `malformed` | bytes to messages, and which field it is where they are none |
//! | `observe` | which method, how it ended, how long it took |
//! | `convert` | messages to plain data and back, no logic |
//! | `status` | errors as gRPC statuses |
//! | [`generation`], [`pooling`], [`adapters`], [`info`] | the services |
//!
//! It decides nothing about requests or adapters; that is the gate's and the adapters room's. Connections are those of
//! `wire`.

pub mod adapters;
mod body;
mod call;
mod codec;
mod convert;
mod deadline;
mod framing;
pub mod generation;
pub mod info;
mod malformed;
mod observe;
mod page;
pub mod pooling;
mod server_info;
pub mod services;
mod status;

pub use adapters::Adapters;
pub use generation::Generator;
pub use info::Informer;
pub use pooling::Pooler;
pub use server_info::{ModelInfo, ServerInfo, ServerLimits};
pub use services::Services;

use self::call::{CallService, CallShared};
use crate::config::TransportConfig;
use crate::telemetry::metrics::Metrics;
use crate::wire::{CallLimits, ClientIdentity, Connected, Lifecycle};

/// Generated from `proto/polydelta/v1`; the messages are documented there.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod pb {
    tonic::include_proto!("polydelta.v1");
    include!(concat!(env!("OUT_DIR"), "/clients/polydelta.v1.rs"));

    /// Every message and service above, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// What answers calls of gRPC on a connection. Once [`Lifecycle::drain`] is called new calls are refused and running ones go
/// on; [`Lifecycle::cut`] ends these with a status.
pub(crate) fn door<S: Clone>(
    service: S,
    limits: CallLimits,
    config: &TransportConfig,
    identity: ClientIdentity,
    lifecycle: Lifecycle,
    metrics: Metrics,
) -> impl Fn(Connected) -> CallService<S> {
    let shared = CallShared::new(lifecycle, identity, metrics, limits, config);
    move |connected| CallService::new(service.clone(), shared.clone(), connected)
}
