use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tonic::Code;
use tonic_types::StatusExt;

use super::*;
use crate::admission::testing::{metric, recorded};

const GENERATE: &str = "/polydelta.v1.GenerationService/GenerateStream";
const WATCH: &str = "/polydelta.v1.AdapterService/WatchAdapters";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// What a handler does, or its body.
#[derive(Clone, Copy)]
enum Act {
    Say(&'static str),
    Panic,
    Hang,
    /// Trailers of success.
    Done,
    /// What tonic says of a message that it may not send.
    Oversized,
}

/// A response body that follows a script; alive while `_alive` is counted.
struct Script {
    acts: VecDeque<Act>,
    _alive: Alive,
}

#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

struct Alive(Count);

impl Count {
    fn one(&self) -> Alive {
        self.0.fetch_add(1, Ordering::SeqCst);
        Alive(self.clone())
    }

    fn now(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl http_body::Body for Script {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.acts.pop_front() {
            None => Poll::Ready(None),
            Some(Act::Say(text)) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(text.as_bytes()))))),
            Some(Act::Panic) => panic!("a defect in the body"),
            Some(Act::Hang) => {
                self.acts.push_front(Act::Hang);
                Poll::Pending
            }
            Some(Act::Done) => Poll::Ready(Some(Ok(Frame::trailers(trailers(&Status::ok("")))))),
            Some(Act::Oversized) => {
                let status = Status::out_of_range("Error, encoded message length too large: found 9 bytes");
                Poll::Ready(Some(Ok(Frame::trailers(trailers(&status)))))
            }
        }
    }
}

/// The handler of every method: acts itself, then its body acts.
#[derive(Clone)]
struct Handler {
    head: Act,
    body: &'static [Act],
    alive: Count,
}

impl Service<Request<Body>> for Handler {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { head, body, alive } = self.clone();
        let (context, held) = (request.extensions().get::<CallContext>().cloned(), alive.one());
        if matches!(head, Act::Panic) {
            panic!("a defect before the first await");
        }
        Box::pin(async move {
            let _held = held;
            match head {
                Act::Hang => std::future::pending().await,
                Act::Done => panic!("a defect behind the first await"),
                Act::Say(_) | Act::Panic | Act::Oversized => {}
            }
            let script = Script { acts: body.iter().copied().collect(), _alive: alive.one() };
            let mut response = Response::new(Body::new(script));
            let id = context.unwrap().request_id;
            response.headers_mut().insert("seen-request-id", id.parse().unwrap());
            Ok(response)
        })
    }
}

/// As `serve` has it where no flag says otherwise.
fn transport() -> TransportConfig {
    use clap::Parser;
    let args = crate::config::Args::try_parse_from(["polydelta", "serve", "--model", "/", "--store", "/"]).unwrap();
    let crate::config::Command::Serve(args) = args.command else { panic!("{args:?}") };
    crate::config::ServeConfig::resolve(&args, &crate::config::Environment::default()).unwrap().transport
}

fn address(last: u8) -> IpAddr {
    [127, 0, 0, last].into()
}

struct Server {
    lifecycle: Lifecycle,
    alive: Count,
    shared: CallShared,
    address: IpAddr,
    activity: Arc<Activity>,
}

impl Server {
    fn new() -> Self {
        Self::with(Metrics::disabled(), &transport())
    }

    fn with(metrics: Metrics, config: &TransportConfig) -> Self {
        let lifecycle = Lifecycle::new();
        let (identity, limits) = (ClientIdentity::default(), CallLimits::new(config));
        let shared = CallShared::new(lifecycle.clone(), identity, metrics, limits, config);
        let (alive, activity) = (Count::default(), Arc::new(Activity::new(ConnectionId(1))));
        Self { lifecycle, alive, shared, address: address(1), activity }
    }

    fn connected(&self) -> Connected {
        Connected { address: self.address, activity: Arc::clone(&self.activity) }
    }

