//! A process with little address space: what does not fit is refused, and nothing ends it.

use polydelta::adapters::{CONFIG_FILE, WEIGHTS_FILE};
use polydelta::grpc::pb;
use tonic::Code;

use super::harness::{ATTACKER, Victim, generate, within};
use super::uploads;

const LITTLE: &str = "ulimit -v 524288";

/// The header of an adapter with a file of `bytes`.
fn header(bytes: u64) -> pb::UploadAdapterRequest {
    let file = |path: &str, size| pb::UploadFile { path: path.to_owned(), size, sha256: "0".repeat(64) };
    let files = vec![file(CONFIG_FILE, 100), file(WEIGHTS_FILE, bytes)];
    let header = pb::UploadHeader { name: "large".into(), files, ..pb::UploadHeader::default() };
    pb::UploadAdapterRequest { frame: Some(pb::upload_adapter_request::Frame::Header(header)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_memory_does_not_hold_is_refused_and_the_server_goes_on() {
    let victim = Victim::start(LITTLE, &[]);
    let mut client = victim.adapters_from(ATTACKER).await;
    for megabytes in [102, 205, 410] {
        let upload = client.upload_adapter(tokio_stream::once(header(megabytes * 1_000_000)));
        let refused = within(upload).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{megabytes} MB: {refused:?}");
    }
    let channel = victim.channel_from(ATTACKER).await;
    let prompt = "word ".repeat(800_000 - 1000);
    let prompts: Vec<_> = (0..100)
        .map(|_| {
            let (channel, prompt) = (channel.clone(), prompt.clone());
            tokio::spawn(async move { generate(channel, &prompt).await.unwrap_err() })
        })
        .collect();
    for refused in prompts {
        let refused = within(refused).await.unwrap();
        assert!(matches!(refused.code(), Code::ResourceExhausted | Code::InvalidArgument), "{refused:?}");
    }
    uploads::upload_severity(&victim, "small").await.unwrap();
    victim.serves().await;
    victim.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_adapter_within_the_memory_for_it_is_served_and_a_larger_one_is_refused() {
    let victim = Victim::start(LITTLE, &[]);
    for (megabytes, expected) in [(12, Code::Ok), (30, Code::Ok), (60, Code::ResourceExhausted)] {
        let (config, weights) = uploads::lora_of(megabytes << 20);
        let sent = uploads::upload(&victim, &format!("of-{megabytes}"), &config, &weights).await;
        let code = sent.map_or_else(|refused| refused.code(), |_| Code::Ok);
        assert_eq!(code, expected, "{megabytes} MiB");
        victim.serves().await;
    }
    victim.terminate().await;
}
