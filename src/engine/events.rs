//! The channel of one request: the engine writes without ever waiting, the reader takes what it can.
//!
//! It has room for a window of events and not for all there may be. The engine lays a request aside whose reader is
//! behind by the whole window, so that nothing is computed for somebody who does not read; the reader calls it back once
//! it has read half of that. Which of the two notices is settled by a flag and two fences, so that nobody has to look at
//! all requests to find those that are ready.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use tokio::sync::mpsc;

use crate::types::{EngineRequest, MAX_SCORED_ROWS, PoolRows, RequestId, SequenceEvent};

/// Hears what the reader of a request wants of the engine.
pub(super) trait ReaderWishes: Send + Sync {
    /// It has caught up.
    fn resume(&self, id: RequestId);

    /// It has gone away.
    fn abort(&self, id: RequestId);
}

/// Events of one choice that may lie unread.
pub(super) const WINDOW: usize = 64;

/// Events of one request that may lie unread, however many choices it has.
const MAX_WINDOW: usize = 256;

/// How many events there may be of a request, its first and a failure not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    choices: usize,
    /// In all.
    all: usize,
    /// In one step.
    step: usize,
}

impl Extent {
    fn of(request: &EngineRequest) -> Self {
        let choices = request.choices as usize;
        // A choice that is to have no token has an end all the same.
        let tokens = choices.saturating_mul(request.stopping.max_tokens.max(1) as usize);
        let scored = request.sampling.prompt_logprobs.map_or(0, |_| request.prompt.len().saturating_sub(1));
        // Vectors of one step come together.
        let (pooled, at_once) = match request.sampling.pool.map(|pool| pool.rows) {
            None => (0, 0),
            Some(PoolRows::Each) => (request.prompt.len(), 1),
            Some(PoolRows::Last | PoolRows::First | PoolRows::Sum) => (1, 1),
        };
        let all = tokens.saturating_add(scored).saturating_add(pooled);
        Self { choices, all, step: choices + scored.min(MAX_SCORED_ROWS) + at_once }
    }

    /// Room for the events: the window, or all there can ever be where that is less. Never less than two steps need, and
    /// one place more for the first event and one for a failure.
    fn room(self, window: usize) -> usize {
        let events = window.saturating_mul(self.choices).min(MAX_WINDOW).max(self.step.saturating_mul(2));
        events.min(self.all) + 2
    }
}

/// A channel for a request, of which a choice has room for `window` events.
pub(super) fn channel(
    wishes: Arc<dyn ReaderWishes>,
    window: usize,
    request: &EngineRequest,
) -> (EventSender, EventReceiver) {
    let (id, extent) = (request.id, Extent::of(request));
    let room = extent.room(window);
    let (sender, receiver) = mpsc::channel(room);
    let behind = Arc::new(AtomicBool::new(false));
    let reader = Reader { id, wishes, behind: Arc::clone(&behind), low: room / 2 };
    // And a failure. Where there is room for all, none need ever be waited for.
    let step = if room < extent.all.saturating_add(2) { extent.step + 1 } else { 0 };
    let sender = EventSender { sender, behind, step, low: room / 2 };
    (sender, EventReceiver { receiver, reader: Some(reader) })
}

/// The engine's end.
pub(super) struct EventSender {
    sender: mpsc::Sender<SequenceEvent>,
    behind: Arc<AtomicBool>,
    /// Most events that one more step can bring for which there may be no room.
    step: usize,
    low: usize,
}

impl EventSender {
    /// Never waits. There is room while nothing is computed for a reader that [`EventSender::lags`]; who has left hears
    /// no more.
    pub(super) fn send(&self, event: SequenceEvent) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.sender.try_send(event) {
            debug_assert!(false, "no room for {event:?}");
            tracing::error!(?event, "a request's channel has no room for an event");
        }
    }

    /// Whether the reader is so far behind that one more step might not find room. The request has to be laid aside then:
    /// the reader asks for it when it has caught up.
    pub(super) fn lags(&self) -> bool {
        if self.sender.capacity() >= self.step || self.sender.is_closed() {
            return false;
        }
        self.behind.store(true, Ordering::Relaxed);
        // Either the reader sees the flag after it has read, or what it has read is seen here.
        fence(Ordering::SeqCst);
        let unread = self.sender.max_capacity() - self.sender.capacity();
        let caught_up = unread <= self.low && self.behind.swap(false, Ordering::Relaxed);
        !caught_up
    }
}

/// What the reader's end keeps of the engine.
struct Reader {
    id: RequestId,
    wishes: Arc<dyn ReaderWishes>,
    behind: Arc<AtomicBool>,
    low: usize,
}

/// Events of one request, in order. Dropping it ends the request.
pub struct EventReceiver {
    receiver: mpsc::Receiver<SequenceEvent>,
    /// Absent where no engine is behind it.
    reader: Option<Reader>,
}

impl EventReceiver {
    /// The next event; `None` after the last one. May be dropped half-way: nothing is lost.
    pub async fn recv(&mut self) -> Option<SequenceEvent> {
        let event = self.receiver.recv().await;
        self.call_back();
        event
    }

    /// As [`EventReceiver::recv`], outside of a runtime.
    pub fn blocking_recv(&mut self) -> Option<SequenceEvent> {
        let event = self.receiver.blocking_recv();
        self.call_back();
        event
    }

    /// Events that lie unread.
    #[must_use]
    pub fn len(&self) -> usize {
        self.receiver.len()
    }

    /// Nothing lies unread.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    /// Ask for the request again if it was laid aside and enough has been read.
    fn call_back(&self) {
        let Some(reader) = &self.reader else { return };
        fence(Ordering::SeqCst);
        if reader.behind.load(Ordering::Relaxed)
            && self.receiver.len() <= reader.low
            && reader.behind.swap(false, Ordering::Relaxed)
        {
            reader.wishes.resume(reader.id);
        }
    }
}

impl Drop for EventReceiver {
    fn drop(&mut self) {
        // The engine closes its end when it lets go of the request.
        if let Some(reader) = self.reader.as_ref().filter(|_| !self.receiver.is_closed()) {
            reader.wishes.abort(reader.id);
        }
    }
}

impl fmt::Debug for EventReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.reader.as_ref().map(|reader| reader.id);
        f.debug_struct("EventReceiver").field("request", &id).field("unread", &self.len()).finish()
    }
}

/// Of something that is no engine, in tests.
impl From<mpsc::Receiver<SequenceEvent>> for EventReceiver {
    fn from(receiver: mpsc::Receiver<SequenceEvent>) -> Self {
        Self { receiver, reader: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_has_room_for_its_window_and_never_for_more_than_there_can_be() {
        let room = |window, max_tokens: usize, choices: usize, scored: usize| {
            let all = max_tokens * choices + scored;
            Extent { choices, all, step: choices + scored.min(MAX_SCORED_ROWS) }.room(window)
        };
        assert_eq!(room(WINDOW, 1000, 1, 0), 66);
        assert_eq!(room(WINDOW, 10, 1, 0), 12, "all of it");
        assert_eq!(room(WINDOW, 1000, 16, 0), 258);
        assert_eq!(room(WINDOW, 1000, 1000, 0), 2002, "two steps at least");
        assert_eq!(room(WINDOW, 1, 1000, 0), 1002);
        assert_eq!(room(1, 9, 3, 0), 8);
        assert_eq!(room(WINDOW, 1, 1, 100_000), 132, "two steps of a prompt, however long");
        assert_eq!(room(WINDOW, 1, 1, 9), 12);
    }
}
