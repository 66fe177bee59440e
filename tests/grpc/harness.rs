//! A server on a free port, and clients of it.

use std::borrow::Cow;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use polydelta::adapters::{
    AdapterRegistry, DiskFs, FolderStore, RegistryLimits, ResidencyLimits, StoreFs, StoreLimits, StoreOptions,
};
use polydelta::admission::{
    AdapterTexts, Gate, GateParts, GenerationDefaults, Intake, Limits, ModelSizes, PrefixSalting,
};
use polydelta::app::doors::{Doors, serve};
use polydelta::config::{Args, Command, Environment, ServeConfig, TransportConfig};
use polydelta::engine::{AdapterInstaller, GenerationEngine};
use polydelta::grpc::pb::adapter_service_client::AdapterServiceClient;
use polydelta::grpc::pb::generation_service_client::GenerationServiceClient;
use polydelta::grpc::pb::server_service_client::ServerServiceClient;
use polydelta::grpc::{Adapters, Generator, Informer, ModelInfo, Pooler, ServerInfo, Services, pb};
use polydelta::http::{Routes, Site};
use polydelta::receipt::{NumericsClass, Origin};
use polydelta::telemetry::Metrics;
use polydelta::text::{ChatTemplate, Tokenizer, TokenizerSettings};
use polydelta::types::{BaseDigest, Sha256Digest};
use polydelta::wire::{ClientIdentity, Lifecycle};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;

/// What the command line gives where nothing is asked for.
pub(crate) fn defaults() -> ServeConfig {
    let args = Args::try_parse_from(["polydelta", "serve", "--model", "."]).unwrap();
    let environment = Environment { home: Some(PathBuf::from(".")), ..Environment::default() };
    match args.command {
        Command::Serve(args) => ServeConfig::resolve(&args, &environment).unwrap(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn transport() -> TransportConfig {
    defaults().transport
}

/// How to set up a server.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) transport: TransportConfig,
    pub(crate) drain_timeout: Duration,
    pub(crate) max_concurrent: u32,
    pub(crate) identity: ClientIdentity,
    pub(crate) store: StoreLimits,
    pub(crate) residency: ResidencyLimits,
    /// Requests the engine lets wait.
    pub(crate) max_queued: usize,
    pub(crate) chat_template: Option<Cow<'static, str>>,
    /// Events kept for watchers that read late.
    pub(crate) event_history: usize,
    /// Let fields of configs pass that are not known here.
    pub(crate) allow_unknown_fields: bool,
    /// Bytes of adapters within requests.
    pub(crate) max_inline_adapter_bytes: u64,
    /// Where adapters are kept.
    pub(crate) folder: Arc<TempDir>,
    /// The disk it lies on.
    pub(crate) disk: Arc<dyn StoreFs>,
    /// What receipts say of the server.
    pub(crate) origin: Origin,
}

/// What the base is called over HTTP.
pub(crate) const BASE: &str = "tiny/base";

const CHAT: &str = "{% for m in messages %}{% if m.role == 'nobody' %}{{ raise_exception('who?') }}{% endif %}\
                    <{{ m.role }}>{{ m.content }}{% endfor %}";

impl Default for Options {
    fn default() -> Self {
        Self {
            transport: transport(),
            drain_timeout: Duration::from_secs(3600),
            max_concurrent: 64,
            identity: ClientIdentity::default(),
            store: StoreLimits::default(),
            residency: ResidencyLimits { max_resident_adapters: 16, device_bytes: 64 << 20 },
            max_queued: 64,
            chat_template: Some(CHAT.into()),
            event_history: 256,
            allow_unknown_fields: false,
            max_inline_adapter_bytes: 0,
            folder: Arc::new(tempfile::tempdir().unwrap()),
            disk: Arc::new(DiskFs),
            origin: Origin {
                program: env!("CARGO_PKG_VERSION").into(),
                base_sha256: BaseDigest([1; 32]),
                config_sha256: Sha256Digest([2; 32]),
                numerics: NumericsClass { device: "cpu".into(), kv_tile: 4, ..NumericsClass::default() },
            },
        }
    }
}

/// Which model the gate believes to stand before.
pub(crate) struct Model {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) settings: TokenizerSettings,
    pub(crate) vocab_size: u32,
    pub(crate) hidden_size: u32,
    pub(crate) context: u32,
    pub(crate) defaults: GenerationDefaults,
}

pub(crate) fn registry(options: &Options) -> Arc<AdapterRegistry> {
    let store = StoreOptions::new(options.store.clone());
    let (folder, _) = FolderStore::open_with(options.folder.path(), &store, Arc::clone(&options.disk)).unwrap();
    let limits = RegistryLimits {
        store: options.store.clone(),
        residency: options.residency,
        event_history: options.event_history,
    };
    Arc::new(AdapterRegistry::new(folder, limits))
}

/// A server that runs, whatever its engine.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) registry: Arc<AdapterRegistry>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) lifecycle: Lifecycle,
    /// Ends when the server has ended.
    pub(crate) done: JoinHandle<()>,
    pub(crate) folder: Arc<TempDir>,
}

