//! What may end a call before it has ended by itself: its deadline, the server's end, a panic of ours.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use super::lifecycle::{Lifecycle, Phase};
use crate::telemetry::panic_message;
use crate::types::{Problem, ToProblem};

/// What ended a call from outside its handler.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Interrupted {
    /// The client's deadline.
    #[error("the deadline of the call has passed")]
    DeadlineExceeded,
    /// The server ended while the call ran.
    #[error("the server is shutting down")]
    Cut,
    /// A defect of ours, contained in this call.
    #[error("{message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },
}

impl Interrupted {
    pub(crate) fn panicked(payload: &(dyn Any + Send)) -> Self {
        Self::Panicked { message: panic_message(payload).unwrap_or("a panic without a message").to_owned() }
    }
}

impl ToProblem for Interrupted {
    fn to_problem(&self) -> Problem {
        match self {
            Self::DeadlineExceeded => Problem::deadline_exceeded(),
            Self::Cut => Problem::draining(),
            Self::Panicked { .. } => Problem::internal("a call panicked", self),
        }
    }
}

/// What a body answers; `None` is its end.
type NextFrame<B> = Option<Result<http_body::Frame<<B as http_body::Body>::Data>, <B as http_body::Body>::Error>>;

/// Watches over one call, head and body.
pub(crate) struct Guard {
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Guard {
    pub(crate) fn new(deadline: Option<Instant>, lifecycle: &Lifecycle) -> Self {
        Self {
            deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at.into()))),
            cut: Box::pin(lifecycle.reached_owned(Phase::Cut)),
        }
    }

    /// Ready once a limit has struck.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Interrupted> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Interrupted::DeadlineExceeded);
        }
        self.cut.as_mut().poll(cx).map(|()| Interrupted::Cut)
    }

    /// Run `future` to its end, or to the first limit, or to a panic. What is ready counts: a response that comes at
    /// the deadline is delivered.
    pub(crate) async fn guard<F: Future>(&mut self, future: F) -> Result<F::Output, Interrupted> {
        let mut future = Box::pin(future);
        std::future::poll_fn(|cx| {
            match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
                Ok(Poll::Ready(output)) => return Poll::Ready(Ok(output)),
                Ok(Poll::Pending) => {}
                Err(panic) => return Poll::Ready(Err(Interrupted::panicked(panic.as_ref()))),
            }
            self.poll(cx).map(Err)
        })
        .await
    }

    /// The next frame of a body, or what ends the call before it. Limits come first: a stream that always has something to
    /// say would outrun them.
    pub(crate) fn poll_frame<B: http_body::Body + Unpin>(
        &mut self,
        body: &mut B,
        cx: &mut Context<'_>,
    ) -> Poll<Result<NextFrame<B>, Interrupted>> {
        if let Poll::Ready(interrupted) = self.poll(cx) {
            return Poll::Ready(Err(interrupted));
        }
        match catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(cx))) {
            Ok(frame) => frame.map(Ok),
            Err(panic) => Poll::Ready(Err(Interrupted::panicked(panic.as_ref()))),
        }
    }
}
