//! What surrounds every call, whichever service it is for: request id, refusal while draining, deadline, panics.
//!
//! It holds for the response body as much as for the head, so a stream that a client reads for a minute is under its
//! deadline for that minute, and a panic in it ends this call and no other.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::Service;
use tracing::{Instrument, Span};

use super::body::{Arrival, HeldBytes, MessageLimits, RequestBody};
use super::deadline::deadline;
use super::observe::{CallRecord, Role, method_of};
use super::status;
use crate::config::TransportConfig;
use crate::telemetry::metrics::Metrics;
use crate::types::{ClientKey, ConnectionId, Problem};
use crate::wire::{
    self, ActiveCall, Activity, CallLimits, ClientIdentity, Connected, Guard, Interrupted, Lifecycle, Peer, Phase,
    RequestIds, RunningCall, Share, Shares, Turn,
};

/// Facts about a call that handlers find in the request's extensions.
#[derive(Clone, Debug)]
pub(super) struct CallContext {
    /// When its headers arrived.
    pub arrived: Instant,
    /// When it ends with DEADLINE_EXCEEDED.
    pub deadline: Option<Instant>,
    /// Who calls.
    pub client: ClientKey,
    /// The connection the call came over.
    pub connection: ConnectionId,
    /// From `x-request-id`, else made here; returned as `x-request-id`.
    pub request_id: String,
    /// Where the call comes from.
    pub peer: Peer,
}

impl CallContext {
    /// Who calls; a call that did not come through a [`CallService`] came from nowhere.
    pub(super) fn peer_of(extensions: &http::Extensions) -> Peer {
        let unspecified = || Peer::from(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        extensions.get::<Self>().map_or_else(unspecified, |context| context.peer)
    }
}

/// What the calls of all connections share.
#[derive(Clone)]
pub(super) struct CallShared {
    lifecycle: Lifecycle,
    ids: RequestIds,
    identity: ClientIdentity,
    metrics: Metrics,
    calls: Shares,
    messages: MessageLimits,
}

impl CallShared {
    pub(super) fn new(
        lifecycle: Lifecycle,
        identity: ClientIdentity,
        metrics: Metrics,
        limits: CallLimits,
        config: &TransportConfig,
    ) -> Self {
        let CallLimits { calls, bytes, turns } = limits;
        let messages =
            MessageLimits { bytes, timeout: config.message_timeout, max_bytes: config.max_message_bytes, turns };
        Self { lifecycle, ids: RequestIds::new(), identity, metrics, calls, messages }
    }
}

/// Who makes a call; handlers that are called without a connection are local.
pub(super) fn client_of<T>(request: &tonic::Request<T>) -> ClientKey {
    request.extensions().get::<CallContext>().map_or(ClientKey::LOCAL, |context| context.client)
}

/// The outermost service of a connection.
#[derive(Clone)]
pub(crate) struct CallService<S> {
    inner: S,
    shared: CallShared,
    peer: Peer,
    /// Who is at the other end of the connection, where no header says otherwise.
    client: ClientKey,
    activity: Arc<Activity>,
}

impl<S> CallService<S> {
    /// The service of a connection.
    pub(super) fn new(inner: S, shared: CallShared, connected: Connected) -> Self {
        let Connected { address, activity } = connected;
        Self { inner, shared, peer: Peer::from(address), client: wire::of_peer(address), activity }
    }
}

/// RAII: what a call has from its first moment to its last.
struct CallHold {
    _running: Option<RunningCall>,
    _active: ActiveCall,
    _place: Share,
}

type CallFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S, B> Service<Request<B>> for CallService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = CallFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> CallFuture {
        let CallShared { lifecycle, ids, identity, metrics, calls, messages } = &self.shared;
        let arrived = Instant::now();
        let request_id = ids.of(request.headers());
        let method = method_of(request.uri().path());
        let mut record = CallRecord::start(metrics.clone(), method, arrived, &request_id);
        let active = self.activity.begin();
        // Entered before the phase is read: a drain either sees this call running or this call sees the drain.
        let running = (method.role == Role::Work).then(|| lifecycle.enter());
        if method.role != Role::Observe && lifecycle.phase() >= Phase::Draining {
            return refuse(status::of_problem(Problem::draining()), &request_id, record);
        }
        let place = match calls.acquire(self.peer, 1) {
            Ok(place) => place,
            Err(exhausted) => {
                return refuse(
                    status::of_problem(exhausted.problem("TOO_MANY_CALLS", "too many calls")),
                    &request_id,
                    record,
                );
            }
        };
        let deadline = match deadline(request.headers(), arrived) {
            Ok(deadline) => deadline,
            Err(bad) => return refuse(status::of(&bad), &request_id, record),
        };
        let hold = CallHold { _running: running, _active: active, _place: place };
        let (held, turn) = (HeldBytes::default(), Turn::default());
        let arrival = if method.streams_requests() { Arrival::OneByOne } else { Arrival::AtOnce };
        let peer = self.peer;
        let client = identity.of(request.headers(), self.client);
        let mut request = request
            .map(|body| Body::new(RequestBody::new(body, peer, messages.clone(), arrival, held.clone(), turn.clone())));
        request.extensions_mut().insert(CallContext {
            arrived,
            deadline,
            client,
            connection: self.activity.connection(),
            request_id: request_id.clone(),
            peer,
        });

        let mut guard = Guard::new(deadline, lifecycle);
        let span = record.span().clone();
        let head = catch_unwind(AssertUnwindSafe(|| span.in_scope(|| self.inner.call(request))));
        let answer = async move {
            let outcome = match head {
                Ok(head) => guard.guard(turn.during(head)).await,
                Err(panic) => Err(Interrupted::panicked(panic.as_ref())),
            };
            let mut response = match outcome {
                Ok(Ok(response)) => response,
                Ok(Err(infallible)) => match infallible {},
                Err(interrupted) => status::of(&interrupted).into_http(),
            };
            held.release();
            status::normalize(response.headers_mut());
            record.ended_by(response.headers());
            let span = record.span().clone();
            let response =
                response.map(|body| Body::new(CallBody { inner: Some(body), guard, record, span, _hold: hold }));
            Ok(wire::stamp(response, &request_id))
        };
        Box::pin(answer.instrument(span))
    }
}

