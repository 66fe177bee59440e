//! Taking connections from a listener, also where the system refuses them.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::listeners::Listeners;

/// First pause after a failure; it doubles with every further one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A listener that keeps failing says so once in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Accepts connections one by one.
pub(crate) struct Acceptor {
    listeners: Listeners,
    /// For the log: `grpc` or `metrics`.
    name: &'static str,
    backoff: Backoff,
}

impl Acceptor {
    pub(crate) fn new(listeners: Listeners, name: &'static str) -> Self {
        Self { listeners, name, backoff: Backoff::default() }
    }

    /// The next connection. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listeners.accept().await {
                Ok((stream, peer)) => {
                    self.backoff.worked();
                    // Small messages go out at once.
                    match stream.set_nodelay(true) {
                        Ok(()) => return (stream, peer),
                        Err(error) => tracing::debug!(%peer, %error, "connection gone"),
                    }
                }
                Err(error) if is_of_the_client(&error) => tracing::debug!(%error, "connection gone"),
                Err(error) => {
                    let (pause, report) = self.backoff.failed(Instant::now());
                    if let Some(failures) = report {
                        let listener = self.name;
                        tracing::warn!(listener, %error, failures, ?pause, "cannot accept connections");
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

/// A client that went away before it was accepted costs nothing.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// How long to pause after a failure of the system (no file descriptor left, no memory), and whether to say so: trying
/// again at once would fail again at once, and a line for each failure fills a disk.
#[derive(Debug, Default)]
struct Backoff {
    in_a_row: u32,
    /// Failures since the last line.
    unreported: u64,
    reported: Option<Instant>,
}

impl Backoff {
    /// The pause, and the number of failures to report now, this one included.
    fn failed(&mut self, now: Instant) -> (Duration, Option<u64>) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.in_a_row.min(16)).min(LONGEST_PAUSE);
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.unreported += 1;
        let due = self.reported.is_none_or(|last| now.saturating_duration_since(last) >= LOG_INTERVAL);
        (
            pause,
            due.then(|| {
                self.reported = Some(now);
                std::mem::take(&mut self.unreported)
            }),
        )
    }

    fn worked(&mut self) {
        self.in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_second_and_start_over_after_a_success() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        let pauses: Vec<u128> = (0..9).map(|_| backoff.failed(now).0.as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        for _ in 0..100 {
            assert_eq!(backoff.failed(now).0, LONGEST_PAUSE);
        }
        backoff.worked();
        assert_eq!(backoff.failed(now).0, FIRST_PAUSE);
    }

    #[test]
    fn a_listener_that_keeps_failing_says_so_now_and_then_with_the_number() {
        let (mut backoff, began) = (Backoff::default(), Instant::now());
        let mut reports = Vec::new();
        for second in 0..25 {
            // One that works in between does not make it talk more.
            backoff.worked();
            for _ in 0..4 {
                reports.extend(backoff.failed(began + Duration::from_secs(second)).1);
            }
        }
        assert_eq!(reports, [1, 40, 40]);
    }
}
