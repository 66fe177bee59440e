//! `AdapterService` beside uploads: what is there, what is on the device, what happens to requests meanwhile.

use std::fs;

use polydelta::adapters::ResidencyLimits;
use polydelta::grpc::pb;
use polydelta::grpc::pb::adapter_service_client::AdapterServiceClient;
use tonic::transport::Endpoint;
use tonic::{Code, Streaming};
use tonic_types::StatusExt;

use super::fakes::FakeServer;
use super::files::AdapterFiles;
use super::generation::collect;
use super::golden::{Case, GoldenServer, case};
use super::harness::{Options, Server, field, metadata, refusal, within};

/// A case asked of an adapter of any name.
fn asking(name: &str, case: &Case) -> pb::GenerateRequest {
    pb::GenerateRequest { adapter: name.into(), ..case.request() }
}

async fn started(server: &Server, request: pb::GenerateRequest) -> Streaming<pb::GenerateStreamResponse> {
    server.generation().await.generate_stream(request).await.unwrap().into_inner()
}

async fn response_of(mut stream: Streaming<pb::GenerateStreamResponse>) -> pb::GenerateResponse {
    let mut events = Vec::new();
    while let Some(message) = within(stream.message()).await.unwrap() {
        events.push(message.event.unwrap());
    }
    collect(&events)
}

async fn get(server: &Server, name: &str) -> Result<pb::Adapter, tonic::Status> {
    let request = pb::GetAdapterRequest { name: name.into() };
    let response = server.adapters().await.get_adapter(request).await?;
    Ok(response.into_inner().adapter.unwrap())
}

async fn load(server: &Server, name: &str, pin: Option<bool>) -> Result<pb::Adapter, tonic::Status> {
    let request = pb::LoadAdapterRequest { name: name.into(), pin };
    let response = server.adapters().await.load_adapter(request).await?;
    Ok(response.into_inner().adapter.unwrap())
}

async fn unload(server: &Server, name: &str) -> Result<pb::Adapter, tonic::Status> {
    let request = pb::UnloadAdapterRequest { name: name.into() };
    let response = server.adapters().await.unload_adapter(request).await?;
    Ok(response.into_inner().adapter.unwrap())
}

async fn delete(server: &Server, request: pb::DeleteAdapterRequest) -> Result<(), tonic::Status> {
    server.adapters().await.delete_adapter(request).await.map(drop)
}

fn named(name: &str) -> pb::DeleteAdapterRequest {
    pb::DeleteAdapterRequest { name: name.into(), ..Default::default() }
}

// --- life of an adapter -----------------------------------------------------------------------------------------

/// Each server has a runtime of its own, which ends with it, as a process does.
#[test]
fn adapters_and_pins_are_there_after_a_restart() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = Options::default();
    let (plain, pinned) = runtime().block_on(async {
        let server = GoldenServer::with(options.clone()).await;
        let plain = server.upload("plain", &AdapterFiles::golden("lora_r4")).await;
        let pinned = AdapterFiles::golden("ia3");
        let header = pb::UploadHeader { pin: true, ..pinned.header("pinned") };
        let pinned = server.send(pinned.frames(header)).await.unwrap().adapter.unwrap();
        server.upload("gone", &AdapterFiles::golden("dora")).await;
        delete(&server, named("gone")).await.unwrap();
        (plain, pinned)
    });
    runtime().block_on(async {
        let server = GoldenServer::with(options).await;
        assert_eq!(refusal(&get(&server, "gone").await.unwrap_err()), (Code::NotFound, "ADAPTER_NOT_FOUND".into()));
        let found = get(&server, "plain").await.unwrap();
        assert_eq!((found.version, found.create_time), (plain.version, plain.create_time));
        let found = get(&server, "pinned").await.unwrap();
        assert!(found.pinned);
        assert_eq!(found.version, pinned.version);
        for (name, case) in [("plain", case("lora_r4/long")), ("pinned", case("ia3/long"))] {
            let response = server.generation().await.generate(asking(name, &case)).await.unwrap().into_inner();
            assert_eq!(response.choices[0].token_ids, case.ids);
        }
        assert_eq!(get(&server, "plain").await.unwrap().kind, "LoRA", "known again once it was loaded");
    });
}

