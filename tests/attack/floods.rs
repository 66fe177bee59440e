//! More work than anybody can do, from one address.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use polydelta::grpc::pb;
use polydelta::grpc::pb::generation_service_client::GenerationServiceClient;
use tokio::task::JoinSet;
use tonic::Code;

use super::harness::{ATTACKER, POLITE, Victim, generate, within};

/// 500 kB each, where the context has 512 tokens.
#[tokio::test(flavor = "multi_thread")]
async fn prompts_that_cannot_fit_take_no_memory_and_hold_nobody_up() {
    let victim = Victim::start("", &[]);
    victim.serves().await;
    let before = victim.resident();
    let mut attack = JoinSet::new();
    for connection in 0..4 {
        let channel = victim.channel_from(ATTACKER).await;
        for number in 0..16 {
            let (channel, prompt) = (channel.clone(), format!("{connection} {number} ").repeat(125_000));
            attack.spawn(async move { generate(channel, &prompt).await.unwrap_err().code() });
        }
    }
    victim.serves().await;
    let refused = within(attack.join_all()).await;
    assert_eq!(refused, [Code::InvalidArgument; 64]);
    victim.serves().await;
    let grown = victim.resident().saturating_sub(before);
    assert!(grown < 100 << 20, "{} MiB more", grown >> 20);
    victim.terminate().await;
}

fn long(adapter: &str) -> pb::GenerateRequest {
    pb::GenerateRequest {
        adapter: adapter.to_owned(),
        input: Some(pb::generate_request::Input::Prompt("We sold 62 bikes to Ursula Silva of Chicago.\n=>".to_owned())),
        stopping: Some(pb::StoppingParams { max_tokens: Some(400), ignore_eos: Some(true), ..Default::default() }),
        ..Default::default()
    }
}

/// Some find no place, hundreds wait; who asks for something else is served before them.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_adapter_takes_neither_the_places_nor_the_turns_of_others() {
    let adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/adapters/json-extract");
    let adapter = format!("json-extract={}", adapter.display());
    let victim = Victim::start("", &["--adapter", &adapter, "--max-concurrent-requests", "256"]);
    let (ended, mut attack) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    for _ in 0..5 {
        let channel = victim.channel_from(ATTACKER).await;
        for _ in 0..60 {
            let (mut client, ended) = (GenerationServiceClient::new(channel.clone()), Arc::clone(&ended));
            attack.spawn(async move {
                if let Ok(stream) = client.generate_stream(long("json-extract")).await {
                    let mut stream = stream.into_inner();
                    while let Ok(Some(_)) = stream.message().await {}
                    ended.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    }
    let mut stats = pb::server_service_client::ServerServiceClient::new(victim.channel_from(POLITE).await);
    within(async {
        while stats.get_stats(pb::GetStatsRequest {}).await.unwrap().into_inner().waiting_sequences < 100 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..2 {
        victim.serves().await;
        // From the attacker's own address too: the base is another adapter.
        within(generate(victim.channel_from(ATTACKER).await, "Rosa Vega wants lamps.")).await.unwrap();
    }
    let waiting = within(stats.get_stats(pb::GetStatsRequest {})).await.unwrap().into_inner().waiting_sequences;
    assert!(
        waiting > 50 && ended.load(Ordering::SeqCst) < 150,
        "{waiting} of the flood wait, others were served first"
    );
    attack.abort_all();
    victim.serves().await;
    victim.terminate().await;
}
