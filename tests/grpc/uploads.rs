//! Uploads: frames, headers and content, what is refused and what is left of it.

use std::fs;

use polydelta::adapters::{StoreLimits, WEIGHTS_FILE};
use polydelta::grpc::pb;
use serde_json::json;
use tokio_stream::StreamExt;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::files::{AdapterFiles, CHUNK, CONFIG, WEIGHTS, chunk, committed, header_frame};
use super::golden::{GoldenServer, case};
use super::harness::{Options, Server, field, metadata, refusal, within};

const MIB: usize = 1 << 20;

fn lora() -> AdapterFiles {
    AdapterFiles::golden("lora_r4")
}

/// Nothing of a refused upload may stay.
fn check_nothing_left(server: &Server) {
    assert!(server.registry.is_empty());
    assert_eq!(server.registry.uploads().open(), (0, 0));
    assert_eq!(fs::read_dir(server.stored("staging")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(server.stored("objects")).unwrap().count(), 0);
}

async fn upload_of(server: &Server, upload_id: &str) -> Result<pb::Upload, Status> {
    let request = pb::GetUploadRequest { upload_id: upload_id.into() };
    let response = server.adapters().await.get_upload(request).await?;
    Ok(response.into_inner().upload.unwrap())
}

fn with_id(files: &AdapterFiles, name: &str, upload_id: &str) -> pb::UploadHeader {
    pb::UploadHeader { upload_id: upload_id.into(), ..files.header(name) }
}

// --- what is taken ----------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_adapter_serves_once_its_upload_is_acknowledged() {
    let server = GoldenServer::start().await;
    let files = lora();
    let response = server.send(files.frames(files.header("sql"))).await.unwrap();
    assert!(response.created);
    let adapter = response.adapter.unwrap();
    assert_eq!((adapter.name.as_str(), adapter.kind.as_str(), adapter.max_rank), ("sql", "LoRA", 4));
    assert_eq!(adapter.version.len(), 64);
    assert_eq!(adapter.state(), pb::AdapterState::Stored);
    assert_eq!(adapter.stored_bytes, (files.config.len() + files.weights.len()) as u64);
    assert_eq!(adapter.ops, [pb::OpCount { op_class: "LowRank".into(), count: 4 }]);
    // Four modules: q is 32 to 32 and v 32 to 16, in two layers.
    assert_eq!(adapter.parameters, 2 * 4 * (32 + 32 + 32 + 16));
    assert!(adapter.device_bytes > 0 && adapter.create_time.is_some());
    assert_eq!((adapter.pinned, adapter.virtual_tokens, adapter.last_error.as_str()), (false, 0, ""));

    let case = case("lora_r4/long");
    let request = pb::GenerateRequest { adapter: "sql".into(), ..case.request() };
    let generated = server.generation().await.generate(request).await.unwrap().into_inner();
    assert_eq!(generated.choices[0].token_ids, case.ids);
    assert_eq!(generated.adapter_version, adapter.version);
}

#[tokio::test]
async fn the_files_of_an_upload_may_come_in_any_order_among_themselves() {
    let server = GoldenServer::start().await;
    let files = lora();
    let mut chunks = files.chunks();
    chunks.reverse();
    // Each file from its first byte on, the weights first.
    chunks.sort_by_key(|request| match &request.frame {
        Some(pb::upload_adapter_request::Frame::Chunk(chunk)) => chunk.offset,
        _ => 0,
    });
    let frames = [header_frame(files.header("mixed"))].into_iter().chain(chunks).collect();
    let mixed = server.send(frames).await.unwrap().adapter.unwrap();
    let plain = server.upload("plain", &files).await;
    assert_eq!(mixed.version, plain.version, "the same bytes are the same version");
}

#[tokio::test]
async fn companions_are_taken_and_dropped() {
    let server = GoldenServer::start().await;
    let files = lora();
    let mut header = files.header("a");
    let readme = b"# a model card";
    header.files.push(pb::UploadFile {
        path: "README.md".into(),
        size: readme.len() as u64,
        sha256: polydelta::types::Sha256Digest::of(readme).to_string(),
    });
    let mut frames = files.frames(header);
    frames.push(chunk(2, 0, readme));
    let adapter = server.send(frames).await.unwrap().adapter.unwrap();
    assert_eq!(adapter.version, server.upload("b", &files).await.version, "they are no part of the version");
    let stored = fs::read_dir(server.stored("objects").join(&adapter.version)).unwrap();
    assert_eq!(stored.count(), 2);
}

