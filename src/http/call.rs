//! What surrounds every call of HTTP, whichever route it is for: request id, refusal while draining, a place among the
//! running calls, panics, its record. It holds for the body of an answer as much as for its head.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body::{Frame, SizeHint};
use tower::Service;
use tracing::{Instrument, Span};

use super::error;
use super::observe::{CallRecord, Role, route_of};
use crate::config::TransportConfig;
use crate::telemetry::metrics::Metrics;
use crate::types::{ClientKey, ConnectionId, Problem, ToProblem};
use crate::wire::{
    self, ActiveCall, CallLimits, ClientIdentity, Connected, Guard, Interrupted, Lifecycle, Peer, Phase, RequestIds,
    RunningCall, Share,
};

/// The content type of streams of events.
pub(super) const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// Facts about a call that handlers find in the request's extensions.
#[derive(Clone)]
pub(super) struct CallContext {
    /// When its head arrived.
    pub(super) arrived: Instant,
    /// Who calls.
    pub(super) client: ClientKey,
    /// The connection the call came over.
    pub(super) connection: ConnectionId,
    /// From `x-request-id`, else made here; returned as `x-request-id`.
    pub(super) request_id: String,
    /// Where the call comes from.
    pub(super) peer: Peer,
    /// What its body may take.
    pub(super) body: BodyLimits,
}

/// What bodies of requests may take.
#[derive(Clone)]
pub(super) struct BodyLimits {
    pub(super) shared: CallLimits,
    /// How long one may take, apart from what its size is worth.
    pub(super) timeout: Duration,
    pub(super) max_bytes: usize,
}

/// What the calls of all connections share.
#[derive(Clone)]
pub(super) struct CallShared {
    lifecycle: Lifecycle,
    ids: RequestIds,
    identity: ClientIdentity,
    metrics: Metrics,
    body: BodyLimits,
}

impl CallShared {
    pub(super) fn new(
        lifecycle: Lifecycle,
        identity: ClientIdentity,
        metrics: Metrics,
        limits: CallLimits,
        config: &TransportConfig,
    ) -> Self {
        let body = BodyLimits { shared: limits, timeout: config.message_timeout, max_bytes: config.max_message_bytes };
        Self { lifecycle, ids: RequestIds::new(), identity, metrics, body }
    }
}

/// The outermost service of a connection.
#[derive(Clone)]
pub(crate) struct CallService<S> {
    inner: S,
    shared: CallShared,
    connected: Connected,
}

impl<S> CallService<S> {
    pub(super) fn new(inner: S, shared: CallShared, connected: Connected) -> Self {
        Self { inner, shared, connected }
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
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = CallFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> CallFuture {
        let CallShared { lifecycle, ids, identity, metrics, body } = &self.shared;
        let Connected { address, activity } = &self.connected;
        let (arrived, request_id, route) = (Instant::now(), ids.of(request.headers()), route_of(request.uri().path()));
        let mut record = CallRecord::start(metrics.clone(), route, arrived, &request_id);
        let active = activity.begin();
        // Entered before the phase is read: a drain either sees this call running or this call sees the drain.
        let running = (route.role == Role::Work).then(|| lifecycle.enter());
        if route.role != Role::Observe && lifecycle.phase() >= Phase::Draining {
            return refuse(Problem::draining(), &request_id, record);
        }
        let peer = Peer::from(*address);
        let place = match body.shared.calls.acquire(peer, 1) {
            Ok(place) => place,
            Err(exhausted) => {
                return refuse(exhausted.problem("TOO_MANY_CALLS", "too many calls"), &request_id, record);
            }
        };
        let hold = CallHold { _running: running, _active: active, _place: place };
        let client = identity.of(request.headers(), wire::of_peer(*address));
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(CallContext {
            arrived,
            client,
            connection: activity.connection(),
            request_id: request_id.clone(),
            peer,
            body: body.clone(),
        });

        let mut guard = Guard::new(None, lifecycle);
        let span = record.span().clone();
        let head = catch_unwind(AssertUnwindSafe(|| span.in_scope(|| self.inner.call(request))));
        let answer = async move {
            let outcome = match head {
                Ok(head) => guard.guard(head).await,
                Err(panic) => Err(Interrupted::panicked(panic.as_ref())),
            };
            let response = match outcome {
                Ok(Ok(response)) => response,
                Ok(Err(infallible)) => match infallible {},
                Err(interrupted) => error::of(&interrupted),
            };
            record.answered(response.status());
            let is_events = response.headers().get(header::CONTENT_TYPE) == Some(&EVENT_STREAM);
            let span = record.span().clone();
            let response = response.map(|body| {
                Body::new(CallBody { inner: Some(body), is_events, guard, span, _record: record, _hold: hold })
            });
            Ok(wire::stamp(response, &request_id))
        };
        Box::pin(answer.instrument(span))
    }
}

fn refuse(problem: Problem, request_id: &str, mut record: CallRecord) -> CallFuture {
    let response = error::of_problem(problem);
    record.answered(response.status());
    Box::pin(std::future::ready(Ok(wire::stamp(response, request_id))))
}

/// The body of an answer under the limits of its call. Once one strikes, the body it wraps is dropped, which ends the work
/// behind it; a stream of events says why, any other breaks off.
struct CallBody {
    inner: Option<Body>,
    is_events: bool,
    guard: Guard,
    span: Span,
    _record: CallRecord,
    _hold: CallHold,
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { inner: body, is_events, guard, span, .. } = &mut *self;
        let _entered = span.enter();
        let Some(inner) = body else { return Poll::Ready(None) };
        let interrupted = match guard.poll_frame(inner, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(frame)) => {
                if frame.is_none() {
                    *body = None;
                }
                return Poll::Ready(frame);
            }
            Poll::Ready(Err(interrupted)) => interrupted,
        };
        *body = None;
        Poll::Ready(Some(if *is_events {
            let event = format!("data: {}\n\n", error::document(interrupted.to_problem()));
            Ok(Frame::data(event.into()))
        } else {
            Err(axum::Error::new(interrupted))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

#[cfg(test)]
mod tests;
