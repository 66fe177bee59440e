//! What the async side may ask of the engine thread.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot};

use super::error::{InstallError, StepError};
use super::events::{self, EventReceiver, ReaderWishes, WINDOW};
use super::lease::{Lease, Leftover};
use super::mailbox::{Letters, Mailbox, Submission};
use super::pulse::EnginePulse;
use super::stats::EngineStats;
use crate::scheduler::places::{Holder, NoPlace, Places};
use crate::types::{AdapterSlot, AdapterVersion, EngineRequest, RequestId};

/// What may lie with the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Requests that wait for their first step.
    pub queued: usize,
    /// Events of a choice that its reader has not taken.
    pub window: usize,
}

/// So many requests, and the window that is meant for servers.
impl From<usize> for EngineLimits {
    fn from(queued: usize) -> Self {
        Self { queued, window: WINDOW }
    }
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
    /// As many are queued of one client, or for one adapter, as may be while so few places are left.
    #[error("{held} requests of the same {} are queued, its share of {limit}", holder.as_str())]
    QueueShare {
        /// Whose they are.
        holder: Holder,
        /// Queued now.
        held: usize,
        /// `--max-queued-requests`.
        limit: usize,
    },
    /// The engine is stopping or has stopped.
    #[error("the engine is not running")]
    Stopped,
}

/// Why the engine thread has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineEnd {
    /// It was asked to.
    Stopped,
    /// Not even a row of the base could be computed any more.
    DeviceBroken {
        /// What the last attempt failed with.
        error: String,
    },
    /// A defect in the engine itself.
    Panicked {
        /// The panic's message, where it had one.
        message: String,
    },
}

/// The result of [`GenerationEngine::stats`].
pub type StatsFuture<'a> = Pin<Box<dyn Future<Output = Result<EngineStats, SubmitError>> + Send + 'a>>;

/// Runs requests. None of these calls waits for a step.
pub trait GenerationEngine: Send + Sync {
    /// Queue a request. The engine never waits for its reader: a request whose reader is behind by its whole window is
    /// laid aside until it has caught up. Dropping the receiver aborts the request at the next step. `lease` is dropped
    /// once the engine has let go of the request, and not before; the request's last event comes after that.
    ///
    /// # Errors
    /// [`SubmitError::QueueFull`], [`SubmitError::QueueShare`] and [`SubmitError::Stopped`]; nothing is queued then.
    fn submit(&self, request: EngineRequest, lease: Option<Lease>) -> Result<EventReceiver, SubmitError>;

    /// End a request; its KV is free before the next step. Unknown ids are ignored (it may just have finished).
    fn abort(&self, id: RequestId);

    /// End one choice of a request, as after a stop string: no event of it follows, its KV is free before the next
    /// step. The last choice ends the request.
    fn finish_choice(&self, id: RequestId, choice: u32);

    /// Counters as of the end of the current step. [`SubmitError::Stopped`] once the engine thread has ended.
    fn stats(&self) -> StatsFuture<'_>;
}

/// Cheap to clone; the engine stops when asked to, not when handles drop.
#[derive(Clone)]
pub struct EngineHandle {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) mailbox: Mailbox,
    pub(super) pulse: EnginePulse,
    pub(super) draining: AtomicBool,
    /// Places of requests that wait for their first row.
    pub(super) queue: Places,
    pub(super) limits: EngineLimits,
}

impl ReaderWishes for Shared {
    fn resume(&self, id: RequestId) {
        // Closed means that the engine has stopped, and the request with it.
        let _ = self.mailbox.post(|letters| letters.wishes.entry(id).or_default().resume = true);
    }

    fn abort(&self, id: RequestId) {
        // As above.
        let _ = self.mailbox.post(|letters| letters.wishes.entry(id).or_default().abort = true);
    }
}

impl GenerationEngine for EngineHandle {
    fn submit(&self, request: EngineRequest, lease: Option<Lease>) -> Result<EventReceiver, SubmitError> {
        if self.shared.draining.load(Ordering::Acquire) {
            return Err(SubmitError::Stopped);
        }
        let place = self.shared.queue.take(request.party()).map_err(|refused| {
            let limit = self.shared.queue.limit();
            match refused {
                NoPlace::Full => SubmitError::QueueFull { queued: limit, limit },
                NoPlace::Share { holder, held } => SubmitError::QueueShare { holder, held, limit },
            }
        })?;
        let wishes: Arc<dyn ReaderWishes> = Arc::clone(&self.shared) as _;
        let (events, receiver) = events::channel(wishes, self.shared.limits.window, &request);
        self.post(|letters| letters.submissions.push(Submission { request, lease, place, events }))?;
        Ok(receiver)
    }

