//! What the async side may ask of the engine thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot};

use crate::types::{EngineRequest, RequestId, SequenceEvent};

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
    /// Preemptions since start.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix index since start.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Rows computed since start.
    pub tokens_computed: u64,
    /// Largest number of distinct adapters (the base not counted) any step has held.
    pub max_distinct_adapters: usize,
    /// How many steps held 0, 1, 2, … distinct adapters.
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

/// A command for the engine thread. Control commands are never held up by submits.
pub(super) enum Command {
    Submit(EngineRequest, mpsc::Sender<SequenceEvent>),
    Abort(RequestId),
    Stats(oneshot::Sender<EngineStats>),
}

/// Cheap to clone; the engine stops when asked to, not when handles drop.
#[derive(Clone)]
pub struct EngineHandle {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) commands: std::sync::mpsc::Sender<Command>,
    pub(super) stopping: AtomicBool,
    pub(super) queued: AtomicUsize,
    pub(super) queue_limit: usize,
}

impl EngineHandle {
    /// Queue a request. The returned channel holds every event the request can have, so the engine never waits for
    /// its reader; dropping the receiver aborts the request at the next step.
    ///
    /// # Errors
    /// [`SubmitError::QueueFull`] and [`SubmitError::Stopped`]; nothing is queued then.
    pub fn submit(&self, request: EngineRequest) -> Result<mpsc::Receiver<SequenceEvent>, SubmitError> {
        if self.shared.stopping.load(Ordering::Acquire) {
            return Err(SubmitError::Stopped);
        }
        let queued = self.shared.queued.fetch_add(1, Ordering::AcqRel);
        if queued >= self.shared.queue_limit {
            self.shared.queued.fetch_sub(1, Ordering::AcqRel);
            return Err(SubmitError::QueueFull { queued, limit: self.shared.queue_limit });
        }
        let capacity = request.stopping.max_tokens as usize * request.choices as usize + 2;
        let (events, receiver) = mpsc::channel(capacity);
        match self.shared.commands.send(Command::Submit(request, events)) {
            Ok(()) => Ok(receiver),
            Err(_) => {
                self.shared.queued.fetch_sub(1, Ordering::AcqRel);
                Err(SubmitError::Stopped)
            }
        }
    }

    /// End a request; its KV is free before the next step. Unknown ids are ignored (it may just have finished).
    pub fn abort(&self, id: RequestId) {
        // A closed channel means the engine has stopped, and with it the request.
        drop(self.shared.commands.send(Command::Abort(id)));
    }

    /// Counters as of the end of the current step.
    ///
    /// # Errors
    /// [`SubmitError::Stopped`] once the engine thread has ended.
    pub async fn stats(&self) -> Result<EngineStats, SubmitError> {
        let (reply, stats) = oneshot::channel();
        self.shared.commands.send(Command::Stats(reply)).map_err(|_| SubmitError::Stopped)?;
        stats.await.map_err(|_| SubmitError::Stopped)
    }
}
