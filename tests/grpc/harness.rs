//! A server on a free port, and clients of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polydelta::adapters::{AdapterRegistry, FolderStore, RegistryLimits, ResidencyLimits, StoreLimits};
use polydelta::admission::validate::Limits;
use polydelta::admission::{Gate, GateParts};
use polydelta::config::TransportConfig;
use polydelta::server::pb::adapter_service_client::AdapterServiceClient;
use polydelta::server::pb::generation_service_client::GenerationServiceClient;
use polydelta::server::pb::server_service_client::ServerServiceClient;
use polydelta::server::{Adapters, Generator, Informer, Lifecycle, ModelInfo, ServerInfo, Services, pb, serve};
use polydelta::text::{ChatTemplate, Tokenizer};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use super::fakes::{FakeEngine, FakeHall};

pub struct Options {
    pub transport: TransportConfig,
    pub drain_timeout: Duration,
    pub max_concurrent: u32,
    pub stall_limit: Duration,
    pub store: StoreLimits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            transport: transport(),
            drain_timeout: Duration::from_secs(30),
            max_concurrent: 64,
            stall_limit: Duration::from_secs(30),
            store: StoreLimits::default(),
        }
    }
}

/// The defaults of the command line.
pub fn transport() -> TransportConfig {
    TransportConfig {
        max_concurrent_streams: 256,
        max_local_error_resets: 1024,
        max_pending_resets: 20,
        keepalive_interval: Duration::from_secs(20),
        keepalive_timeout: Duration::from_secs(10),
        max_connection_age: Duration::from_secs(3600),
        max_connection_age_grace: Duration::from_secs(600),
        handshake_timeout: Duration::from_secs(10),
        upload_idle_timeout: Duration::from_secs(30),
        max_connections: 1024,
        max_connections_per_peer: 256,
        max_header_bytes: 16 * 1024,
        max_message_bytes: 4 << 20,
    }
}

pub struct Server {
    pub address: SocketAddr,
    pub engine: Arc<FakeEngine>,
    pub registry: Arc<AdapterRegistry>,
    pub gate: Arc<Gate>,
    pub lifecycle: Lifecycle,
    pub done: JoinHandle<()>,
    _store: TempDir,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let store = tempfile::tempdir().unwrap();
        let (folder, _) = FolderStore::open(store.path(), options.store.clone()).unwrap();
        let residency = ResidencyLimits { max_resident_adapters: 4, device_bytes: 1 << 20 };
        let limits = RegistryLimits { store: options.store, residency, event_history: 64 };
        let registry = Arc::new(AdapterRegistry::new(Arc::new(folder), limits));
        let engine = FakeEngine::new();
        let hall = FakeHall::new(&registry);
        let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
        let gate = Arc::new(Gate::new(GateParts {
            engine: engine.clone(),
            registry: registry.clone(),
            hall: hall.clone(),
            tokenizer: tokenizer(),
            chat_template: Some(Arc::new(ChatTemplate::new(template, "", "").unwrap())),
            limits: Limits { context: 4096, default_max_tokens: 64 },
            max_concurrent: options.max_concurrent,
            tokenize_threads: 2,
        }));
        let info = ServerInfo {
            model: ModelInfo { name: "fake".to_owned(), context_length: 4096, ..ModelInfo::default() },
            ..ServerInfo::default()
        };
        let lifecycle = Lifecycle::new();
        let services = Services {
            generation: Generator::new(gate.clone(), options.stall_limit),
            adapters: Adapters::new(registry.clone(), hall, options.transport.upload_idle_timeout),
            info: Informer::new(info, engine.clone(), registry.clone(), Instant::now()),
            reflection: true,
        };
        let routes = services.into_routes(options.transport.max_message_bytes, &lifecycle).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let done = tokio::spawn(serve(listener, routes, options.transport, options.drain_timeout, lifecycle.clone()));
        Self { address, engine, registry, gate, lifecycle, done, _store: store }
    }

    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub async fn generation(&self) -> GenerationServiceClient<Channel> {
        GenerationServiceClient::new(self.channel().await)
    }

    pub async fn adapters(&self) -> AdapterServiceClient<Channel> {
        AdapterServiceClient::new(self.channel().await)
    }

    pub async fn info(&self) -> ServerServiceClient<Channel> {
        ServerServiceClient::new(self.channel().await)
    }
}

/// Byte-level, no merges: a token's id is its byte.
pub fn tokenizer() -> Arc<Tokenizer> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let letter = |byte: u32| {
        let code = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        (char::from_u32(code).unwrap().to_string(), json!(byte))
    };
    let vocab: serde_json::Map<_, _> = (0..256).map(letter).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}});
    Arc::new(Tokenizer::from_bytes(&serde_json::to_vec(&json).unwrap()).unwrap())
}

pub fn prompt(text: &str) -> pb::GenerateRequest {
    pb::GenerateRequest {
        input: Some(pb::generate_request::Input::Prompt(text.to_owned())),
        ..pb::GenerateRequest::default()
    }
}

/// Reason of a status, from its google.rpc.ErrorInfo.
pub fn reason(status: &tonic::Status) -> String {
    use tonic_types::StatusExt;
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "polydelta.dev");
    info.reason
}
