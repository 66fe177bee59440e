//! Health, reflection, and how the server ends.

use std::time::Duration;

use polydelta::grpc::pb;
use polydelta::wire::Phase;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::fakes::{End, FakeServer, Plan};
use super::files::{AdapterFiles, header_frame};
use super::golden::{GoldenServer, case};
use super::harness::{Options, Server, prompt, refusal, within};
use super::raw::{GOAWAY, INITIAL_WINDOW_SIZE, NO_ERROR, PING, PREFACE, Raw, frame};

const STREAM: &str = "/polydelta.v1.GenerationService/GenerateStream";

const SERVICES: [&str; 4] = [
    "polydelta.v1.AdapterService",
    "polydelta.v1.GenerationService",
    "polydelta.v1.PoolingService",
    "polydelta.v1.ServerService",
];

async fn health(server: &Server) -> HealthClient<Channel> {
    HealthClient::new(server.channel().await)
}

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

/// A server with a stream that hangs in its engine, and that stream.
async fn with_a_hanging_stream(options: Options) -> (FakeServer, tonic::Streaming<pb::GenerateStreamResponse>) {
    let server = FakeServer::with(options).await;
    server.engine.plan(|_| Plan::text("begin").then(End::Hang));
    let stream = server.generation().await.generate_stream(prompt("x")).await.unwrap().into_inner();
    within(server.engine.hanging(1)).await;
    server.engine.plan(|_| Plan::text("ok"));
    (server, stream)
}

/// The status a stream ends with.
async fn end_of(stream: &mut tonic::Streaming<pb::GenerateStreamResponse>) -> Option<tonic::Status> {
    loop {
        match within(stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(status) => return Some(status),
        }
    }
}

