//! Adapters on their way to the device: read → check → compile → prepare on loader threads, then one short change of
//! tables on the engine thread between two steps. Decides nothing: [`Residency`](crate::adapters::Residency) says who
//! gets a slot and who leaves.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Semaphore, watch};

use super::error::InstallError;
use super::executor::DeltaLoader;
use super::handle::{EngineHandle, InstallHandle};
use crate::adapters::{Acquire, AdapterObserver, AdapterRegistry, InstallTicket, LoadTicket, ResidentLease, Want};
use crate::delta::{DeltaError, DeltaProgram};
use crate::telemetry::{LoadStage, Metrics};
use crate::types::AdapterFacts;

/// Loads that may read, compile and move bytes at the same time; the rest wait their turn.
const CONCURRENT_LOADS: usize = 2;

/// Bridges the registry's hooks to async waiting.
struct CapacityBell(watch::Sender<u64>);

impl AdapterObserver for CapacityBell {
    fn on_capacity(&self) {
        self.0.send_modify(|count| *count += 1);
    }
}

/// The installer of a running engine. Cheap to clone.
pub struct EngineInstaller<L: DeltaLoader> {
    shared: Arc<Shared<L>>,
}

struct Shared<L: DeltaLoader> {
    loader: L,
    registry: Arc<AdapterRegistry>,
    installs: InstallHandle<L::Prepared>,
    capacity: watch::Receiver<u64>,
    loads: Semaphore,
    metrics: Metrics,
}

impl<L: DeltaLoader> Clone for EngineInstaller<L> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<L: DeltaLoader> EngineInstaller<L> {
    /// Connect a registry with an engine, and start carrying out removals. Must be called within a tokio runtime.
    #[must_use]
    pub fn start(
        loader: L,
        registry: Arc<AdapterRegistry>,
        installs: InstallHandle<L::Prepared>,
        metrics: Metrics,
    ) -> Self {
        let (bell, capacity) = watch::channel(0);
        registry.events().observe(Arc::new(CapacityBell(bell)));
        let loads = Semaphore::new(CONCURRENT_LOADS);
        let removals =
            remove_retired(Arc::clone(&registry), installs.engine().clone(), capacity.clone(), metrics.clone());
        tokio::spawn(removals);
        Self { shared: Arc::new(Shared { loader, registry, installs, capacity, loads, metrics }) }
    }

    /// Check an adapter's files in full against the base. Blocks: it reads base weights for some methods.
    ///
    /// # Errors
    /// [`InstallError::Delta`]: why it is refused.
    pub fn check(&self, config: &[u8], weights: &[u8]) -> Result<AdapterFacts, InstallError> {
        let program = self.shared.loader.check(config, weights)?;
        Ok(program.facts(self.shared.loader.weight_bytes()))
    }

    /// Check an adapter's config against the base, before its weights have come.
    ///
    /// # Errors
    /// [`InstallError::Delta`]: why it is refused.
    pub fn check_config(&self, config: &[u8]) -> Result<(), InstallError> {
        Ok(self.shared.loader.check_config(config)?)
    }

    /// Check what has come of an upload: its config, the beginning of its weights with the size of the whole file.
    ///
    /// # Errors
    /// [`InstallError::Delta`]: why it will be refused.
    pub fn check_head(&self, config: Option<&[u8]>, weights: Option<(&[u8], u64)>) -> Result<(), InstallError> {
        Ok(self.shared.loader.check_head(config, weights)?)
    }

    /// Wait until the wanted version is on the device, loading it if nobody does. Dropping the future gives the wish
    /// up; a load that it began goes on for others.
    ///
    /// # Errors
    /// Why it cannot be loaded, or [`InstallError::Stopped`].
    pub async fn acquire(&self, want: Want) -> Result<ResidentLease, InstallError> {
        let mut capacity = self.shared.capacity.clone();
        loop {
            // Marked as seen before polling, so that no change in between is missed.
            capacity.borrow_and_update();
            match want.poll()? {
                Acquire::Ready(lease) => return Ok(lease),
                Acquire::Load(ticket) => {
                    // On a task of its own: others may wait for this load when its first asker has gone.
                    tokio::spawn(Arc::clone(&self.shared).load(ticket));
                }
                Acquire::Pending => {}
            }
            capacity.changed().await.map_err(|_| InstallError::Stopped)?;
        }
    }
}