#[tokio::test]
async fn a_pinned_upload_is_on_the_device_when_it_is_acknowledged() {
    let server = GoldenServer::start().await;
    let files = lora();
    let header = pb::UploadHeader { pin: true, ..files.header("hot") };
    let adapter = server.send(files.frames(header)).await.unwrap().adapter.unwrap();
    assert!(adapter.pinned);
    assert_eq!(adapter.state(), pb::AdapterState::Resident);
    assert_eq!(server.stats().await.adapters_resident, 1);
}

#[tokio::test]
async fn validation_describes_and_stores_nothing() {
    let server = GoldenServer::start().await;
    let files = lora();
    let header = pb::UploadHeader { validate_only: true, pin: true, ..files.header("a") };
    let response = server.send(files.frames(header.clone())).await.unwrap();
    assert!(response.created);
    let preview = response.adapter.unwrap();
    assert_eq!((preview.kind.as_str(), preview.max_rank, preview.pinned), ("LoRA", 4, true));
    check_nothing_left(&server);
    let adapter = server.upload("a", &files).await;
    assert_eq!(adapter.version, preview.version);
    assert!(!server.send(files.frames(header)).await.unwrap().created, "the name exists now");

    let bad = files.set("peft_type", json!("XLORA"));
    let header = pb::UploadHeader { validate_only: true, ..bad.header("b") };
    let status = server.send(bad.frames(header)).await.unwrap_err();
    assert_eq!(refusal(&status).1, "UNSUPPORTED_CONFIG");
}

#[tokio::test]
async fn the_expected_version_decides_what_an_upload_may_replace() {
    let server = GoldenServer::start().await;
    let (first, second) = (lora(), AdapterFiles::golden("lora_r1"));
    let expecting = |files: &AdapterFiles, version: &str| {
        files.frames(pb::UploadHeader { expected_version: Some(version.into()), ..files.header("a") })
    };
    let other = "0".repeat(64);
    let status = server.send(expecting(&first, &other)).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Aborted, "ADAPTER_VERSION_MISMATCH".into()), "there is none");
    check_nothing_left(&server);

    let created = server.send(expecting(&first, "")).await.unwrap();
    assert!(created.created);
    let version = created.adapter.unwrap().version;
    let status = server.send(expecting(&second, "")).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::AlreadyExists, "ADAPTER_ALREADY_EXISTS".into()));
    assert_eq!(metadata(&status, "version"), version);
    assert_eq!(status.get_details_resource_info().unwrap().resource_name, "a");
    let status = server.send(expecting(&second, &other)).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Aborted, "ADAPTER_VERSION_MISMATCH".into()));
    assert_eq!((metadata(&status, "expected"), metadata(&status, "actual")), (other, version.clone()));
    let status = server.send(expecting(&second, "v1")).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "header.expected_version"));

    let replaced = server.send(expecting(&second, &version)).await.unwrap();
    assert!(!replaced.created);
    let second_version = replaced.adapter.unwrap().version;
    assert_ne!(second_version, version);
    // Unset: whatever is there.
    let again = server.send(first.frames(first.header("a"))).await.unwrap();
    assert!(!again.created);
    assert_eq!(again.adapter.unwrap().version, version);
}

// --- uploads that break off -------------------------------------------------------------------------------------

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off() {
    let server = GoldenServer::start().await;
    let files = lora();
    let header = with_id(&files, "a", "resumed");
    let all = files.frames(header.clone());
    let (begun, mut broken) = (all.len() / 2, all[..all.len() / 2].to_vec());
    // One chunk is left out: the upload stops there and keeps what came before.
    broken.push(all[begun + 1].clone());
    let status = server.send(broken).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::OutOfRange, "UPLOAD_OFFSET_MISMATCH".into()));
    assert_eq!(field(&status), "chunk.offset");

    let upload = upload_of(&server, "resumed").await.unwrap();
    assert!(upload.adapter.is_none());
    assert_eq!(upload.files[0].committed_size, files.config.len() as u64);
    let weights = &upload.files[1];
    assert_eq!((weights.path.as_str(), weights.size), (WEIGHTS_FILE, files.weights.len() as u64));
    let done = weights.committed_size as usize;
    assert!(done > 0 && done < files.weights.len() && done.is_multiple_of(CHUNK), "{upload:?}");
    assert_eq!(metadata(&status, "expected"), done.to_string());

    let rest = vec![header_frame(header), chunk(WEIGHTS, done, &files.weights[done..])];
    let adapter = server.send(rest).await.unwrap().adapter.unwrap();
    assert_eq!(adapter.version, server.upload("b", &files).await.version);
}

