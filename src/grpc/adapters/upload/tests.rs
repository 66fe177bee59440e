use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame as BodyFrame;
use prost::Message;
use tokio::sync::mpsc;
use tonic::codec::Codec;
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

use super::*;
use crate::adapters::CHAT_TEMPLATE_FILE;
use crate::adapters::testing::contents;
use crate::admission::testing::{House, metric, recorded};
use metrics_exporter_prometheus::PrometheusHandle;
use sha2::Digest;

const IDLE: Duration = Duration::from_secs(30);

/// What a client has sent so far; dropped, it has sent everything.
struct Client(mpsc::UnboundedSender<Result<Bytes, Status>>);

struct Wire(mpsc::UnboundedReceiver<Result<Bytes, Status>>);

impl http_body::Body for Wire {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<BodyFrame<Bytes>, Status>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| bytes.map(BodyFrame::data)))
    }
}

fn file((path, content): &(&str, Vec<u8>)) -> pb::UploadFile {
    let sha256 = hex::encode(sha2::Sha256::digest(content));
    pb::UploadFile { path: (*path).to_owned(), size: content.len() as u64, sha256 }
}

impl Client {
    fn new() -> (Self, Streaming<pb::UploadAdapterRequest>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let decoder = ProstCodec::<pb::UploadAdapterResponse, pb::UploadAdapterRequest>::default().decoder();
        (Self(sender), Streaming::new_request(decoder, Wire(receiver), None, None))
    }

    fn send(&self, frame: Option<Frame>) {
        let message = pb::UploadAdapterRequest { frame }.encode_to_vec();
        let mut bytes = BytesMut::new();
        bytes.put_u8(0);
        bytes.put_u32(u32::try_from(message.len()).unwrap());
        bytes.put_slice(&message);
        self.0.send(Ok(bytes.freeze())).unwrap();
    }

    fn header(&self, name: &str, seed: u8, change: impl FnOnce(&mut pb::UploadHeader)) {
        let files = contents(seed).iter().map(file).collect();
        let mut header = pb::UploadHeader { name: name.to_owned(), files, ..Default::default() };
        change(&mut header);
        self.send(Some(Frame::Header(header)));
    }

    fn chunk(&self, file_index: u32, content: Vec<u8>) {
        self.send(Some(Frame::Chunk(pb::UploadChunk { file_index, offset: 0, data: content.into() })));
    }

    fn chunks(&self, seed: u8) {
        for (index, (_, content)) in (0..).zip(contents(seed)) {
            self.chunk(index, content);
        }
    }
}

/// Bytes of all files of an adapter.
fn size(seed: u8) -> f64 {
    contents(seed).iter().map(|(_, content)| content.len()).sum::<usize>() as f64
}

struct Uploads {
    house: House,
    intake: Arc<Intake>,
    metrics: PrometheusHandle,
}

impl Uploads {
    fn new() -> Self {
        let (metrics, handle) = recorded();
        let house = House::new();
        let intake = house.intake(metrics);
        Self { house, intake, metrics: handle }
    }

    async fn receive(&self, frames: Streaming<pb::UploadAdapterRequest>) -> Result<pb::UploadAdapterResponse, Status> {
        let (intake, registry) = (&self.intake, &self.house.registry);
        Upload { intake, registry, idle: IDLE, client: ClientKey::LOCAL }.receive(frames).await
    }

    /// An upload whose frames are all there when it begins.
    async fn run(&self, frames: impl FnOnce(&Client)) -> Result<pb::UploadAdapterResponse, Status> {
        let (client, stream) = Client::new();
        frames(&client);
        drop(client);
        self.receive(stream).await
    }

    fn counted(&self, outcome: &str) -> f64 {
        let label = format!("outcome=\"{outcome}\"");
        metric(&self.metrics, "polydelta_uploads_total", &[&label]).unwrap_or(0.0)
    }