    async fn call(&self, path: &str, headers: &[(&str, &str)], head: Act, body: &'static [Act]) -> Response<Body> {
        let handler = Handler { head, body, alive: self.alive.clone() };
        let mut service = CallService::new(handler, self.shared.clone(), self.connected());
        let mut request = Request::builder().uri(format!("http://host{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        service.call(request.body(Body::empty()).unwrap()).await.unwrap()
    }
}

async fn frame(body: &mut Body) -> Option<Frame<Bytes>> {
    std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut *body), cx)).await.map(Result::unwrap)
}

/// Everything a body says, and its status.
async fn read(response: Response<Body>) -> (String, Status) {
    let (parts, mut body) = response.into_parts();
    let (mut text, mut status) = (String::new(), Status::from_header_map(&parts.headers));
    while let Some(frame) = frame(&mut body).await {
        match frame.into_data() {
            Ok(data) => text += std::str::from_utf8(&data).unwrap(),
            Err(frame) => {
                assert!(status.is_none(), "one status ends a call");
                status = Status::from_header_map(frame.trailers_ref().unwrap());
            }
        }
    }
    (text, status.expect("a status"))
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("an ErrorInfo").reason
}

const SAY: Act = Act::Say("");

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_stream_that_has_begun() {
    let server = Server::new();
    let begun = tokio::time::Instant::now();
    let response = server.call(GENERATE, &[("grpc-timeout", "250m")], SAY, &[Act::Say("a"), Act::Hang]).await;
    let (mut parts, mut body) = response.into_parts();
    assert!(frame(&mut body).await.unwrap().is_data());
    assert_eq!((server.alive.now(), server.lifecycle.running()), (1, 1));
    let last = frame(&mut body).await.unwrap();
    let passed = begun.elapsed();
    assert!((250..260).contains(&passed.as_millis()), "{passed:?}");
    assert_eq!(server.alive.now(), 0, "the work behind the stream has ended with it");
    let status = Status::from_header_map(last.trailers_ref().unwrap()).unwrap();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert!(frame(&mut body).await.is_none());
    drop(body);
    assert_eq!(server.lifecycle.running(), 0);
    assert!(parts.headers.remove("x-request-id").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_call_that_has_not_answered() {
    let server = Server::new();
    let response = server.call(GENERATE, &[("grpc-timeout", "1S")], Act::Hang, &[]).await;
    assert_eq!(server.alive.now(), 0, "the handler is gone");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert_eq!(read(response).await.1.code(), Code::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_always_has_something_to_say_cannot_outrun_its_limits() {
    let server = Server::new();
    let endless = &[Act::Say("a"); 1000];
    let response = server.call(GENERATE, &[("grpc-timeout", "10m")], SAY, endless).await;
    let (parts, mut body) = response.into_parts();
    assert!(frame(&mut body).await.unwrap().is_data());
    tokio::time::advance(Duration::from_secs(1)).await;
    let (text, status) = read(Response::from_parts(parts, body)).await;
    assert_eq!((text.as_str(), status.code()), ("", Code::DeadlineExceeded));
    let response = server.call(GENERATE, &[], SAY, endless).await;
    server.lifecycle.cut();
    let (text, status) = read(response).await;
    assert_eq!((text.as_str(), status.code()), ("", Code::Unavailable));
}

#[tokio::test]
async fn a_response_above_the_limit_says_so_in_its_trailers() {
    let server = Server::new();
    let (_, status) = read(server.call(GENERATE, &[], SAY, &[Act::Oversized]).await).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
}

#[tokio::test(start_paused = true)]
async fn without_a_deadline_a_call_may_take_all_day() {
    let server = Server::new();
    for timeout in [None, Some(("grpc-timeout", "99999999H"))] {
        let response = server.call(GENERATE, timeout.as_slice(), SAY, &[Act::Hang]).await;
        let mut body = response.into_body();
        let day = tokio::time::timeout(Duration::from_secs(86_400), frame(&mut body)).await;
        assert!(day.is_err(), "it still runs");
    }
}

#[tokio::test]
async fn a_timeout_that_is_none_is_refused_before_the_handler() {
    let server = Server::new();
    for bad in ["10", "1s", "123456789S", "-1S", ""] {
        let response = server.call(GENERATE, &[("grpc-timeout", bad), ("x-request-id", "r")], Act::Panic, &[]).await;
        assert_eq!(response.headers()["x-request-id"], "r");
        let (_, status) = read(response).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_TIMEOUT"), "{bad:?}");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "grpc-timeout");
    }
}

#[tokio::test]
async fn a_panic_ends_its_call_with_internal_and_no_other() {
    let server = Server::new();
    let other = server.call(GENERATE, &[], SAY, &[Act::Say("a"), Act::Say("b"), Act::Done]).await;
    for head in [Act::Panic, Act::Done] {
        let (text, status) = read(server.call(GENERATE, &[], head, &[]).await).await;
        assert_eq!((text.as_str(), status.code()), ("", Code::Internal));
        assert!(!status.message().contains("defect"), "the client is not told: {}", status.message());
    }
    let (text, status) = read(server.call(GENERATE, &[], SAY, &[Act::Say("a"), Act::Panic]).await).await;
    assert_eq!((text.as_str(), status.code(), reason(&status).as_str()), ("a", Code::Internal, "INTERNAL"));
    let (text, status) = read(other).await;
    assert_eq!((text.as_str(), status.code()), ("ab", Code::Ok));
    assert_eq!((server.alive.now(), server.lifecycle.running()), (0, 0));
}

#[tokio::test]
async fn draining_refuses_new_calls_and_lets_running_ones_end() {
    let server = Server::new();
    let running = server.call(GENERATE, &[], SAY, &[Act::Say("a"), Act::Done]).await;
    server.lifecycle.drain();
    for path in [GENERATE, WATCH, "/polydelta.v1.GenerationService/Nothing"] {
        // Even where its timeout is nonsense: a client that retries elsewhere must not be told that it is wrong.
        let response = server.call(path, &[("grpc-timeout", "x")], Act::Panic, &[]).await;
        let (_, status) = read(response).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SERVER_DRAINING"), "{path}");
    }
    for path in [HEALTH, "/polydelta.v1.ServerService/GetStats"] {
        let (_, status) = read(server.call(path, &[], SAY, &[Act::Done]).await).await;
        assert_eq!(status.code(), Code::Ok, "a drain can be watched: {path}");
    }
    assert_eq!(server.lifecycle.running(), 1);
    let (text, status) = read(running).await;
    assert_eq!((text.as_str(), status.code()), ("a", Code::Ok));
    server.lifecycle.idle().await;
}

#[tokio::test]
async fn a_cut_ends_what_still_runs() {
    let server = Server::new();
    let response = server.call(GENERATE, &[], SAY, &[Act::Say("a"), Act::Hang]).await;
    let watch = server.call(WATCH, &[], SAY, &[Act::Hang]).await;
    assert_eq!(server.lifecycle.running(), 1, "no drain waits for a watcher");
    server.lifecycle.cut();
    for response in [response, watch] {
        let (text, status) = read(response).await;
        assert_eq!((text.as_str(), status.code()), ("", Code::Unavailable));
    }
    assert_eq!((server.alive.now(), server.lifecycle.running()), (0, 0));
}

#[tokio::test]
async fn calls_have_a_limit_in_all_and_for_each_peer() {
    let config = TransportConfig { max_calls: 3, max_calls_per_peer: 2, ..transport() };
    let mut server = Server::with(Metrics::disabled(), &config);
    let mut running = Vec::new();
    for last in [1, 1, 2] {
        server.address = address(last);
        running.push(server.call(WATCH, &[], SAY, &[Act::Hang]).await);
    }
    for last in [1, 3] {
        server.address = address(last);
        let (_, status) = read(server.call(HEALTH, &[], Act::Panic, &[]).await).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "TOO_MANY_CALLS"));
        assert!(status.metadata().contains_key("grpc-retry-pushback-ms"), "{status:?}");
    }
    assert_eq!(server.activity.idle_since(), None);
    running.clear();
    assert!(server.activity.idle_since().is_some());
    let (_, status) = read(server.call(HEALTH, &[], SAY, &[Act::Done]).await).await;
    assert_eq!(status.code(), Code::Ok);
}

#[tokio::test]
async fn the_request_id_is_the_clients_or_a_new_one_and_comes_back() {
    let server = Server::new();
    let id = async |headers: &[(&str, &str)]| {
        let response = server.call(GENERATE, headers, SAY, &[Act::Done]).await;
        let headers = response.headers();
        assert_eq!(headers["x-request-id"], headers["seen-request-id"], "the handler sees the same");
        headers["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(id(&[("x-request-id", "trace 7")]).await, "trace 7");
    let (first, second) = (id(&[]).await, id(&[("x-request-id", &"x".repeat(129))]).await);
    assert!(first.len() == 32 && second.len() == 32 && first != second);
}

#[tokio::test(start_paused = true)]
async fn every_call_is_counted_with_how_it_ended() {
    let (metrics, handle) = recorded();
    let server = Server::with(metrics, &transport());
    drop(server.call(GENERATE, &[], SAY, &[Act::Hang]).await);
    read(server.call(GENERATE, &[], SAY, &[Act::Done]).await).await;
    read(server.call(GENERATE, &[("grpc-timeout", "1m")], SAY, &[Act::Hang]).await).await;
    read(server.call(GENERATE, &[], SAY, &[Act::Panic]).await).await;
    read(server.call(GENERATE, &[], Act::Panic, &[]).await).await;
    read(server.call(GENERATE, &[("grpc-timeout", "x")], SAY, &[]).await).await;
    // A head that its client did not wait for.
    let waited = tokio::time::timeout(Duration::from_secs(1), server.call(GENERATE, &[], Act::Hang, &[])).await;
    assert!(waited.is_err());
    let handled = |code: &str| {
        let labels = ["grpc_method=\"GenerateStream\"", &format!("grpc_code=\"{code}\"")];
        metric(&handle, "grpc_server_handled_total", &labels)
    };
    let counted = ["Canceled", "OK", "DeadlineExceeded", "Internal", "InvalidArgument"].map(handled);
    assert_eq!(counted, [Some(2.0), Some(1.0), Some(1.0), Some(2.0), Some(1.0)]);
    let started = metric(&handle, "grpc_server_started_total", &["grpc_method=\"GenerateStream\""]);
    assert_eq!(started, Some(7.0));
}

#[tokio::test]
async fn what_is_logged_of_a_call_carries_its_id() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let writer = Arc::clone(&log);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .with_ansi(false)
        .with_writer(move || Log(Arc::clone(&writer)))
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = Server::new();
    // A place that another test logs from for the first time just now may have missed that somebody listens here.
    read(server.call(GENERATE, &[], Act::Panic, &[]).await).await;
    tracing::callsite::rebuild_interest_cache();
    for (id, head, body) in [("head-1", Act::Panic, &[][..]), ("head-2", Act::Done, &[]), ("body", SAY, &[Act::Panic])]
    {
        log.lock().unwrap().clear();
        read(server.call(GENERATE, &[("x-request-id", id)], head, body).await).await;
        let text = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| line.contains("a call panicked")).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert!(lines[0].contains(&format!("request_id=\"{id}\"")) && lines[0].contains("GenerateStream"), "{text}");
        assert!(lines[0].contains("a defect"), "the log is told: {text}");
    }
}

struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_status_whose_message_is_no_header_still_ends_the_call() {
    let trailers = trailers(&Status::internal("line\nbreak and \u{7f}"));
    assert_eq!(Status::from_header_map(&trailers).unwrap().code(), Code::Internal);
}
