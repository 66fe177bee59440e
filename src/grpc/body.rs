//! The body of a request on its way in: how much of it may be in memory, and how long it may take to come.
//!
//! tonic's decoder makes room for a message as soon as its 5-byte prefix has come, and waits for the rest for ever. So
//! the frames are looked at here first: the length that a prefix declares is taken from a budget that all connections
//! share, and a message that has begun has to arrive in time.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::PollSemaphore;
use tonic::Status;

use super::framing::Framing;
use super::status;
use crate::types::{Class, Problem, ToProblem};
use crate::wire::{DecodingTurns, Exhausted, Peer, SMALL, Share, Shares, Turn};

/// Every so many bytes of a message are worth a second more: a slow client that makes progress is left alone.
const BYTES_PER_SECOND: u64 = 32 << 10;

/// What may be done to messages of requests, all connections together. Cheap to clone.
#[derive(Clone)]
pub(super) struct MessageLimits {
    /// Bytes of messages that have begun to arrive and are not yet answered.
    pub(super) bytes: Shares,
    /// How long a message may take, apart from what its size is worth.
    pub(super) timeout: Duration,
    /// Longer messages are left to tonic, which refuses them by their prefix.
    pub(super) max_bytes: usize,
    /// Who may decode a large one now.
    pub(super) turns: DecodingTurns,
}

/// Why a request is read no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyRefused {
    /// No memory for another message now.
    #[error("no room for a message of {bytes} bytes now: {refused}")]
    NoRoom {
        /// Declared.
        bytes: u64,
        /// Which limit.
        refused: Exhausted,
    },
    /// It took too long to come.
    #[error("the message did not arrive within {limit:?}; {received} bytes came")]
    TooSlow {
        /// What was allowed.
        limit: Duration,
        /// Bytes that came.
        received: u64,
    },
}

impl ToProblem for BodyRefused {
    fn to_problem(&self) -> Problem {
        match self {
            Self::NoRoom { bytes, refused } => {
                refused.problem("MESSAGE_MEMORY_FULL", "no memory for the message now").with("bytes", bytes)
            }
            Self::TooSlow { limit, received } => Problem::new(Class::TooSlow, "MESSAGE_TOO_SLOW", self)
                .with("limit_ms", limit.as_millis())
                .with("received_bytes", received),
        }
    }
}

/// What the messages of a call have taken of the budget: the one that was last begun. It is held until the next begins,
/// and by the call until it has an answer.
#[derive(Clone, Default)]
pub(super) struct HeldBytes(Arc<Mutex<Option<Share>>>);

impl HeldBytes {
    fn replace(&self, share: Option<Share>) {
        let before = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), share);
        drop(before);
    }

    /// The call has its answer.
    pub(super) fn release(&self) {
        self.replace(None);
    }
}

/// How messages come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The whole body is due once the call has begun.
    AtOnce,
    /// A stream of messages: each is due once it has begun.
    OneByOne,
}

/// A request's body under [`MessageLimits`].
pub(super) struct RequestBody<B> {
    inner: B,
    peer: Peer,
    limits: MessageLimits,
    arrival: Arrival,
    framing: Framing,
    held: HeldBytes,
    /// The message that is arriving is not small.
    large: bool,
    /// With this such a message is whole; it is passed on when its turn has come.
    whole: Option<Frame<Bytes>>,
    turns: PollSemaphore,
    turn: Turn,
    /// When what is due began; `None` while nothing is.
    due_since: Option<Instant>,
    /// Bytes of it.
    received: u64,
    /// Made when something is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> RequestBody<B> {
    /// A turn at decoding begins as `turn` when a message that needs one is whole.
    pub(super) fn new(
        inner: B,
        peer: Peer,
        limits: MessageLimits,
        arrival: Arrival,
        held: HeldBytes,
        turn: Turn,
    ) -> Self {
        let due_since = (arrival == Arrival::AtOnce).then(Instant::now);
        Self {
            inner,
            peer,
            arrival,
            framing: Framing::default(),
            held,
            large: false,
            whole: None,
            turns: limits.turns.wait(),
            turn,
            limits,
            due_since,
            received: 0,
            timer: None,
        }
    }

    fn deadline(&self, since: Instant) -> Instant {
        // No message is worth more than the largest there may be.
        let bytes = self.received.min(self.limits.max_bytes as u64);
        since + self.limits.timeout + Duration::from_secs(bytes / BYTES_PER_SECOND)
    }

    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<BodyRefused> {
        let Some(since) = self.due_since else { return Poll::Pending };
        let deadline = self.deadline(since);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        let received = self.received;
        timer.as_mut().poll(cx).map(|()| BodyRefused::TooSlow { limit: deadline - since, received })
    }

