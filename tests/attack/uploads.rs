//! Uploads that lie.

use std::fs;
use std::path::Path;

use pb::upload_adapter_request::Frame;
use polydelta::adapters::{CONFIG_FILE, MAX_CHUNK_BYTES, WEIGHTS_FILE};
use polydelta::grpc::pb;
use polydelta::types::Sha256Digest;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status};

use super::harness::{ATTACKER, POLITE, Victim, within};

fn read(file: &str) -> Vec<u8> {
    read_of("severity", file)
}

fn read_of(adapter: &str, file: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/adapters").join(adapter).join(file)).unwrap()
}

/// A LoRA of zeros for the demo's model whose rank makes its file have some `bytes`.
pub(crate) fn lora_of(bytes: usize) -> (Vec<u8>, Vec<u8>) {
    const RANK: usize = 16;
    let mut config: Value = serde_json::from_slice(&read_of("json-extract", CONFIG_FILE)).unwrap();
    let model = read_of("json-extract", WEIGHTS_FILE);
    let model = SafeTensors::deserialize(&model).unwrap();
    let numbers: usize = model.iter().map(|(_, tensor)| tensor.shape().iter().product::<usize>()).sum();
    let rank = RANK * bytes / (4 * numbers);
    (config["r"], config["lora_alpha"]) = (rank.into(), rank.into());
    let shapes = model.iter().map(|(name, tensor)| {
        let shape: Vec<usize> = tensor.shape().iter().map(|dim| if *dim == RANK { rank } else { *dim }).collect();
        (name.to_owned(), shape)
    });
    let shapes: Vec<_> = shapes.collect();
    let zeros = vec![0; bytes];
    let tensors = shapes.iter().map(|(name, shape)| {
        let data = &zeros[..4 * shape.iter().product::<usize>()];
        (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
    });
    (serde_json::to_vec(&config).unwrap(), safetensors::serialize(tensors, None).unwrap())
}

fn header(name: &str, config: &[u8], weights: (u64, String)) -> Frame {
    let file = |path: &str, size, sha256| pb::UploadFile { path: path.to_owned(), size, sha256 };
    let config = file(CONFIG_FILE, config.len() as u64, Sha256Digest::of(config).to_string());
    let files = vec![config, file(WEIGHTS_FILE, weights.0, weights.1)];
    let upload_id = format!("upload-of-{name}");
    Frame::Header(pb::UploadHeader { name: name.to_owned(), files, upload_id, ..pb::UploadHeader::default() })
}

fn chunk(file_index: u32, data: Vec<u8>) -> Frame {
    chunk_at(file_index, 0, data)
}

fn chunk_at(file_index: u32, offset: u64, data: Vec<u8>) -> Frame {
    Frame::Chunk(pb::UploadChunk { file_index, offset, data: data.into() })
}

/// Both files, whole.
fn chunks(config: &[u8], weights: &[u8]) -> impl Iterator<Item = Frame> {
    let weights = weights.chunks(MAX_CHUNK_BYTES).enumerate();
    let weights = weights.map(|(index, data)| chunk_at(1, (index * MAX_CHUNK_BYTES) as u64, data.to_vec()));
    std::iter::once(chunk(0, config.to_vec())).chain(weights)
}

fn requests(frames: Vec<Frame>) -> Vec<pb::UploadAdapterRequest> {
    frames.into_iter().map(|frame| pb::UploadAdapterRequest { frame: Some(frame) }).collect()
}

/// A polite client uploads a small adapter of the demo.
pub(crate) async fn upload_severity(victim: &Victim, name: &str) -> Result<pb::UploadAdapterResponse, Status> {
    upload(victim, name, &read(CONFIG_FILE), &read(WEIGHTS_FILE)).await
}

/// A polite client uploads an adapter.
pub(crate) async fn upload(
    victim: &Victim,
    name: &str,
    config: &[u8],
    weights: &[u8],
) -> Result<pb::UploadAdapterResponse, Status> {
    let header = header(name, config, (weights.len() as u64, Sha256Digest::of(weights).to_string()));
    let frames = requests(std::iter::once(header).chain(chunks(config, weights)).collect());
    let mut client = victim.adapters_from(POLITE).await;
    within(client.upload_adapter(tokio_stream::iter(frames))).await.map(tonic::Response::into_inner)
}

/// Send frames and leave the stream open: what the server says before it has everything.
async fn said_early(victim: &Victim, frames: Vec<Frame>) -> Status {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    for frame in requests(frames) {
        sender.send(frame).unwrap();
    }
    let mut client = victim.adapters_from(ATTACKER).await;
    let refused = within(client.upload_adapter(UnboundedReceiverStream::new(receiver))).await.unwrap_err();
    drop(sender);
    refused
}

fn safetensors(header: &str) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_be_accepted_is_refused_as_soon_as_it_shows() {
    const LARGE: u64 = 1_200_000_000;
    let victim = Victim::start("", &[]);
    let config = read(CONFIG_FILE);
    let unsupported = String::from_utf8(config.clone()).unwrap().replace("LN_TUNING", "OFT").into_bytes();
    let large = || (LARGE, "0".repeat(64));
    let tensor = |name: &str, shape: &str| {
        format!("{{\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[0,1199999000]}}}}")
    };
    let cases: Vec<(&str, Vec<Frame>)> = vec![
        ("a method that is not served", vec![header("a", &unsupported, large()), chunk(0, unsupported.clone())]),
        ("a header longer than any", vec![header("b", &config, large()), chunk(1, u64::MAX.to_le_bytes().to_vec())]),
        ("no JSON", vec![header("c", &config, large()), chunk(1, safetensors("<html>"))]),
        (
            "a size that is not the shape's",
            vec![header("d", &config, large()), chunk(1, safetensors(&tensor("x", "[3]")))],
        ),
    ];
    for (what, frames) in cases {
        let refused = said_early(&victim, frames).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused:?}");
    }
    // None of them can be resumed.
    let mut client = victim.adapters_from(POLITE).await;
    for name in ["a", "b", "c", "d"] {
        let upload_id = format!("upload-of-{name}");
        let gone = client.get_upload(pb::GetUploadRequest { upload_id }).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound, "{name}");
    }
    upload_severity(&victim, "small").await.unwrap();
    victim.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configs_of_millions_of_values_are_refused_without_being_built() {
    let victim = Victim::start("", &[]);
    victim.serves().await;
    let before = victim.peak();
    let values = |value: &str| {
        let list = [value].repeat(3_900_000 / (value.len() + 1)).join(",");
        format!(r#"{{"peft_type":"LORA","r":4,"lora_alpha":4,"target_modules":[{list}]}}"#).into_bytes()
    };
    let mut client = victim.adapters_from(ATTACKER).await;
    let mut sent = Vec::new();
    for value in ["0", "[]", "\"q\"", "{}"] {
        let config = values(value);
        let Frame::Header(header) = header("wide", &config, (1000, "0".repeat(64))) else { panic!() };
        let header = pb::UploadHeader { config, upload_id: String::new(), ..header };
        for _ in 0..10 {
            let (mut client, frames) = (client.clone(), requests(vec![Frame::Header(header.clone())]));
            sent.push(tokio::spawn(async move { within(client.upload_adapter(tokio_stream::iter(frames))).await }));
        }
    }
    for refused in sent {
        let refused = refused.await.unwrap().unwrap_err();
        assert!(matches!(refused.code(), Code::InvalidArgument | Code::ResourceExhausted), "{refused:?}");
    }
    let missing = client.get_adapter(pb::GetAdapterRequest { name: "wide".into() }).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    victim.serves().await;
    let grown = victim.peak() - before;
    assert!(grown < 400 << 20, "{} MiB more", grown >> 20);
    victim.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_larger_than_the_memory_for_it_is_refused_by_its_header() {
    let victim = Victim::start("", &["--load-memory", "1MiB"]);
    let config = read(CONFIG_FILE);
    let refused = said_early(&victim, vec![header("large", &config, (400_000, "0".repeat(64)))]).await;
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    upload_severity(&victim, "small").await.unwrap();
    victim.terminate().await;
}