#[test]
fn an_adapter_that_was_let_pass_stays_when_the_operator_becomes_stricter() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = Options { allow_unknown_fields: true, ..Options::default() };
    let files = AdapterFiles::golden("lora_r4").set("a_field_of_tomorrow", serde_json::json!(1));
    runtime().block_on(async {
        let server = GoldenServer::with(options.clone()).await;
        let adapter = server.upload("Org/Tomorrow", &files).await;
        assert_eq!(adapter.unknown_fields, ["a_field_of_tomorrow"]);
        assert_eq!(
            (adapter.min_rank, adapter.max_rank, adapter.targets.as_slice()),
            (4, 4, ["q", "v"].map(String::from).as_slice())
        );
    });
    runtime().block_on(async {
        let server = GoldenServer::with(Options { allow_unknown_fields: false, ..options }).await;
        let case = case("lora_r4/long");
        let response = server.generation().await.generate(asking("Org/Tomorrow", &case)).await.unwrap().into_inner();
        assert_eq!(response.choices[0].token_ids, case.ids);
        assert_eq!(get(&server, "Org/Tomorrow").await.unwrap().unknown_fields, ["a_field_of_tomorrow"]);
        let status = server.send(files.frames(files.header("b"))).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::InvalidArgument, "UNSUPPORTED_CONFIG".into()));
        assert!(status.message().contains("--allow-unknown-adapter-fields"), "{status}");
    });
}

#[tokio::test]
async fn a_running_request_keeps_the_version_it_began_with() {
    let server = GoldenServer::start().await;
    let old = server.upload("a", &AdapterFiles::golden("lora_r4")).await;
    load(&server, "a", None).await.unwrap();
    let (before, after) = (case("lora_r4/long"), case("dora/long"));
    server.steps.hold();
    let running = started(&server, asking("a", &before)).await;
    server.steps.reach(1).await;
    let new = server.upload("a", &AdapterFiles::golden("dora")).await;
    assert_ne!(new.version, old.version);
    let mut client = server.generation().await;
    let request = asking("a", &after);
    let next = tokio::spawn(async move { client.generate(request).await });
    server.steps.release();
    let running = within(response_of(running)).await;
    assert_eq!((running.adapter_version, running.choices[0].token_ids.clone()), (old.version.clone(), before.ids));
    let next = within(next).await.unwrap().unwrap().into_inner();
    assert_eq!((next.adapter_version, next.choices[0].token_ids.clone()), (new.version, after.ids));
    let expected = pb::GenerateRequest { adapter_version: old.version, ..asking("a", &case("lora_r4/long")) };
    let status = server.generation().await.generate(expected).await.unwrap_err();
    assert_eq!(refusal(&status).1, "ADAPTER_VERSION_MISMATCH");
}

#[tokio::test]
async fn a_deleted_adapter_is_gone_for_new_requests_and_there_for_running_ones() {
    let server = GoldenServer::start().await;
    let adapter = server.upload("a", &AdapterFiles::golden("lora_r4")).await;
    load(&server, "a", None).await.unwrap();
    let case = case("lora_r4/long");
    server.steps.hold();
    let running = started(&server, asking("a", &case)).await;
    server.steps.reach(1).await;
    assert_eq!(get(&server, "a").await.unwrap().active_requests, 1);
    delete(&server, named("a")).await.unwrap();
    let status = server.generation().await.generate(asking("a", &case)).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::NotFound, "ADAPTER_NOT_FOUND".into()));
    server.steps.release();
    let response = response_of(running).await;
    assert_eq!((response.adapter_version, response.choices[0].token_ids.clone()), (adapter.version, case.ids));
}

#[tokio::test]
async fn deleting_says_what_it_finds() {
    let server = GoldenServer::start().await;
    let adapter = server.upload("a", &AdapterFiles::golden("lora_r4")).await;
    let missing = delete(&server, named("b")).await.unwrap_err();
    assert_eq!(refusal(&missing), (Code::NotFound, "ADAPTER_NOT_FOUND".into()));
    assert_eq!(missing.get_details_resource_info().unwrap().resource_name, "b");
    delete(&server, pb::DeleteAdapterRequest { allow_missing: true, ..named("b") }).await.unwrap();
    let expecting = |version: &str| pb::DeleteAdapterRequest { expected_version: Some(version.into()), ..named("a") };
    let status = delete(&server, expecting(&"0".repeat(64))).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Aborted, "ADAPTER_VERSION_MISMATCH".into()));
    let status = delete(&server, expecting("")).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "expected_version"));
    let other_case = delete(&server, named("A")).await.unwrap_err();
    assert_eq!(refusal(&other_case), (Code::NotFound, "ADAPTER_NOT_FOUND".into()), "names tell cases apart");
    let status = delete(&server, named("a/b/c")).await.unwrap_err();
    assert!(status.message().contains("as in org/name"), "{status}");
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "name"));
    delete(&server, expecting(&adapter.version)).await.unwrap();
    assert!(server.registry.is_empty());
    assert!(!server.stored("objects").join(&adapter.version).exists(), "nothing used its files");
}

