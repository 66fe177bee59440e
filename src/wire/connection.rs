//! One connection of HTTP/2 or HTTP/1.1, whichever its first bytes say, from these to its close.
//!
//! hyper is driven here and not through `tonic::transport::Server`, because that one never sends GOAWAY when a
//! connection with a grace period comes of age, has no limit before the preface, waits for ever when draining, and ends
//! a call at its deadline with CANCELLED.

use std::convert::Infallible;
use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tower::Service;

use super::lifecycle::{Lifecycle, Phase};
use super::limits::Activity;
use crate::config::TransportConfig;

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`. No request of HTTP/1.1 that names its host is shorter.
const PREFACE_LEN: usize = 24;

/// How long a cut connection may take to send what ends its calls.
const FLUSH_LIMIT: Duration = Duration::from_millis(200);

/// Bytes a client may send ahead on one stream, and on all of a connection: room for two chunks of an upload in
/// flight, whatever the round trip.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;

/// Bytes of a stream that wait here for a client whose window is open and who does not read.
const SEND_BUFFER: usize = 64 << 10;

/// How long a connection of HTTP/1.1 may wait between its requests, and be at the head of one.
const HEAD_LIMIT: Duration = Duration::from_secs(75);

/// Least room for a head that hyper takes.
const LEAST_HEAD_BYTES: usize = 8192;

pub(super) type ConnectionBuilder = auto::Builder<TokioExecutor>;

/// hyper's HTTP with every limit set: a `None` of hyper's means no limit at all.
pub(super) fn builder(config: &TransportConfig) -> ConnectionBuilder {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size((config.max_header_bytes as usize).max(LEAST_HEAD_BYTES));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_concurrent_streams)
        .max_local_error_reset_streams(config.max_local_error_resets as usize)
        .max_pending_accept_reset_streams(config.max_pending_resets as usize)
        .max_header_list_size(config.max_header_bytes)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout);
    builder
}

/// Serve `stream` until the client closes it, a limit strikes, it comes of age, or the server ends.
pub(super) async fn serve<S, B>(
    stream: TcpStream,
    service: S,
    builder: ConnectionBuilder,
    config: TransportConfig,
    lifecycle: Lifecycle,
    activity: Arc<Activity>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let received = Arc::new(AtomicUsize::new(0));
    let io = TokioIo::new(CountedStream { stream, received: Arc::clone(&received) });
    let mut connection = pin!(builder.serve_connection(io, TowerToHyperService::new(service)));
    let mut preface = pin!(sleep(config.handshake_timeout));
    let mut age = pin!(sleep(jittered(config.max_connection_age)));
    // Armed when it comes of age.
    let mut grace = pin!(sleep(config.max_connection_age * 2));
    let mut drain = pin!(lifecycle.reached(Phase::Draining));
    let mut cut = pin!(lifecycle.reached(Phase::Cut));
    let mut leave = pin!(activity.asked_to_leave());
    let (mut greeted, mut aged, mut leaving) = (false, false, false);
    // Armed when it is asked to leave.
    let mut left = pin!(sleep(FLUSH_LIMIT));
    // A connection made while draining is not sent away: its calls learn from their status that the server ends.
    let mut draining = lifecycle.phase() >= Phase::Draining;

    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = preface.as_mut(), if !greeted => {
                if received.load(Ordering::Relaxed) < PREFACE_LEN {
                    tracing::debug!("connection closed: nothing of a request in time");
                    return;
                }
                greeted = true;
            }
            () = age.as_mut(), if !aged => {
                aged = true;
                grace.set(sleep(config.max_connection_age_grace));
                connection.as_mut().graceful_shutdown();
            }
            // There are too many connections, and no call runs on this one.
            () = leave.as_mut(), if !leaving => {
                leaving = true;
                left.set(sleep(FLUSH_LIMIT));
                connection.as_mut().graceful_shutdown();
            }
            () = left.as_mut(), if leaving => {
                if activity.idle_since().is_some() {
                    tracing::debug!("connection closed: it was idle, and there are too many");
                    return;
                }
                // A call came in between; it may end as any other does on a connection that goes away.
                left.set(sleep(FLUSH_LIMIT));
            }
            () = grace.as_mut(), if aged => {
                tracing::debug!("connection closed: its calls outlived the grace period");
                return;
            }
            () = drain.as_mut(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = cut.as_mut() => break,
        }
    }
    connection.as_mut().graceful_shutdown();
    if tokio::time::timeout(FLUSH_LIMIT, connection).await.is_err() {
        tracing::debug!("connection cut");
    }
}

/// ±10 %, so that connections made together do not come of age together (gRFC A9).
fn jittered(age: Duration) -> Duration {
    // RandomState is seeded by the operating system and differs with every call.
    let random = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
    age.mul_f64(0.9 + 0.2 * random)
}

/// Counts what the client has sent.
struct CountedStream {
    stream: TcpStream,
    received: Arc<AtomicUsize>,
}

impl AsyncRead for CountedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.received.fetch_add(buf.filled().len() - before, Ordering::Relaxed);
        result
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_differ_by_a_tenth_at_most() {
        let age = Duration::from_secs(1000);
        let ages: Vec<_> = (0..50).map(|_| jittered(age)).collect();
        assert!(ages.iter().all(|age| (900..=1100).contains(&age.as_secs())));
        assert!(ages.iter().any(|other| *other != ages[0]));
    }
}
