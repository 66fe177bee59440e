//! `polydelta serve`.

use std::time::Instant;

use super::base::OpenedBase;
use super::error::AppError;
use super::start::Server;
use crate::config::{Environment, ServeArgs, ServeConfig};
use crate::telemetry::LogSink;
use crate::wire::Lifecycle;

pub(super) async fn run(args: &ServeArgs, environment: &Environment, log: &LogSink) -> Result<(), AppError> {
    let began = Instant::now();
    let config = ServeConfig::resolve(args, environment)?;
    let base = tokio::task::block_in_place(|| OpenedBase::open(&config.model, environment))?;
    let server = Server::start(&config, &base, environment, began).await?;
    server.metrics().follow_log(log.lost());
    end_on_signals(server.lifecycle().clone());
    server.ended().await
}

/// The first SIGTERM or Ctrl-C drains, the second one ends at once.
pub(super) fn end_on_signals(lifecycle: Lifecycle) {
    tokio::spawn(async move {
        if let Err(error) = signals(&lifecycle).await {
            tracing::error!(%error, "signals cannot be received");
        }
    });
}

#[cfg(unix)]
async fn signals(lifecycle: &Lifecycle) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    next().await;
    tracing::info!(running = lifecycle.running(), "draining; a second signal ends at once");
    lifecycle.drain();
    next().await;
    lifecycle.cut();
    Ok(())
}

#[cfg(not(unix))]
async fn signals(lifecycle: &Lifecycle) -> std::io::Result<()> {
    tokio::signal::ctrl_c().await?;
    tracing::info!(running = lifecycle.running(), "draining; a second signal ends at once");
    lifecycle.drain();
    tokio::signal::ctrl_c().await?;
    lifecycle.cut();
    Ok(())
}
