//! Bodies of JSON, in and out. One that comes takes its bytes from a budget that all connections share, has to arrive in
//! time, and is taken apart by turns off the reactor where it is large.

use std::future::poll_fn;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::time::{Duration, Instant, timeout_at};

use super::call::{BodyLimits, CallContext};
use super::fields::Fields;
use super::refused::Refused;
use crate::admission::off_reactor;
use crate::wire::{Peer, SMALL, Share};

/// Every so many bytes of a body are worth a second more: a slow client that makes progress is left alone.
const BYTES_PER_SECOND: u64 = 32 << 10;

/// A body of undeclared length takes so much of the budget at a time.
const PIECE: u64 = 64 << 10;

/// A request that has come.
pub(super) struct Received<T> {
    pub(super) context: CallContext,
    /// What it asks.
    pub(super) asked: T,
    /// What it takes of the budget; held until there is an answer.
    pub(super) _held: Vec<Share>,
}

/// Read a request; `understand` makes of its fields what it asks.
///
/// # Errors
/// It is not JSON by its content type, too long or too slow, there is no room for it now, or it is not understood.
pub(super) async fn receive<T: Send + 'static>(
    request: Request<Body>,
    understand: impl FnOnce(Fields) -> Result<T, Refused> + Send + 'static,
) -> Result<Received<T>, Refused> {
    let (mut parts, body) = request.into_parts();
    let context = parts.extensions.remove::<CallContext>().ok_or(Refused::NoCall)?;
    if !is_json(&parts.headers) {
        return Err(Refused::ContentType);
    }
    let (bytes, held) = read(body, context.peer, &context.body).await?;
    let is_small = bytes.len() as u64 <= SMALL;
    let parse = move || Fields::parse(bytes).and_then(understand);
    let asked = if is_small {
        parse()?
    } else {
        let mut turns = context.body.shared.turns.wait();
        let turn = poll_fn(|cx| turns.poll_acquire(cx)).await;
        off_reactor(move || {
            let _turn = turn;
            parse()
        })
        .await??
    };
    Ok(Received { context, asked, _held: held })
}

/// `application/json`, whatever its parameters are.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

async fn read(mut body: Body, peer: Peer, limits: &BodyLimits) -> Result<(Bytes, Vec<Share>), Refused> {
    let BodyLimits { shared, timeout, max_bytes: max } = limits;
    let take = |bytes: u64| shared.bytes.acquire(peer, bytes).map_err(Refused::NoRoom);
    let declared = body.size_hint().lower();
    if declared > *max as u64 {
        return Err(Refused::TooLarge { max: *max });
    }
    let (mut taken, mut held) = (declared, vec![take(declared)?]);
    let (began, mut whole) = (Instant::now(), Vec::new());
    loop {
        let limit = *timeout + Duration::from_secs(whole.len() as u64 / BYTES_PER_SECOND);
        let late = |_| Refused::TooSlow { limit, received: whole.len() };
        let Some(frame) = timeout_at(began + limit, body.frame()).await.map_err(late)? else { break };
        let frame = frame.map_err(|error| Refused::BrokenOff { reason: error.to_string() })?;
        let Ok(data) = frame.into_data() else { continue };
        let bytes = whole.len() + data.len();
        if bytes > *max {
            return Err(Refused::TooLarge { max: *max });
        }
        if bytes as u64 > taken {
            let piece = PIECE.max(bytes as u64 - taken);
            held.push(take(piece)?);
            taken += piece;
        }
        whole.extend_from_slice(&data);
    }
    Ok((whole.into(), held))
}

/// An answer that is one document.
pub(super) fn json_response(document: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(document.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests;