#[tokio::test]
async fn an_upload_survives_its_connection() {
    let server = GoldenServer::start().await;
    let files = lora();
    let header = with_id(&files, "a", "broken");
    let first = vec![header_frame(header.clone()), chunk(CONFIG, 0, &files.config[..500])];
    let frames = tokio_stream::StreamExt::chain(tokio_stream::iter(first), tokio_stream::pending());
    {
        let mut client = server.adapters().await;
        let mut other = server.adapters().await;
        tokio::select! {
            ended = client.upload_adapter(frames) => panic!("{ended:?}"),
            () = committed(&mut other, "broken", CONFIG, 500) => {}
        }
    }
    let rest = vec![header_frame(header), chunk(CONFIG, 500, &files.config[500..]), chunk(WEIGHTS, 0, &files.weights)];
    server.send(rest).await.unwrap();
}

#[tokio::test]
async fn an_upload_that_ends_early_can_be_resumed_where_it_has_an_id() {
    let server = GoldenServer::start().await;
    let files = lora();
    let header = with_id(&files, "a", "early");
    let early = vec![header_frame(header.clone()), chunk(CONFIG, 0, &files.config)];
    let status = server.send(early).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "TRUNCATED".into()));
    assert_eq!((metadata(&status, "path"), metadata(&status, "got")), (WEIGHTS_FILE.to_owned(), "0".to_owned()));
    server.send(vec![header_frame(header), chunk(WEIGHTS, 0, &files.weights)]).await.unwrap();
}

#[tokio::test]
async fn a_second_stream_takes_an_upload_over() {
    let server = GoldenServer::start().await;
    let files = lora();
    let header = with_id(&files, "a", "shared");
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    sender.send(header_frame(header.clone())).await.unwrap();
    sender.send(chunk(CONFIG, 0, &files.config)).await.unwrap();
    let mut client = server.adapters().await;
    let hanging = client.upload_adapter(tokio_stream::wrappers::ReceiverStream::new(receiver));
    tokio::pin!(hanging);
    let mut other = server.adapters().await;
    tokio::select! {
        ended = &mut hanging => panic!("{ended:?}"),
        () = committed(&mut other, "shared", CONFIG, files.config.len() as u64) => {}
    }
    let rest = vec![header_frame(header), chunk(WEIGHTS, 0, &files.weights[..CHUNK]), chunk(WEIGHTS, 0, b"again")];
    let status = server.send(rest).await.unwrap_err();
    assert_eq!(metadata(&status, "expected"), CHUNK.to_string());
    sender.send(chunk(WEIGHTS, CHUNK, &files.weights[CHUNK..])).await.unwrap();
    let status = within(hanging).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Aborted, "UPLOAD_TAKEN_OVER".into()));
}

#[tokio::test]
async fn an_upload_sent_again_is_recognised() {
    let server = GoldenServer::start().await;
    let files = lora();
    let header = with_id(&files, "a", "once");
    let first = server.send(files.frames(header.clone())).await.unwrap();
    // Its header is enough: the answer comes before a chunk is asked for.
    let again = server.send(vec![header_frame(header.clone())]).await.unwrap();
    assert!(first.created && again.created, "the answer to the same upload is the same");
    assert_eq!(again.adapter.unwrap().version, first.adapter.as_ref().unwrap().version);
    let upload = upload_of(&server, "once").await.unwrap();
    assert!(upload.files.is_empty());
    assert_eq!(upload.adapter.unwrap().version, first.adapter.unwrap().version);

    let status = server.send(vec![header_frame(pb::UploadHeader { name: "b".into(), ..header })]).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "UPLOAD_ID_REUSED".into()));
    assert_eq!(field(&status), "header.upload_id");
    let status = upload_of(&server, "never").await.unwrap_err();
    assert_eq!(refusal(&status), (Code::NotFound, "UPLOAD_NOT_FOUND".into()));
}

