//! What the gate needs of the engine. [`EngineHandle`] is the one of the real engine; tests of the gate and of the
//! server bring their own.

use std::future::Future;
use std::pin::Pin;

use crate::engine::{EngineHandle, EngineStats, EventReceiver, Lease, SubmitError};
use crate::types::{EngineRequest, RequestId};

/// The result of [`GenerationEngine::stats`].
pub type StatsFuture<'a> = Pin<Box<dyn Future<Output = Result<EngineStats, SubmitError>> + Send + 'a>>;

/// Runs requests. None of these calls waits for a step.
pub trait GenerationEngine: Send + Sync {
    /// Queue a request; the channel brings its events. `lease` is dropped once the engine has let go of it.
    ///
    /// # Errors
    /// The queue is full or the engine has stopped; nothing is queued then.
    fn submit(&self, request: EngineRequest, lease: Option<Lease>) -> Result<EventReceiver, SubmitError>;

    /// End a request before its next step. Unknown ids are ignored.
    fn abort(&self, id: RequestId);

    /// End one choice of a request before its next step; the others go on.
    fn finish_choice(&self, id: RequestId, choice: u32);

    /// Counters as of the end of the current step.
    fn stats(&self) -> StatsFuture<'_>;
}

impl GenerationEngine for EngineHandle {
    fn submit(&self, request: EngineRequest, lease: Option<Lease>) -> Result<EventReceiver, SubmitError> {
        Self::submit(self, request, lease)
    }

    fn abort(&self, id: RequestId) {
        Self::abort(self, id);
    }

    fn finish_choice(&self, id: RequestId, choice: u32) {
        Self::finish_choice(self, id, choice);
    }

    fn stats(&self) -> StatsFuture<'_> {
        Box::pin(Self::stats(self))
    }
}
