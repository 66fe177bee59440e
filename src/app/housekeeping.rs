//! What is to be done from time to time while a server runs: files that nobody refers to go, forgotten uploads end,
//! gauges follow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::adapters::{AdapterObserver, AdapterRegistry};
use crate::telemetry::{AdapterGauges, Metrics};

const INTERVAL: Duration = Duration::from_secs(5);

/// Rings when files can be removed.
struct GarbageBell(Arc<Notify>);

impl AdapterObserver for GarbageBell {
    fn on_garbage(&self) {
        self.0.notify_one();
    }
}

/// Keep house for as long as the runtime lives.
pub(super) fn start(registry: Arc<AdapterRegistry>, metrics: Metrics) {
    let bell = Arc::new(Notify::new());
    registry.events().observe(Arc::new(GarbageBell(Arc::clone(&bell))));
    tokio::spawn(async move {
        let mut clock = tokio::time::interval(INTERVAL);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut recorded = None;
        loop {
            tokio::select! {
                () = bell.notified() => off_reactor(&registry, collect_garbage).await,
                _ = clock.tick() => off_reactor(&registry, tidy).await,
            }
            metrics.record_process();
            let revision = registry.events().revision();
            if recorded.replace(revision) != Some(revision) {
                metrics.record_adapters(&gauges(&registry));
            }
        }
    });
}

/// All of it waits for the disk.
async fn off_reactor(registry: &Arc<AdapterRegistry>, work: impl FnOnce(&AdapterRegistry) + Send + 'static) {
    let registry = Arc::clone(registry);
    if let Err(error) = tokio::task::spawn_blocking(move || work(&registry)).await {
        tracing::error!(%error, "housekeeping failed");
    }
}

fn tidy(registry: &AdapterRegistry) {
    registry.uploads().expire(Instant::now());
    registry.heal();
}

fn collect_garbage(registry: &AdapterRegistry) {
    match registry.collect_garbage() {
        Ok(0) => {}
        Ok(versions) => tracing::info!(versions, "removed the files of adapters that nobody uses any more"),
        Err(error) => tracing::warn!(%error, "files of a deleted adapter stay until the next start"),
    }
}

fn gauges(registry: &AdapterRegistry) -> AdapterGauges {
    let residency = registry.residency().stats();
    AdapterGauges {
        registered: registry.len(),
        resident: residency.resident,
        resident_bytes: residency.bytes_used,
        unreadable: registry.unreadable(),
        set_aside: residency.set_aside,
        stored_bytes: registry.list(None, usize::MAX).iter().map(|info| info.stored.bytes()).sum(),
    }
}
