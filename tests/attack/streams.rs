//! Answers that nobody reads.

use polydelta::grpc::pb;

use super::harness::{ATTACKER, Victim, generate, within};
use super::raw::{Raw, frame};

const STREAM: &str = "/polydelta.v1.GenerationService/GenerateStream";

/// Ask for a long answer in 16 choices, on each of these streams.
async fn ask(raw: &mut Raw, streams: impl Iterator<Item = u32>) {
    let request = pb::GenerateRequest {
        input: Some(pb::generate_request::Input::Prompt("Rosa Vega wants lamps.".into())),
        n: 16,
        sampling: Some(pb::SamplingParams { temperature: Some(1.0), ..pb::SamplingParams::default() }),
        stopping: Some(pb::StoppingParams {
            max_tokens: Some(400),
            ignore_eos: Some(true),
            ..pb::StoppingParams::default()
        }),
        ..pb::GenerateRequest::default()
    };
    for stream in streams {
        raw.send(&[frame::call(stream, STREAM), frame::message(stream, &request)].concat()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_reads_hold_up_nobody_not_even_another_connection_from_their_address() {
    let victim = Victim::start("", &[]);
    let mut unread = Vec::new();
    for _ in 0..2 {
        let (mut raw, _) = Raw::open_from(ATTACKER, victim.grpc).await;
        ask(&mut raw, (0..120).map(|call| 2 * call + 1)).await;
        assert!(raw.answers().await);
        unread.push(raw);
    }
    victim.serves().await;
    within(generate(victim.channel_from(ATTACKER).await, "Rosa Vega wants lamps.")).await.unwrap();
    assert!(victim.metric("vllm:num_requests_waiting", &[]) > 1000.0, "they are all there");
    drop(unread);
    victim.terminate().await;
}
