//! Answers that nobody reads.

use polydelta::grpc::pb;

use super::harness::{ATTACKER, Victim, generate, within};
use super::raw::{Raw, frame};

const STREAM: &str = "/polydelta.v1.GenerationService/GenerateStream";

/// Ask for the same on each of these streams.
async fn ask(raw: &mut Raw, request: &pb::GenerateRequest, streams: impl Iterator<Item = u32>) {
    for stream in streams {
        raw.send(&[frame::call(stream, STREAM), frame::message(stream, request)].concat()).await;
    }
}

/// A long answer in 16 choices.
fn wide() -> pb::GenerateRequest {
    pb::GenerateRequest {
        input: Some(pb::generate_request::Input::Prompt("Rosa Vega wants lamps.".into())),
        n: 16,
        sampling: Some(pb::SamplingParams { temperature: Some(1.0), ..pb::SamplingParams::default() }),
        stopping: Some(pb::StoppingParams {
            max_tokens: Some(400),
            ignore_eos: Some(true),
            ..pb::StoppingParams::default()
        }),
        ..pb::GenerateRequest::default()
    }
}

/// All that can be said of a long prompt.
fn scored() -> pb::GenerateRequest {
    pb::GenerateRequest {
        input: Some(pb::generate_request::Input::TokenIds(pb::TokenIds {
            ids: (0..500).map(|id| id % 90 + 5).collect(),
        })),
        stopping: Some(pb::StoppingParams { max_tokens: Some(0), ..pb::StoppingParams::default() }),
        options: Some(pb::OutputOptions { prompt_logprobs: Some(20), ..pb::OutputOptions::default() }),
        ..pb::GenerateRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_reads_hold_up_nobody_not_even_another_connection_from_their_address() {
    let victim = Victim::start("", &[]);
    let mut unread = Vec::new();
    for _ in 0..2 {
        let (mut raw, _) = Raw::open_from(ATTACKER, victim.grpc).await;
        ask(&mut raw, &wide(), (0..120).map(|call| 2 * call + 1)).await;
        assert!(raw.answers().await);
        unread.push(raw);
    }
    victim.serves().await;
    within(generate(victim.channel_from(ATTACKER).await, "Rosa Vega wants lamps.")).await.unwrap();
    assert!(victim.metric("vllm:num_requests_waiting", &[]) > 1000.0, "they are all there");
    drop(unread);
    victim.terminate().await;
}

/// What is said of a prompt waits for its reader within the same window as tokens do: a request whose reader takes nothing is
/// laid aside half-way and holds nothing of the engine.
#[tokio::test(flavor = "multi_thread")]
async fn prompts_scored_for_nobody_are_laid_aside() {
    let victim = Victim::start("", &[]);
    let (mut raw, _) = Raw::open_from(ATTACKER, victim.grpc).await;
    ask(&mut raw, &scored(), (0..60).map(|call| 2 * call + 1)).await;
    assert!(raw.answers().await);
    within(async {
        while victim.metric("polydelta_sequences_parked", &[]) < 50.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    victim.serves().await;
    within(generate(victim.channel_from(ATTACKER).await, "Rosa Vega wants lamps.")).await.unwrap();
    drop(raw);
    victim.terminate().await;
}