#[tokio::test]
async fn an_upload_without_an_id_leaves_nothing_when_it_breaks_off() {
    let server = GoldenServer::start().await;
    let files = lora();
    let mut frames = files.frames(files.header("a"));
    frames.push(chunk(WEIGHTS, 0, b"x"));
    server.send(frames).await.unwrap_err();
    check_nothing_left(&server);
}

// --- limits -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn uploads_are_limited_in_number_and_size() {
    let limits = StoreLimits { max_uploads: 1, max_adapters: 1, ..StoreLimits::default() };
    let server = GoldenServer::with(Options { store: limits, ..Options::default() }).await;
    let files = lora();
    let open = vec![header_frame(with_id(&files, "a", "open")), chunk(CONFIG, 7, b"x")];
    server.send(open.clone()).await.unwrap_err();
    let status = server.send(files.frames(files.header("b"))).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "TOO_MANY_UPLOADS".into()));
    let delay = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap();
    assert_eq!(pushback, delay.as_millis().to_string());
    server.send(files.frames(with_id(&files, "a", "open"))).await.unwrap();
    let status = server.send(files.frames(files.header("b"))).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "TOO_MANY_ADAPTERS".into()));
    assert!(status.get_details_quota_failure().is_some());
    server.upload("a", &AdapterFiles::golden("lora_r1")).await;
}

// --- frames that are refused ------------------------------------------------------------------------------------

#[tokio::test]
async fn frames_out_of_place_are_refused() {
    let server = GoldenServer::start().await;
    let files = lora();
    let header = || header_frame(files.header("a"));
    let whole = files.frames(files.header("a"));
    let long = vec![0; MIB + 1];
    let digest = |header: pb::UploadAdapterRequest| match header.frame {
        Some(pb::upload_adapter_request::Frame::Header(mut header)) => {
            header.files[1].sha256 = "0".repeat(64);
            header_frame(header)
        }
        _ => panic!("no header"),
    };
    let cases: Vec<(&str, &str, Vec<pb::UploadAdapterRequest>)> = vec![
        ("MISSING_HEADER", "header", vec![]),
        ("MISSING_HEADER", "header", whole[1..].to_vec()),
        ("INVALID_FIELD", "frame", vec![pb::UploadAdapterRequest { frame: None }]),
        ("INVALID_FIELD", "frame", vec![header(), pb::UploadAdapterRequest { frame: None }]),
        ("SECOND_HEADER", "header", vec![header(), header()]),
        ("SECOND_HEADER", "header", [whole.clone(), vec![header()]].concat()),
        ("UNKNOWN_FILE_INDEX", "chunk.file_index", vec![header(), chunk(2, 0, b"x")]),
        ("EMPTY_CHUNK", "chunk.data", vec![header(), chunk(CONFIG, 0, b"")]),
        ("CHUNK_TOO_LARGE", "chunk.data", vec![header(), chunk(CONFIG, 0, &long)]),
        ("TOO_MANY_BYTES", "chunk.data", vec![header(), chunk(CONFIG, 0, &long[..2 * CHUNK])]),
        ("TOO_MANY_BYTES", "chunk.data", [whole.clone(), vec![chunk(CONFIG, files.config.len(), b"x")]].concat()),
        ("TRUNCATED", "header.files.size", whole[..whole.len() - 1].to_vec()),
        ("TRUNCATED", "header.files.size", vec![header()]),
        ("CHECKSUM_MISMATCH", "header.files.sha256", [vec![digest(header())], whole[1..].to_vec()].concat()),
    ];
    for (reason, at, frames) in cases {
        let status = server.send(frames).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::InvalidArgument, reason.to_owned()), "{status:?}");
        assert_eq!(field(&status), at, "{status:?}");
        check_nothing_left(&server);
    }
    let status = server.send(vec![header(), chunk(CONFIG, 1, b"x")]).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::OutOfRange, "UPLOAD_OFFSET_MISMATCH".into()));
    assert_eq!((metadata(&status, "expected"), metadata(&status, "got")), ("0".into(), "1".into()));
    check_nothing_left(&server);
}