    fn bytes(&self) -> f64 {
        metric(&self.metrics, "polydelta_upload_bytes_total", &[]).unwrap_or(0.0)
    }
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

#[tokio::test]
async fn an_upload_is_stored_described_and_counted() {
    let uploads = Uploads::new();
    let whole = |seed| {
        move |client: &Client| {
            client.header("sql", seed, |_| ());
            client.chunks(seed);
        }
    };
    let response = uploads.run(whole(1)).await.unwrap();
    let adapter = response.adapter.unwrap();
    assert_eq!((adapter.name.as_str(), response.created, adapter.stored_bytes as f64), ("sql", true, size(1)));
    assert!(!uploads.run(whole(1)).await.unwrap().created);
    let replaced = uploads.run(whole(2)).await.unwrap();
    assert!(!replaced.created && replaced.adapter.unwrap().version != adapter.version);
    assert_eq!(["created", "unchanged", "replaced"].map(|outcome| uploads.counted(outcome)), [1.0; 3]);
    assert_eq!(uploads.bytes(), 2.0 * size(1) + size(2));
}

#[tokio::test]
async fn an_upload_for_validation_stores_nothing() {
    let uploads = Uploads::new();
    let check = |client: &Client| {
        client.header("sql", 1, |header| header.validate_only = true);
        client.chunks(1);
    };
    let response = uploads.run(check).await.unwrap();
    assert!(response.created, "it would be new");
    assert_eq!(response.adapter.unwrap().kind, "LoRA");
    assert_eq!((uploads.house.registry.len(), uploads.counted("validated")), (0, 1.0));
}

#[tokio::test]
async fn frames_out_of_order_are_refused() {
    let uploads = Uploads::new();
    let no_frames = uploads.run(|_| ()).await.unwrap_err();
    assert_eq!(reason(&no_frames), "MISSING_HEADER");
    let chunk_first = uploads.run(|client| client.chunk(0, vec![1])).await.unwrap_err();
    assert_eq!(reason(&chunk_first), "MISSING_HEADER");
    let twice = |client: &Client| {
        client.header("sql", 1, |_| ());
        client.header("sql", 1, |_| ());
    };
    assert_eq!(reason(&uploads.run(twice).await.unwrap_err()), "SECOND_HEADER");
    let bad_name = uploads.run(|client| client.header("../x", 1, |_| ())).await.unwrap_err();
    assert_eq!(bad_name.get_details_bad_request().unwrap().field_violations[0].field, "header.name");
    let short = |client: &Client| {
        client.header("sql", 1, |_| ());
        client.chunk(0, contents(1).remove(0).1);
    };
    assert_eq!(reason(&uploads.run(short).await.unwrap_err()), "TRUNCATED");
    assert_eq!(uploads.counted("rejected"), 5.0);
    let empty = |client: &Client| {
        client.header("sql", 1, |_| ());
        client.send(None);
    };
    assert_eq!(reason(&uploads.run(empty).await.unwrap_err()), "INVALID_FIELD");
    assert_eq!(uploads.house.registry.len(), 0);
}

#[tokio::test]
async fn an_adapter_that_does_not_compile_is_not_stored() {
    let uploads = Uploads::new();
    uploads.house.installer.broken.store(true, SeqCst);
    let whole = |client: &Client| {
        client.header("sql", 1, |_| ());
        client.chunks(1);
    };
    assert_eq!(reason(&uploads.run(whole).await.unwrap_err()), "INTERNAL");
    assert_eq!((uploads.house.registry.len(), uploads.counted("rejected")), (0, 1.0));
}

#[tokio::test]
async fn a_client_that_breaks_off_is_counted_as_such() {
    let uploads = Uploads::new();
    let broken = |client: &Client| {
        client.header("sql", 1, |_| ());
        client.chunk(0, contents(1).remove(0).1);
        client.0.send(Err(Status::unavailable("connection lost"))).unwrap();
    };
    uploads.run(broken).await.unwrap_err();
    assert_eq!((uploads.counted("interrupted"), uploads.bytes()), (1.0, contents(1)[0].1.len() as f64));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_falls_silent_is_ended() {
    let uploads = Uploads::new();
    let (client, stream) = Client::new();
    let begun = tokio::time::Instant::now();
    let status = uploads.receive(stream).await.unwrap_err();
    assert_eq!((reason(&status).as_str(), begun.elapsed().as_secs()), ("UPLOAD_IDLE", IDLE.as_secs()));
    assert_eq!(uploads.counted("interrupted"), 1.0);
    drop(client);
}

#[tokio::test]
async fn a_chat_template_that_does_not_compile_is_refused_before_anything_else_comes() {
    let uploads = Uploads::new();
    let refused = async |template: &'static [u8], change: fn(&mut pb::UploadHeader)| {
        let only_header = |client: &Client| {
            client.header("sql", 1, |header| {
                header.files.push(file(&(CHAT_TEMPLATE_FILE, template.to_vec())));
                header.chat_template = template.to_vec();
                change(header);
            });
        };
        let status = uploads.run(only_header).await.unwrap_err();
        let field = status.get_details_bad_request().map(|bad| bad.field_violations[0].field.clone());
        (reason(&status), field.unwrap_or_default())
    };
    let invalid = ("INVALID_CHAT_TEMPLATE".to_owned(), CHAT_TEMPLATE_FILE.to_owned());
    assert_eq!(refused(b"{% for %}", |_| ()).await, invalid);
    assert_eq!(refused(b"\xff", |_| ()).await, invalid);
    let other = ("INVALID_FIELD".to_owned(), "header.chat_template".to_owned());
    assert_eq!(refused(b"good", |header| header.chat_template.push(b'!')).await, other);
    assert_eq!(refused(b"good", |header| drop(header.files.pop())).await, other);
    assert_eq!(refused(b"good", |_| ()).await.0, "TRUNCATED", "nothing is wrong with it");
    assert_eq!((uploads.house.registry.len(), uploads.bytes()), (0, 0.0));
}

#[tokio::test]
async fn a_chat_template_that_comes_in_chunks_alone_is_checked_with_the_weights() {
    let uploads = Uploads::new();
    let with = |template: &'static [u8]| {
        move |client: &Client| {
            client.header("sql", 1, |header| header.files.push(file(&(CHAT_TEMPLATE_FILE, template.to_vec()))));
            client.chunks(1);
            client.chunk(2, template.to_vec());
        }
    };
    assert_eq!(reason(&uploads.run(with(b"{% for %}")).await.unwrap_err()), "INVALID_CHAT_TEMPLATE");
    assert_eq!(uploads.house.registry.len(), 0);
    let adapter = uploads.run(with(b"good")).await.unwrap().adapter.unwrap();
    assert!(adapter.has_chat_template);
    assert_eq!(adapter.stored_bytes as f64, size(1) + 4.0);
}
