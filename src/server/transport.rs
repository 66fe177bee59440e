//! The accept loop and the end of the server.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use super::accept::Acceptor;
use super::call::{CallService, CallShared};
use super::connection;
use super::identity::ClientIdentity;
use super::lifecycle::{Lifecycle, Phase};
use super::limits::Connections;
use super::listeners::Listeners;
use super::peer::Peer;
use crate::config::TransportConfig;
use crate::telemetry::metrics::Metrics;

const LISTENER: &str = "grpc";

/// Accept and serve connections until the server has ended.
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
    let mut connections = tokio::task::JoinSet::new();
    let mut acceptor = Acceptor::new(listeners.into(), LISTENER);
    {
        let shared = CallShared::new(lifecycle.clone(), identity, metrics.clone(), &config);
        let accept = accept_loop(&mut acceptor, service, shared, &config, &metrics, &mut connections);
        let end = end_of_service(&lifecycle, drain_timeout);
        tokio::select! {
            never = accept => match never {},
            () = end => {}
        }
    }
    drop(acceptor);
    while connections.join_next().await.is_some() {}
}

/// Draining, and then cut: when nothing runs any more, or at the limit.
async fn end_of_service(lifecycle: &Lifecycle, drain_timeout: Duration) {
    lifecycle.reached(Phase::Draining).await;
    tokio::select! {
        () = lifecycle.reached(Phase::Cut) => tracing::warn!(running = lifecycle.running(), "ending at once"),
        () = lifecycle.idle() => {}
        () = tokio::time::sleep(drain_timeout) => {
            tracing::warn!(running = lifecycle.running(), limit = ?drain_timeout, "drain limit passed");
        }
    }
    lifecycle.cut();
}

async fn accept_loop<S>(
    acceptor: &mut Acceptor,
    service: S,
    shared: CallShared,
    config: &TransportConfig,
    metrics: &Metrics,
    connections: &mut tokio::task::JoinSet<()>,
) -> Infallible
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let builder = connection::builder(config);
    let places = Connections::new(config.max_connections, config.max_connections_per_peer);
    loop {
        let (stream, address) = tokio::select! {
            accepted = acceptor.next() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let peer = Peer::from(address.ip());
        let permit = match places.acquire(peer) {
            Ok(permit) => permit,
            Err(refused) => {
                metrics.record_connection_refused(LISTENER, refused.reason());
                tracing::debug!(peer = %address, reason = %refused, "connection refused");
                continue;
            }
        };
        let activity = Arc::clone(permit.activity());
        let service = CallService::new(service.clone(), shared.clone(), address.ip(), Arc::clone(&activity));
        let serving =
            connection::serve(stream, service, builder.clone(), *config, shared.lifecycle().clone(), activity);
        connections.spawn(async move {
            serving.await;
            drop(permit);
        });
    }
}