impl Server {
    pub(crate) async fn start(
        options: Options,
        model: Model,
        registry: Arc<AdapterRegistry>,
        engine: Arc<dyn GenerationEngine>,
        installer: Arc<dyn AdapterInstaller>,
    ) -> Self {
        let Model { tokenizer, settings, vocab_size, hidden_size, context, defaults: generation } = model;
        let sizes = ModelSizes { context_length: context, vocab_size, hidden_size };
        let template =
            options.chat_template.map(|template| ChatTemplate::new(&template, &settings, &tokenizer).unwrap());
        let texts = Arc::new(AdapterTexts::new(Arc::clone(&tokenizer), settings, vocab_size));
        let gate = Arc::new(Gate::new(GateParts {
            engine: Arc::clone(&engine),
            registry: Arc::clone(&registry),
            installer: Arc::clone(&installer),
            tokenizer,
            chat_template: template.map(Arc::new),
            adapter_texts: Arc::clone(&texts),
            limits: Limits {
                max_inline_adapter_bytes: options.max_inline_adapter_bytes,
                ..Limits::new(&defaults().request_limits, sizes, generation)
            },
            metrics: Metrics::disabled(),
            max_concurrent: options.max_concurrent,
            tokenize_threads: 2,
            prefix_salting: PrefixSalting::ByClient,
            origin: options.origin.clone(),
        }));
        let info = ServerInfo {
            model: ModelInfo {
                vocab_size: vocab_size as usize,
                digest: options.origin.base_sha256.to_string(),
                config_digest: options.origin.config_sha256.to_string(),
                ..ModelInfo::default()
            },
            numerics: options.origin.numerics.clone(),
            ..ServerInfo::default()
        };
        let intake = Arc::new(Intake::new(Arc::clone(&registry), installer, texts, Metrics::disabled()));
        let lifecycle = Lifecycle::new();
        let http = Routes::new(Site {
            gate: Arc::clone(&gate),
            registry: Arc::clone(&registry),
            lifecycle: lifecycle.clone(),
            base: BASE.to_owned(),
            max_model_len: context,
            started: SystemTime::now(),
            stall_limit: options.transport.stream_stall_timeout,
            max_message_bytes: options.transport.max_message_bytes,
        });
        let services = Services {
            generation: Generator::new(
                Arc::clone(&gate),
                options.transport.stream_stall_timeout,
                options.transport.max_message_bytes,
            ),
            pooling: Pooler::new(Arc::clone(&gate), options.transport.max_message_bytes),
            adapters: Adapters::new(Arc::clone(&registry), intake, options.transport.upload_idle_timeout),
            info: Informer::new(info, engine, Arc::clone(&registry), Instant::now()),
            reflection: true,
        };
        let grpc = services.into_routes(options.transport.max_message_bytes, &lifecycle).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = serve(
            listener,
            Doors { grpc, http },
            options.transport,
            options.drain_timeout,
            options.identity.clone(),
            lifecycle.clone(),
            Metrics::disabled(),
        );
        Self { address, registry, gate, lifecycle, done: tokio::spawn(serving), folder: options.folder }
    }

    pub(crate) async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn generation(&self) -> GenerationServiceClient<Channel> {
        GenerationServiceClient::new(self.channel().await)
    }

    pub(crate) async fn adapters(&self) -> AdapterServiceClient<Channel> {
        AdapterServiceClient::new(self.channel().await)
    }

    pub(crate) async fn stats(&self) -> pb::GetStatsResponse {
        let mut client = ServerServiceClient::new(self.channel().await);
        client.get_stats(pb::GetStatsRequest {}).await.unwrap().into_inner()
    }

    /// A path in the folder of the store.
    pub(crate) fn stored(&self, path: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Wait until the server has ended.
    pub(crate) async fn ended(&mut self) {
        within(&mut self.done).await.unwrap();
    }
}

/// A test whose event never comes fails instead of hanging.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    match tokio::time::timeout(Duration::from_secs(60), future).await {
        Ok(output) => output,
        Err(_) => panic!("what the test waits for does not happen"),
    }
}

/// Byte-level, no merges. `ids` gives the id of a byte, if it has one; `special` the ids of special tokens, the
/// second of which begins a prompt.
pub(crate) fn tokenizer(ids: impl Fn(u8) -> Option<u32>, special: &[(u32, &str)]) -> Arc<Tokenizer> {
    let mut next = 0x100;
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255u8 {
        let code = if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        if let Some(id) = ids(byte) {
            vocab.insert(char::from_u32(code).unwrap().to_string(), json!(id));
        }
    }
    let added = |(id, content): &(u32, &str)| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false})
    };
    for (id, content) in special {
        vocab.insert((*content).to_owned(), json!(id));
    }
    let begin = special.get(1).map(|(id, content)| {
        json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": content, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {*content: {"id": content, "ids": [id], "tokens": [content]}}})
    });
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": special.iter().map(added).collect::<Vec<_>>(),
        "pre_tokenizer": byte_level, "post_processor": begin, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}});
    Arc::new(Tokenizer::from_bytes(&serde_json::to_vec(&json).unwrap()).unwrap())
}

pub(crate) fn prompt(text: &str) -> pb::GenerateRequest {
    pb::GenerateRequest {
        input: Some(pb::generate_request::Input::Prompt(text.to_owned())),
        ..pb::GenerateRequest::default()
    }
}

/// Code and reason of a status; every status of the server has one in its google.rpc.ErrorInfo.
pub(crate) fn refusal(status: &tonic::Status) -> (tonic::Code, String) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "polydelta.dev");
    (status.code(), info.reason)
}

/// Metadata of the google.rpc.ErrorInfo.
pub(crate) fn metadata(status: &tonic::Status, key: &str) -> String {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    info.metadata.get(key).unwrap_or_else(|| panic!("no {key} in {info:?}")).clone()
}

/// The field a status names in its google.rpc.BadRequest.
pub(crate) fn field(status: &tonic::Status) -> String {
    let bad = status.get_details_bad_request().unwrap_or_else(|| panic!("no BadRequest in {status:?}"));
    bad.field_violations[0].field.clone()
}
