//! Adapters as clients send them.

use std::fs;
use std::path::{Path, PathBuf};

use pb::upload_adapter_request::Frame;
use polydelta::adapters::{CHAT_TEMPLATE_FILE, CONFIG_FILE, WEIGHTS_FILE};
use polydelta::grpc::pb;
use polydelta::grpc::pb::adapter_service_client::AdapterServiceClient;
use polydelta::types::Sha256Digest;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::{Map, Value};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::harness::{Server, within};

/// Small, so that every file comes in several.
pub(crate) const CHUNK: usize = 1000;

/// Position of the files in the headers made here.
pub(crate) const CONFIG: u32 = 0;
pub(crate) const WEIGHTS: u32 = 1;

pub(crate) fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/llama")
}

/// The content of an adapter's two files.
#[derive(Clone, Debug)]
pub(crate) struct AdapterFiles {
    pub(crate) config: Vec<u8>,
    pub(crate) weights: Vec<u8>,
    /// The third file, where it brings one.
    pub(crate) chat_template: Option<Vec<u8>>,
    /// What it brings besides.
    pub(crate) beside: Vec<(&'static str, Vec<u8>)>,
}

impl AdapterFiles {
    /// An adapter of the golden llama, as PEFT saved it.
    pub(crate) fn golden(name: &str) -> Self {
        let dir = golden_dir().join("adapters").join(name);
        let read = |file| fs::read(dir.join(file)).unwrap();
        Self { config: read(CONFIG_FILE), weights: read(WEIGHTS_FILE), chat_template: None, beside: Vec::new() }
    }

    /// Bytes that only a device which looks at nothing takes.
    pub(crate) fn opaque(config: &str, weights: &str) -> Self {
        Self { config: config.into(), weights: weights.into(), chat_template: None, beside: Vec::new() }
    }

    /// With a chat template of its own.
    pub(crate) fn chat_template(self, template: &[u8]) -> Self {
        Self { chat_template: Some(template.to_owned()), ..self }
    }

    /// With one more file.
    pub(crate) fn with(mut self, name: &'static str, content: impl Into<Vec<u8>>) -> Self {
        self.beside.push((name, content.into()));
        self
    }

    /// Every file, in the order of the header.
    fn all(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        let template = self.chat_template.as_ref().map(|template| (CHAT_TEMPLATE_FILE, template.as_slice()));
        [(CONFIG_FILE, self.config.as_slice()), (WEIGHTS_FILE, self.weights.as_slice())]
            .into_iter()
            .chain(template)
            .chain(self.beside.iter().map(|(name, content)| (*name, content.as_slice())))
    }

    /// With another value of a field of its config.
    pub(crate) fn set(mut self, field: &str, value: Value) -> Self {
        let mut config: Map<String, Value> = serde_json::from_slice(&self.config).unwrap();
        config.insert(field.to_owned(), value);
        self.config = serde_json::to_vec(&config).unwrap();
        self
    }

    /// With every float32 tensor's name, shape and numbers passed through `change`; `None` leaves the tensor out.
    pub(crate) fn map_tensors(mut self, mut change: impl FnMut(Tensor) -> Option<Tensor>) -> Self {
        let changed: Vec<Tensor> = {
            let file = SafeTensors::deserialize(&self.weights).unwrap();
            file.iter().filter_map(|(name, view)| change(Tensor::read(name, &view))).collect()
        };
        let views = changed
            .iter()
            .map(|tensor| (&tensor.name, TensorView::new(Dtype::F32, tensor.shape.clone(), &tensor.bytes).unwrap()));
        self.weights = serialize(views, None).unwrap();
        self
    }

    /// With every number multiplied.
    pub(crate) fn scale(self, factor: f32) -> Self {
        self.map_tensors(|tensor| Some(tensor.map(|number| number * factor)))
    }

