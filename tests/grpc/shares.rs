//! Clients beside each other: who is who, who shares the prefix cache, what a client may take of what all need.

use polydelta::grpc::pb;
use polydelta::wire::ClientIdentity;
use tonic::{Code, Request};

use super::fakes::{End, FakeServer, Plan};
use super::golden::{GoldenServer, case};
use super::harness::{Options, field, metadata, prompt, refusal, within};

const HEADER: &str = "x-client-id";

fn named() -> Options {
    Options { identity: ClientIdentity::new(Some(HEADER)).unwrap(), ..Options::default() }
}

fn from<T>(client: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(HEADER, client.parse().unwrap());
    request
}

async fn cached(server: &GoldenServer, client: &'static str, salt: &str) -> u32 {
    let request = pb::GenerateRequest { cache_salt: salt.to_owned(), ..case("base/long").request() };
    let response = within(server.generation().await.generate(from(client, request))).await.unwrap().into_inner();
    assert_eq!(response.choices[0].token_ids, case("base/long").ids);
    response.usage.unwrap().cached_tokens
}

#[tokio::test]
async fn a_client_finds_its_own_prefixes_and_those_under_a_salt_it_names() {
    let server = GoldenServer::with(named()).await;
    assert_eq!(cached(&server, "alice", "").await, 0);
    assert!(cached(&server, "alice", "").await > 0, "her own");
    assert_eq!(cached(&server, "bob", "").await, 0, "he cannot tell what she asked");
    assert_eq!(cached(&server, "alice", "team").await, 0);
    assert!(cached(&server, "bob", "team").await > 0, "both name it");
    assert_eq!(cached(&server, "bob", "other").await, 0);
}

#[tokio::test]
async fn a_header_that_the_operator_did_not_name_makes_nobody_somebody_else() {
    let server = GoldenServer::start().await;
    assert_eq!(cached(&server, "alice", "").await, 0);
    assert!(cached(&server, "bob", "").await > 0, "one address, one client");
}

#[tokio::test]
async fn a_salt_that_is_too_long_and_a_priority_beyond_the_limit_are_refused_by_name() {
    let server = GoldenServer::start().await;
    let mut client = server.generation().await;
    let salted = pb::GenerateRequest { cache_salt: "s".repeat(129), ..prompt("a") };
    let status = client.generate(salted).await.unwrap_err();
    assert_eq!(
        (refusal(&status), field(&status)),
        ((Code::InvalidArgument, "INVALID_FIELD".into()), "cache_salt".into())
    );
    for priority in [11, -11, i32::MAX, i32::MIN] {
        let status = client.generate(pb::GenerateRequest { priority, ..prompt("a") }).await.unwrap_err();
        assert_eq!(field(&status), "priority");
        assert_eq!(metadata(&status, "max"), "10");
    }
    client.generate(pb::GenerateRequest { priority: 10, ..prompt("a") }).await.unwrap();
}

#[tokio::test]
async fn a_client_that_takes_all_places_it_can_leaves_some_to_others() {
    let server = FakeServer::with(Options { max_concurrent: 150, ..named() }).await;
    server.engine.plan(|_| Plan::text("").then(End::Hang));
    let mut client = server.generation().await;
    let mut held = Vec::new();
    let status = loop {
        match within(client.generate_stream(from("flood", prompt("x")))).await {
            Ok(stream) => held.push(stream),
            Err(status) => break status,
        }
    };
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "QUEUE_FULL".into()));
    assert_eq!(metadata(&status, "share_of"), "adapter");
    assert!(held.len() > 130 && server.gate.free_places() > 0);
    drop(held);
}
