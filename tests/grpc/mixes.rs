//! Requests for a mix: the numbers of peft, beside other adapters in the same steps; where mixes lie; what is refused.

use std::collections::BTreeSet;

use polydelta::adapters::ResidencyLimits;
use polydelta::grpc::pb;
use tonic::Code;
use tonic_types::StatusExt;

use super::files::AdapterFiles;
use super::generation::{collect, events, unary, without_times};
use super::golden::{GoldenServer, case};
use super::harness::{Options, Server, field, metadata, refusal, within};

const PARTS: [&str; 8] =
    ["lora_r4", "lora_all_r8", "patterns", "lora_odd_r3", "embed_lm_head", "loha", "rslora", "hra"];

fn part(adapter: &str, weight: f32) -> pb::MixPart {
    pb::MixPart { adapter: adapter.into(), weight, adapter_version: String::new() }
}

fn mix_of(parts: &[(&str, f32)]) -> pb::GenerateRequest {
    let mix = parts.iter().map(|(adapter, weight)| part(adapter, *weight)).collect();
    pb::GenerateRequest { adapter: String::new(), mix, ..case("base/short").request() }
}

async fn refused(server: &Server, request: pb::GenerateRequest) -> tonic::Status {
    server.generation().await.generate(request).await.unwrap_err()
}

/// Until nobody holds a version any more.
pub(crate) async fn idle(server: &Server) {
    let held = async {
        while server.registry.leases() > 0 {
            tokio::task::yield_now().await;
        }
    };
    within(held).await;
}

async fn delete(server: &Server, name: &str) {
    let request = pb::DeleteAdapterRequest { name: name.into(), ..Default::default() };
    server.adapters().await.delete_adapter(request).await.unwrap();
}

#[tokio::test]
async fn mixes_give_the_numbers_of_peft_beside_adapters_and_the_base() {
    let server = GoldenServer::start().await;
    server.upload_golden(&PARTS).await;
    server.upload_golden(&["lora_bf16", "dora", "prefix_tuning"]).await;
    let cases = ["mix_two/long", "dora/long", "mix_three/short", "base/long", "mix_kinds/long", "lora_r4/short"];
    let cases = [&cases[..], &["mix_two/short", "prefix_tuning/long", "mix_kinds/short", "mix_three/long"]].concat();
    let mut running = Vec::new();
    for name in cases {
        let (case, mut client) = (case(name), server.generation().await);
        let request = case.request();
        running.push((name, case, tokio::spawn(async move { client.generate(request).await })));
    }
    for (name, case, response) in running {
        let response = within(response).await.unwrap().unwrap().into_inner();
        assert_eq!(response.choices[0].token_ids, case.ids, "{name}");
        for (found, expected) in response.choices[0].logprobs.iter().zip(&case.logprobs) {
            assert!((found.logprob - expected).abs() < 1e-4, "{name}: {} {expected}", found.logprob);
        }
    }
}

#[tokio::test]
async fn an_answer_says_what_was_mixed_and_the_same_mix_is_there_the_next_time() {
    let server = GoldenServer::start().await;
    let versions = [
        server.upload("b", &AdapterFiles::golden("lora_r4")).await.version,
        server.upload("a", &AdapterFiles::golden("lora_odd_r3")).await.version,
    ];
    let request = mix_of(&[("b", -0.5), ("a", 2.0)]);
    let response = unary(&server, request.clone()).await;
    assert_eq!(response.adapter, "");
    assert!(response.adapter_version.len() == 64 && !versions.contains(&response.adapter_version));
    let said = [("b", -0.5, 0), ("a", 2.0, 1)].map(|(adapter, weight, version)| pb::MixPart {
        adapter_version: versions[version].clone(),
        ..part(adapter, weight)
    });
    assert_eq!(response.mix, said);
    let streamed = collect(&events(&server, request.clone()).await.unwrap());
    assert_eq!(without_times(streamed), without_times(response.clone()));
    let turned = unary(&server, mix_of(&[("a", 2.0), ("b", -0.5)])).await;
    assert_eq!((&turned.adapter_version, &turned.choices), (&response.adapter_version, &response.choices));
    let residency = || server.registry.residency().stats();
    assert_eq!((residency().loads, residency().resident), (1, 1), "one mix, loaded once");
    let other = unary(&server, mix_of(&[("b", -0.5), ("a", 2.5)])).await;
    assert_ne!(other.adapter_version, response.adapter_version);
    assert_eq!((residency().loads, residency().resident), (2, 2));
    // Versions that the parts must have, as for an adapter.
    let mut pinned = request.clone();
    pinned.mix[0].adapter_version.clone_from(&versions[0]);
    assert_eq!(unary(&server, pinned.clone()).await.adapter_version, response.adapter_version);
    pinned.mix[0].adapter_version.clone_from(&versions[1]);
    assert_eq!(refusal(&refused(&server, pinned).await).1, "ADAPTER_VERSION_MISMATCH");
    // What a cached beginning is worth belongs to the mix.
    let mut long = case("mix_two/long").request();
    long.mix = request.mix;
    unary(&server, long.clone()).await;
    assert!(unary(&server, long).await.usage.unwrap().cached_tokens > 0);
}

