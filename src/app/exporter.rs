//! Where metrics are served.

use std::io::ErrorKind;
use std::net::SocketAddr;

use super::error::AppError;
use super::listen;
use crate::config::ServeConfig;
use crate::telemetry::{Metrics, MetricsPage, recorded};
use crate::wire::Listeners;

/// Where metrics are to be served, bound already.
pub(super) struct Exporter {
    pub(super) listeners: Listeners,
    pub(super) address: SocketAddr,
    pub(super) page: MetricsPage,
}

/// What records, and where that is to be served; nothing is recorded where it is not.
pub(super) async fn begin(config: &ServeConfig, model: &str) -> Result<(Metrics, Option<Exporter>), AppError> {
    let Some(listen) = &config.metrics else { return Ok((Metrics::disabled(), None)) };
    let listeners = Listeners::from(listen::bind_metrics(listen).await?);
    let failed = |source| AppError::Listen { address: listen.address.to_string(), source };
    let address = listeners.addresses().map_err(failed)?.first().copied();
    let address = address.ok_or_else(|| failed(ErrorKind::AddrNotAvailable.into()))?;
    let (metrics, page) = recorded(model, config.adapter_limits.max_resident)?;
    Ok((metrics, Some(Exporter { listeners, address, page })))
}
