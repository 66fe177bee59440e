//! `GenerationService` where something goes wrong: with the request, with the adapter, with the client, with the
//! engine.

use std::time::Duration;

use polydelta::grpc::pb;
use polydelta::types::RequestFailure;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use super::clock::Clock;
use super::fakes::{End, FakeServer, Plan};
use super::files::AdapterFiles;
use super::generation::events;
use super::golden::{GoldenServer, case};
use super::harness::{Options, metadata, prompt, refusal, within};
use super::plain::Plain;

fn timeout<T>(message: T, timeout: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
    request
}

// --- adapters ---------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_unknown_adapter_is_not_found_and_never_the_base() {
    let server = FakeServer::start().await;
    let request = pb::GenerateRequest { adapter: "nobody".into(), ..prompt("x") };
    let status = server.generation().await.generate(request).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::NotFound, "ADAPTER_NOT_FOUND".into()));
    assert_eq!(status.get_details_resource_info().unwrap().resource_name, "nobody");
    assert!(server.engine.submitted().is_empty());
}

#[tokio::test]
async fn a_version_that_the_name_does_not_mean_is_refused() {
    let server = GoldenServer::start().await;
    let adapter = server.upload("a", &AdapterFiles::golden("lora_r4")).await;
    let case = case("lora_r4/short");
    let with =
        |version: &str| pb::GenerateRequest { adapter: "a".into(), adapter_version: version.into(), ..case.request() };
    let mut client = server.generation().await;
    let response = client.generate(with(&adapter.version)).await.unwrap().into_inner();
    assert_eq!((response.adapter, response.adapter_version), ("a".to_owned(), adapter.version.clone()));
    assert_eq!(response.choices[0].token_ids, case.ids);
    let other = "0".repeat(64);
    let status = client.generate(with(&other)).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Aborted, "ADAPTER_VERSION_MISMATCH".into()));
    assert_eq!((metadata(&status, "expected"), metadata(&status, "actual")), (other, adapter.version));
}

