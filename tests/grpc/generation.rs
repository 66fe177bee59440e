//! `GenerationService`.

use std::time::Duration;

use polydelta::server::pb;
use polydelta::types::{FinishReason, RequestFailure};
use tonic::{Code, Request};
use tonic_types::StatusExt;

use super::fakes::{End, Plan};
use super::harness::{Options, Server, prompt, reason};
use pb::generate_stream_response::Event;
use pb::stop_match::Match;

async fn events(server: &Server, request: pb::GenerateRequest) -> Result<Vec<Event>, tonic::Status> {
    let mut stream = server.generation().await.generate_stream(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(message) = stream.message().await? {
        events.push(message.event.unwrap());
    }
    Ok(events)
}

fn text_of(events: &[Event], index: u32) -> String {
    let delta = |event: &Event| match event {
        Event::Delta(delta) if delta.index == index => Some(delta.text.clone()),
        _ => None,
    };
    events.iter().filter_map(delta).collect()
}

#[tokio::test]
async fn a_stream_says_started_then_deltas_then_finished_once() {
    let server = Server::start().await;
    server.engine.plan(|_| Plan::text("hello"));
    let request = pb::GenerateRequest { request_id: "mine".into(), n: 2, ..prompt("hi") };
    let events = events(&server, request).await.unwrap();
    let Event::Started(started) = &events[0] else { panic!("{events:?}") };
    assert_eq!(started.request_id, "mine");
    assert_eq!((text_of(&events, 0), text_of(&events, 1)), ("hello".into(), "hello".into()));
    let Event::Finished(finished) = events.last().unwrap() else { panic!("{events:?}") };
    let usage = finished.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens), (2, 10, 3));
    let finished = events.iter().filter(|event| matches!(event, Event::Finished(_))).count();
    assert_eq!(finished, 1);
    assert_eq!(server.engine.aborted(), 0, "nothing is left to abort");
}