#[tokio::test]
async fn a_list_comes_in_pages_and_in_order() {
    let server = FakeServer::start().await;
    let names = ["A/x", "Org", "a", "b-1", "b.2", "b/1"];
    for name in ["b/1", "a", "Org", "A/x", "b.2", "b-1"] {
        server.upload(name, &AdapterFiles::opaque("{}", name)).await;
    }
    let mut client = server.adapters().await;
    let mut found = Vec::new();
    let mut pages = 0;
    let mut page_token = String::new();
    loop {
        let request = pb::ListAdaptersRequest { page_size: 2, page_token };
        let page = client.list_adapters(request).await.unwrap().into_inner();
        assert_eq!(page.total_size, 6);
        found.extend(page.adapters.into_iter().map(|adapter| adapter.name));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        // What comes before a page that was read does not shift the next one.
        delete(&server, pb::DeleteAdapterRequest { allow_missing: true, ..named("zero") }).await.unwrap();
    }
    assert_eq!((found.as_slice(), pages), (names.map(str::to_owned).as_slice(), 3));
    let all = client.list_adapters(pb::ListAdaptersRequest::default()).await.unwrap().into_inner();
    assert_eq!((all.adapters.len(), all.next_page_token.as_str()), (6, ""));
    for (request, at) in [
        (pb::ListAdaptersRequest { page_size: -1, page_token: String::new() }, "page_size"),
        (pb::ListAdaptersRequest { page_size: 0, page_token: "b-1".into() }, "page_token"),
    ] {
        let status = client.list_adapters(request).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, at));
    }
}

// --- the device -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn adapters_are_loaded_pinned_and_unloaded() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_r4"]).await;
    assert_eq!(get(&server, "lora_r4").await.unwrap().state(), pb::AdapterState::Stored);
    let loaded = load(&server, "lora_r4", None).await.unwrap();
    assert_eq!((loaded.state(), loaded.pinned), (pb::AdapterState::Resident, false));
    assert!(load(&server, "lora_r4", Some(true)).await.unwrap().pinned);
    assert!(load(&server, "lora_r4", None).await.unwrap().pinned, "as it was");
    assert!(!load(&server, "lora_r4", Some(false)).await.unwrap().pinned);
    load(&server, "lora_r4", Some(true)).await.unwrap();
    let unloaded = unload(&server, "lora_r4").await.unwrap();
    assert!(matches!(unloaded.state(), pb::AdapterState::Evicting | pb::AdapterState::Stored), "{unloaded:?}");
    assert!(!unloaded.pinned);
    // The next request brings it back.
    let case = case("lora_r4/short");
    let response = server.generation().await.generate(case.request()).await.unwrap().into_inner();
    assert_eq!(response.choices[0].token_ids, case.ids);
    for status in [load(&server, "nobody", None).await.unwrap_err(), unload(&server, "nobody").await.unwrap_err()] {
        assert_eq!(refusal(&status), (Code::NotFound, "ADAPTER_NOT_FOUND".into()));
    }
    let status = load(&server, "", None).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "name"));
}

fn one_slot() -> Options {
    let residency = ResidencyLimits { max_resident_adapters: 1, device_bytes: 64 << 20 };
    Options { residency, ..Options::default() }
}

#[tokio::test]
async fn adapters_that_do_not_fit_together_take_turns() {
    let server = GoldenServer::with(one_slot()).await;
    server.upload_golden(&["lora_r4", "dora", "prefix_tuning"]).await;
    for _ in 0..2 {
        for name in ["lora_r4/long", "dora/long", "prefix_tuning/long"] {
            let case = case(name);
            let response = server.generation().await.generate(case.request()).await.unwrap().into_inner();
            assert_eq!(response.choices[0].token_ids, case.ids, "{name}");
        }
    }
    let stats = server.stats().await;
    assert_eq!((stats.adapters_registered, stats.adapters_resident), (3, 1));
    assert_eq!(stats.max_distinct_adapters, 1);
}

