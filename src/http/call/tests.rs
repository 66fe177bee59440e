use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use http::StatusCode;
use http_body_util::BodyExt;

use super::*;
use crate::admission::testing::{metric, recorded};
use crate::wire::{Activity, DecodingTurns, Shares};

/// A body that says something, and then what it is told to do.
struct Then {
    said: bool,
    panics: bool,
}

impl http_body::Body for Then {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !std::mem::replace(&mut self.said, true) {
            return Poll::Ready(Some(Ok(Frame::data("data: 1\n\n".into()))));
        }
        assert!(!self.panics, "a body of the test");
        Poll::Pending
    }
}

fn events(panics: bool) -> Response<Body> {
    let mut response = Response::new(Body::new(Then { said: false, panics }));
    response.headers_mut().insert(header::CONTENT_TYPE, EVENT_STREAM);
    response
}

async fn panics() -> StatusCode {
    panic!("a handler of the test")
}

struct Server {
    shared: CallShared,
    connected: Connected,
    handle: metrics_exporter_prometheus::PrometheusHandle,
}

impl Server {
    fn new(max_calls: u64) -> Self {
        let (metrics, handle) = recorded();
        let (calls, bytes) = (Shares::new(max_calls, max_calls), Shares::new(9, 9));
        let limits = CallLimits { calls, bytes, turns: DecodingTurns::new(1) };
        let shared = CallShared {
            lifecycle: Lifecycle::new(),
            ids: RequestIds::new(),
            identity: ClientIdentity::default(),
            metrics,
            body: BodyLimits { shared: limits, timeout: Duration::from_secs(1), max_bytes: 9 },
        };
        let activity = Arc::new(Activity::new(ConnectionId(1)));
        Self { shared, connected: Connected { address: IpAddr::from([127, 0, 0, 1]), activity }, handle }
    }

    async fn get(&self, path: &str) -> Response<Body> {
        let router = Router::new()
            .route("/health", get(|| async { StatusCode::OK }))
            .route("/tokenize", get(panics))
            .route("/v1/completions", get(|| async { events(false) }))
            .route("/v1/chat/completions", get(|| async { events(true) }));
        let mut service = CallService::new(router, self.shared.clone(), self.connected.clone());
        service.call(Request::builder().uri(path).body(Body::empty()).unwrap()).await.unwrap()
    }

    fn count(&self, route: &str, status: &str) -> Option<f64> {
        metric(&self.handle, "polydelta_http_requests_total", &[&format!("\"{route}\""), &format!("\"{status}\"")])
    }
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn a_panic_ends_its_call_and_no_other_and_says_nothing_of_itself() {
    let server = Server::new(9);
    let response = server.get("/tokenize").await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(response.headers().contains_key("x-request-id"));
    let said = text(response).await;
    assert!(said.contains("\"internal\"") && !said.contains("of the test"), "{said}");
    let said = text(server.get("/v1/chat/completions").await).await;
    assert!(said.starts_with("data: 1\n\ndata: {\"error\":") && !said.contains("of the test"), "{said}");
    assert_eq!(server.get("/health").await.status(), StatusCode::OK);
    assert_eq!(server.count("/tokenize", "500"), Some(1.0));
    assert_eq!(server.shared.lifecycle.running(), 0);
}

#[tokio::test]
async fn a_drain_refuses_work_and_lets_itself_be_watched() {
    let server = Server::new(9);
    let running = server.get("/v1/completions").await;
    assert_eq!(server.shared.lifecycle.running(), 1);
    server.shared.lifecycle.drain();
    assert_eq!(server.get("/tokenize").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(server.get("/health").await.status(), StatusCode::OK);
    server.shared.lifecycle.cut();
    let said = text(running).await;
    assert!(said.contains("server_draining"), "{said}");
    assert_eq!(server.shared.lifecycle.running(), 0);
    assert_eq!(server.count("/v1/completions", "200"), Some(1.0));
}

#[tokio::test]
async fn a_call_has_its_place_until_its_body_has_ended() {
    let server = Server::new(1);
    let first = server.get("/v1/completions").await;
    let refused = server.get("/health").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
    assert!(server.connected.activity.idle_since().is_none());
    drop(first);
    assert_eq!(server.get("/health").await.status(), StatusCode::OK);
    assert!(server.connected.activity.idle_since().is_some());
}
