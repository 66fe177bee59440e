//! Every setting of the transport, each by what happens to a client that breaks it, and that one which keeps to it is
//! left alone.

use std::net::Ipv4Addr;
use std::time::Duration;

use http_body_util::BodyExt;
use polydelta::config::TransportConfig;
use polydelta::grpc::pb;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Request};

use super::clock::Clock;
use super::fakes::{End, FakeServer, Plan};
use super::files::{AdapterFiles, CONFIG, WEIGHTS, chunk, committed, header_frame};
use super::harness::{Options, field, prompt, refusal, transport, within};
use super::plain::Plain;
use super::raw::{
    ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, Frame, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS,
    MAX_HEADER_LIST_SIZE, NO_ERROR, PING, PREFACE, REFUSED_STREAM, RST_STREAM, Raw, frame,
};

const GENERATE: &str = "/polydelta.v1.GenerationService/Generate";
const STREAM: &str = "/polydelta.v1.GenerationService/GenerateStream";

async fn server(transport: TransportConfig) -> FakeServer {
    FakeServer::with(Options { transport, ..Options::default() }).await
}

// --- before the preface -----------------------------------------------------------------------------------------

#[tokio::test]
async fn a_connection_without_a_preface_is_closed_and_one_with_it_stays() {
    let clock = Clock::stop();
    let server = server(transport()).await;
    let (mut greeted, _) = Raw::open(server.address).await;
    assert!(greeted.answers().await);
    let mut silent = Raw::connect(server.address).await;
    let mut half = Raw::connect(server.address).await;
    half.send(&PREFACE[..10]).await;
    clock.advance(transport().handshake_timeout).await;
    assert_eq!(silent.rest().await, []);
    assert_eq!(half.rest().await, []);
    assert!(greeted.answers().await);
}

#[tokio::test]
async fn what_is_no_http_is_closed_at_once() {
    let server = server(transport()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"\x16\x03\x01 as a TLS client begins, more or less").await.unwrap();
    let mut said = String::new();
    within(stream.read_to_string(&mut said)).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 400 Bad Request"), "{said}");
}

#[tokio::test]
async fn a_server_as_the_command_line_makes_it_announces_its_limits() {
    let server = server(transport()).await;
    let (_, settings) = Raw::open(server.address).await;
    assert_eq!(settings.setting(MAX_CONCURRENT_STREAMS), Some(256));
    assert_eq!(settings.setting(MAX_HEADER_LIST_SIZE), Some(16 * 1024));
}

// --- streams and headers ----------------------------------------------------------------------------------------

#[tokio::test]
async fn a_stream_above_the_limit_is_refused_and_the_others_go_on() {
    let server = server(TransportConfig { max_concurrent_streams: 3, ..transport() }).await;
    let (mut raw, settings) = Raw::open(server.address).await;
    assert_eq!(settings.setting(MAX_CONCURRENT_STREAMS), Some(3));
    for stream in [1, 3, 5, 7] {
        raw.send(&frame::call(stream, GENERATE)).await;
    }
    let refused = raw.until(RST_STREAM).await;
    assert_eq!((refused.stream, refused.error_code()), (7, REFUSED_STREAM));
    // A call that ends makes room for another.
    raw.send(&frame::message(1, &prompt("x"))).await;
    while !raw.next().await.unwrap().ends_stream() {}
    raw.send(&[frame::call(9, GENERATE), frame::message(9, &prompt("x"))].concat()).await;
    loop {
        let frame = raw.next().await.unwrap();
        assert_ne!(frame.kind, RST_STREAM, "{frame:?}");
        if frame.stream == 9 && frame.ends_stream() {
            break;
        }
    }
}

#[tokio::test]
async fn headers_above_the_limit_are_refused_and_the_connection_stays() {
    let server = server(TransportConfig { max_header_bytes: 4096, ..transport() }).await;
    let (_, settings) = Raw::open(server.address).await;
    assert_eq!(settings.setting(MAX_HEADER_LIST_SIZE), Some(4096));
    let (mut raw, _) = Raw::open(server.address).await;
    let extra = "y".repeat(6000);
    raw.send(&frame::call_with(1, GENERATE, &[("x-extra", &extra)])).await;
    // Answered with 431, Request Header Fields Too Large.
    let answer = raw.until(HEADERS).await;
    assert!(answer.ends_stream(), "{answer:?}");
    // `:status` is field 8 of the static table; its value is three digits in Huffman's code.
    assert_eq!(answer.payload, [0x48, 0x83, 0x69, 0x90, 0xff], "431");
    assert!(raw.answers().await);
    assert!(server.engine.submitted().is_empty());
    // Half of it is taken.
    let mut request = Request::new(prompt("x"));
    request.metadata_mut().insert("x-extra", extra[..3000].parse().unwrap());
    server.generation().await.generate(request).await.unwrap();
}