    /// Follow the messages in `data`; true where a large one has become whole.
    fn follow(&mut self, data: &[u8]) -> Result<bool, BodyRefused> {
        let (mut rest, mut large_is_whole) = (data, false);
        while !rest.is_empty() {
            if self.framing.between() && self.arrival == Arrival::OneByOne {
                (self.due_since, self.received) = (Some(Instant::now()), 0);
            }
            let (taken, began) = self.framing.advance(rest);
            self.received = self.received.saturating_add(taken as u64);
            rest.advance(taken);
            self.large = began.map_or(self.large, |bytes| bytes > SMALL);
            large_is_whole |= self.large && self.framing.between();
            if let Some(bytes) = began.filter(|bytes| *bytes <= self.limits.max_bytes as u64) {
                // First, so that the message before it does not count against it.
                self.held.replace(None);
                let share = self.limits.bytes.acquire(self.peer, bytes);
                self.held.replace(Some(share.map_err(|refused| BodyRefused::NoRoom { bytes, refused })?));
            }
            if self.framing.between() && self.arrival == Arrival::OneByOne {
                self.due_since = None;
            }
        }
        Ok(large_is_whole)
    }

    /// Pass on what makes a large message whole, when its turn has come.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        // Never closed.
        if let Some(permit) = ready!(self.turns.poll_acquire(cx)) {
            self.turn.begin(permit);
        }
        Poll::Ready(self.whole.take())
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.whole.is_some() {
            return self.poll_turn(cx).map(|frame| frame.map(Ok));
        }
        let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending => return self.poll_due(cx).map(|late| Some(Err(status::of(&late)))),
            Poll::Ready(frame) => frame,
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) => match frame.data_ref().map_or(Ok(false), |data| self.follow(data)) {
                Ok(false) => Some(Ok(frame)),
                Ok(true) => {
                    self.whole = Some(frame);
                    return self.poll_turn(cx).map(|frame| frame.map(Ok));
                }
                Err(refused) => Some(Err(status::of(&refused))),
            },
            Some(Err(error)) => Some(Err(Status::from_error(error.into()))),
            None => {
                self.due_since = None;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.whole.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use http_body_util::BodyExt;
    use tokio::sync::mpsc;
    use tonic::Code;
    use tonic_types::StatusExt;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// What a test sends, frame by frame.
    struct Sent(mpsc::UnboundedReceiver<Vec<u8>>);

    impl Body for Sent {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            self.0.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data.into()))))
        }
    }

    fn peer() -> Peer {
        std::net::IpAddr::from(Ipv4Addr::LOCALHOST).into()
    }

    fn limits(bytes: u64, max_bytes: usize) -> MessageLimits {
        let turns = DecodingTurns::new(1);
        MessageLimits { bytes: Shares::new(bytes, bytes), timeout: TIMEOUT, max_bytes, turns }
    }

    fn body(
        limits: &MessageLimits,
        arrival: Arrival,
    ) -> (mpsc::UnboundedSender<Vec<u8>>, RequestBody<Sent>, HeldBytes) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let held = HeldBytes::default();
        let body = RequestBody::new(Sent(receiver), peer(), limits.clone(), arrival, held.clone(), Turn::default());
        (sender, body, held)
    }

    fn prefix(length: u32) -> Vec<u8> {
        [vec![0], length.to_be_bytes().to_vec()].concat()
    }

    /// Bytes of the budget that can still be had.
    fn free(limits: &MessageLimits, max: u64) -> u64 {
        (0..=max).rev().find(|amount| limits.bytes.acquire(peer(), *amount).is_ok()).unwrap()
    }

    fn reason(status: &Status) -> (Code, String) {
        (status.code(), status.get_details_error_info().unwrap().reason)
    }

    #[tokio::test]
    async fn a_prefix_takes_what_it_declares_until_the_call_is_answered() {
        let limits = limits(1000, 600);
        let (sender, mut body, held) = body(&limits, Arrival::AtOnce);
        sender.send(prefix(600)).unwrap();
        body.frame().await.unwrap().unwrap();
        assert_eq!(free(&limits, 1000), 400);
        let (other, mut second, _) = self::body(&limits, Arrival::AtOnce);
        other.send(prefix(401)).unwrap();
        let refused = second.frame().await.unwrap().unwrap_err();
        assert_eq!(reason(&refused), (Code::ResourceExhausted, "MESSAGE_MEMORY_FULL".into()));
        assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"), "{refused:?}");
        drop((sender, body));
        assert_eq!(free(&limits, 1000), 400, "the call goes on with the message");
        held.release();
        assert_eq!(free(&limits, 1000), 1000);
    }

    #[tokio::test]
    async fn messages_of_a_stream_take_turns() {
        let limits = limits(100, 100);
        let (sender, mut body, _) = body(&limits, Arrival::OneByOne);
        for _ in 0..5 {
            sender.send([prefix(80), vec![1; 80]].concat()).unwrap();
            body.frame().await.unwrap().unwrap();
            assert_eq!(free(&limits, 100), 20);
        }
        sender.send(prefix(101)).unwrap();
        body.frame().await.unwrap().expect("left to tonic");
        assert_eq!(free(&limits, 100), 20);
        drop(body);
        assert_eq!(free(&limits, 100), 100);
    }

    #[tokio::test]
    async fn large_messages_are_passed_on_by_turns_and_small_ones_at_once() {
        let limits = limits(8 << 20, 4 << 20);
        let whole = |bytes: u64| [prefix(bytes as u32), vec![0; bytes as usize]].concat();
        let send = |bytes| {
            let (sender, body, _) = body(&limits, Arrival::OneByOne);
            sender.send(whole(bytes)).unwrap();
            (sender, body)
        };
        let ((_one, mut first), (_two, mut second), (_three, mut small)) =
            (send(SMALL + 1), send(SMALL + 1), send(SMALL));
        let turn = first.turn.clone();
        let decodes = turn.during(async {
            first.frame().await.unwrap().unwrap();
            let waits = tokio::select! {
                biased;
                _ = second.frame() => false,
                frame = small.frame() => frame.unwrap().is_ok(),
            };
            assert!(waits, "the turn is the first one's, and the small one needs none");
        });
        decodes.await;
        second.frame().await.unwrap().expect("its turn");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_drips_ends_and_one_that_makes_progress_does_not() {
        let limits = limits(8 << 20, 4 << 20);
        let (sender, mut body, _) = body(&limits, Arrival::AtOnce);
        sender.send(prefix(4 << 20)).unwrap();
        body.frame().await.unwrap().unwrap();
        // Twice the least speed for twice the time.
        for _ in 0..60 {
            tokio::time::advance(Duration::from_secs(1)).await;
            sender.send(vec![0; 2 * BYTES_PER_SECOND as usize]).unwrap();
            body.frame().await.unwrap().unwrap();
        }
        // Then a byte now and then.
        let late = loop {
            sender.send(vec![0]).unwrap();
            body.frame().await.unwrap().unwrap();
            if let Some(Err(late)) = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = tokio::time::sleep(Duration::from_secs(10)) => None,
            } {
                break late;
            }
        };
        assert_eq!(reason(&late), (Code::Aborted, "MESSAGE_TOO_SLOW".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_whose_body_does_not_end_is_late_even_with_whole_messages() {
        let limits = limits(100, 100);
        let (sender, mut body, _) = body(&limits, Arrival::AtOnce);
        let began = Instant::now();
        let late = loop {
            sender.send(prefix(0)).unwrap();
            body.frame().await.unwrap().unwrap();
            if let Some(Err(late)) = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = tokio::time::sleep(Duration::from_secs(1)) => None,
            } {
                break late;
            }
        };
        assert_eq!(reason(&late), (Code::Aborted, "MESSAGE_TOO_SLOW".into()));
        assert_eq!(began.elapsed(), TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn between_two_messages_a_stream_may_take_its_time() {
        let limits = limits(100, 100);
        let (sender, mut body, _) = body(&limits, Arrival::OneByOne);
        let waits = async |body: &mut RequestBody<Sent>, time: Duration| {
            tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = tokio::time::sleep(time) => None,
            }
        };
        assert!(waits(&mut body, TIMEOUT * 10).await.is_none());
        sender.send([prefix(3), vec![7; 3]].concat()).unwrap();
        body.frame().await.unwrap().unwrap();
        assert!(waits(&mut body, TIMEOUT * 10).await.is_none());
        sender.send(vec![0]).unwrap();
        body.frame().await.unwrap().unwrap();
        assert!(waits(&mut body, TIMEOUT - Duration::from_secs(1)).await.is_none());
        let late = waits(&mut body, Duration::from_secs(2)).await.unwrap().unwrap_err();
        assert_eq!(reason(&late), (Code::Aborted, "MESSAGE_TOO_SLOW".into()));
    }
}
