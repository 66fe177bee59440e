//! Both doors at one address: each call goes to the one whose content type it has.

use std::time::Duration;

use tonic::service::Routes;

use crate::config::TransportConfig;
use crate::telemetry::metrics::Metrics;
use crate::wire::{self, CallLimits, ClientIdentity, Connected, Lifecycle, Listeners, Split};
use crate::{grpc, http};

/// The listener's name in metrics and log.
const LISTENER: &str = "grpc";

/// What is served at one address.
pub struct Doors {
    /// Calls of gRPC.
    pub grpc: Routes,
    /// All others.
    pub http: http::Routes,
}

/// Accept connections and answer calls on them until the server has ended.
///
/// Once [`Lifecycle::drain`] is called it refuses new calls and waits for running ones, at most `drain_timeout`; then, or
/// at once when [`Lifecycle::cut`] is called, it ends what still runs and returns. Idle connections do not hold it up.
pub async fn serve(
    listeners: impl Into<Listeners>,
    doors: Doors,
    config: TransportConfig,
    drain_timeout: Duration,
    identity: ClientIdentity,
    lifecycle: Lifecycle,
    metrics: Metrics,
) {
    let limits = CallLimits::new(&config);
    let grpc = grpc::door(doors.grpc, limits.clone(), &config, identity.clone(), lifecycle.clone(), metrics.clone());
    let http = http::door(doors.http, limits, &config, identity, lifecycle.clone(), metrics.clone());
    let door = |connected: Connected| Split::new(grpc(connected.clone()), http(connected));
    wire::serve(LISTENER, listeners.into(), door, config, drain_timeout, lifecycle, metrics).await;
}
