//! Texts that are read, as clients get them: `PoolingService`.

use std::fs;
use std::time::Duration;

use polydelta::grpc::pb;
use polydelta::grpc::pb::pooling_service_client::PoolingServiceClient;
use serde::Deserialize;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::files::golden_dir;
use super::golden::{CONTEXT, GoldenServer, case};
use super::harness::{Options, Server, field, prompt, refusal, transport, within};
use pb::pool_input::Input;

/// A text that transformers + peft have read.
#[derive(Deserialize)]
struct Text {
    adapter: Option<String>,
    tokens: Vec<u32>,
    rows: Vec<Vec<f32>>,
}

fn texts() -> Vec<Text> {
    serde_json::from_slice(&fs::read(golden_dir().join("heads.json")).unwrap()).unwrap()
}

fn of_adapter(name: &str) -> Vec<Text> {
    let mut texts = texts();
    texts.retain(|text| text.adapter.as_deref().unwrap_or_default() == name);
    assert!(texts.len() > 1);
    texts
}

fn ids(ids: &[u32]) -> pb::PoolInput {
    pb::PoolInput { input: Some(Input::TokenIds(pb::TokenIds { ids: ids.to_vec() })) }
}

fn text(text: &str) -> pb::PoolInput {
    pb::PoolInput { input: Some(Input::Prompt(text.to_owned())) }
}

fn inputs(texts: &[Text]) -> Vec<pb::PoolInput> {
    texts.iter().map(|text| ids(&text.tokens)).collect()
}

fn embed(inputs: Vec<pb::PoolInput>) -> pb::EmbedRequest {
    pb::EmbedRequest { inputs, ..pb::EmbedRequest::default() }
}

fn score(adapter: &str, inputs: Vec<pb::PoolInput>) -> pb::ScoreRequest {
    pb::ScoreRequest { adapter: adapter.to_owned(), inputs, ..pb::ScoreRequest::default() }
}

async fn pooling(server: &Server) -> PoolingServiceClient<Channel> {
    PoolingServiceClient::new(server.channel().await)
}

async fn embedded(server: &Server, request: pb::EmbedRequest) -> pb::EmbedResponse {
    within(pooling(server).await.embed(request)).await.unwrap().into_inner()
}

async fn scored(server: &Server, request: pb::ScoreRequest) -> pb::ScoreResponse {
    within(pooling(server).await.score(request)).await.unwrap().into_inner()
}

async fn embed_refused(server: &Server, request: pb::EmbedRequest) -> tonic::Status {
    within(pooling(server).await.embed(request)).await.unwrap_err()
}

async fn score_refused(server: &Server, request: pb::ScoreRequest) -> tonic::Status {
    within(pooling(server).await.score(request)).await.unwrap_err()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < tolerance, "{found} vs {expected}");
    }
}

fn mean(rows: &[Vec<f32>]) -> Vec<f32> {
    (0..rows[0].len()).map(|column| rows.iter().map(|row| row[column]).sum::<f32>() / rows.len() as f32).collect()
}

#[tokio::test]
async fn texts_are_embedded_as_transformers_and_peft_embed_them() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["features_lora", "features_prompt", "dora"]).await;
    for adapter in ["", "features_lora", "features_prompt", "dora"] {
        let texts = of_adapter(adapter);
        let request = |pooling: pb::Pooling| pb::EmbedRequest {
            adapter: adapter.to_owned(),
            pooling: pooling.into(),
            ..embed(inputs(&texts))
        };
        for pooling in [pb::Pooling::Unspecified, pb::Pooling::Last, pb::Pooling::Mean, pb::Pooling::First] {
            let answer = embedded(&server, request(pooling)).await;
            assert_eq!((answer.adapter.as_str(), answer.embeddings.len()), (adapter, texts.len()));
            for (text, found) in texts.iter().zip(&answer.embeddings) {
                let expected = match pooling {
                    pb::Pooling::Mean => mean(&text.rows),
                    pb::Pooling::First => text.rows[0].clone(),
                    pb::Pooling::Last | pb::Pooling::Unspecified => text.rows.last().unwrap().clone(),
                };
                assert_close(&found.values, &expected, 1e-4);
                assert_eq!(found.tokens as usize, text.tokens.len());
            }
            let usage = answer.usage.unwrap();
            let tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
            assert_eq!((usage.prompt_tokens as usize, usage.completion_tokens), (tokens, 0));
        }
    }
}