/// An adapter whose numbers are finite and whose results are not.
#[tokio::test]
async fn a_row_that_overflows_fails_alone() {
    let server = GoldenServer::start().await;
    server.upload("poison", &AdapterFiles::golden("lora_r4").scale(1e25)).await;
    server.upload_golden(&["dora"]).await;
    let poisoned = pb::GenerateRequest { adapter: "poison".into(), ..case("lora_r4/long").request() };
    let mut adapters = server.adapters().await;
    for name in ["poison", "dora"] {
        adapters.load_adapter(pb::LoadAdapterRequest { name: name.into(), pin: None }).await.unwrap();
    }
    server.steps.hold();
    let mut client = server.generation().await;
    let neighbour = case("dora/long");
    let mut healthy = client.generate_stream(neighbour.request()).await.unwrap().into_inner();
    let mut sick = client.generate_stream(poisoned.clone()).await.unwrap().into_inner();
    server.steps.release();
    let status = loop {
        match within(sick.message()).await {
            Ok(Some(message)) => {
                assert!(matches!(message.event.unwrap(), pb::generate_stream_response::Event::Started(_)))
            }
            Ok(None) => panic!("the stream ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(refusal(&status), (Code::Internal, "NON_FINITE".into()));
    let mut ids = Vec::new();
    while let Some(message) = within(healthy.message()).await.unwrap() {
        if let Some(pb::generate_stream_response::Event::Delta(delta)) = message.event {
            ids.extend(delta.token_ids);
        }
    }
    assert_eq!(ids, neighbour.ids, "its neighbour does not notice");
    let unary = client.generate(poisoned).await.unwrap_err();
    assert_eq!(refusal(&unary), (Code::Internal, "NON_FINITE".into()));
    let stats = server.stats().await;
    assert_eq!((stats.failed_steps, stats.kv_blocks_used), (0, 0));
}

/// Nothing but the adapter is at fault, so nothing is gained by trying it for ever.
#[tokio::test]
async fn an_adapter_whose_rows_are_not_finite_again_and_again_is_set_aside_by_name() {
    let server = GoldenServer::start().await;
    server.upload("poison", &AdapterFiles::golden("lora_r4").scale(1e25)).await;
    server.upload_golden(&["lora_r4"]).await;
    let poisoned = || pb::GenerateRequest { adapter: "poison".into(), ..case("lora_r4/long").request() };
    let mut client = server.generation().await;
    let mut adapters = server.adapters().await;
    for round in 0..2 {
        for _ in 0..3 {
            let status = client.generate(poisoned()).await.unwrap_err();
            assert_eq!(refusal(&status), (Code::Internal, "NON_FINITE".into()));
        }
        let status = client.generate(poisoned()).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::FailedPrecondition, "ADAPTER_SET_ASIDE".into()), "round {round}");
        assert_eq!((metadata(&status, "adapter"), metadata(&status, "faults")), ("poison".into(), "3".into()));
        let shown = adapters.get_adapter(pb::GetAdapterRequest { name: "poison".into() }).await.unwrap().into_inner();
        assert!(shown.adapter.unwrap().last_error.contains("set aside"));
        // Whoever loads it by name wants to see for himself.
        adapters.load_adapter(pb::LoadAdapterRequest { name: "poison".into(), pin: None }).await.unwrap();
    }
    let healthy = client.generate(case("lora_r4/long").request()).await.unwrap().into_inner();
    assert_eq!(healthy.choices[0].token_ids, case("lora_r4/long").ids);
}

// --- deadlines --------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_deadline_ends_a_stream_that_has_begun_and_frees_its_memory() {
    let clock = Clock::stop();
    let server = GoldenServer::start().await;
    server.steps.hold();
    let mut client = Plain::generation(server.address).await;
    let request = timeout(case("base/long").request(), "60S");
    let mut stream = client.generate_stream(request).await.unwrap().into_inner();
    server.steps.reach(1).await;
    server.steps.allow(1);
    server.steps.reach(2).await;
    clock.advance(Duration::from_secs(90)).await;
    let status = loop {
        match within(stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(refusal(&status), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into()));
    server.engine.aborted(1).await;
    server.steps.release();
    let stats = server.stats().await;
    assert_eq!((stats.running_sequences, stats.kv_blocks_used), (0, 0), "{stats:?}");
    assert_eq!(server.steps.begun(), 2, "no step after the one it was in");
    assert_eq!(server.gate.free_places(), 64);
}

#[tokio::test]
async fn a_deadline_before_the_answer_is_told_by_the_server_and_not_as_cancelled() {
    let clock = Clock::stop();
    let server = GoldenServer::start().await;
    server.steps.hold();
    let mut client = Plain::generation(server.address).await;
    let call = tokio::spawn(async move { client.generate(timeout(case("base/short").request(), "60S")).await });
    server.engine.submitted(1).await;
    clock.advance(Duration::from_secs(90)).await;
    let status = within(call).await.unwrap().unwrap_err();
    assert_eq!(refusal(&status), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into()));
    server.engine.aborted(1).await;
}

#[tokio::test]
async fn a_deadline_that_has_passed_takes_no_place_in_the_queue() {
    let server = FakeServer::start().await;
    let mut client = Plain::generation(server.address).await;
    let status = client.generate(timeout(prompt("x"), "0n")).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into()));
    assert!(server.engine.submitted().is_empty());
    // One that has not is known to the engine.
    client.generate(timeout(prompt("x"), "1H")).await.unwrap();
    assert!(server.engine.submitted()[0].deadline.is_some());
}

// --- clients that leave -----------------------------------------------------------------------------------------

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_with_it() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_r4"]).await;
    let name = "lora_r4".to_owned();
    let mut adapters = server.adapters().await;
    adapters.load_adapter(pb::LoadAdapterRequest { name: name.clone(), pin: None }).await.unwrap();
    server.steps.hold();
    let request = case("lora_r4/long").request();
    let mut client = server.generation().await;
    let stream = client.generate_stream(request.clone()).await.unwrap();
    server.steps.reach(1).await;
    let unload = pb::UnloadAdapterRequest { name: name.clone() };
    let status = adapters.unload_adapter(unload.clone()).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "ADAPTER_IN_USE".into()));
    drop(stream);
    server.engine.aborted(1).await;
    // A unary call leaves by being dropped, or with its connection.
    let mut other = server.generation().await;
    let unary = tokio::spawn(async move { other.generate(request).await });
    server.engine.submitted(2).await;
    unary.abort();
    server.engine.aborted(2).await;
    server.steps.release();
    let stats = server.stats().await;
    assert_eq!((stats.running_sequences, stats.waiting_sequences, stats.kv_blocks_used), (0, 0, 0), "{stats:?}");
    let adapter = adapters.unload_adapter(unload).await.unwrap().into_inner().adapter.unwrap();
    assert_eq!(adapter.active_requests, 0);
}