    fn abort(&self, id: RequestId) {
        self.shared.abort(id);
    }

    fn finish_choice(&self, id: RequestId, choice: u32) {
        // Closed means that the engine has stopped, and with it the request.
        let _ = self.post(|letters| letters.wishes.entry(id).or_default().finished_choices.push(choice));
    }

    fn stats(&self) -> StatsFuture<'_> {
        Box::pin(self.ask(|letters, reply| {
            // Those who no longer wait take no room.
            letters.questions.retain(|question| !question.is_closed());
            letters.questions.push(reply);
        }))
    }
}

impl EngineHandle {
    /// Whether there is anything to compute, as of the last step.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.shared.pulse.in_flight().is_some()
    }

    /// Empty adapter slots between two steps. What they held comes back, to be dropped where that takes no time from
    /// steps.
    ///
    /// # Errors
    /// [`SubmitError::Stopped`].
    pub async fn remove(&self, slots: Vec<AdapterSlot>) -> Result<Vec<Leftover>, SubmitError> {
        self.ask(|letters, done| letters.removals.push((slots, done))).await
    }

    /// These versions have neither a name nor a user left: before the next step, the KV of their virtual tokens is free
    /// and nothing computed with them is found any more.
    pub fn forget(&self, versions: impl IntoIterator<Item = AdapterVersion>) {
        // Closed means that the engine has stopped, and its KV with it.
        let _ = self.post(|letters| letters.forgotten.extend(versions));
    }

    /// Take no more requests, end those that have not started, and return once the last running one has ended.
    ///
    /// # Errors
    /// [`SubmitError::Stopped`] if the engine stops first.
    pub async fn drain(&self) -> Result<(), SubmitError> {
        self.shared.draining.store(true, Ordering::Release);
        self.ask(|letters, done| letters.drains.push(done)).await
    }

    /// End every request with `Draining` and the engine thread with them.
    pub fn stop(&self) {
        self.shared.draining.store(true, Ordering::Release);
        // Closed means that it has stopped already.
        let _ = self.post(|letters| letters.stop = true);
    }

    /// Whether the engine moves.
    #[must_use]
    pub fn pulse(&self) -> EnginePulse {
        self.shared.pulse.clone()
    }

    async fn ask<T>(&self, write: impl FnOnce(&mut Letters, oneshot::Sender<T>)) -> Result<T, SubmitError> {
        let (reply, answer) = oneshot::channel();
        self.post(|letters| write(letters, reply))?;
        answer.await.map_err(|_| SubmitError::Stopped)
    }

    fn post(&self, write: impl FnOnce(&mut Letters)) -> Result<(), SubmitError> {
        self.shared.mailbox.post(write).map_err(|_| SubmitError::Stopped)
    }
}

/// An adapter to install between two steps.
pub(super) struct Install<P> {
    pub(super) slot: AdapterSlot,
    pub(super) prepared: P,
    pub(super) done: oneshot::Sender<Result<(), StepError>>,
}

/// Installations that may be on their way to the engine; whoever brings more waits.
pub(super) const MAX_INSTALLS: usize = 2;

/// Hands prepared adapters to the engine thread.
pub struct InstallHandle<P> {
    pub(super) engine: EngineHandle,
    pub(super) installs: mpsc::Sender<Install<P>>,
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
    /// [`InstallError::Step`], the slot is empty then, and [`InstallError::Stopped`].
    pub async fn install(&self, slot: AdapterSlot, prepared: P) -> Result<(), InstallError> {
        let (done, installed) = oneshot::channel();
        self.installs.send(Install { slot, prepared, done }).await.map_err(|_| InstallError::Stopped)?;
        self.engine.post(|letters| letters.installs = true).map_err(|_| InstallError::Stopped)?;
        Ok(installed.await.map_err(|_| InstallError::Stopped)??)
    }
}
