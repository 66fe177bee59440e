//! `GET /metrics`, over HTTP/1.1 on a port of its own.
//!
//! Nothing here can be held or made to work by those who ask: there are few connections, each lives for seconds and
//! answers one request, and the page is rendered off the reactor, not more often than every [`RENDER_INTERVAL`], for all
//! who wait for it at once.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::telemetry::MetricsPage;
use crate::telemetry::metrics::Metrics;
use crate::wire::{Acceptor, Lifecycle, Listeners, Peer, Phase, Shares};

/// How long a client may take to send its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long a connection may live.
const CONNECTION_LIMIT: Duration = Duration::from_secs(15);
/// Bytes of a request's head; hyper allows no less.
const HEAD_BYTES: usize = 8192;
/// Time from one rendering to the next.
const RENDER_INTERVAL: Duration = Duration::from_millis(50);
/// Time from one upkeep to the next: without it histograms that nobody asks for grow.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
const LISTENER: &str = "metrics";
const TEXT_FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Serve `page` until the server has ended, on at most `max_connections` at a time, of which one address has at most
/// half.
pub(crate) async fn serve_metrics(
    listeners: Listeners,
    page: MetricsPage,
    max_connections: u32,
    lifecycle: Lifecycle,
    metrics: Metrics,
) {
    let max = u64::from(max_connections.max(1));
    let places = Shares::new(max, max.div_ceil(2));
    let mut acceptor = Acceptor::new(listeners, LISTENER);
    let page = Arc::new(SharedPage::new(page));
    let mut upkeep = tokio::time::interval(UPKEEP_INTERVAL);
    upkeep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut connections = JoinSet::new();
    let ended = lifecycle.reached(Phase::Cut);
    tokio::pin!(ended);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = acceptor.next() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = upkeep.tick() => {
                page.upkeep();
                continue;
            }
            () = ended.as_mut() => return,
        };
        match places.acquire(Peer::from(peer.ip()), 1) {
            Ok(place) => {
                let page = Arc::clone(&page);
                connections.spawn(async move {
                    answer(stream, page).await;
                    drop(place);
                });
            }
            Err(refused) => {
                metrics.record_connection_refused(LISTENER, refused.reason());
                tracing::debug!(%peer, reason = %refused, "connection refused");
            }
        }
    }
}

/// One request, one answer, the end.
async fn answer(stream: TcpStream, page: Arc<SharedPage>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let page = Arc::clone(&page);
        async move { Ok::<_, Infallible>(respond(&request, &page).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(REQUEST_LIMIT).keep_alive(false).max_buf_size(HEAD_BYTES);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "metrics connection ended"),
        Err(_) => tracing::debug!("metrics connection closed: it took too long"),
    }
}

async fn respond<B>(request: &Request<B>, page: &SharedPage) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, words: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(words.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET /metrics\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let Some(text) = page.rendered().await else {
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be rendered\n");
    };
    let mut response = Response::new(Full::new(text));
    response.headers_mut().insert(header::CONTENT_TYPE, TEXT_FORMAT);
    response
}

/// A page that many may ask for at once. Nobody gets one that was rendered before they asked.
struct SharedPage {
    page: MetricsPage,
    last: Mutex<Option<Rendered>>,
}

struct Rendered {
    began: Instant,
    text: Bytes,
}

impl SharedPage {
    fn new(page: MetricsPage) -> Self {
        Self { page, last: Mutex::new(None) }
    }

    fn upkeep(&self) {
        let page = self.page.clone();
        tokio::task::spawn_blocking(move || page.upkeep());
    }

    /// Those who ask while one is being rendered wait for the next, and share it.
    async fn rendered(&self) -> Option<Bytes> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(last) = &*last {
            if last.began > asked {
                return Some(last.text.clone());
            }
            tokio::time::sleep_until(last.began + RENDER_INTERVAL).await;
        }
        let (page, began) = (self.page.clone(), Instant::now());
        match tokio::task::spawn_blocking(move || Bytes::from(page.render())).await {
            Ok(text) => {
                *last = Some(Rendered { began, text: text.clone() });
                Some(text)
            }
            Err(error) => {
                tracing::error!(%error, "rendering metrics");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::recorded;

    fn page() -> (Metrics, SharedPage) {
        let (metrics, page) = recorded("tiny", 64).unwrap();
        (metrics, SharedPage::new(page))
    }

    async fn ask(page: &SharedPage, method: Method, path: &str) -> (StatusCode, String) {
        use http_body_util::BodyExt;
        let request = Request::builder().method(method).uri(path).body(()).unwrap();
        let response = respond(&request, page).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_page_is_at_its_path_and_nothing_else_is() {
        let (_, page) = page();
        let (status, text) = ask(&page, Method::GET, "/metrics?x=1").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("# TYPE vllm:num_requests_running gauge"), "{text}");
        assert_eq!(ask(&page, Method::GET, "/").await.0, StatusCode::NOT_FOUND);
        assert_eq!(ask(&page, Method::POST, "/metrics").await.0, StatusCode::METHOD_NOT_ALLOWED);
    }

    #[tokio::test(start_paused = true)]
    async fn many_share_a_rendering_and_nobody_gets_an_old_one() {
        let (metrics, page) = page();
        let began = Instant::now();
        page.rendered().await.unwrap();
        for count in 1..=3 {
            metrics.record_rejection("queue_full");
            let (first, second) = tokio::join!(page.rendered(), page.rendered());
            let line = format!("polydelta_queue_rejected_total{{reason=\"queue_full\"}} {count}");
            let text = String::from_utf8(first.clone().unwrap().to_vec()).unwrap();
            assert!(text.contains(&line), "{text}");
            assert_eq!(first, second);
        }
        // Both of a pair ask at the same moment; the second shares the first one's.
        assert_eq!(began.elapsed(), RENDER_INTERVAL * 3);
    }
}