#[tokio::test]
async fn an_embedding_is_cut_and_then_normalised_and_has_the_same_bits_alone() {
    let server = GoldenServer::start().await;
    let texts = of_adapter("");
    let request = |texts: &[Text]| pb::EmbedRequest {
        pooling: pb::Pooling::Mean.into(),
        normalize: true,
        dimensions: Some(5),
        ..embed(inputs(texts))
    };
    let together = embedded(&server, request(&texts)).await;
    for (text, found) in texts.iter().zip(&together.embeddings) {
        let mean = mean(&text.rows);
        let expected = &mean[..5];
        let length = expected.iter().map(|number| number * number).sum::<f32>().sqrt();
        assert_close(&found.values, &expected.iter().map(|number| number / length).collect::<Vec<_>>(), 1e-4);
        let alone = embedded(&server, request(std::slice::from_ref(text))).await;
        let bits = |embedding: &pb::Embedding| embedding.values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&alone.embeddings[0]), bits(found));
    }
}

#[tokio::test]
async fn texts_are_scored_as_transformers_classifiers_score_them_while_others_generate() {
    let server = GoldenServer::start().await;
    let adapters =
        ["seq_cls_lora", "seq_cls_ia3", "seq_cls_prompt", "seq_cls_prefix", "token_cls_lora", "token_cls_prompt"];
    server.upload_golden(&adapters).await;
    server.upload_golden(&["lora_r4"]).await;
    let generating = case("lora_r4/long");
    let mut client = server.generation().await;
    let request = generating.request();
    let generated = tokio::spawn(async move { client.generate(request).await.unwrap().into_inner() });
    for adapter in adapters {
        let texts = of_adapter(adapter);
        let answer = scored(&server, score(adapter, inputs(&texts))).await;
        assert_eq!((answer.adapter.as_str(), answer.texts.len()), (adapter, texts.len()));
        for (text, found) in texts.iter().zip(&answer.texts) {
            assert_eq!(found.scores.len(), text.rows.len(), "{adapter}");
            for (found, expected) in found.scores.iter().zip(&text.rows) {
                assert_close(&found.logits, expected, 1e-4);
                let sum: f32 = found.probabilities.iter().sum();
                assert!(
                    found.probabilities.len() == expected.len() && (expected.len() == 1 || (sum - 1.0).abs() < 1e-5)
                );
            }
        }
    }
    assert_eq!(generated.await.unwrap().choices[0].token_ids, generating.ids);
    let mut adapters = server.adapters().await;
    let described = adapters.get_adapter(pb::GetAdapterRequest { name: "token_cls_lora".into() }).await.unwrap();
    let described = described.into_inner().adapter.unwrap();
    assert_eq!((described.task.as_str(), described.labels), ("TOKEN_CLS", 5));
    assert!(described.ops.iter().any(|op| op.op_class == "Head"), "{:?}", described.ops);
}

#[tokio::test]
async fn an_adapter_is_asked_for_what_it_is_for() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["seq_cls_lora", "lora_r4", "features_lora"]).await;
    let wrong = (Code::FailedPrecondition, "WRONG_TASK".to_owned());
    let request = pb::GenerateRequest { adapter: "seq_cls_lora".into(), ..prompt("x") };
    let status = server.generation().await.generate(request.clone()).await.unwrap_err();
    assert_eq!(refusal(&status), wrong);
    assert!(status.message().contains("seq_cls_lora") && status.message().contains("SEQ_CLS"), "{status:?}");
    let status = server.generation().await.generate_stream(request).await.unwrap_err();
    assert_eq!(refusal(&status), wrong);
    for adapter in ["lora_r4", "features_lora"] {
        let status = score_refused(&server, score(adapter, vec![text("x")])).await;
        assert_eq!(refusal(&status), wrong);
        assert!(status.message().contains(adapter), "{status:?}");
        let request = pb::GenerateRequest { adapter: adapter.into(), ..prompt("x") };
        server.generation().await.generate(request).await.unwrap();
    }
    // Hidden states are everybody's.
    for adapter in ["", "seq_cls_lora", "lora_r4", "features_lora"] {
        embedded(&server, pb::EmbedRequest { adapter: adapter.into(), ..embed(vec![text("x")]) }).await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_an_input_is_said_of_that_input_and_nothing_is_computed() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["token_cls_lora", "token_cls_prompt"]).await;
    let steps = server.stats().await.steps;
    let long: Vec<u32> = (0..=CONTEXT).map(|index| index % 90 + 5).collect();
    let bad: Vec<(&str, Vec<pb::PoolInput>)> = vec![
        ("inputs", vec![]),
        ("inputs", vec![text("x"); 65]),
        ("inputs[1].input", vec![text("x"), pb::PoolInput::default()]),
        ("inputs[1].token_ids.ids", vec![text("x"), ids(&[])]),
        ("inputs[0].token_ids.ids[1]", vec![ids(&[5, 100])]),
        ("inputs[2].token_ids.ids", vec![text("x"), text("y"), ids(&long)]),
        ("inputs[0].chat.messages", vec![pb::PoolInput { input: Some(Input::Chat(pb::Chat::default())) }]),
    ];
    for (expected, inputs) in bad {
        for status in [
            embed_refused(&server, embed(inputs.clone())).await,
            score_refused(&server, score("token_cls_lora", inputs)).await,
        ] {
            assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, expected), "{status:?}");
        }
    }
    let width = of_adapter("")[0].rows[0].len() as u32;
    let one = || embed(vec![text("x")]);
    let bad = [
        ("dimensions", pb::EmbedRequest { dimensions: Some(0), ..one() }),
        ("dimensions", pb::EmbedRequest { dimensions: Some(width + 1), ..one() }),
        ("pooling", pb::EmbedRequest { pooling: 9, ..one() }),
        ("priority", pb::EmbedRequest { priority: 11, ..one() }),
        ("cache_salt", pb::EmbedRequest { cache_salt: "s".repeat(129), ..one() }),
        ("adapter", pb::EmbedRequest { adapter: "../x".into(), ..one() }),
        ("request_id", pb::EmbedRequest { request_id: "\u{e9}".into(), ..one() }),
    ];
    for (expected, request) in bad {
        let status = embed_refused(&server, request).await;
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, expected), "{status:?}");
    }
    assert_eq!(field(&score_refused(&server, score("", vec![text("x")])).await), "adapter");
    assert_eq!(score_refused(&server, score("nobody", vec![text("x")])).await.code(), Code::NotFound);
    // What fills the context alone does not fit behind virtual tokens.
    let status = score_refused(&server, score("token_cls_prompt", vec![text("x"), ids(&long[1..])])).await;
    assert_eq!(refusal(&status), (Code::InvalidArgument, "CONTEXT_LENGTH_EXCEEDED".to_owned()));
    assert_eq!(field(&status), "inputs[1].token_ids.ids");
    assert_eq!(server.stats().await.steps, steps);
    scored(&server, score("token_cls_lora", vec![ids(&long[1..])])).await;
}