// --- messages ---------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_message_above_the_limit_is_refused_before_it_is_read() {
    let server = server(TransportConfig { max_message_bytes: 2048, ..transport() }).await;
    let mut client = server.generation().await;
    let status = client.generate(prompt(&"x".repeat(3000))).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".into()));
    client.generate(prompt(&"x".repeat(1000))).await.unwrap();

    let files = AdapterFiles::opaque("{}", &"w".repeat(3000));
    let whole = vec![header_frame(files.header("a")), chunk(WEIGHTS, 0, &files.weights)];
    let status = server.send(whole).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".into()));
}

#[tokio::test]
async fn an_answer_above_the_limit_is_an_error_and_not_a_broken_connection() {
    let server = server(TransportConfig { max_message_bytes: 2048, ..transport() }).await;
    server.engine.plan(|_| Plan::text(&"x".repeat(3000)));
    let mut client = server.generation().await;
    let status = client.generate(prompt("x")).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".into()));
    server.engine.plan(|_| Plan::text("x"));
    client.generate(prompt("x")).await.unwrap();
}

#[tokio::test]
async fn a_compressed_message_is_not_taken() {
    let server = server(transport()).await;
    let message = prompt("x").encode_to_vec();
    let mut body = vec![1];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    let body = tonic::body::Body::new(http_body_util::Full::new(body.into()));
    let request = http::Request::post(format!("http://{}{GENERATE}", server.address))
        .header("content-type", "application/grpc")
        .header("grpc-encoding", "gzip")
        .body(body)
        .unwrap();
    let response = Plain::connect(server.address).await.send(request).await.unwrap();
    let (head, body) = response.into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned();
    let status = head.headers.get("grpc-status").or(trailers.as_ref().and_then(|all| all.get("grpc-status")));
    assert_eq!(status.unwrap(), "12", "UNIMPLEMENTED");
    assert!(server.engine.submitted().is_empty());
}

// --- silence ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_closed() {
    let clock = Clock::stop();
    let server = server(transport()).await;
    let (mut raw, _) = Raw::open(server.address).await;
    assert!(raw.answers().await);
    clock.advance(transport().keepalive_interval).await;
    raw.until(PING).await;
    clock.advance(transport().keepalive_timeout).await;
    let rest = raw.rest().await;
    assert!(rest.iter().all(|frame| frame.kind == GOAWAY), "{rest:?}");
}

#[tokio::test]
async fn a_client_that_answers_pings_stays() {
    let clock = Clock::stop();
    let server = server(transport()).await;
    let (mut raw, _) = Raw::open(server.address).await;
    assert!(raw.answers().await);
    for _ in 0..3 {
        clock.advance(transport().keepalive_interval).await;
        let ping = raw.until(PING).await;
        raw.pong(&ping).await;
        assert!(raw.answers().await);
        clock.advance(transport().keepalive_timeout).await;
        assert!(raw.answers().await);
    }
}

#[tokio::test]
async fn headers_without_an_end_do_not_outlive_the_keepalive() {
    let clock = Clock::stop();
    let server = server(transport()).await;
    let (mut raw, _) = Raw::open(server.address).await;
    assert!(raw.answers().await);
    raw.send(&frame::unfinished_call(1, GENERATE)).await;
    clock.advance(transport().keepalive_interval).await;
    raw.until(PING).await;
    clock.advance(transport().keepalive_timeout).await;
    raw.rest().await;
}

/// The default limits, without pings: they would come before what the test waits for.
fn without_pings() -> TransportConfig {
    TransportConfig { keepalive_interval: Duration::from_secs(86_400), ..transport() }
}