#[tokio::test]
async fn a_request_waits_for_a_place_on_the_device() {
    let server = GoldenServer::with(one_slot()).await;
    server.upload_golden(&["lora_r4", "dora"]).await;
    load(&server, "lora_r4", None).await.unwrap();
    server.steps.hold();
    let (first, second) = (case("lora_r4/long"), case("dora/long"));
    let running = started(&server, first.request()).await;
    server.steps.reach(1).await;
    let waiting = started(&server, second.request());
    tokio::pin!(waiting);
    let status = tokio::select! {
        biased;
        _ = &mut waiting => panic!("there is no place for it"),
        status = unload(&server, "lora_r4") => status.unwrap_err(),
    };
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "ADAPTER_IN_USE".into()));
    assert!(status.get_details_precondition_failure().is_some());
    server.steps.release();
    assert_eq!(response_of(running).await.choices[0].token_ids, first.ids);
    assert_eq!(response_of(within(waiting).await).await.choices[0].token_ids, second.ids);
}

#[tokio::test]
async fn pinned_adapters_can_fill_the_device() {
    let server = GoldenServer::with(one_slot()).await;
    server.upload_golden(&["lora_r4", "dora"]).await;
    load(&server, "lora_r4", Some(true)).await.unwrap();
    let status = server.generation().await.generate(case("dora/short").request()).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "ADAPTER_CAPACITY".into()));
    assert_eq!((metadata(&status, "pinned_slots"), metadata(&status, "max_slots")), ("1".into(), "1".into()));
    unload(&server, "lora_r4").await.unwrap();
    server.generation().await.generate(case("dora/short").request()).await.unwrap();
}

#[tokio::test]
async fn an_adapter_larger_than_the_device_is_told_so() {
    let residency = ResidencyLimits { max_resident_adapters: 4, device_bytes: 100 };
    let server = GoldenServer::with(Options { residency, ..Options::default() }).await;
    server.upload_golden(&["lora_r4"]).await;
    let status = load(&server, "lora_r4", None).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "ADAPTER_TOO_LARGE_FOR_DEVICE".into()));
    assert_eq!(metadata(&status, "max"), "100");
}

#[tokio::test]
async fn a_pin_that_cannot_be_kept_pins_nothing() {
    let residency = ResidencyLimits { max_resident_adapters: 4, device_bytes: 100 };
    let server = GoldenServer::with(Options { residency, ..Options::default() }).await;
    server.upload_golden(&["lora_r4"]).await;
    load(&server, "lora_r4", Some(true)).await.unwrap_err();
    assert!(!get(&server, "lora_r4").await.unwrap().pinned);
    let files = AdapterFiles::golden("ia3");
    let header = pb::UploadHeader { pin: true, ..files.header("ia3") };
    let uploaded = server.send(files.frames(header)).await.unwrap().adapter.unwrap();
    assert!(!uploaded.pinned, "stored, not pinned");
    assert!(!get(&server, "ia3").await.unwrap().pinned);
}

#[tokio::test]
async fn an_adapter_can_be_unloaded_right_after_an_answer() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_r4"]).await;
    let case = case("lora_r4/long");
    // The end by length is the engine's, the one at the stop string the gate's.
    let (by_length, mut by_stop) = (case.request(), case.request());
    by_stop.stopping.as_mut().unwrap().stop = vec!["s:".into()];
    let mut client = server.generation().await;
    for request in std::iter::repeat_n([by_length, by_stop], 20).flatten() {
        client.generate(request).await.unwrap();
        unload(&server, "lora_r4").await.unwrap();
    }
}

