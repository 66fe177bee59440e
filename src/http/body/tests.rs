use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::Frame;
use tokio::sync::mpsc;

use super::*;
use crate::wire::{CallLimits, DecodingTurns, Shares};

const TIMEOUT: Duration = Duration::from_secs(30);

/// What a test sends, frame by frame.
struct Sent(mpsc::UnboundedReceiver<Vec<u8>>);

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data.into()))))
    }
}

fn peer() -> Peer {
    std::net::IpAddr::from(Ipv4Addr::LOCALHOST).into()
}

fn limits(bytes: u64, max_bytes: usize) -> BodyLimits {
    let (calls, bytes) = (Shares::new(9, 9), Shares::new(bytes, bytes));
    BodyLimits { shared: CallLimits { calls, bytes, turns: DecodingTurns::new(1) }, timeout: TIMEOUT, max_bytes }
}

/// Bytes of the budget that can still be had.
fn free(limits: &BodyLimits, max: u64) -> u64 {
    (0..=max).rev().find(|amount| limits.shared.bytes.acquire(peer(), *amount).is_ok()).unwrap()
}

fn streamed() -> (mpsc::UnboundedSender<Vec<u8>>, Body) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Body::new(Sent(receiver)))
}

#[tokio::test]
async fn a_body_takes_what_it_declares_and_gives_it_back() {
    let limits = limits(1000, 600);
    let (bytes, held) = read(Body::from(vec![7; 600]), peer(), &limits).await.unwrap();
    assert_eq!((bytes.len(), free(&limits, 1000)), (600, 400));
    assert!(matches!(read(Body::from(vec![7; 401]), peer(), &limits).await, Err(Refused::NoRoom(_))));
    drop(held);
    assert_eq!(free(&limits, 1000), 1000);
    assert!(matches!(read(Body::from(vec![7; 601]), peer(), &limits).await, Err(Refused::TooLarge { max: 600 })));
    assert_eq!(free(&limits, 1000), 1000);
}

#[tokio::test]
async fn a_body_that_declares_nothing_is_held_to_the_same_limits_as_it_comes() {
    let limits = limits(PIECE + 99, 1 << 20);
    let (sender, body) = streamed();
    sender.send(vec![1; PIECE as usize]).unwrap();
    sender.send(vec![1; 1]).unwrap();
    drop(sender);
    assert!(matches!(read(body, peer(), &limits).await, Err(Refused::NoRoom(_))), "a second piece");
    let (sender, body) = streamed();
    sender.send(vec![1; (1 << 20) + 1]).unwrap();
    assert!(matches!(read(body, peer(), &limits).await, Err(Refused::TooLarge { .. })));
    assert_eq!(free(&limits, PIECE + 99), PIECE + 99);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_drips_ends_and_one_that_makes_progress_does_not() {
    let limits = limits(16 << 20, 8 << 20);
    let (sender, body) = streamed();
    let reading = tokio::spawn(async move { read(body, peer(), &limits).await.map(|(bytes, _)| bytes.len()) });
    for _ in 0..60 {
        sender.send(vec![0; 2 * BYTES_PER_SECOND as usize]).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(!reading.is_finished());
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(matches!(reading.await.unwrap(), Err(Refused::TooSlow { .. })));
}

#[test]
fn json_is_told_by_its_content_type_alone() {
    let with = |kind: &'static str| HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
    assert!(is_json(&with("application/json")) && is_json(&with("Application/JSON; charset=utf-8")));
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonl", ""] {
        assert!(!is_json(&with(kind)), "{kind}");
    }
    assert!(!is_json(&HeaderMap::new()));
}