#[tokio::test]
async fn an_upload_that_sends_nothing_ends_and_its_bytes_are_kept_for_a_resumption() {
    let mut clock = Clock::stop();
    let server = server(without_pings()).await;
    let files = AdapterFiles::opaque("{}", &"w".repeat(3000));
    let header = pb::UploadHeader { upload_id: "slow".into(), ..files.header("a") };
    let begin = files.frames(header.clone()).into_iter().take(2);
    // A stream that never ends.
    let frames = tokio_stream::StreamExt::chain(tokio_stream::iter(begin), tokio_stream::pending());
    let mut client = server.adapters().await;
    let mut other = client.clone();
    let upload = client.upload_adapter(frames);
    tokio::pin!(upload);
    tokio::select! {
        ended = &mut upload => panic!("{ended:?}"),
        () = committed(&mut other, "slow", CONFIG, 2) => {}
    }
    let status = clock.run_until(upload).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Aborted, "UPLOAD_IDLE".into()));
    let mut rest = files.frames(header);
    rest.remove(1);
    server.send(rest).await.unwrap();
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_keep_its_place() {
    let mut clock = Clock::stop();
    let server = server(without_pings()).await;
    server.engine.plan(|_| Plan::text(&"x".repeat(64)).then(End::Hang));
    // No byte of a body may be sent to it.
    let (mut raw, _) = Raw::open_with(server.address, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    raw.send(&[frame::call(1, STREAM), frame::message(1, &prompt("x"))].concat()).await;
    within(server.engine.hanging(1)).await;
    clock.run_until(server.engine.hanging(0)).await;
    assert_eq!(server.engine.aborted(), 1);
    assert!(raw.answers().await, "the connection is not to blame");
    assert_eq!(server.gate.free_places(), 64);
}

// --- age --------------------------------------------------------------------------------------------------------

/// A server on a stopped clock, a connection that has come of age, and a call on it that hangs in the engine.
async fn aged(clock: &Clock) -> (FakeServer, Raw) {
    let server = server(without_pings()).await;
    server.engine.plan(|_| Plan::text("begin").then(End::Hang));
    let (mut raw, _) = Raw::open(server.address).await;
    raw.send(&[frame::call(1, STREAM), frame::message(1, &prompt("x"))].concat()).await;
    within(server.engine.hanging(1)).await;
    assert!(raw.answers().await);
    // Ages differ by a tenth.
    clock.advance(transport().max_connection_age.mul_f64(1.1)).await;
    let (_, code, _) = raw.until(GOAWAY).await.go_away();
    assert_eq!(code, NO_ERROR);
    // It asks what is still on its way before it says which call was the last.
    let ping = raw.until(PING).await;
    raw.pong(&ping).await;
    (server, raw)
}

#[tokio::test]
async fn an_old_connection_is_sent_away_and_its_call_may_finish() {
    let clock = Clock::stop();
    let (server, mut raw) = aged(&clock).await;
    assert!(raw.answers().await, "the call still runs");
    server.engine.release();
    let rest = raw.rest().await;
    assert!(rest.iter().any(|frame| frame.stream == 1 && frame.ends_stream()), "{rest:?}");
}

#[tokio::test]
async fn a_call_that_outlives_the_grace_period_is_cut() {
    let clock = Clock::stop();
    let (server, mut raw) = aged(&clock).await;
    clock.advance(transport().max_connection_age_grace).await;
    let rest = raw.rest().await;
    assert!(!rest.iter().any(Frame::ends_stream), "{rest:?}");
    within(server.engine.hanging(0)).await;
    assert_eq!(server.engine.aborted(), 1, "with its connection, its request ends");
}

#[tokio::test]
async fn an_old_connection_without_calls_is_closed() {
    let clock = Clock::stop();
    let server = server(without_pings()).await;
    let (mut raw, _) = Raw::open(server.address).await;
    assert!(raw.answers().await);
    clock.advance(transport().max_connection_age.mul_f64(1.1)).await;
    raw.until(GOAWAY).await;
    let ping = raw.until(PING).await;
    raw.pong(&ping).await;
    raw.rest().await;
}

// --- how many connections ---------------------------------------------------------------------------------------

#[tokio::test]
async fn connections_above_the_limit_are_closed_at_once() {
    let server = server(TransportConfig { max_connections: 2, ..transport() }).await;
    let (mut first, _) = Raw::open(server.address).await;
    let (mut second, _) = Raw::open_from(Ipv4Addr::new(127, 0, 0, 2), server.address).await;
    let mut third = Raw::connect_from(Ipv4Addr::new(127, 0, 0, 3), server.address).await;
    third.closed().await;
    assert!(first.answers().await && second.answers().await);
}

#[tokio::test]
async fn one_address_cannot_take_every_connection() {
    let server = server(TransportConfig { max_connections_per_peer: 2, ..transport() }).await;
    let (mut first, _) = Raw::open(server.address).await;
    let (mut second, _) = Raw::open(server.address).await;
    Raw::connect(server.address).await.closed().await;
    let (mut other, _) = Raw::open_from(Ipv4Addr::new(127, 0, 0, 2), server.address).await;
    assert!(first.answers().await && second.answers().await && other.answers().await);
}

#[tokio::test]
async fn a_connection_that_ends_makes_room_for_another() {
    let server = server(TransportConfig { max_connections: 1, ..transport() }).await;
    let (mut first, _) = Raw::open(server.address).await;
    Raw::connect(server.address).await.closed().await;
    // A frame for a stream that was never opened is an error of the connection.
    first.send(&frame::reset(1)).await;
    first.rest().await;
    let (mut next, _) = Raw::open(server.address).await;
    assert!(next.answers().await);
}

// --- attacks ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let server = server(TransportConfig { max_pending_resets: 3, ..transport() }).await;
    let (mut raw, _) = Raw::open(server.address).await;
    let attack: Vec<u8> = (0..100)
        .map(|call| 2 * call + 1)
        .flat_map(|id| [frame::call(id, GENERATE), frame::reset(id)].concat())
        .collect();
    raw.send(&attack).await;
    let (last, code, words) = raw.until(GOAWAY).await.go_away();
    assert_eq!((code, words.as_str()), (ENHANCE_YOUR_CALM, "too_many_resets"));
    assert!(last <= 40, "{last}");
    raw.rest().await;
    assert!(server.engine.submitted().is_empty());
    server.generation().await.generate(prompt("others are served")).await.unwrap();
}