#[tokio::test]
async fn mixes_leave_the_device_for_others_and_come_back() {
    let residency = ResidencyLimits { max_resident_adapters: 2, ..Options::default().residency };
    let server = GoldenServer::with(Options { residency, ..Options::default() }).await;
    server.upload_golden(&["lora_r4", "lora_all_r8", "dora"]).await;
    let (mix, dora) = (case("mix_two/short"), case("dora/short"));
    let mut versions = BTreeSet::new();
    for round in 0..3 {
        let response = unary(&server, mix.request()).await;
        assert_eq!(response.choices[0].token_ids, mix.ids, "round {round}");
        for weight in [0.25, 0.75] {
            let other = unary(&server, mix_of(&[("lora_r4", weight), ("lora_all_r8", round as f32)])).await;
            versions.insert(other.adapter_version);
        }
        assert_eq!(unary(&server, dora.request()).await.choices[0].token_ids, dora.ids);
    }
    let stats = server.registry.residency().stats();
    assert_eq!((versions.len(), stats.resident, stats.loads), (6, 2, 12));
    idle(&server).await;
}

#[tokio::test]
async fn a_part_may_be_unloaded_replaced_and_deleted_while_its_mix_runs() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_r4", "lora_all_r8"]).await;
    let mix = case("mix_two/long");
    // The part is on the device by itself, too.
    unary(&server, case("lora_r4/short").request()).await;
    unary(&server, mix.request()).await;
    let begun = server.steps.begun();
    server.steps.hold();
    let mut running = server.generation().await.generate_stream(mix.request()).await.unwrap().into_inner();
    server.steps.reach(begun + 1).await;
    let request = pb::UnloadAdapterRequest { name: "lora_r4".into() };
    server.adapters().await.unload_adapter(request).await.unwrap();
    delete(&server, "lora_all_r8").await;
    server.upload("lora_r4", &AdapterFiles::golden("dora")).await;
    let status = refused(&server, mix.request()).await;
    assert_eq!(refusal(&status), (Code::NotFound, "ADAPTER_NOT_FOUND".into()));
    server.steps.release();
    let mut events = Vec::new();
    while let Some(message) = within(running.message()).await.unwrap() {
        events.push(message.event.unwrap());
    }
    let response = collect(&events);
    assert_eq!(response.choices[0].token_ids, mix.ids);
    drop(running);
    // Its parts have no names any more: it leaves, and so do their files.
    let [first, second] = <[pb::MixPart; 2]>::try_from(response.mix).unwrap();
    idle(&server).await;
    within(async {
        while server.registry.residency().stats().resident > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.registry.collect_garbage().unwrap();
    for version in [first.adapter_version, second.adapter_version] {
        assert!(!server.stored("objects").join(&version).exists(), "nothing uses it");
    }
}

#[tokio::test]
async fn what_cannot_be_mixed_is_refused_by_name() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_r4", "dora", "ia3", "ln_tuning", "prefix_tuning", "prompt_tuning"]).await;
    for (name, class) in [
        ("dora", "OutputScale"),
        ("ia3", "OutputScale"),
        ("ln_tuning", "Gain"),
        ("prefix_tuning", "Prefix"),
        ("prompt_tuning", "PromptEmbeds"),
    ] {
        let status = refused(&server, mix_of(&[("lora_r4", 1.0), (name, 0.5)])).await;
        assert_eq!(refusal(&status), (Code::FailedPrecondition, "NOT_LINEAR".into()), "{status}");
        assert_eq!((metadata(&status, "adapter"), metadata(&status, "op_class")), (name.into(), class.into()));
        assert!(status.message().starts_with(&format!("adapter {name} cannot be part of a mix: its {class} ")));
        assert_eq!(status.get_details_resource_info().unwrap().resource_name, name);
    }
    let invalid = [
        (mix_of(&[("lora_r4", 1.0)]), "mix"),
        (mix_of(&[("lora_r4", 1.0); 9]), "mix"),
        (mix_of(&[("lora_r4", 1.0), ("lora_r4", f32::NAN)]), "mix.weight"),
        (mix_of(&[("lora_r4", 1.0), ("", 1.0)]), "mix.adapter"),
        (pb::GenerateRequest { adapter: "lora_r4".into(), ..mix_of(&[("lora_r4", 1.0); 2]) }, "mix"),
    ];
    for (request, at) in invalid {
        let status = refused(&server, request).await;
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, at), "{status}");
    }
    let status = refused(&server, mix_of(&[("lora_r4", 1.0), ("none", 1.0)])).await;
    assert_eq!(refusal(&status), (Code::NotFound, "ADAPTER_NOT_FOUND".into()));
    // A weight that makes numbers overflow shows when they are there; nothing is left of the attempt.
    let status = refused(&server, mix_of(&[("lora_r4", 3e38), ("lora_r4", 1.0)])).await;
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "NON_FINITE".into()), "{status}");
    idle(&server).await;
    assert_eq!(server.registry.residency().stats().resident, 0);
    let twice = unary(&server, mix_of(&[("lora_r4", 0.25), ("lora_r4", 0.75)])).await;
    let once = unary(&server, pb::GenerateRequest { adapter: "lora_r4".into(), ..case("base/short").request() }).await;
    assert_eq!(twice.choices[0].token_ids, once.choices[0].token_ids, "the weights of one adapter add up");
}
