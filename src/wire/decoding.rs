//! Turns at decoding. A message is taken apart by a thread that answers everybody, and takes it the longer the larger it
//! is: so many at a time, and threads are left for those who send small ones.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// Messages of up to this many bytes need no turn.
pub(crate) const SMALL: u64 = 256 << 10;

/// How many messages that are not small may be decoded at a time. Cheap to clone.
#[derive(Clone)]
pub(crate) struct DecodingTurns(Arc<Semaphore>);

impl Default for DecodingTurns {
    /// Half of the processors: the runtime has a thread for each.
    fn default() -> Self {
        Self::new(available_parallelism().map_or(1, |processors| processors.get() / 2))
    }
}

impl DecodingTurns {
    /// So many, and one at least.
    pub(crate) fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count.max(1))))
    }

    /// To wait for one.
    pub(crate) fn wait(&self) -> PollSemaphore {
        PollSemaphore::new(Arc::clone(&self.0))
    }
}

/// The turn of a call, if it has one.
#[derive(Clone, Default)]
pub(crate) struct Turn(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Turn {
    pub(crate) fn begin(&self, permit: OwnedSemaphorePermit) {
        self.replace(Some(permit));
    }

    fn replace(&self, permit: Option<OwnedSemaphorePermit>) {
        let before = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), permit);
        drop(before);
    }

    /// Run what reads the call's messages. A turn ends when it rests: what it does with a message right after it has
    /// come belongs to decoding it.
    pub(crate) async fn during<F: Future>(&self, work: F) -> F::Output {
        let mut work = pin!(work);
        poll_fn(|cx| {
            let polled = work.as_mut().poll(cx);
            self.replace(None);
            polled
        })
        .await
    }
}