#[tokio::test]
async fn a_chunk_of_a_mebibyte_is_taken() {
    let server = super::fakes::FakeServer::start().await;
    let files =
        AdapterFiles { config: b"{}".to_vec(), weights: vec![7; MIB + 5], chat_template: None, beside: Vec::new() };
    let frames = vec![
        header_frame(files.header("big")),
        chunk(CONFIG, 0, &files.config),
        chunk(WEIGHTS, 0, &files.weights[..MIB]),
        chunk(WEIGHTS, MIB, &files.weights[MIB..]),
    ];
    server.send(frames).await.unwrap();
}

#[tokio::test]
async fn headers_that_promise_nothing_good_are_refused_before_a_byte_comes() {
    let limits = StoreLimits { max_adapter_bytes: 100_000, max_files: 4, ..StoreLimits::default() };
    let server = GoldenServer::with(Options { store: limits, ..Options::default() }).await;
    let header = lora().header("a");
    let file = |path: &str, size: u64, sha256: &str| pb::UploadFile { path: path.into(), size, sha256: sha256.into() };
    let digest = "0".repeat(64);
    let also = |file: pb::UploadFile| pb::UploadHeader {
        files: [header.files.clone(), vec![file]].concat(),
        ..header.clone()
    };
    let only = |files: &[pb::UploadFile]| pb::UploadHeader { files: files.to_vec(), ..header.clone() };
    let [config, weights] = [header.files[0].clone(), header.files[1].clone()];
    let cases = [
        ("UNSUPPORTED_FORMAT", "header.files.path", also(file("adapter_model.bin", 10, &digest))),
        ("UNSUPPORTED_FORMAT", "header.files.path", also(file("optimizer.pt", 10, &digest))),
        ("UNKNOWN_FILE", "header.files.path", also(file("run.sh", 10, &digest))),
        ("BAD_PATH", "header.files.path", also(file("../adapter_config.json", 10, &digest))),
        ("BAD_PATH", "header.files.path", also(file("a/b.json", 10, &digest))),
        ("DUPLICATE_FILE", "header.files.path", also(config.clone())),
        ("MISSING_FILE", "header.files", only(&[])),
        ("MISSING_FILE", "header.files", only(std::slice::from_ref(&config))),
        ("TOO_MANY_FILES", "header.files", only(&vec![config.clone(); 5])),
        ("BAD_DIGEST", "header.files.sha256", only(&[config.clone(), file(&weights.path, 9, &"A".repeat(64))])),
        ("EMPTY_FILE", "header.files.size", only(&[config.clone(), file(&weights.path, 0, &digest)])),
        ("UPLOAD_TOO_LARGE", "header.files.size", only(&[config.clone(), file(&weights.path, 100_001, &digest)])),
        ("UPLOAD_TOO_LARGE", "header.files.size", only(&[config.clone(), file(&weights.path, 99_999, &digest)])),
        ("UPLOAD_TOO_LARGE", "header.files.size", only(&[config.clone(), file(&weights.path, u64::MAX, &digest)])),
        ("INVALID_FIELD", "header.name", pb::UploadHeader { name: "../a".into(), ..header.clone() }),
        ("INVALID_FIELD", "header.name", pb::UploadHeader { name: String::new(), ..header.clone() }),
        ("INVALID_FIELD", "header.upload_id", pb::UploadHeader { upload_id: "a b".into(), ..header.clone() }),
    ];
    for (reason, at, header) in cases {
        let status = server.send(vec![header_frame(header)]).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::InvalidArgument, reason.to_owned()), "{status:?}");
        assert_eq!(field(&status), at, "{status:?}");
    }
    check_nothing_left(&server);
}

// --- content that is refused ------------------------------------------------------------------------------------

const FIRST: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const A: &str = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight";

