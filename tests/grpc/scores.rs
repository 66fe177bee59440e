//! Log-probabilities of prompts, as clients get them.

use std::fs;

use polydelta::config::TransportConfig;
use polydelta::grpc::pb;
use polydelta::grpc::pb::generation_service_client::GenerationServiceClient;
use serde::Deserialize;
use tonic::Code;
use tonic::transport::Endpoint;

use super::files::golden_dir;
use super::generation::{collect, events, unary, without_times};
use super::golden::{CONTEXT, GoldenServer, case};
use super::harness::{Options, field, prompt, refusal, transport, within};
use pb::generate_request::Input;

/// A text that transformers + peft have scored.
#[derive(Deserialize)]
struct Scored {
    adapter: Option<String>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
}

/// Score these ids with so many alternatives, and generate so many tokens.
fn scoring(ids: Vec<u32>, top: u32, max_tokens: u32) -> pb::GenerateRequest {
    pb::GenerateRequest {
        input: Some(Input::TokenIds(pb::TokenIds { ids })),
        stopping: Some(pb::StoppingParams {
            max_tokens: Some(max_tokens),
            ignore_eos: Some(true),
            ..Default::default()
        }),
        options: Some(pb::OutputOptions { prompt_logprobs: Some(top), token_ids: true, ..Default::default() }),
        ..Default::default()
    }
}

fn ids(length: u32) -> Vec<u32> {
    (0..length).map(|index| index * 31 % 90 + 5).collect()
}

/// A token's id and the bits of its log-probability.
type Bits = (u32, u32);

/// Those of tokens, and of the most likely ones at the place of each.
fn bits(logprobs: &[pb::TokenLogprob]) -> Vec<(Bits, Vec<Bits>)> {
    let top = |top: &[pb::TopLogprob]| top.iter().map(|one| (one.token_id, one.logprob.to_bits())).collect();
    logprobs.iter().map(|one| ((one.token_id, one.logprob.to_bits()), top(&one.top))).collect()
}

#[tokio::test]
async fn a_prompt_is_scored_without_generating_and_a_stream_adds_up_to_the_answer() {
    let server = GoldenServer::start().await;
    let uploaded = ["lora_all_r8", "prefix_tuning", "lora_tokens"];
    server.upload_golden(&uploaded).await;
    let scored: Vec<Scored> = serde_json::from_slice(&fs::read(golden_dir().join("scores.json")).unwrap()).unwrap();
    let known = |one: &&Scored| one.adapter.as_deref().is_none_or(|name| uploaded.contains(&name));
    for scored in scored.iter().filter(known) {
        let adapter = scored.adapter.clone().unwrap_or_default();
        let request = pb::GenerateRequest { adapter, ..scoring(scored.tokens.clone(), 2, 0) };
        let answer = unary(&server, request.clone()).await;
        assert_eq!(answer.prompt_logprobs.len(), scored.tokens.len() - 1);
        for (index, found) in answer.prompt_logprobs.iter().enumerate() {
            assert_eq!(found.token_id, scored.tokens[index + 1]);
            assert!((found.logprob - scored.logprobs[index]).abs() < 1e-4, "{:?}: {index}", scored.adapter);
            assert_eq!(found.text, server.tokenizer.decode(&[found.token_id], false).unwrap());
            assert_eq!(found.top.len(), 2);
        }
        let choice = &answer.choices[0];
        assert_eq!(choice.finish_reason(), pb::FinishReason::Length);
        assert!(choice.text.is_empty() && choice.token_ids.is_empty() && choice.logprobs.is_empty());
        let usage = answer.usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (scored.tokens.len() as u32, 0));
        assert_eq!(without_times(collect(&events(&server, request).await.unwrap())), without_times(answer));
    }
}

#[tokio::test]
async fn a_text_scored_has_the_bits_of_the_text_generated() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_r4"]).await;
    for name in ["base/long", "lora_r4/short", "lora_r4/long"] {
        let case = case(name);
        let generated = unary(&server, case.request()).await;
        let text = [&case.prompt[..], &case.ids].concat();
        let request = pb::GenerateRequest { adapter: case.adapter.clone().unwrap_or_default(), ..scoring(text, 5, 0) };
        let scored = unary(&server, request).await;
        let behind = &scored.prompt_logprobs[case.prompt.len() - 1..];
        assert_eq!(bits(behind), bits(&generated.choices[0].logprobs), "{name}");
    }
}

#[tokio::test]
async fn several_choices_hear_of_their_prompt_once_and_are_what_they_are_without() {
    let server = GoldenServer::start().await;
    let sampling = pb::SamplingParams { temperature: Some(1.0), seed: Some(7), ..Default::default() };
    let mut request = pb::GenerateRequest { n: 3, sampling: Some(sampling), ..scoring(ids(100), 0, 8) };
    let answer = unary(&server, request.clone()).await;
    assert_eq!(answer.prompt_logprobs.len(), 99);
    assert!(answer.prompt_logprobs.iter().all(|one| one.top.is_empty()));
    assert_eq!(without_times(collect(&events(&server, request.clone()).await.unwrap())), without_times(answer.clone()));
    request.options.as_mut().unwrap().prompt_logprobs = None;
    assert_eq!(unary(&server, request.clone()).await.choices, answer.choices);
    request.options.as_mut().unwrap().prompt_logprobs = Some(0);
    request.stopping.as_mut().unwrap().max_tokens = Some(0);
    let alone = unary(&server, request).await;
    assert_eq!(bits(&alone.prompt_logprobs), bits(&answer.prompt_logprobs));
    assert!(alone.choices.iter().all(|choice| choice.finish_reason() == pb::FinishReason::Length));
}

