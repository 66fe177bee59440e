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

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

pub use adapters::Adapters;
pub use generation::Generator;
pub use info::Informer;
pub use pooling::Pooler;
pub use server_info::{ModelInfo, ServerInfo, ServerLimits};
pub use services::Services;

use self::call::{CallService, CallShared};
use crate::config::TransportConfig;
use crate::telemetry::metrics::Metrics;
use crate::wire::{self, ClientIdentity, Lifecycle, Listeners};

/// Generated from `proto/polydelta/v1`; the messages are documented there.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod pb {
    tonic::include_proto!("polydelta.v1");
    include!(concat!(env!("OUT_DIR"), "/clients/polydelta.v1.rs"));

    /// Every message and service above, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// The listener's name in metrics and log.
const LISTENER: &str = "grpc";

/// Accept connections and answer calls on them until the server has ended.
///
/// Once [`Lifecycle::drain`] is called it refuses new calls and waits for running ones, at most
/// `drain_timeout`; then, or at once when [`Lifecycle::cut`] is called, it ends what still runs and
/// returns. Idle connections do not hold it up.
pub async fn serve<S>(
    listeners: impl Into<Listeners>,
    service: S,
    config: TransportConfig,
    drain_timeout: Duration,
    identity: ClientIdentity,
    lifecycle: Lifecycle,
    metrics: Metrics,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let shared = CallShared::new(lifecycle.clone(), identity, metrics.clone(), &config);
    let door = |connected| CallService::new(service.clone(), shared.clone(), connected);
    wire::serve(LISTENER, listeners.into(), door, config, drain_timeout, lifecycle, metrics).await;
}
