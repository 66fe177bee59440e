//! What the async side may ask of the engine thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot};

use crate::types::{AdapterSlot, EngineRequest, RequestId, SequenceEvent};

/// A snapshot of the engine between two steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Sequences with KV on the device.
    pub running: usize,
    /// Sequences waiting for their first step or for KV after a preemption.
    pub waiting: usize,
    /// KV blocks in use by sequences and adapters' virtual tokens (cached but unreferenced blocks count as free).
    pub kv_blocks_used: usize,
    /// KV blocks in all.
    pub kv_blocks_total: usize,
    /// Steps run since start.
    pub steps: u64,
    /// Steps that ended without a result.
    pub failed_steps: u64,
    /// Preemptions since start.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix index since start.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Rows computed since start.
    pub tokens_computed: u64,
    /// How many steps held 0, 1, 2, … distinct adapters (the base not counted).
    pub steps_by_distinct_adapters: Vec<u64>,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many requests as allowed are queued.
    #[error("{queued} requests are queued, the limit is {limit}")]
    QueueFull {
        /// Queued now.
        queued: usize,
        /// `--max-queued-requests`.
        limit: usize,
    },
    /// The engine is stopping or has stopped.
    #[error("the engine is not running")]
    Stopped,
}

/// Whatever must stay alive until the engine has let go of a request: its adapter's lease.
pub type Lease = Box<dyn Send>;

/// A command for the engine thread.
pub(super) enum Command {
    Submit(EngineRequest, Option<Lease>, mpsc::Sender<SequenceEvent>),
    FinishChoice(RequestId, u32),
    Abort(RequestId),
    Remove(Vec<AdapterSlot>, oneshot::Sender<()>),
    Stats(oneshot::Sender<EngineStats>),
    Drain(oneshot::Sender<()>),
    Stop,
    /// Look at the install channel.
    Wake,
}

/// Cheap to clone; the engine stops when asked to, not when handles drop.
#[derive(Clone)]
pub struct EngineHandle {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) commands: std::sync::mpsc::Sender<Command>,
    pub(super) draining: AtomicBool,
    pub(super) queued: AtomicUsize,
    pub(super) queue_limit: usize,
}

impl EngineHandle {
    /// Queue a request. The returned channel holds every event the request can have, so the engine never waits for
    /// its reader; dropping the receiver aborts the request at the next step. `lease` is dropped once the engine has
    /// let go of the request, and not before; the request's last event comes after that.
    ///
    /// # Errors
    /// [`SubmitError::QueueFull`] and [`SubmitError::Stopped`]; nothing is queued then.
    pub fn submit(
        &self,
        request: EngineRequest,
        lease: Option<Lease>,
    ) -> Result<mpsc::Receiver<SequenceEvent>, SubmitError> {
        if self.shared.draining.load(Ordering::Acquire) {
            return Err(SubmitError::Stopped);
        }
        let queued = self.shared.queued.fetch_add(1, Ordering::AcqRel);
        if queued >= self.shared.queue_limit {
            self.shared.queued.fetch_sub(1, Ordering::AcqRel);
            return Err(SubmitError::QueueFull { queued, limit: self.shared.queue_limit });
        }
        let capacity = request.stopping.max_tokens as usize * request.choices as usize + 2;
        let (events, receiver) = mpsc::channel(capacity);
        self.send(Command::Submit(request, lease, events)).inspect_err(|_| {
            self.shared.queued.fetch_sub(1, Ordering::AcqRel);
        })?;
        Ok(receiver)
    }

    /// End one choice of a request, as after a stop string: no event of it follows, its KV is free before the next
    /// step. The last choice ends the request.
    pub fn finish_choice(&self, id: RequestId, choice: u32) {
        // A closed channel means the engine has stopped, and with it the request.
        let _ = self.send(Command::FinishChoice(id, choice));
    }

    /// End a request; its KV is free before the next step. Unknown ids are ignored (it may just have finished).
    pub fn abort(&self, id: RequestId) {
        // As above.
        let _ = self.send(Command::Abort(id));
    }

    /// Empty adapter slots between two steps.
    ///
    /// # Errors
    /// [`SubmitError::Stopped`].
    pub async fn remove(&self, slots: Vec<AdapterSlot>) -> Result<(), SubmitError> {
        self.ask(|reply| Command::Remove(slots, reply)).await
    }

    /// Counters as of the end of the current step.
    ///
    /// # Errors
    /// [`SubmitError::Stopped`] once the engine thread has ended.
    pub async fn stats(&self) -> Result<EngineStats, SubmitError> {
        self.ask(Command::Stats).await
    }

    /// Take no more requests, end those that have not started, and return once the last running one has ended.
    ///
    /// # Errors
    /// [`SubmitError::Stopped`] if the engine stops first.
    pub async fn drain(&self) -> Result<(), SubmitError> {
        self.shared.draining.store(true, Ordering::Release);
        self.ask(Command::Drain).await
    }

    /// End every request with `Draining` and the engine thread with them.
    pub fn stop(&self) {
        self.shared.draining.store(true, Ordering::Release);
        // A closed channel means it has stopped already.
        let _ = self.send(Command::Stop);
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, SubmitError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.map_err(|_| SubmitError::Stopped)
    }

    pub(super) fn send(&self, command: Command) -> Result<(), SubmitError> {
        self.shared.commands.send(command).map_err(|_| SubmitError::Stopped)
    }
}

/// An adapter to install between two steps.
pub(super) struct Install<P> {
    pub(super) slot: AdapterSlot,
    pub(super) prepared: P,
    pub(super) done: oneshot::Sender<()>,
}

/// Hands prepared adapters to the engine thread.
pub struct InstallHandle<P> {
    pub(super) engine: EngineHandle,
    pub(super) installs: std::sync::mpsc::Sender<Install<P>>,
}

impl<P> Clone for InstallHandle<P> {
    fn clone(&self) -> Self {
        Self { engine: self.engine.clone(), installs: self.installs.clone() }
    }
}

impl<P> InstallHandle<P> {
    /// The engine it belongs to.
    #[must_use]
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// Put an adapter into an empty slot between two steps.
    ///
    /// # Errors
    /// [`SubmitError::Stopped`].
    pub async fn install(&self, slot: AdapterSlot, prepared: P) -> Result<(), SubmitError> {
        let (done, installed) = oneshot::channel();
        self.installs.send(Install { slot, prepared, done }).map_err(|_| SubmitError::Stopped)?;
        self.engine.send(Command::Wake)?;
        installed.await.map_err(|_| SubmitError::Stopped)
    }
}