#[tokio::test]
async fn a_chat_is_scored_as_it_is_rendered_and_an_echo_comes_with_it() {
    let server = GoldenServer::start().await;
    let message = pb::ChatMessage { role: "user".into(), content: "Hi there".into() };
    let chat = pb::Chat { messages: vec![message], ..Default::default() };
    let asked =
        pb::TokenizeRequest { input: Some(pb::tokenize_request::Input::Chat(chat.clone())), ..Default::default() };
    let rendered = server.generation().await.tokenize(asked).await.unwrap().into_inner();
    let mut request = pb::GenerateRequest { input: Some(Input::Chat(chat)), ..scoring(vec![], 1, 2) };
    request.options.as_mut().unwrap().echo = true;
    let answer = unary(&server, request.clone()).await;
    let scored: Vec<u32> = answer.prompt_logprobs.iter().map(|one| one.token_id).collect();
    assert_eq!(scored, rendered.token_ids[1..]);
    assert!(answer.choices[0].text.starts_with(&rendered.text));
    assert_eq!(answer.choices[0].token_ids.len(), rendered.token_ids.len() + 2);
    assert_eq!(without_times(collect(&events(&server, request).await.unwrap())), without_times(answer));
}

#[tokio::test]
async fn a_scored_prompt_takes_nothing_from_the_prefix_cache_and_leaves_itself_there() {
    let server = GoldenServer::start().await;
    let cached = |answer: &pb::GenerateResponse| answer.usage.unwrap().cached_tokens;
    let first = unary(&server, scoring(ids(40), 1, 1)).await;
    let again = unary(&server, scoring(ids(40), 1, 1)).await;
    assert_eq!((cached(&first), cached(&again)), (0, 0));
    assert_eq!(bits(&first.prompt_logprobs), bits(&again.prompt_logprobs));
    let mut plain = scoring(ids(40), 1, 1);
    plain.options = None;
    assert_eq!(cached(&unary(&server, plain).await), 36);
}

#[tokio::test]
async fn a_prompt_that_is_only_scored_may_have_one_token_or_fill_the_context() {
    let server = GoldenServer::start().await;
    assert!(unary(&server, scoring(ids(1), 3, 0)).await.prompt_logprobs.is_empty());
    assert_eq!(unary(&server, scoring(ids(CONTEXT), 3, 0)).await.prompt_logprobs.len(), CONTEXT as usize - 1);
    let mut client = server.generation().await;
    for request in [scoring(ids(CONTEXT + 1), 3, 0), scoring(ids(CONTEXT), 3, 1)] {
        let refused = client.generate(request).await.unwrap_err();
        assert_eq!(refusal(&refused), (Code::InvalidArgument, "CONTEXT_LENGTH_EXCEEDED".to_owned()));
    }
    let mut nothing = scoring(ids(9), 0, 0);
    nothing.options = None;
    assert_eq!(field(&client.generate(nothing).await.unwrap_err()), "stopping.max_tokens");
}

#[tokio::test]
async fn an_answer_that_no_message_holds_is_refused_before_anything_is_computed_and_streamed_all_the_same() {
    let transport = TransportConfig { max_message_bytes: 16 << 10, ..transport() };
    let server = GoldenServer::with(Options { transport, ..Options::default() }).await;
    let request = scoring(ids(200), 5, 0);
    let refused = server.generation().await.generate(request.clone()).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::InvalidArgument, "INVALID_FIELD".to_owned()));
    assert_eq!(field(&refused), "options.prompt_logprobs");
    assert_eq!(server.engine.submits(), 0);
    let streamed = collect(&events(&server, request).await.unwrap());
    assert_eq!(streamed.prompt_logprobs.len(), 199);
}

/// As of a stream of tokens: the engine lays a request aside whose reader is behind, and goes on where it was.
#[tokio::test]
async fn a_reader_that_is_behind_holds_its_own_prompt_up_and_misses_nothing() {
    let server = GoldenServer::start().await;
    let request = scoring(ids(250), 20, 2);
    let alone = unary(&server, request.clone()).await;
    let narrow = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let narrow = narrow.initial_stream_window_size(2048).initial_connection_window_size(1 << 20);
    let mut client = GenerationServiceClient::new(narrow.connect().await.unwrap());
    let mut unread = client.generate_stream(request).await.unwrap().into_inner();
    within(async {
        while server.stats().await.parked_sequences < 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(unary(&server, prompt("x")).await.choices.len(), 1, "others go on");
    let mut events = Vec::new();
    while let Some(message) = within(unread.message()).await.unwrap() {
        events.push(message.event.unwrap());
    }
    let late = collect(&events);
    assert_eq!(bits(&late.prompt_logprobs), bits(&alone.prompt_logprobs));
    assert_eq!(late.choices, alone.choices);
}
