//! The accept loop and the end of the server.

use std::convert::Infallible;
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tower::Service;

use super::accept::Acceptor;
use super::connection;
use super::lifecycle::{Lifecycle, Phase};
use super::limits::{Activity, Connections};
use super::listeners::Listeners;
use super::peer::Peer;
use crate::config::TransportConfig;
use crate::telemetry::metrics::Metrics;

/// A connection, as far as those who answer on it must know.
#[derive(Clone)]
pub(crate) struct Connected {
    /// Where from.
    pub(crate) address: IpAddr,
    /// What happens on it.
    pub(crate) activity: Arc<Activity>,
}

/// Accept and serve connections until the server has ended. `door` makes what answers on a connection; `name` is the
/// listener's in metrics and log.
///
/// Once [`Lifecycle::drain`] is called it waits for running calls, at most `drain_timeout`; then, or at once when
/// [`Lifecycle::cut`] is called, it ends what still runs and returns. Idle connections do not hold it up.
pub(crate) async fn serve<S, B>(
    name: &'static str,
    listeners: Listeners,
    door: impl Fn(Connected) -> S,
    config: TransportConfig,
    drain_timeout: Duration,
    lifecycle: Lifecycle,
    metrics: Metrics,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut connections = tokio::task::JoinSet::new();
    let mut acceptor = Acceptor::new(listeners, name);
    {
        let refused = |reason| metrics.record_connection_refused(name, reason);
        let accept = accept_loop(&mut acceptor, door, &lifecycle, &config, refused, &mut connections);
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

async fn accept_loop<S, B>(
    acceptor: &mut Acceptor,
    door: impl Fn(Connected) -> S,
    lifecycle: &Lifecycle,
    config: &TransportConfig,
    refused: impl Fn(&'static str),
    connections: &mut tokio::task::JoinSet<()>,
) -> Infallible
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let builder = connection::builder(config);
    let places = Connections::new(config.max_connections, config.max_connections_per_peer);
    loop {
        let (stream, address) = tokio::select! {
            accepted = acceptor.next() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let permit = match places.acquire(Peer::from(address.ip())) {
            Ok(permit) => permit,
            Err(exhausted) => {
                refused(exhausted.reason());
                tracing::debug!(peer = %address, reason = %exhausted, "connection refused");
                continue;
            }
        };
        let activity = Arc::clone(permit.activity());
        let service = door(Connected { address: address.ip(), activity: Arc::clone(&activity) });
        let serving = connection::serve(stream, service, builder.clone(), *config, lifecycle.clone(), activity);
        connections.spawn(async move {
            serving.await;
            drop(permit);
        });
    }
}
