//! Adapters on their way to the device: read → check → compile → prepare on loader threads, then one short change of
//! tables on the engine thread between two steps. Decides nothing: [`Residency`](crate::adapters::Residency) says who
//! gets a slot and who leaves.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use tokio::sync::{Notify, Semaphore};

use super::error::InstallError;
use super::executor::DeltaLoader;
use super::handle::InstallHandle;
use super::host_memory::{HostMemory, HostShare};
use super::lease::Leftover;
use super::loaders::Loaders;
use crate::adapters::{
    Acquire, AdapterBytes, AdapterError, AdapterLease, AdapterObserver, AdapterRegistry, Content, InstallTicket,
    LoadTicket, MixPart, ResidentLease, Staged, UploadHead, Want,
};
use crate::delta::{DeltaError, DeltaProgram};
use crate::telemetry::{LoadStage, Metrics};
use crate::types::AdapterFacts;

/// Loads that may read, compile and move bytes at the same time; the rest wait their turn.
const CONCURRENT_LOADS: usize = 2;

/// Bridges the registry's hook to the one who waits for it.
struct RemovalBell(Arc<Notify>);

impl AdapterObserver for RemovalBell {
    fn on_removal(&self) {
        self.0.notify_one();
    }
}

/// The result of [`AdapterInstaller::acquire`].
pub type AcquireFuture<'a> = Pin<Box<dyn Future<Output = Result<ResidentLease, AdapterError>> + Send + 'a>>;

/// Reads, checks, compiles and installs adapters, whatever the device.
pub trait AdapterInstaller: Send + Sync {
    /// Check an adapter's config against the base, before its weights have come. Blocks, but not for long: no weight of the
    /// base is read.
    ///
    /// # Errors
    /// [`InstallError::Delta`]: why it is refused.
    fn check_config(&self, config: &[u8]) -> Result<(), InstallError>;

    /// Check the beginning of an upload as far as it goes: its config, the header of its weights, and where both are
    /// there, that names and shapes are those of an adapter of the base. Reads no weights.
    ///
    /// # Errors
    /// [`InstallError::Delta`]: why it will be refused, whatever else comes.
    fn check_head(&self, head: &UploadHead) -> Result<(), InstallError>;

    /// Compile an upload against the base and throw the result away. Blocks: for memory, for the disk, and because it takes
    /// long.
    ///
    /// # Errors
    /// [`InstallError::Delta`]: why it is refused; [`InstallError::Memory`]; the disk.
    fn check(&self, staged: &Staged) -> Result<AdapterFacts, InstallError>;

    /// Have `work` done where it takes no time from steps: the files of uploads are hashed and written there.
    fn in_background(&self, work: Box<dyn FnOnce() + Send>);

    /// Wait until the wanted version is on the device, loading it if nobody does. Dropping the future gives the wish up; a
    /// load that it began goes on for others. Fails with what [`Want::poll`] says, and with
    /// [`AdapterError::LoadAbandoned`] once the engine has ended.
    fn acquire(&self, want: Want) -> AcquireFuture<'_>;
}

/// The installer of a running engine. Cheap to clone.
pub struct EngineInstaller<L: DeltaLoader> {
    shared: Arc<Shared<L>>,
}

struct Shared<L: DeltaLoader> {
    loader: L,
    registry: Arc<AdapterRegistry>,
    installs: InstallHandle<L::Prepared>,
    /// Turns of small adapters, and of large ones.
    small_loads: Semaphore,
    large_loads: Semaphore,
    loaders: Loaders,
    memory: HostMemory,
    metrics: Metrics,
}

impl<L: DeltaLoader> Clone for EngineInstaller<L> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<L: DeltaLoader> EngineInstaller<L> {
    /// Connect a registry with an engine, and start carrying out removals. What adapters take on their way in comes out of
    /// `memory`. Must be called within a tokio runtime.
    #[must_use]
    pub fn start(
        loader: L,
        registry: Arc<AdapterRegistry>,
        installs: InstallHandle<L::Prepared>,
        loaders: Loaders,
        memory: HostMemory,
        metrics: Metrics,
    ) -> Self {
        let bell = Arc::new(Notify::new());
        registry.events().observe(Arc::new(RemovalBell(Arc::clone(&bell))));
        let turns = || Semaphore::new(CONCURRENT_LOADS);
        let (small_loads, large_loads) = (turns(), turns());
        let shared = Shared { loader, registry, installs, small_loads, large_loads, loaders, memory, metrics };
        let shared = Arc::new(shared);
        tokio::spawn(remove_retired(Arc::clone(&shared), bell));
        Self { shared }
    }
}

