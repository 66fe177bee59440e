//! The accept loop and the end of the server.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use super::call::CallService;
use super::connection;
use super::identity::ClientIdentity;
use super::lifecycle::{Lifecycle, Phase};
use super::limits::ConnectionLimits;
use super::listeners::Listeners;
use crate::config::TransportConfig;
use crate::telemetry::metrics::Metrics;

/// Pause of the accept loop when the process has no file descriptor left: one comes free when a connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
    let listeners = listeners.into();
    let mut connections = tokio::task::JoinSet::new();
    {
        let service = CallService::new(service, lifecycle.clone(), identity, metrics);
        let accept = accept_loop(&listeners, service, &config, &lifecycle, &mut connections);
        let end = end_of_service(&lifecycle, drain_timeout);
        tokio::select! {
            never = accept => match never {},
            () = end => {}
        }
    }
    drop(listeners);
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
    listeners: &Listeners,
    service: CallService<S>,
    config: &TransportConfig,
    lifecycle: &Lifecycle,
    connections: &mut tokio::task::JoinSet<()>,
) -> Infallible
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let builder = connection::builder(config);
    let limits = ConnectionLimits::new(config.max_connections as usize, config.max_connections_per_peer as usize);
    loop {
        let accepted = tokio::select! {
            accepted = listeners.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        let permit = match limits.acquire(peer.ip()) {
            Ok(permit) => permit,
            Err(refused) => {
                tracing::debug!(%peer, reason = %refused, "connection refused");
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "connection gone");
            continue;
        }
        let service = service.clone().of_peer(peer.ip());
        let serving = connection::serve(stream, service, builder.clone(), *config, lifecycle.clone());
        connections.spawn(async move {
            serving.await;
            drop(permit);
        });
    }
}

/// A client that went away before it was accepted costs nothing; a process without descriptors waits.
async fn pause_after(error: &io::Error) {
    let of_the_client = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    );
    if of_the_client {
        tracing::debug!(%error, "connection gone");
    } else {
        tracing::warn!(%error, "cannot accept connections");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}
