//! Requests that bring an adapter: the numbers of peft, nothing on the disk, and all checks of an upload.

use std::fs;

use polydelta::adapters::ResidencyLimits;
use polydelta::grpc::pb;
use serde_json::json;
use tonic::Code;

use super::files::AdapterFiles;
use super::generation::unary;
use super::golden::{Case, GoldenServer, case};
use super::harness::{Options, field, metadata, refusal};
use super::mixes::idle;

fn options() -> Options {
    Options { max_inline_adapter_bytes: 1 << 20, ..Options::default() }
}

fn bringing(files: &AdapterFiles, case: &Case) -> pb::GenerateRequest {
    let inline = pb::InlineAdapter { config: files.config.clone(), weights: files.weights.clone() };
    pb::GenerateRequest { adapter: String::new(), inline_adapter: Some(inline), ..case.request() }
}

#[tokio::test]
async fn a_request_runs_on_what_it_brings_and_leaves_nothing_on_the_disk() {
    let residency = ResidencyLimits { max_resident_adapters: 2, ..Options::default().residency };
    let server = GoldenServer::with(Options { residency, ..options() }).await;
    server.upload_golden(&["dora"]).await;
    let mut versions = Vec::new();
    for name in ["lora_r4", "loha", "lora_r4", "prefix_tuning", "ia3"] {
        for prompt in ["short", "long"] {
            let case = case(&format!("{name}/{prompt}"));
            let response = unary(&server, bringing(&AdapterFiles::golden(name), &case)).await;
            assert_eq!(response.choices[0].token_ids, case.ids, "{name} {prompt}");
            assert_eq!((response.adapter.as_str(), response.mix.len()), ("", 0));
            versions.push(response.adapter_version);
        }
        let dora = case("dora/short");
        assert_eq!(unary(&server, dora.request()).await.choices[0].token_ids, dora.ids);
    }
    assert!(versions.chunks(2).all(|pair| pair[0] == pair[1]) && versions[0] == versions[4]);
    // Two slots for the stored one and what is brought: the same twice in a row was there.
    assert_eq!(server.registry.residency().stats().loads, 6);
    assert_eq!((server.registry.len(), fs::read_dir(server.stored("objects")).unwrap().count()), (1, 1));
    assert_eq!(fs::read_dir(server.stored("staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_a_request_brings_is_checked_as_an_upload_is() {
    let server = GoldenServer::with(options()).await;
    let case = case("lora_r4/short");
    let golden = || AdapterFiles::golden("lora_r4");
    let wrong = [
        (golden().set("r", json!(5)), "SHAPE_MISMATCH"),
        (golden().set("a_field_of_tomorrow", json!(1)), "UNSUPPORTED_CONFIG"),
        (golden().map_tensors(|tensor| (!tensor.name.contains("lora_A")).then_some(tensor)), "MISSING_TENSOR"),
        (golden().map_tensors(|tensor| Some(tensor.begin_with(f32::NAN))), "NON_FINITE"),
        (AdapterFiles { weights: b"no tensors at all".to_vec(), ..golden() }, "INVALID_SAFETENSORS"),
    ];
    for (files, reason) in wrong {
        let status = server.generation().await.generate(bringing(&files, &case)).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::InvalidArgument, reason.into()), "{status}");
        assert!(status.message().starts_with("inline_adapter: "), "{status}");
    }
    let files = AdapterFiles { weights: vec![0; 1 << 20], ..golden() };
    let status = server.generation().await.generate(bringing(&files, &case)).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "inline_adapter"));
    assert_eq!(metadata(&status, "max"), (1 << 20).to_string());
    idle(&server).await;
    let stats = server.registry.residency().stats();
    assert_eq!((stats.resident, stats.loading), (0, 0));
    let off = GoldenServer::start().await;
    let status = off.generation().await.generate(bringing(&golden(), &case)).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Unimplemented, "INLINE_ADAPTERS_OFF".into()));
}
