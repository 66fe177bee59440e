//! Adapters of a resized vocabulary, uploaded without their tokenizers: their tokens come and go as ids, and are nobody else's.

use std::fs;
use std::path::Path;

use polydelta::adapters::{CONFIG_FILE, WEIGHTS_FILE};
use polydelta::grpc::pb;
use tonic::Code;

use super::files::AdapterFiles;
use super::generation::{check, unary, without_times};
use super::golden::{Case, GoldenServer, case_in};
use super::harness::{Options, field, refusal};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/vocabulary/llama");

/// An adapter of a resized vocabulary.
pub(crate) fn files(name: &str) -> AdapterFiles {
    let dir = Path::new(FOLDER).join("adapters").join(name);
    let read = |file| fs::read(dir.join(file)).unwrap();
    AdapterFiles { config: read(CONFIG_FILE), weights: read(WEIGHTS_FILE), chat_template: None, beside: Vec::new() }
}

/// What it does.
pub(crate) fn case(name: &str) -> Case {
    case_in(Path::new(FOLDER), name)
}

/// With a bias on a token that the base does not have.
fn biased(request: pb::GenerateRequest) -> pb::GenerateRequest {
    let sampling = pb::SamplingParams { logit_bias: [(101, 100.0)].into(), ..Default::default() };
    pb::GenerateRequest { sampling: Some(sampling), ..request }
}

#[tokio::test]
async fn tokens_that_an_adapter_has_added_come_and_go_as_ids() {
    let server = GoldenServer::start().await;
    for name in ["saved", "tokens_of_each", "fewer"] {
        let uploaded = server.upload(name, &files(name)).await;
        assert_eq!(uploaded.vocab_size, if name == "fewer" { 96 } else { 103 }, "{name}");
        for prompt in ["short", "long"] {
            let case = case(&format!("{name}/{prompt}"));
            let response = unary(&server, case.request()).await;
            check(&case, &response.choices[0]);
        }
    }
    let own = unary(&server, biased(case("saved/short").request())).await;
    assert!(own.choices[0].token_ids.iter().all(|id| *id == 101), "{own:?}");
    // To stop at one.
    let mut stopped = biased(case("saved/short").request());
    stopped.stopping.as_mut().unwrap().stop_token_ids = vec![101];
    let stopped = unary(&server, stopped).await;
    assert_eq!(stopped.choices[0].finish_reason(), pb::FinishReason::Stop);
    // It is kept with the adapter, and the base's requests have the base's tokens.
    let request = pb::GetAdapterRequest { name: "saved".into() };
    let kept = server.adapters().await.get_adapter(request).await.unwrap().into_inner().adapter.unwrap();
    assert_eq!(kept.vocab_size, 103);
    let base = case("base/short");
    check(&base, &unary(&server, base.request()).await.choices[0]);
    let of_base = |request: pb::GenerateRequest| pb::GenerateRequest { adapter: String::new(), ..request };
    let of_fewer = |request: pb::GenerateRequest| pb::GenerateRequest { adapter: "fewer".into(), ..request };
    for (request, at) in [
        (of_base(case("saved/short").request()), "token_ids.ids[1]"),
        (of_base(biased(base.request())), "sampling.logit_bias"),
        (of_fewer(case("saved/short").request()), "token_ids.ids[1]"),
    ] {
        let status = server.generation().await.generate(request).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, at), "{status:?}");
    }
}

#[tokio::test]
async fn what_a_request_brings_and_mixes_have_the_bases_tokens() {
    let server = GoldenServer::with(Options { max_inline_adapter_bytes: 1 << 20, ..Options::default() }).await;
    let files = files("saved");
    let inline = pb::InlineAdapter { config: files.config.clone(), weights: files.weights.clone() };
    let base = case("base/short");
    let brought = pb::GenerateRequest { inline_adapter: Some(inline), ..base.request() };
    let status = server.generation().await.generate(brought).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "RESIZED_VOCABULARY".into()), "{status:?}");
    server.upload("saved", &files).await;
    server.upload_golden(&["lora_r4"]).await;
    let part = |adapter: &str| pb::MixPart { adapter: adapter.into(), weight: 0.5, ..Default::default() };
    let mix = pb::GenerateRequest { mix: vec![part("saved"), part("lora_r4")], ..base.request() };
    let status = server.generation().await.generate(mix).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "NOT_LINEAR".into()), "{status:?}");
    // Whoever asks beside them is given what it is given alone.
    let alone = unary(&server, base.request()).await;
    let own = case("saved/long");
    let (beside, with) = tokio::join!(unary(&server, base.request()), unary(&server, own.request()));
    assert_eq!(without_times(beside), without_times(alone));
    check(&own, &with.choices[0]);
}