#[tokio::test]
async fn a_config_in_the_header_is_refused_before_any_weights_are_sent() {
    let server = GoldenServer::start().await;
    let with_config = |files: &AdapterFiles, name: &str| pb::UploadHeader {
        config: files.config.clone(),
        upload_id: name.into(),
        ..files.header(name)
    };
    let cases = [
        ("UNSUPPORTED_CONFIG", "use_qalora", lora().set("use_qalora", json!(true))),
        ("UNSUPPORTED_CONFIG", "a_field_of_tomorrow", lora().set("a_field_of_tomorrow", json!(1))),
        ("UNSUPPORTED_CONFIG", "peft_type", lora().set("peft_type", json!("XLORA"))),
        ("INVALID_CONFIG", "adapter_config.json", AdapterFiles { config: b"[1".to_vec(), ..lora() }),
        ("INVALID_CONFIG", "num_layers", AdapterFiles::golden("prefix_tuning").set("num_layers", json!(7))),
    ];
    for (reason, at, files) in cases {
        // The client sends no chunk and does not end its stream: the answer needs neither.
        let frames = tokio_stream::iter([header_frame(with_config(&files, "a"))]);
        let frames = frames.chain(tokio_stream::pending());
        let status = within(server.adapters().await.upload_adapter(frames)).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::InvalidArgument, reason.to_owned()), "{status:?}");
        assert_eq!(field(&status), at, "{status:?}");
        assert_eq!(upload_of(&server, "a").await.unwrap_err().code(), Code::NotFound, "there is nothing to go on with");
        check_nothing_left(&server);
    }
    let lying = pb::UploadHeader { config: b"{}".to_vec(), ..lora().header("a") };
    let status = server.send(lora().frames(lying)).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "header.config"));
    let nameless = pb::UploadHeader { name: "-a".into(), ..with_config(&lora(), "a") };
    let status = server.send(vec![header_frame(nameless)]).await.unwrap_err();
    assert_eq!(field(&status), "header.name");
    check_nothing_left(&server);
    // A good one goes on as ever.
    let response = server.send(lora().frames(with_config(&lora(), "a"))).await.unwrap();
    assert_eq!(response.adapter.unwrap().version, server.upload("b", &lora()).await.version);
}

#[tokio::test]
async fn content_that_does_not_fit_the_base_is_refused_by_name() {
    let server = GoldenServer::start().await;
    let not_finite = |number: f32| {
        lora().map_tensors(|tensor| Some(if tensor.name == A { tensor.begin_with(number) } else { tensor }))
    };
    let of_another_base = lora().map_tensors(|mut tensor| {
        tensor.name = tensor.name.replace("model.model.layers", "transformer.h");
        Some(tensor)
    });
    let of_another_base = of_another_base.set("target_modules", json!(["c_attn"]));
    let cases = [
        ("NON_FINITE", A, not_finite(f32::NAN)),
        ("NON_FINITE", A, not_finite(f32::INFINITY)),
        ("SHAPE_MISMATCH", A, lora().map_tensors(|t| Some(if t.name == A { t.reshaped() } else { t }))),
        ("MISSING_TENSOR", "model.layers.1.self_attn.v_proj", lora().map_tensors(|t| (t.name != A).then_some(t))),
        ("NOTHING_MATCHED", "target_modules", of_another_base),
        ("TENSOR_NOT_TARGETED", FIRST, lora().set("target_modules", json!(["v_proj"]))),
        ("UNSUPPORTED_CONFIG", "peft_type", lora().set("peft_type", json!("XLORA"))),
        ("UNSUPPORTED_CONFIG", "use_qalora", lora().set("use_qalora", json!(true))),
        ("UNSUPPORTED_CONFIG", "a_field_of_tomorrow", lora().set("a_field_of_tomorrow", json!(1))),
        ("INVALID_CONFIG", "r", lora().set("r", json!("four"))),
        ("INVALID_CONFIG", "adapter_config.json", AdapterFiles { config: b"{".to_vec(), ..lora() }),
        ("RANK_OUT_OF_RANGE", "model.layers.0.self_attn.q_proj", lora().set("r", json!(100_000))),
        (
            "INVALID_SAFETENSORS",
            "adapter_model.safetensors",
            AdapterFiles { weights: b"PK\x03\x04".to_vec(), ..lora() },
        ),
        ("UNSUPPORTED_CONFIG", "modules_to_save", lora().set("modules_to_save", json!(["score"]))),
    ];
    for (reason, at, files) in cases {
        let status = server.send(files.frames(with_id(&files, "a", reason))).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::InvalidArgument, reason.to_owned()), "{status:?}");
        assert_eq!(field(&status), at, "{status:?}");
        if reason != "NOTHING_MATCHED" {
            assert!(status.message().contains(at), "{status:?}");
        }
        check_nothing_left(&server);
    }
}