#[tokio::test]
async fn health_is_told_for_every_service_and_for_the_whole() {
    let server = FakeServer::start().await;
    let mut client = health(&server).await;
    for service in SERVICES.iter().chain(&[""]) {
        let response = client.check(of(service)).await.unwrap().into_inner();
        assert_eq!(response.status(), ServingStatus::Serving, "{service}");
    }
    assert_eq!(client.check(of("polydelta.v1.Nothing")).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn those_who_watch_health_hear_of_the_end_first() {
    let (server, _stream) = with_a_hanging_stream(Options::default()).await;
    let mut watch = health(&server).await.watch(of(SERVICES[1])).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.lifecycle.drain();
    assert_eq!(within(watch.message()).await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // Whoever asks while calls still run is answered.
    let mut client = health(&server).await;
    for service in SERVICES.iter().chain(&[""]) {
        let response = client.check(of(service)).await.unwrap().into_inner();
        assert_eq!(response.status(), ServingStatus::NotServing, "{service}");
    }
}

#[tokio::test]
async fn health_is_bad_while_the_server_hangs_and_good_again_after_it() {
    let server = FakeServer::start().await;
    let mut watch = health(&server).await.watch(of("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let mut client = health(&server).await;
    for (stuck, wanted) in [(true, ServingStatus::NotServing), (false, ServingStatus::Serving)] {
        server.lifecycle.set_stuck(stuck);
        assert_eq!(within(watch.message()).await.unwrap().unwrap().status(), wanted);
        // The services follow one after the other; whoever watches one hears of it.
        let mut service = health(&server).await.watch(of(SERVICES[2])).await.unwrap().into_inner();
        while within(service.message()).await.unwrap().unwrap().status() != wanted {}
        assert_eq!(client.check(of("")).await.unwrap().into_inner().status(), wanted);
        // Whoever asks all the same is answered.
        server.generation().await.generate(prompt("x")).await.unwrap();
    }
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    let server = FakeServer::start().await;
    let expected =
        [&["grpc.health.v1.Health"], &SERVICES[..]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
    {
        use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
        let ask = |message| tonic_reflection::pb::v1::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message),
        };
        let requests = [
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol("polydelta.v1.GenerationService.Generate".into())),
        ];
        let mut client = ServerReflectionClient::new(server.channel().await);
        let request = Request::new(tokio_stream::iter(requests));
        let mut answers = client.server_reflection_info(request).await.unwrap().into_inner();
        let services = match answers.message().await.unwrap().unwrap().message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => list.service.into_iter().map(|service| service.name),
            other => panic!("{other:?}"),
        };
        assert_eq!(sorted(services), expected);
        match answers.message().await.unwrap().unwrap().message_response.unwrap() {
            MessageResponse::FileDescriptorResponse(files) => assert!(!files.file_descriptor_proto.is_empty()),
            other => panic!("{other:?}"),
        }
    }
    {
        use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::v1alpha::server_reflection_response::MessageResponse;
        let request = tonic_reflection::pb::v1alpha::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new(server.channel().await);
        let request = Request::new(tokio_stream::iter([request]));
        let mut answers = client.server_reflection_info(request).await.unwrap().into_inner();
        let services = match answers.message().await.unwrap().unwrap().message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => list.service.into_iter().map(|service| service.name),
            other => panic!("{other:?}"),
        };
        assert_eq!(sorted(services), expected);
    }
}

/// Reflection may list itself, too.
fn sorted(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<_> = names.filter(|name| !name.starts_with("grpc.reflection.")).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_drain_lets_calls_end_and_refuses_new_ones() {
    let mut server = GoldenServer::start().await;
    server.steps.hold();
    let case = case("base/long");
    let mut client = server.generation().await;
    let mut stream = client.generate_stream(case.request()).await.unwrap().into_inner();
    server.steps.reach(1).await;

    server.lifecycle.drain();
    // The client's own connection was told to go away; on whichever it calls, the answer is the same.
    let fresh = server.generation().await.generate(case.request()).await.unwrap_err();
    assert_eq!(refusal(&fresh), (Code::Unavailable, "SERVER_DRAINING".into()));
    let list = server.adapters().await.list_adapters(pb::ListAdaptersRequest::default()).await.unwrap_err();
    assert_eq!(refusal(&list), (Code::Unavailable, "SERVER_DRAINING".into()));
    assert_eq!(server.lifecycle.phase(), Phase::Draining);
    assert_eq!(server.lifecycle.running(), 1);

    server.steps.release();
    let mut ids = Vec::new();
    let mut finished = false;
    while let Some(message) = within(stream.message()).await.unwrap() {
        match message.event.unwrap() {
            pb::generate_stream_response::Event::Delta(delta) => ids.extend(delta.token_ids),
            pb::generate_stream_response::Event::Finished(_) => finished = true,
            pb::generate_stream_response::Event::Started(_)
            | pb::generate_stream_response::Event::PromptLogprobs(_) => {}
        }
    }
    assert!(finished);
    assert_eq!(ids, case.ids);
    server.server.ended().await;
    assert_eq!(server.lifecycle.phase(), Phase::Cut);
}

#[tokio::test]
async fn an_upload_that_has_begun_ends_before_the_server_does() {
    let mut server = FakeServer::start().await;
    let files = AdapterFiles::opaque("{}", "weights");
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    sender.send(header_frame(files.header("a"))).await.unwrap();
    let mut client = server.adapters().await;
    let mut other = client.clone();
    let upload = client.upload_adapter(tokio_stream::wrappers::ReceiverStream::new(receiver));
    tokio::pin!(upload);
    // Calls of a connection begin in order: once the second is answered, the first has begun.
    tokio::select! {
        biased;
        ended = &mut upload => panic!("{ended:?}"),
        missing = other.get_adapter(pb::GetAdapterRequest { name: "a".into() }) => drop(missing.unwrap_err()),
    }
    server.lifecycle.drain();
    for chunk in files.chunks() {
        sender.send(chunk).await.unwrap();
    }
    drop(sender);
    within(upload).await.unwrap();
    server.server.ended().await;
    assert_eq!(server.registry.len(), 1);
}

#[tokio::test]
async fn a_cut_ends_every_call_with_unavailable() {
    let (mut server, mut stream) = with_a_hanging_stream(Options::default()).await;
    let mut watch = server.adapters().await.watch_adapters(pb::WatchAdaptersRequest {}).await.unwrap().into_inner();
    watch.message().await.unwrap();
    server.lifecycle.drain();
    server.lifecycle.cut();
    let status = end_of(&mut stream).await.unwrap();
    assert_eq!(refusal(&status), (Code::Unavailable, "SERVER_DRAINING".into()));
    let status = loop {
        match within(watch.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the watch ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(refusal(&status), (Code::Unavailable, "SERVER_DRAINING".into()));
    server.server.ended().await;
    within(server.engine.hanging(0)).await;
    assert_eq!(server.engine.aborted(), 1);
}

#[tokio::test]
async fn a_drain_sends_clients_elsewhere() {
    let (server, _stream) = with_a_hanging_stream(Options::default()).await;
    let (mut idle, _) = Raw::open(server.address).await;
    assert!(idle.answers().await);
    server.lifecycle.drain();
    let (_, code, _) = idle.until(GOAWAY).await.go_away();
    assert_eq!(code, NO_ERROR);
    let ping = idle.until(PING).await;
    idle.pong(&ping).await;
    idle.rest().await;
    assert_eq!(server.lifecycle.phase(), Phase::Draining, "while a call runs on another connection");
}

#[tokio::test]
async fn a_drain_has_a_limit() {
    let options = Options { drain_timeout: Duration::from_millis(50), ..Options::default() };
    let (mut server, mut stream) = with_a_hanging_stream(options).await;
    server.lifecycle.drain();
    let status = end_of(&mut stream).await.unwrap();
    assert_eq!(refusal(&status), (Code::Unavailable, "SERVER_DRAINING".into()));
    server.server.ended().await;
}

#[tokio::test]
async fn idle_connections_and_watchers_do_not_hold_up_the_end() {
    let mut server = FakeServer::start().await;
    let channel = server.channel().await;
    let (_idle, _) = Raw::open(server.address).await;
    let _silent = Raw::connect(server.address).await;
    let mut half = Raw::connect(server.address).await;
    half.send(&PREFACE[..10]).await;
    let (mut unfinished, _) = Raw::open(server.address).await;
    unfinished.send(&frame::unfinished_call(1, STREAM)).await;
    let _health = health(&server).await.watch(of("")).await.unwrap().into_inner();
    let _adapters = server.adapters().await.watch_adapters(pb::WatchAdaptersRequest {}).await.unwrap().into_inner();
    server.lifecycle.drain();
    server.server.ended().await;
    drop(channel);
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_hold_up_the_end() {
    let mut server = FakeServer::start().await;
    server.engine.plan(|_| Plan::text("begin").then(End::Hang));
    let (mut raw, _) = Raw::open_with(server.address, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    raw.send(&[frame::call(1, STREAM), frame::message(1, &prompt("x"))].concat()).await;
    within(server.engine.hanging(1)).await;
    server.lifecycle.drain();
    server.lifecycle.cut();
    server.server.ended().await;
    within(server.engine.hanging(0)).await;
}

#[tokio::test]
async fn a_server_that_has_ended_takes_no_connection() {
    let mut server = FakeServer::start().await;
    server.lifecycle.drain();
    server.server.ended().await;
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
}
