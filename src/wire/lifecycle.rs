//! Serving, draining, cut: how the server ends, and what has to end before it may.
//!
//! ```text
//!   Serving ──drain()──▶ Draining ──no call runs, or the limit has passed──▶ Cut
//!      └──────────────────────cut() (second signal)─────────────────────────▲
//! ```
//!
//! While draining, health says NOT_SERVING, new work is refused, running calls go on. When cut, every call that still
//! runs ends with UNAVAILABLE and every connection closes.

use std::sync::Arc;

use tokio::sync::watch;

/// Where the server is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Normal operation.
    Serving,
    /// No new calls.
    Draining,
    /// No calls at all.
    Cut,
}

/// Shared by the accept loop, every connection and every call. Cheap to clone.
#[derive(Clone)]
pub struct Lifecycle {
    inner: Arc<Inner>,
}

struct Inner {
    phase: watch::Sender<Phase>,
    running: watch::Sender<usize>,
    stuck: watch::Sender<bool>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle {
    /// Serving, nothing running.
    #[must_use]
    pub fn new() -> Self {
        let (phase, running) = (watch::Sender::new(Phase::Serving), watch::Sender::new(0));
        Self { inner: Arc::new(Inner { phase, running, stuck: watch::Sender::new(false) }) }
    }

    /// Where the server is now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.inner.phase.borrow()
    }

    /// Begin to drain. Without effect when draining has begun already.
    pub fn drain(&self) {
        self.advance(Phase::Draining);
    }

    /// End every call now.
    pub fn cut(&self) {
        self.advance(Phase::Cut);
    }

    fn advance(&self, to: Phase) {
        self.inner.phase.send_if_modified(|phase| {
            let forward = *phase < to;
            if forward {
                *phase = to;
            }
            forward
        });
    }

    /// Wait until the server is in `phase` or beyond.
    pub async fn reached(&self, phase: Phase) {
        let mut phases = self.inner.phase.subscribe();
        // The sender lives as long as `self`: the wait cannot fail.
        let _ = phases.wait_for(|now| *now >= phase).await;
    }

    /// As [`Lifecycle::reached`], for a future that outlives the borrow.
    pub(crate) fn reached_owned(&self, phase: Phase) -> impl Future<Output = ()> + Send + 'static {
        let lifecycle = self.clone();
        async move { lifecycle.reached(phase).await }
    }

    /// Say whether the server hangs: while it does, health says NOT_SERVING, and calls are taken as before.
    pub fn set_stuck(&self, stuck: bool) {
        self.inner.stuck.send_if_modified(|now| std::mem::replace(now, stuck) != stuck);
    }

    /// Follows [`Lifecycle::set_stuck`].
    #[must_use]
    pub fn stuck(&self) -> watch::Receiver<bool> {
        self.inner.stuck.subscribe()
    }

    /// Count a call that a drain waits for.
    pub(crate) fn enter(&self) -> RunningCall {
        self.inner.running.send_modify(|running| *running += 1);
        RunningCall { lifecycle: self.clone() }
    }

    /// Calls that a drain waits for.
    #[must_use]
    pub fn running(&self) -> usize {
        *self.inner.running.borrow()
    }

    /// Wait until no such call runs.
    pub async fn idle(&self) {
        let mut running = self.inner.running.subscribe();
        let _ = running.wait_for(|running| *running == 0).await;
    }
}

/// RAII: a call runs while this lives.
pub(crate) struct RunningCall {
    lifecycle: Lifecycle,
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.lifecycle.inner.running.send_modify(|running| *running -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_go_forward() {
        let lifecycle = Lifecycle::new();
        lifecycle.cut();
        lifecycle.drain();
        assert_eq!(lifecycle.phase(), Phase::Cut);
        lifecycle.reached(Phase::Draining).await;
    }

    #[tokio::test]
    async fn idle_waits_for_the_last_call() {
        let lifecycle = Lifecycle::new();
        let (first, second) = (lifecycle.enter(), lifecycle.enter());
        let idle = lifecycle.idle();
        tokio::pin!(idle);
        assert!(futures_are_pending(&mut idle).await);
        drop(first);
        assert!(futures_are_pending(&mut idle).await);
        drop(second);
        idle.await;
        assert_eq!(lifecycle.running(), 0);
    }

    async fn futures_are_pending<F: Future + Unpin>(future: &mut F) -> bool {
        tokio::select! {
            biased;
            _ = future => false,
            () = tokio::task::yield_now() => true,
        }
    }
}