impl<L: DeltaLoader> Shared<L> {
    async fn load(self: Arc<Self>, ticket: LoadTicket) {
        let version = ticket.version();
        // The semaphore is never closed.
        let _permit = self.loads.acquire().await.ok();
        let shared = Arc::clone(&self);
        let compiled = tokio::task::spawn_blocking(move || shared.compile(ticket)).await;
        let Ok(Some((ticket, program))) = compiled else { return };
        if let Err(error) = self.install(ticket, program).await {
            tracing::warn!(%version, %error, "an adapter could not be installed");
        }
    }

    fn timed<T>(&self, stage: LoadStage, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        self.metrics.record_adapter_load(stage, started.elapsed());
        result
    }

    /// Read, compile and reserve. A failure is reported through the ticket to all who wait.
    fn compile(&self, ticket: LoadTicket) -> Option<(InstallTicket, DeltaProgram)> {
        let version = ticket.version();
        let compiled = self.timed(LoadStage::Read, || self.registry.read(ticket.lease()));
        let compiled = compiled.map_err(InstallError::from).and_then(|files| {
            Ok(self.timed(LoadStage::Compile, || self.loader.compile(&files.config, &files.weights))?)
        });
        let program = match compiled {
            Ok(program) => program,
            Err(error) => {
                tracing::warn!(%version, %error, "an adapter could not be loaded");
                ticket.fail(error.into_failure());
                return None;
            }
        };
        let facts = Arc::new(program.facts(self.loader.weight_bytes()));
        match ticket.begin_install(facts) {
            Ok(ticket) => Some((ticket, program)),
            Err(error) => {
                tracing::info!(%version, %error, "an adapter does not fit the device now");
                None
            }
        }
    }

    async fn install(self: &Arc<Self>, mut ticket: InstallTicket, program: DeltaProgram) -> Result<(), InstallError> {
        let slots: Vec<_> = ticket.evict().iter().map(|(slot, _)| *slot).collect();
        if !slots.is_empty() {
            slots.iter().for_each(|_| self.metrics.record_eviction("room"));
            self.installs.engine().remove(slots).await.map_err(|_| InstallError::Stopped)?;
            ticket.evicted();
        }
        let shared = Arc::clone(self);
        let prepared =
            tokio::task::spawn_blocking(move || shared.timed(LoadStage::Install, || shared.loader.prepare(program)))
                .await;
        let prepared = match prepared {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(error)) => {
                ticket.fail(Arc::new(DeltaError::from(error)));
                return Ok(());
            }
            Err(_) => return Err(InstallError::Stopped),
        };
        match self.installs.install(ticket.slot(), prepared).await {
            Ok(()) => ticket.complete(),
            Err(InstallError::Stopped) => return Err(InstallError::Stopped),
            Err(error) => ticket.fail(error.into_failure()),
        }
        Ok(())
    }
}

/// Carry out the removals that no load carries with it, and have forgotten what is gone for good, for as long as the engine runs.
async fn remove_retired(
    registry: Arc<AdapterRegistry>,
    engine: EngineHandle,
    mut capacity: watch::Receiver<u64>,
    metrics: Metrics,
) {
    loop {
        capacity.borrow_and_update();
        engine.forget(registry.residency().take_forgotten());
        while let Some(removal) = registry.residency().take_removal() {
            if engine.remove(vec![removal.slot()]).await.is_err() {
                return;
            }
            metrics.record_eviction("retired");
            removal.done();
        }
        if capacity.changed().await.is_err() {
            return;
        }
    }
}