#[tokio::test]
async fn an_answer_that_no_message_holds_is_refused_before_anything_is_computed() {
    let transport = polydelta::config::TransportConfig { max_message_bytes: 3000, ..transport() };
    let server = GoldenServer::with(Options { transport, ..Options::default() }).await;
    let adapter = super::files::AdapterFiles::golden("token_cls_lora");
    let large = GoldenServer::start().await;
    large.upload("token_cls_lora", &adapter).await;
    let ids_of = |length: u32| ids(&(0..length).map(|index| index % 90 + 5).collect::<Vec<_>>());
    // Logits and probabilities of five labels: 40 bytes for every token.
    let fits = scored(&large, score("token_cls_lora", vec![ids_of(200)])).await;
    assert_eq!(fits.texts[0].scores.len(), 200);
    let status = embed_refused(&server, embed(vec![ids_of(2); 24])).await;
    assert_eq!((refusal(&status).0, field(&status)), (Code::InvalidArgument, "inputs".to_owned()));
    assert_eq!(embedded(&server, embed(vec![ids_of(2); 20])).await.embeddings.len(), 20);
    assert_eq!(server.stats().await.running_sequences, 0);
}

#[tokio::test]
async fn a_call_that_ends_early_frees_what_its_inputs_hold() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["token_cls_lora"]).await;
    server.steps.hold();
    let request = || score("token_cls_lora", vec![text("a text that is long enough for some steps"); 3]);
    let mut late = Request::new(request());
    late.set_timeout(Duration::from_millis(300));
    let status = within(pooling(&server).await.score(late)).await.unwrap_err();
    // The client's own clock may ring first.
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    let mut client = pooling(&server).await;
    let cancelled = tokio::spawn(async move { client.score(request()).await });
    server.engine.submitted(6).await;
    cancelled.abort();
    // Of both calls, every input's request.
    server.engine.aborted(6).await;
    server.steps.release();
    let answer = scored(&server, request()).await;
    assert_eq!(answer.texts.len(), 3);
    let stats = server.stats().await;
    assert_eq!((stats.running_sequences, stats.waiting_sequences, stats.kv_blocks_used), (0, 0, 0));
    assert_eq!(server.registry.leases(), 0);
}

#[tokio::test]
async fn every_input_takes_a_place_among_the_requests_and_gives_it_back() {
    let server = GoldenServer::with(Options { max_concurrent: 4, ..Options::default() }).await;
    let status = embed_refused(&server, embed(vec![text("x"); 5])).await;
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "QUEUE_FULL".to_owned()));
    for _ in 0..3 {
        assert_eq!(embedded(&server, embed(vec![text("x"); 2])).await.embeddings.len(), 2);
    }
    assert_eq!(server.gate.free_places(), 4);
}