impl<L: DeltaLoader> AdapterInstaller for EngineInstaller<L> {
    fn check_config(&self, config: &[u8]) -> Result<(), InstallError> {
        Ok(self.shared.loader.check_config(config)?)
    }

    fn check_head(&self, head: &UploadHead) -> Result<(), InstallError> {
        let weights = head.weights.as_ref().map(|weights| (&weights.bytes[..], weights.file_bytes));
        Ok(self.shared.loader.check_head(head.config.as_deref(), weights)?)
    }

    fn check(&self, staged: &Staged) -> Result<AdapterFacts, InstallError> {
        let Shared { loader, .. } = &*self.shared;
        let read = || Ok([staged.read()?]);
        let (facts, _share) = self.shared.within_memory(staged.bytes_to_read(), read, |[files]| {
            Ok(loader.check(&files.config, &files.weights)?.facts(loader.weight_format()))
        })?;
        Ok(facts)
    }

    fn in_background(&self, work: Box<dyn FnOnce() + Send>) {
        self.shared.loaders.spawn(work);
    }

    fn acquire(&self, want: Want) -> AcquireFuture<'_> {
        Box::pin(self.shared.acquire(want))
    }
}

impl<L: DeltaLoader> Shared<L> {
    async fn acquire(self: &Arc<Self>, want: Want) -> Result<ResidentLease, AdapterError> {
        poll_fn(|context| {
            loop {
                match want.poll(context.waker())? {
                    Acquire::Ready(lease) => return Poll::Ready(Ok(lease)),
                    Acquire::Load(ticket) => {
                        // On a task of its own: others may wait for this load when its first asker has gone.
                        tokio::spawn(Arc::clone(self).load(ticket));
                    }
                    Acquire::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    async fn load(self: Arc<Self>, ticket: LoadTicket) {
        let version = ticket.version();
        let small = Loaders::is_small(self.registry.file_bytes(ticket.lease()));
        let turns = if small { &self.small_loads } else { &self.large_loads };
        // The semaphore is never closed.
        let _permit = turns.acquire().await.ok();
        let shared = Arc::clone(&self);
        let compiled = tokio::task::spawn_blocking(move || shared.compile(ticket)).await;
        let Ok(Some((ticket, compiled))) = compiled else { return };
        if let Err(error) = self.install(ticket, compiled).await {
            tracing::warn!(%version, %error, "an adapter could not be installed");
        }
    }

    fn timed<T>(&self, stage: LoadStage, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        self.metrics.record_adapter_load(stage, started.elapsed());
        result
    }

    /// Read the files of adapters and work on them, within the memory there is for them and for what is worked out from them.
    /// Where that turns out to be more than was given, all of it is given back before more is asked for: those who hold some
    /// and wait for more would wait for each other.
    fn within_memory<F: AsRef<[AdapterBytes]>, T: Send>(
        &self,
        file_bytes: u64,
        read: impl Fn() -> Result<F, InstallError> + Sync,
        work: impl Fn(F) -> Result<T, InstallError> + Sync,
    ) -> Result<(T, HostShare), InstallError> {
        let mut wanted = HostMemory::of_files(file_bytes);
        loop {
            let share = self.memory.take(wanted)?;
            let worked = self.loaders.run(file_bytes, || {
                let files = read()?;
                let mut needed = file_bytes;
                for AdapterBytes { config, weights } in files.as_ref() {
                    needed = needed.saturating_add(self.loader.worked_out_bytes(config, weights)?);
                }
                if needed > share.bytes() {
                    return Ok(Err(needed));
                }
                work(files).map(Ok)
            })?;
            match worked {
                Ok(worked) => return Ok((worked, share)),
                Err(needed) => wanted = needed,
            }
        }
    }

    /// Read and compile, within the memory there is for it.
    fn read_and_compile(&self, lease: &AdapterLease) -> Result<Compiled, InstallError> {
        let bytes = self.registry.file_bytes(lease);
        let compiling =
            |compile: &dyn Fn() -> Result<DeltaProgram, InstallError>| self.timed(LoadStage::Compile, compile);
        let (program, share) = match lease.content() {
            Content::Stored => {
                let read = || Ok([self.timed(LoadStage::Read, || self.registry.read(lease))?]);
                self.within_memory(bytes, read, |[files]| {
                    compiling(&|| Ok(self.loader.compile(&files.config, &files.weights)?))
                })?
            }
            Content::Mix(parts) => {
                let read_all =
                    || parts.iter().map(|part| self.registry.read(&part.lease)).collect::<Result<Vec<_>, _>>();
                let read = || Ok(self.timed(LoadStage::Read, read_all)?);
                self.within_memory(bytes, read, |files: Vec<_>| compiling(&|| self.compile_mix(parts, &files)))?
            }
            // Checked in full, as an upload is: nobody has done so before.
            Content::Sent(files) => self.within_memory(
                bytes,
                || Ok(SentFiles(Arc::clone(files))),
                |SentFiles(files)| compiling(&|| Ok(self.loader.check(&files.config, &files.weights)?)),
            )?,
        };
        Ok(Compiled { program, bytes, share })
    }

    fn compile_mix(&self, parts: &[MixPart], files: &[AdapterBytes]) -> Result<DeltaProgram, InstallError> {
        let weighted = |(part, files): (&MixPart, &AdapterBytes)| {
            let compiled = self.loader.compile(&files.config, &files.weights);
            compiled
                .and_then(|program| program.weighted(part.weight))
                .map_err(|error| InstallError::Part { version: part.lease.version(), source: Box::new(error.into()) })
        };
        let programs = parts.iter().zip(files).map(weighted).collect::<Result<Vec<_>, _>>()?;
        Ok(self.loader.sum(programs)?)
    }

    /// Read, compile and reserve. A failure is reported through the ticket to all who wait.
    fn compile(&self, ticket: LoadTicket) -> Option<(InstallTicket, Compiled)> {
        let version = ticket.version();
        let compiled = match self.read_and_compile(ticket.lease()) {
            Ok(compiled) => compiled,
            Err(error) => {
                tracing::warn!(%version, %error, "an adapter could not be loaded");
                ticket.fail(Arc::new(error));
                return None;
            }
        };
        let facts = Arc::new(compiled.program.facts(self.loader.weight_format()));
        self.registry.learn(version, &facts);
        match ticket.begin_install(facts) {
            Ok(ticket) => Some((ticket, compiled)),
            Err(error) => {
                tracing::info!(%version, %error, "an adapter does not fit the device now");
                None
            }
        }
    }

    async fn install(self: &Arc<Self>, mut ticket: InstallTicket, compiled: Compiled) -> Result<(), InstallError> {
        let slots: Vec<_> = ticket.evict().iter().map(|(slot, _)| *slot).collect();
        if !slots.is_empty() {
            slots.iter().for_each(|_| self.metrics.record_eviction("room"));
            let leftovers = self.installs.engine().remove(slots).await.map_err(|_| InstallError::Stopped)?;
            // Freed before room is made anew: both at once would be more than the budget of the device.
            free(leftovers).await;
            ticket.evicted();
        }
        let shared = Arc::clone(self);
        let prepare = move || {
            let Compiled { program, bytes, share } = compiled;
            let prepare = || shared.timed(LoadStage::Install, || shared.loader.prepare(program));
            let prepared = shared.loaders.run(bytes, prepare);
            drop(share);
            prepared
        };
        let prepared = tokio::task::spawn_blocking(prepare).await;
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
            Err(error) => ticket.fail(Arc::new(error)),
        }
        Ok(())
    }
}

/// Give memory of the device back, off the engine's thread. It takes no time to speak of, but a load waits for it.
async fn free(leftovers: Vec<Leftover>) {
    let freed = tokio::task::spawn_blocking(move || drop(leftovers)).await;
    if let Err(error) = freed {
        tracing::error!(%error, "freeing an adapter");
    }
}

/// Files that came with a request, and stay with it.
struct SentFiles(Arc<AdapterBytes>);

impl AsRef<[AdapterBytes]> for SentFiles {
    fn as_ref(&self) -> &[AdapterBytes] {
        std::slice::from_ref(&self.0)
    }
}

/// An adapter on its way in, and the host memory it was given.
struct Compiled {
    program: DeltaProgram,
    /// Of its files.
    bytes: u64,
    share: HostShare,
}

/// Carry out the removals that no load carries with it, and have forgotten what is gone for good, for as long as the
/// engine runs.
async fn remove_retired<L: DeltaLoader>(shared: Arc<Shared<L>>, bell: Arc<Notify>) {
    loop {
        let forgotten = shared.registry.residency().take_forgotten();
        if !forgotten.is_empty() {
            shared.installs.engine().forget(forgotten);
        }
        while let Some(removal) = shared.registry.residency().take_removal() {
            let Ok(leftovers) = shared.installs.engine().remove(vec![removal.slot()]).await else { return };
            free(leftovers).await;
            shared.metrics.record_eviction("retired");
            removal.done();
        }
        bell.notified().await;
    }
}