#[tokio::test]
async fn damage_on_disk_is_data_loss_and_not_a_wrong_answer() {
    let server = GoldenServer::start().await;
    let adapter = server.upload("a", &AdapterFiles::golden("lora_r4")).await;
    let weights = server.stored("objects").join(&adapter.version).join("adapter_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let status = server.generation().await.generate(asking("a", &case("lora_r4/short"))).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::DataLoss, "ADAPTER_CORRUPT".into()));
    assert!(!get(&server, "a").await.unwrap().last_error.is_empty());
}

// --- events -----------------------------------------------------------------------------------------------------

async fn event(stream: &mut Streaming<pb::WatchAdaptersResponse>) -> (pb::AdapterEventType, Option<pb::Adapter>) {
    let event = within(stream.message()).await.unwrap().unwrap();
    (event.r#type(), event.adapter)
}

/// Events until one of this type, which must be about this adapter.
async fn until(
    stream: &mut Streaming<pb::WatchAdaptersResponse>,
    wanted: pb::AdapterEventType,
    name: &str,
) -> pb::Adapter {
    loop {
        let (found, adapter) = event(stream).await;
        let adapter = adapter.unwrap();
        assert_eq!(adapter.name, name);
        if found == wanted {
            return adapter;
        }
        assert_eq!(found, pb::AdapterEventType::Updated);
    }
}

#[tokio::test]
async fn a_watcher_sees_what_is_there_and_then_every_change() {
    use pb::AdapterEventType as Type;
    let server = GoldenServer::start().await;
    let old = server.upload("a", &AdapterFiles::golden("lora_r4")).await;
    let mut watch = server.adapters().await.watch_adapters(pb::WatchAdaptersRequest {}).await.unwrap().into_inner();
    let (kind, adapter) = event(&mut watch).await;
    assert_eq!((kind, adapter.unwrap().name.as_str()), (Type::Existing, "a"));
    assert_eq!(event(&mut watch).await, (Type::Synced, None));

    server.upload("b", &AdapterFiles::golden("ia3")).await;
    assert_eq!(until(&mut watch, Type::Created, "b").await.kind, "IA3");
    let new = server.upload("a", &AdapterFiles::golden("dora")).await;
    assert_ne!(new.version, old.version);
    assert_eq!(until(&mut watch, Type::Replaced, "a").await.version, new.version);
    load(&server, "a", Some(true)).await.unwrap();
    loop {
        let adapter = until(&mut watch, Type::Updated, "a").await;
        if adapter.pinned && adapter.state() == pb::AdapterState::Resident {
            break;
        }
    }
    delete(&server, named("a")).await.unwrap();
    let deleted = until(&mut watch, Type::Deleted, "a").await;
    assert_eq!(deleted.version, new.version);

    // A second watcher begins with what is left.
    let mut late = server.adapters().await.watch_adapters(pb::WatchAdaptersRequest {}).await.unwrap().into_inner();
    assert_eq!(event(&mut late).await.1.unwrap().name, "b");
    assert_eq!(event(&mut late).await, (Type::Synced, None));
}

#[tokio::test]
async fn a_watcher_that_falls_behind_is_told_to_begin_again() {
    let server = FakeServer::with(Options { event_history: 4, ..Options::default() }).await;
    // A client that takes next to nothing until it reads.
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let channel = endpoint.initial_stream_window_size(1).connect().await.unwrap();
    let mut watch =
        AdapterServiceClient::new(channel).watch_adapters(pb::WatchAdaptersRequest {}).await.unwrap().into_inner();
    assert_eq!(event(&mut watch).await, (pb::AdapterEventType::Synced, None));
    for number in 0..40 {
        server.upload(&format!("a{number}"), &AdapterFiles::opaque("{}", &format!("{number}"))).await;
    }
    let status = loop {
        match within(watch.message()).await {
            Ok(Some(event)) => assert_eq!(event.r#type(), pb::AdapterEventType::Created),
            Ok(None) => panic!("the watch ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(refusal(&status), (Code::Aborted, "WATCH_LAGGED".into()));
}

/// Virtual tokens lie in the KV cache, where they outlive their adapter's stay on the device, but not the adapter.
#[tokio::test]
async fn kv_pages_of_deleted_adapters_do_not_count_as_used() {
    let residency = ResidencyLimits { max_resident_adapters: 1, device_bytes: 64 << 20 };
    let server = GoldenServer::with(Options { residency, ..Options::default() }).await;
    let names = ["prefix_tuning", "prompt_tuning", "prompt_long", "p_tuning"];
    server.upload_golden(&names).await;
    for name in names {
        let case = case(&format!("{name}/short"));
        let answer = server.generation().await.generate(case.request()).await.unwrap().into_inner();
        assert_eq!(answer.choices[0].token_ids, case.ids);
    }
    let used = server.stats().await.kv_blocks_used;
    assert!(used >= 4, "{used}");
    for name in names {
        delete(&server, named(name)).await.unwrap();
    }
    // The engine hears of it behind the answer.
    within(async {
        while server.stats().await.kv_blocks_used > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
