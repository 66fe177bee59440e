//! Adapters whose chat templates do harm.

use std::fs;
use std::path::Path;

use pb::upload_adapter_request::Frame;
use polydelta::adapters::{CHAT_TEMPLATE_FILE, CONFIG_FILE, StoreLimits, WEIGHTS_FILE};
use polydelta::grpc::pb;
use polydelta::grpc::pb::generation_service_client::GenerationServiceClient;
use polydelta::types::Sha256Digest;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::harness::{ATTACKER, Victim, within};

fn adapter(name: &str, template: &[u8]) -> Vec<Frame> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/adapters/severity");
    let read = |file: &str| fs::read(folder.join(file)).unwrap();
    let files =
        [(CONFIG_FILE, read(CONFIG_FILE)), (CHAT_TEMPLATE_FILE, template.to_vec()), (WEIGHTS_FILE, read(WEIGHTS_FILE))];
    let declared = |(path, content): &(&str, Vec<u8>)| pb::UploadFile {
        path: (*path).to_owned(),
        size: content.len() as u64,
        sha256: Sha256Digest::of(content).to_string(),
    };
    let header = pb::UploadHeader {
        name: name.to_owned(),
        files: files.iter().map(declared).collect(),
        chat_template: template.to_vec(),
        ..pb::UploadHeader::default()
    };
    let chunk = |(file_index, (_, content)): (u32, (&str, Vec<u8>))| {
        Frame::Chunk(pb::UploadChunk { file_index, offset: 0, data: content.into() })
    };
    [Frame::Header(header)].into_iter().chain((0..).zip(files).map(chunk)).collect()
}

async fn upload(victim: &Victim, frames: Vec<Frame>) -> Result<(), Status> {
    let frames = frames.into_iter().map(|frame| pb::UploadAdapterRequest { frame: Some(frame) });
    let frames = tokio_stream::iter(frames.collect::<Vec<_>>());
    victim.adapters_from(ATTACKER).await.upload_adapter(frames).await.map(drop)
}

async fn chat(channel: Channel, adapter: String) -> Code {
    let messages = vec![pb::ChatMessage { role: "user".into(), content: "hi".into() }];
    let input = Some(pb::tokenize_request::Input::Chat(pb::Chat { messages, ..Default::default() }));
    let request = pb::TokenizeRequest { input, adapter, ..Default::default() };
    GenerationServiceClient::new(channel).tokenize(request).await.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_that_never_end_or_explode_are_stopped_and_hold_up_nobody() {
    let victim = Victim::start("", &[]);
    victim.serves().await;
    let before = victim.resident();
    let templates: [(&str, &[u8]); 3] = [
        ("endless", b"{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"),
        (
            "bomb",
            b"{% set n = namespace(t='x') %}{% for i in range(64) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
        ),
        ("deep", b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    ];
    for (name, template) in templates {
        within(upload(&victim, adapter(name, template))).await.unwrap();
    }
    let channel = victim.channel_from(ATTACKER).await;
    let mut chats = JoinSet::new();
    for (name, _) in templates.iter().cycle().take(9) {
        chats.spawn(chat(channel.clone(), (*name).to_owned()));
    }
    victim.serves().await;
    for code in within(chats.join_all()).await {
        assert!(matches!(code, Code::FailedPrecondition | Code::ResourceExhausted), "{code:?}");
    }
    victim.serves().await;
    assert!(victim.resident() < before + (256 << 20), "{before} {}", victim.resident());
    victim.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_of_the_greatest_length_are_checked_one_after_the_other() {
    let victim = Victim::start("", &[]);
    victim.serves().await;
    let before = victim.resident();
    let most = StoreLimits::default().max_chat_template_bytes as usize;
    let tag = b"{{ [1, 2, 3] }}";
    let wrong = [&tag.repeat(most / tag.len() - 1)[..], b"{% for %}"].concat();
    let four = async {
        let one = |name: &'static str| upload(&victim, adapter(name, &wrong));
        let (a, b, c, d) = within(async { tokio::join!(one("a"), one("b"), one("c"), one("d")) }).await;
        [a, b, c, d].map(|outcome| outcome.unwrap_err().code())
    };
    let (codes, ()) = tokio::join!(four, victim.serves());
    assert_eq!(codes, [Code::InvalidArgument; 4]);
    let too_long = within(upload(&victim, adapter("a", &vec![b'x'; most + 1]))).await.unwrap_err();
    assert_eq!(too_long.code(), Code::InvalidArgument);
    assert!(victim.resident() < before + (256 << 20), "{before} {}", victim.resident());
    victim.serves().await;
    victim.terminate().await;
}