fn refuse(status: Status, request_id: &str, mut record: CallRecord) -> CallFuture {
    record.ended(status.code());
    let response = wire::stamp(status.into_http(), request_id);
    Box::pin(std::future::ready(Ok(response)))
}

/// A response body under the limits of its call. Once a limit strikes, the body it wraps is dropped, which ends the
/// work behind it, and the status follows as trailers.
struct CallBody {
    inner: Option<Body>,
    guard: Guard,
    record: CallRecord,
    span: Span,
    _hold: CallHold,
}

/// What a body answers; `None` is its end.
type NextFrame = Option<Result<Frame<Bytes>, Status>>;

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<NextFrame> {
        let Self { inner: body, guard, record, span, _hold } = &mut *self;
        let _entered = span.enter();
        let Some(inner) = body else { return Poll::Ready(None) };
        let interrupted = match guard.poll_frame(inner, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(mut frame)) => {
                match &mut frame {
                    None => *body = None,
                    Some(Ok(frame)) => {
                        if let Some(trailers) = frame.trailers_mut() {
                            status::normalize(trailers);
                            record.ended_by(trailers);
                        }
                    }
                    Some(Err(status)) => record.ended(status.code()),
                }
                return Poll::Ready(frame);
            }
            Poll::Ready(Err(interrupted)) => interrupted,
        };
        *body = None;
        let status = status::of(&interrupted);
        record.ended(status.code());
        Poll::Ready(Some(Ok(Frame::trailers(trailers(&status)))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // Only a message or detail that is no header value gets here; the code alone always is.
        trailers.clear();
        trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    trailers
}

#[cfg(test)]
mod tests;