#[tokio::test]
async fn a_client_that_cancels_now_and_then_stays() {
    let server = server(transport()).await;
    let (mut raw, _) = Raw::open(server.address).await;
    for id in (0..200).map(|call| 2 * call + 1) {
        raw.send(&[frame::call(id, GENERATE), frame::reset(id)].concat()).await;
        assert!(raw.answers().await, "after {id}");
    }
}

#[tokio::test]
async fn errors_that_make_the_server_reset_streams_end_the_connection() {
    let server = server(TransportConfig { max_local_error_resets: 4, ..transport() }).await;
    let (mut raw, _) = Raw::open(server.address).await;
    let mut resets = 0;
    let goaway = 'attack: {
        for id in (0..50).map(|call| 2 * call + 1) {
            raw.send(&[frame::call(id, GENERATE), frame::window_update(id, 0x7fff_ffff)].concat()).await;
            loop {
                match raw.next().await.unwrap() {
                    goaway if goaway.kind == GOAWAY => break 'attack goaway,
                    reset if reset.kind == RST_STREAM => {
                        assert_eq!(reset.error_code(), FLOW_CONTROL_ERROR);
                        resets += 1;
                        break;
                    }
                    _ => {}
                }
            }
        }
        panic!("50 resets and no end")
    };
    let (_, code, words) = goaway.go_away();
    assert_eq!((code, words.as_str()), (ENHANCE_YOUR_CALM, "too_many_internal_resets"));
    assert_eq!(resets, 4);
    raw.rest().await;
    server.generation().await.generate(prompt("others are served")).await.unwrap();
}

// --- one call among others --------------------------------------------------------------------------------------

#[tokio::test]
async fn a_panic_ends_its_call_and_no_other() {
    let server = server(transport()).await;
    server.engine.plan(|_| Plan::text("begin").then(End::Hang));
    let mut client = server.generation().await;
    let mut other = client.generate_stream(prompt("x")).await.unwrap().into_inner();
    server.engine.plan(|_| Plan::text("").then(End::Panic));
    let status = client.generate(prompt("x")).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Internal, "INTERNAL".into()));
    assert!(!status.message().contains("defect"), "{status:?}");
    server.engine.release();
    while other.message().await.unwrap().is_some() {}

    let status = server.send(AdapterFiles::opaque("panic", "w").frames(AdapterFiles::opaque("panic", "w").header("a")));
    assert_eq!(refusal(&status.await.unwrap_err()), (Code::Internal, "INTERNAL".into()));
    server.upload("a", &AdapterFiles::opaque("{}", "w")).await;
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let server = server(transport()).await;
    let request = http::Request::post(format!("http://{}/polydelta.v1.GenerationService/Nothing", server.address))
        .header("content-type", "application/grpc")
        .body(tonic::body::Body::empty())
        .unwrap();
    let response = Plain::connect(server.address).await.send(request).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "12");
}

#[tokio::test]
async fn the_timeout_of_a_call_must_be_one() {
    let server = server(transport()).await;
    let mut client = Plain::generation(server.address).await;
    for bad in ["soon", "10", "-1S", "123456789S"] {
        let mut request = Request::new(prompt("x"));
        request.metadata_mut().insert("grpc-timeout", bad.parse().unwrap());
        let status = client.generate(request).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::InvalidArgument, "INVALID_TIMEOUT".into()), "{bad}");
        assert_eq!(field(&status), "grpc-timeout");
    }
    let mut request = Request::new(prompt("x"));
    request.metadata_mut().insert("grpc-timeout", "99999999H".parse().unwrap());
    client.generate(request).await.unwrap();
}
