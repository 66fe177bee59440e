//! The Prometheus endpoint.

use std::net::{SocketAddr, TcpListener};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};

use super::metrics::Metrics;
use super::names::{self, Kind};

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// The address that was asked for cannot be bound.
    #[error("metrics cannot be served on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Neither the default port nor one near it is free.
    #[error("no port from {first} to {last} is free for metrics")]
    NoFreePort {
        /// First tried.
        first: u16,
        /// Last tried.
        last: u16,
    },
    /// The exporter refused its settings.
    #[error("the metrics exporter: {0}")]
    Exporter(#[from] BuildError),
}

/// Ports tried after the default one.
const FALLBACK_PORTS: u16 = 100;

/// Serve metrics on `address` and give the recorder and the address in use. Where `explicit` is false a taken port is
/// no error: the next free one is used, with a log line. Runs until the runtime ends; call it inside one.
///
/// # Errors
/// [`ExporterError`].
pub fn start_metrics(
    address: SocketAddr,
    explicit: bool,
    model_name: &str,
) -> Result<(Metrics, SocketAddr), ExporterError> {
    let free = if explicit {
        probe(address).map_err(|source| ExporterError::Bind { address, source })?
    } else {
        first_free(address)?
    };
    if free.port() != address.port() && address.port() != 0 {
        tracing::info!(taken = %address, metrics = %free, "the metrics port is taken, moved to a free one");
    }
    let mut builder = PrometheusBuilder::new().with_http_listener(free);
    for metric in names::ALL {
        if let Kind::Histogram(bounds) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)?;
        }
    }
    let (recorder, exporter) = builder.build()?;
    tokio::spawn(async move {
        if let Err(error) = exporter.await {
            tracing::error!(?error, "the metrics endpoint has ended");
        }
    });
    Ok((Metrics::new(Box::new(recorder), model_name), free))
}

/// The address with its port resolved, if it can be bound now. The exporter binds it itself, a moment later.
fn probe(address: SocketAddr) -> std::io::Result<SocketAddr> {
    TcpListener::bind(address)?.local_addr()
}

fn first_free(address: SocketAddr) -> Result<SocketAddr, ExporterError> {
    let first = address.port();
    let last = first.saturating_add(FALLBACK_PORTS);
    (first..=last)
        .find_map(|port| probe(SocketAddr::new(address.ip(), port)).ok())
        .ok_or(ExporterError::NoFreePort { first, last })
}
