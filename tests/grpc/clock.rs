//! Time that passes when a test says so.

use std::future::Future;
use std::sync::mpsc;
use std::time::Duration;

/// tokio's clock, stopped. Only for tests on one thread.
pub(crate) struct Clock {
    stopped: Option<mpsc::Sender<()>>,
}

impl Clock {
    pub(crate) fn stop() -> Self {
        tokio::time::pause();
        Self { stopped: Some(hold()) }
    }

    /// Let time pass; every timer until then goes off.
    pub(crate) async fn advance(&self, by: Duration) {
        // Timers go off at whole milliseconds, not before their time.
        tokio::time::advance(by + Duration::from_millis(1)).await;
    }

    /// Let time jump to the next timer whenever there is nothing else to do, until this has happened.
    pub(crate) async fn run_until<F: Future>(&mut self, event: F) -> F::Output {
        self.stopped = None;
        let output = event.await;
        self.stopped = Some(hold());
        output
    }
}

/// A paused clock jumps to the next timer whenever there is nothing to do, which waiting for a socket is; but not while
/// a blocking task runs. Its limit makes a test fail that waits for what does not happen.
fn hold() -> mpsc::Sender<()> {
    let (stopped, end) = mpsc::channel::<()>();
    tokio::task::spawn_blocking(move || {
        // Either way it is over.
        let _ = end.recv_timeout(Duration::from_secs(60));
    });
    stopped
}