    pub(crate) fn header(&self, name: &str) -> pb::UploadHeader {
        let file = |path: &str, bytes: &[u8]| pb::UploadFile {
            path: path.to_owned(),
            size: bytes.len() as u64,
            sha256: Sha256Digest::of(bytes).to_string(),
        };
        pb::UploadHeader {
            name: name.to_owned(),
            files: self.all().map(|(name, content)| file(name, content)).collect(),
            ..pb::UploadHeader::default()
        }
    }

    /// Every chunk, in order.
    pub(crate) fn chunks(&self) -> Vec<pb::UploadAdapterRequest> {
        let files = self.all().enumerate();
        files
            .flat_map(|(index, (_, bytes))| {
                let pieces = bytes.chunks(CHUNK).enumerate();
                pieces.map(move |(position, data)| chunk(index as u32, position * CHUNK, data))
            })
            .collect()
    }

    /// The frames of an upload under this header.
    pub(crate) fn frames(&self, header: pb::UploadHeader) -> Vec<pb::UploadAdapterRequest> {
        [header_frame(header)].into_iter().chain(self.chunks()).collect()
    }
}

/// A tensor of float32 numbers.
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn read(name: &str, view: &TensorView<'_>) -> Self {
        assert_eq!(view.dtype(), Dtype::F32);
        Self { name: name.to_owned(), shape: view.shape().to_vec(), bytes: view.data().to_vec() }
    }

    pub(crate) fn map(mut self, change: impl Fn(f32) -> f32) -> Self {
        for number in self.bytes.chunks_exact_mut(4) {
            let read = f32::from_le_bytes([number[0], number[1], number[2], number[3]]);
            number.copy_from_slice(&change(read).to_le_bytes());
        }
        self
    }

    /// With this number at its beginning.
    pub(crate) fn begin_with(mut self, number: f32) -> Self {
        self.bytes[..4].copy_from_slice(&number.to_le_bytes());
        self
    }

    /// Rows and columns exchanged, the numbers as they are.
    pub(crate) fn reshaped(mut self) -> Self {
        self.shape.reverse();
        self
    }
}

pub(crate) fn header_frame(header: pb::UploadHeader) -> pb::UploadAdapterRequest {
    pb::UploadAdapterRequest { frame: Some(Frame::Header(header)) }
}

pub(crate) fn chunk(file_index: u32, offset: usize, data: &[u8]) -> pb::UploadAdapterRequest {
    let chunk = pb::UploadChunk { file_index, offset: offset as u64, data: data.to_vec().into() };
    pb::UploadAdapterRequest { frame: Some(Frame::Chunk(chunk)) }
}

/// Wait until so many bytes of a file of an upload are on disk, which only the server can tell.
pub(crate) async fn committed(client: &mut AdapterServiceClient<Channel>, upload_id: &str, file: u32, bytes: u64) {
    let ask = async {
        loop {
            let request = pb::GetUploadRequest { upload_id: upload_id.to_owned() };
            match client.get_upload(request).await {
                Ok(response) => {
                    let files = response.into_inner().upload.unwrap().files;
                    if files[file as usize].committed_size == bytes {
                        return;
                    }
                }
                Err(status) => assert_eq!(status.code(), Code::NotFound, "not begun yet"),
            }
        }
    };
    within(ask).await;
}

impl Server {
    /// Send the frames of an upload and end the stream.
    pub(crate) async fn send(
        &self,
        frames: Vec<pb::UploadAdapterRequest>,
    ) -> Result<pb::UploadAdapterResponse, Status> {
        let request = Request::new(tokio_stream::iter(frames));
        self.adapters().await.upload_adapter(request).await.map(tonic::Response::into_inner)
    }

    /// Upload an adapter as a client does who wants nothing special.
    pub(crate) async fn upload(&self, name: &str, files: &AdapterFiles) -> pb::Adapter {
        self.send(files.frames(files.header(name))).await.unwrap().adapter.unwrap()
    }

    /// Upload adapters of the golden llama under their own names.
    pub(crate) async fn upload_golden(&self, names: &[&str]) {
        for name in names {
            self.upload(name, &AdapterFiles::golden(name)).await;
        }
    }
}