#[tokio::test]
async fn a_unary_answer_is_what_the_stream_says() {
    let server = Server::start().await;
    server.engine.plan(|_| Plan::text("hello").then(End::Finish(FinishReason::Stop, Some(10))));
    let options = pb::OutputOptions { logprobs: Some(2), echo: false, token_ids: true };
    let request = pb::GenerateRequest { options: Some(options), ..prompt("hi") };
    let response = server.generation().await.generate(request).await.unwrap().into_inner();
    let choice = &response.choices[0];
    assert_eq!(choice.text, "hello");
    assert_eq!(choice.token_ids, b"hello".map(u32::from));
    assert_eq!(choice.logprobs.len(), 5);
    assert_eq!(choice.logprobs[0].top.len(), 2);
    assert_eq!(choice.finish_reason(), pb::FinishReason::Stop);
    assert_eq!(choice.stop_match.as_ref().unwrap().r#match, Some(Match::TokenId(10)));
    assert_eq!(response.request_id.len(), 32, "made by the server");
}

#[tokio::test]
async fn a_stop_string_ends_its_choice_and_what_comes_after_is_not_counted() {
    let server = Server::start().await;
    server.engine.plan(|_| Plan::text("one;two;three"));
    let stopping = pb::StoppingParams { stop: vec!["zz".into(), ";t".into()], ..pb::StoppingParams::default() };
    let options = pb::OutputOptions { token_ids: true, ..pb::OutputOptions::default() };
    let request = pb::GenerateRequest { stopping: Some(stopping), options: Some(options), n: 2, ..prompt("count") };
    let response = server.generation().await.generate(request).await.unwrap().into_inner();
    for choice in &response.choices {
        assert_eq!(choice.text, "one");
        assert_eq!(choice.token_ids, b"one;t".map(u32::from));
        assert_eq!(choice.finish_reason(), pb::FinishReason::Stop);
        assert_eq!(choice.stop_match.as_ref().unwrap().r#match, Some(Match::Stop(";t".into())));
    }
    assert_eq!(response.usage.unwrap().completion_tokens, 10);
    assert_eq!(server.engine.finished_choices(), [0, 1]);
}

#[tokio::test]
async fn echo_begins_text_and_ids_with_the_prompt() {
    let server = Server::start().await;
    server.engine.plan(|_| Plan::text("!"));
    let options = pb::OutputOptions { echo: true, logprobs: Some(0), ..pb::OutputOptions::default() };
    let ids = pb::generate_request::Input::TokenIds(pb::TokenIds { ids: vec![104, 105] });
    let request = pb::GenerateRequest { input: Some(ids), options: Some(options), ..Default::default() };
    let response = server.generation().await.generate(request).await.unwrap().into_inner();
    let choice = &response.choices[0];
    assert_eq!((choice.text.as_str(), choice.token_ids.as_slice()), ("hi!", [104, 105, 33].as_slice()));
    assert_eq!(choice.logprobs.len(), 1, "of the generated token only");
}

#[tokio::test]
async fn a_character_is_sent_once_it_is_whole() {
    let server = Server::start().await;
    server.engine.plan(|_| Plan::text("a🦀b"));
    let events = events(&server, prompt("x")).await.unwrap();
    assert_eq!(text_of(&events, 0), "a🦀b");
    for event in &events {
        if let Event::Delta(delta) = event {
            assert!(!delta.text.contains('\u{fffd}'), "{delta:?}");
        }
    }
}

#[tokio::test]
async fn chat_is_rendered_and_tokenize_says_what_generate_sees() {
    let server = Server::start().await;
    let messages = vec![pb::ChatMessage { role: "user".into(), content: "hi".into() }];
    let chat = pb::Chat { messages };
    let input = Some(pb::tokenize_request::Input::Chat(chat.clone()));
    let tokenized = server.generation().await.tokenize(pb::TokenizeRequest { input }).await.unwrap().into_inner();
    assert_eq!(tokenized.text, "<user>hi");
    let input = Some(pb::generate_request::Input::Chat(chat));
    let request = pb::GenerateRequest { input, ..Default::default() };
    server.generation().await.generate(request).await.unwrap();
    assert_eq!(server.engine.submitted()[0].prompt.to_vec(), tokenized.token_ids);
}

#[tokio::test]
async fn a_deadline_ends_a_stream_that_has_begun_and_frees_its_place() {
    let server = Server::start().await;
    server.engine.plan(|_| Plan::text("begin").then(End::Hang));
    let mut request = Request::new(prompt("x"));
    request.metadata_mut().insert("grpc-timeout", "80m".parse().unwrap());
    let mut stream = server.generation().await.generate_stream(request).await.unwrap().into_inner();
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
    server.engine.hanging(0).await;
    assert!(server.engine.submitted()[0].deadline.is_some(), "the engine knows it too");
}

#[tokio::test]
async fn a_deadline_before_the_response_is_deadline_exceeded_and_not_cancelled() {
    let server = Server::start().await;
    server.engine.plan(|_| Plan::text("").then(End::Hang));
    let mut request = Request::new(prompt("x"));
    request.metadata_mut().insert("grpc-timeout", "60m".parse().unwrap());
    let status = server.generation().await.generate(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(reason(&status), "DEADLINE_EXCEEDED", "the server's own answer, not the client's guess");
    server.engine.hanging(0).await;
}

#[tokio::test]
async fn a_timeout_that_is_no_timeout_is_refused() {
    let server = Server::start().await;
    for bad in ["soon", "10", "-1S", "123456789S"] {
        let mut request = Request::new(prompt("x"));
        request.metadata_mut().insert("grpc-timeout", bad.parse().unwrap());
        let status = server.generation().await.generate(request).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_TIMEOUT"), "{bad}");
    }
    let mut request = Request::new(prompt("x"));
    request.metadata_mut().insert("grpc-timeout", "99999999H".parse().unwrap());
    server.generation().await.generate(request).await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_with_it() {
    let server = Server::start().await;
    server.engine.plan(|_| Plan::text("begin").then(End::Hang));
    let mut stream = server.generation().await.generate_stream(prompt("x")).await.unwrap().into_inner();
    stream.message().await.unwrap();
    server.engine.hanging(1).await;
    drop(stream);
    server.engine.hanging(0).await;
    assert_eq!(server.engine.aborted(), 1, "claimed once");
}

#[tokio::test]
async fn failures_are_statuses() {
    let server = Server::start().await;
    let cases = [
        (End::Fail(RequestFailure::NonFinite), Code::Internal, "NON_FINITE"),
        (End::Fail(RequestFailure::EngineFailed), Code::Internal, "INTERNAL"),
        (End::Fail(RequestFailure::DeadlineExceeded), Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (End::Fail(RequestFailure::Draining), Code::Unavailable, "SERVER_DRAINING"),
        (End::Vanish, Code::Internal, "INTERNAL"),
        (End::Refuse, Code::ResourceExhausted, "QUEUE_FULL"),
    ];
    for (end, code, expected) in cases {
        let planned = end.clone();
        server.engine.plan(move |_| Plan::text("").then(planned.clone()));
        let unary = server.generation().await.generate(prompt("x")).await.unwrap_err();
        let stream = events(&server, prompt("x")).await.unwrap_err();
        for status in [unary, stream] {
            assert_eq!((status.code(), reason(&status).as_str()), (code, expected), "{end:?}");
        }
    }
}

#[tokio::test]
async fn a_full_server_says_when_to_come_back() {
    let server = Server::with(Options { max_concurrent: 1, ..Options::default() }).await;
    server.engine.plan(|_| Plan::text("").then(End::Hang));
    let mut client = server.generation().await;
    let held = client.generate_stream(prompt("x")).await.unwrap();
    let status = client.generate(prompt("y")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "QUEUE_FULL"));
    let delay = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().to_owned();
    assert_eq!(pushback, delay.as_millis().to_string());
    drop(held);
    server.engine.hanging(0).await;
}

#[tokio::test]
async fn a_reader_that_stops_reading_does_not_hold_its_place() {
    let options = Options { stall_limit: Duration::from_millis(50), ..Options::default() };
    let server = Server::with(options).await;
    server.engine.plan(|_| Plan::text(&"x".repeat(30_000)).then(End::Hang));
    let places = server.gate.free_places();
    // More than the flow-control window of a client takes: what is sent fills it.
    let request = pb::GenerateRequest {
        stopping: Some(pb::StoppingParams { max_tokens: Some(4000), ..Default::default() }),
        options: Some(pb::OutputOptions { logprobs: Some(20), ..Default::default() }),
        ..prompt("x")
    };
    let stream = server.generation().await.generate_stream(request).await.unwrap();
    server.engine.hanging(0).await;
    assert_eq!(server.engine.aborted(), 1);
    assert_eq!(server.gate.free_places(), places);
    drop(stream);
}

#[tokio::test]
async fn bad_messages_name_their_field() {
    let server = Server::start().await;
    let mut client = server.generation().await;
    let cases = [
        (pb::GenerateRequest::default(), "input"),
        (pb::GenerateRequest { adapter: "../x".into(), ..prompt("x") }, "adapter"),
        (pb::GenerateRequest { adapter: "a".into(), adapter_version: "v1".into(), ..prompt("x") }, "adapter_version"),
        (pb::GenerateRequest { adapter_version: "0".repeat(64), ..prompt("x") }, "adapter_version"),
        (pb::GenerateRequest { request_id: "\u{e9}".into(), ..prompt("x") }, "request_id"),
        (prompt(""), "prompt"),
    ];
    for (request, field) in cases {
        let status = client.generate(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, field, "{status:?}");
    }
}

#[tokio::test]
async fn an_unknown_adapter_is_not_found_and_never_the_base() {
    let server = Server::start().await;
    let request = pb::GenerateRequest { adapter: "nobody".into(), ..prompt("x") };
    let status = server.generation().await.generate(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "ADAPTER_NOT_FOUND"));
    assert_eq!(status.get_details_resource_info().unwrap().resource_name, "nobody");
    assert!(server.engine.submitted().is_empty());
}

#[tokio::test]
async fn the_request_id_of_the_header_comes_back() {
    let server = Server::start().await;
    let mut request = Request::new(prompt("x"));
    request.metadata_mut().insert("x-request-id", "trace-7".parse().unwrap());
    let response = server.generation().await.generate(request).await.unwrap();
    assert_eq!(response.metadata().get("x-request-id").unwrap(), "trace-7");
    assert_eq!(response.into_inner().request_id, "trace-7");
    let request = pb::GenerateRequest { request_id: "mine".into(), ..prompt("x") };
    let response = server.generation().await.generate(request).await.unwrap();
    assert_eq!(response.metadata().get("x-request-id").unwrap(), "mine");
}