#[tokio::test]
async fn a_connection_that_breaks_ends_its_requests() {
    let server = GoldenServer::start().await;
    server.steps.hold();
    let request = case("base/long").request();
    let (mut raw, _) = super::raw::Raw::open(server.address).await;
    for stream in [1, 3] {
        let call = super::raw::frame::call(stream, "/polydelta.v1.GenerationService/GenerateStream");
        raw.send(&[call, super::raw::frame::message(stream, &request)].concat()).await;
    }
    server.engine.submitted(2).await;
    drop(raw);
    server.engine.aborted(2).await;
    server.steps.release();
    let stats = server.stats().await;
    assert_eq!((stats.running_sequences, stats.waiting_sequences, stats.kv_blocks_used), (0, 0, 0));
}

// --- a full server ----------------------------------------------------------------------------------------------

fn check_full(status: &tonic::Status) {
    assert_eq!(refusal(status), (Code::ResourceExhausted, "QUEUE_FULL".into()));
    let delay = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(delay.as_millis() > 0);
    let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap();
    assert_eq!(pushback, delay.as_millis().to_string());
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let server = GoldenServer::with(Options { max_queued: 1, ..Options::default() }).await;
    server.steps.hold();
    let request = case("base/short").request();
    let mut client = server.generation().await;
    let mut running = client.generate_stream(request.clone()).await.unwrap().into_inner();
    server.steps.reach(1).await;
    // Its first step is held: the next one waits, and no more may.
    let mut waiting = client.generate_stream(request.clone()).await.unwrap().into_inner();
    let status = client.generate_stream(request.clone()).await.unwrap_err();
    check_full(&status);
    assert_eq!((metadata(&status, "queued"), metadata(&status, "limit")), ("1".into(), "1".into()));
    check_full(&client.generate(request.clone()).await.unwrap_err());
    server.steps.release();
    while within(running.message()).await.unwrap().is_some() {}
    while within(waiting.message()).await.unwrap().is_some() {}
    client.generate(request).await.unwrap();
}

#[tokio::test]
async fn a_full_server_says_so_before_it_looks_at_the_request() {
    let server = FakeServer::with(Options { max_concurrent: 1, ..Options::default() }).await;
    server.engine.plan(|_| Plan::text("").then(End::Hang));
    let mut client = server.generation().await;
    let held = client.generate_stream(prompt("x")).await.unwrap();
    let status = client.generate(prompt("y")).await.unwrap_err();
    check_full(&status);
    assert_eq!(metadata(&status, "limit"), "1");
    drop(held);
    within(server.engine.hanging(0)).await;
    assert_eq!(server.engine.submitted().len(), 1);
}

// --- failures of the engine -------------------------------------------------------------------------------------

#[tokio::test]
async fn failures_are_statuses() {
    let server = FakeServer::start().await;
    let cases = [
        (End::Fail(RequestFailure::NonFinite), Code::Internal, "NON_FINITE"),
        (End::Fail(RequestFailure::EngineFailed), Code::Internal, "INTERNAL"),
        (End::Fail(RequestFailure::DeadlineExceeded), Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (End::Fail(RequestFailure::Draining), Code::Unavailable, "SERVER_DRAINING"),
        (End::Vanish, Code::Unavailable, "SERVER_DRAINING"),
        (End::Refuse, Code::ResourceExhausted, "QUEUE_FULL"),
    ];
    for (end, code, reason) in cases {
        let planned = end.clone();
        server.engine.plan(move |_| Plan::text("some").then(planned.clone()));
        let unary = server.generation().await.generate(prompt("x")).await.unwrap_err();
        let stream = events(&server, prompt("x")).await.unwrap_err();
        for status in [unary, stream] {
            assert_eq!(refusal(&status), (code, reason.to_owned()), "{end:?}");
        }
    }
    assert_eq!(server.gate.free_places(), 64);
}

#[tokio::test]
async fn an_engine_that_has_stopped_is_unavailable() {
    let server = GoldenServer::start().await;
    server.engine.stop();
    let status = server.generation().await.generate(case("base/short").request()).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Unavailable, "SERVER_DRAINING".into()));
}
