//! Everything of a server, built in the order in which it can fail cheaply: addresses, the model's small files, store,
//! weights, engine, services.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::base::OpenedBase;
use super::computing::Computing;
use super::descriptors;
use super::doors::{self, Doors};
use super::error::AppError;
use super::exporter::{self, Exporter};
use super::housekeeping;
use super::identity::BaseIdentity;
use super::listen;
use super::origin;
use super::running_engine::{self, RunningEngine};
use super::sizing::{self, Demand, Sizes};
use super::vigil::Vigil;
use crate::adapters::{
    AdapterRegistry, DiskFs, FolderStore, MAX_CHUNK_BYTES, OnStoreError, PinLimits, RegistryLimits, ResidencyLimits,
    StoreLimits, StoreOptions,
};
use crate::admission::validate::{MAX_INPUTS, MAX_RECEIPT_TOKENS, MAX_REQUEST_TOKENS};
use crate::admission::{AdapterTexts, Gate, GateParts, GenerationDefaults, Intake, Limits, ModelSizes, PrefixSalting};
use crate::cli::{Brought, Saved, bring};
use crate::config::units::format_bytes;
use crate::config::{
    AdapterSource, Environment, PrefixCache, ServeConfig, StoreErrors, StoreLocation, available_memory,
};
use crate::delta::SERVED_KINDS;
use crate::engine::{EngineHandle, GenerationEngine, HostMemory};
use crate::grpc::{Adapters, Generator, Informer, ModelInfo, Pooler, ServerInfo, ServerLimits, Services};
use crate::http::{Routes, Site, serve_metrics};
use crate::ops::Numerics;
use crate::receipt::Origin;
use crate::telemetry::Metrics;
use crate::text::{ChatTemplate, Tokenizer};
use crate::types::{AdapterName, ClientKey, Sha256Digest};
use crate::wire::{ClientIdentity, Lifecycle, Listeners};

/// Events kept for watchers that read late.
const EVENT_HISTORY: usize = 4096;
/// How long the engine may take to end its last step.
const ENGINE_END: Duration = Duration::from_secs(1);

/// A server that accepts requests.
pub struct Server {
    /// Where gRPC is served.
    pub address: SocketAddr,
    /// Where else, at the same port: a name such as `localhost` has an address of each family.
    pub other_addresses: Vec<SocketAddr>,
    /// Where metrics are served.
    pub metrics_address: Option<SocketAddr>,
    lifecycle: Lifecycle,
    metrics: Metrics,
    serving: JoinHandle<()>,
    engine: EngineHandle,
    vigil: Vigil,
    /// Goes with the server.
    _temporary_store: Option<TempDir>,
}

impl Server {
    /// Start a server. `began` is when the process began; adapters in `config` are imported before requests are
    /// accepted. Must be called within a multi-threaded tokio runtime: loading blocks.
    ///
    /// # Errors
    /// Everything that keeps a server from running; nothing is left then.
    pub async fn start(
        config: &ServeConfig,
        base: &OpenedBase,
        environment: &Environment,
        began: Instant,
    ) -> Result<Self, AppError> {
        let listen_failed = |source| AppError::Listen { address: config.listen.to_string(), source };
        let listeners = Listeners::from(listen::bind(&config.listen).await.map_err(listen_failed)?);
        let mut addresses = listeners.addresses().map_err(listen_failed)?.into_iter();
        let address = addresses.next().ok_or_else(|| listen_failed(ErrorKind::AddrNotAvailable.into()))?;
        let front = Front::read(base, config.chat_template.as_deref())?;
        let brought = tokio::task::block_in_place(|| bring_adapters(config, environment, &front))?;
        let computing = tokio::task::block_in_place(|| Computing::open(config, base, environment))?;
        let numerics = computing.numerics();
        let sizes = sizes(config, base, &computing)?;
        let store_limits = store_limits(config, sizes, front.own_template);
        let (store, temporary_store) = open_store(config, &store_limits)?;
        let (transport, metrics_connections) = descriptors::share(config.transport, store_limits.max_uploads);
        let (metrics, exporter) = exporter::begin(config, &base.name).await?;
        let metrics_address = exporter.as_ref().map(|exporter| exporter.address);
        let identity = BaseIdentity::begin(base, Arc::clone(&store.names), config.threads)?;
        let registry = AdapterRegistry::new(store, registry_limits(config, sizes, store_limits));
        let registry = Arc::new(registry.with_pin_limits(pin_limits(config, sizes)));
        registry.residency().limit_faults(config.adapter_limits.max_faults);
        let running = tokio::task::block_in_place(|| {
            running_engine::start(config, base, computing, sizes, Arc::clone(&registry), &metrics)
        })?;
        let digest = tokio::task::block_in_place(|| identity.finish())?;
        registry.serve_base(digest, numerics.weights.size());
        metrics.record_cache(config.cache.block_size, sizes.kv_blocks as usize);
        let intake = Intake::new(
            Arc::clone(&registry),
            Arc::clone(&running.adapters),
            Arc::clone(&front.adapter_texts),
            metrics.clone(),
        );
        let intake = Arc::new(intake);
        for (name, adapter) in &brought {
            tokio::task::block_in_place(|| import(&intake, name, adapter))?;
        }
        load_pinned(&registry, &intake);
        housekeeping::start(Arc::clone(&registry), metrics.clone());

        let lifecycle = Lifecycle::new();
        let engine: Arc<dyn GenerationEngine> = Arc::new(running.engine.clone());
        let class = origin::numerics_class(&running.backend, numerics, config.cache.block_size);
        let origin = origin::of(digest, base.checkpoint.config(), class);
        let info = server_info(config, base, &origin, sizes, &running, front.chat_template.is_some());
        let of_model = model_sizes(base, sizes);
        let gate = Arc::new(gate(config, of_model, front, &running, &registry, &metrics, origin));
        let http = Routes::new(Site {
            gate: Arc::clone(&gate),
            registry: Arc::clone(&registry),
            lifecycle: lifecycle.clone(),
            base: base.name.clone(),
            max_model_len: sizes.max_model_len,
            started: SystemTime::now(),
            stall_limit: config.transport.stream_stall_timeout,
            max_message_bytes: config.transport.max_message_bytes,
        });
        let services = Services {
            generation: Generator::new(
                Arc::clone(&gate),
                config.transport.stream_stall_timeout,
                config.transport.max_message_bytes,
            ),
            pooling: Pooler::new(gate, config.transport.max_message_bytes),
            adapters: Adapters::new(Arc::clone(&registry), intake, config.transport.upload_idle_timeout),
            info: Informer::new(info, engine, Arc::clone(&registry), began),
            reflection: config.reflection,
        };
        let grpc = services.into_routes(config.transport.max_message_bytes, &lifecycle).await?;
        let doors = Doors { grpc, http };
        let identity = ClientIdentity::new(config.fair_share.client_header.as_deref())?;
        let drain = config.drain_timeout;
        let serving = doors::serve(listeners, doors, transport, drain, identity, lifecycle.clone(), metrics.clone());
        let serving = tokio::spawn(serving);
        if let Some(Exporter { listeners, page, .. }) = exporter {
            tokio::spawn(serve_metrics(listeners, page, metrics_connections, lifecycle.clone(), metrics.clone()));
        }
        let vigil = Vigil::begin(running.ended.clone(), running.engine.pulse(), config.watchdog, &lifecycle);
        let server = Self {
            address,
            other_addresses: addresses.collect(),
            metrics_address,
            lifecycle,
            metrics,
            serving,
            engine: running.engine.clone(),
            vigil,
            _temporary_store: temporary_store,
        };
        server.announce(base, numerics, sizes, &running, &registry, began);
        Ok(server)
    }

    /// How it is told to end.
    #[must_use]
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    /// What it records.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Wait until the server has ended: [`Lifecycle::drain`] or [`Lifecycle::cut`] was called, or the engine is gone.
    ///
    /// # Errors
    /// [`AppError::EngineStopped`] where the engine went first, [`AppError::EngineStuck`] where a step of it never ended.
    pub async fn ended(mut self) -> Result<(), AppError> {
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "the accept loop has ended");
        }
        if let Some(failure) = self.vigil.failure() {
            return Err(failure);
        }
        self.engine.stop();
        if tokio::time::timeout(ENGINE_END, self.vigil.ended()).await.is_err() {
            tracing::warn!("the engine's last step is still running");
        }
        Ok(())
    }

    fn announce(
        &self,
        base: &OpenedBase,
        numerics: Numerics,
        sizes: Sizes,
        running: &RunningEngine,
        registry: &AdapterRegistry,
        began: Instant,
    ) {
        tracing::info!(
            model = base.name,
            architecture = base.architecture(),
            dtype = numerics.compute.as_str(),
            device = running.backend.name,
            isa = running.backend.isa,
            threads = running.backend.threads,
            "serving the base model"
        );
        tracing::info!(
            kv_blocks = sizes.kv_blocks,
            kv_tokens = sizes.kv_tokens,
            kv_cache = format_bytes(sizes.kv_bytes),
            max_model_len = sizes.max_model_len,
            adapter_memory = format_bytes(sizes.adapter_bytes),
            adapters = registry.len(),
            "memory and adapters"
        );
        let metrics =
            self.metrics_address.map_or_else(|| "off".to_owned(), |address| format!("http://{address}/metrics"));
        for address in &self.other_addresses {
            tracing::info!(%address, "serving gRPC on another address of the same name");
        }
        tracing::info!(grpc = %self.address, metrics, "ready in {:.1} s", began.elapsed().as_secs_f64());
    }
}

fn open_store(config: &ServeConfig, limits: &StoreLimits) -> Result<(FolderStore, Option<TempDir>), AppError> {
    let (root, temporary): (PathBuf, _) = match &config.store {
        StoreLocation::Dir(root) => (root.clone(), None),
        StoreLocation::Temporary => {
            let folder = tempfile::Builder::new().prefix("polydelta-store-").tempdir().map_err(AppError::Temporary)?;
            (folder.path().to_owned(), Some(folder))
        }
    };
    let errors = match config.store_errors {
        StoreErrors::Degraded => OnStoreError::Degraded,
        StoreErrors::Refuse => OnStoreError::Refuse,
    };
    let options = StoreOptions { errors, ..StoreOptions::new(limits.clone()) };
    let (store, report) = FolderStore::open_with(&root, &options, Arc::new(DiskFs)).map_err(AppError::Store)?;
    for entry in &report.quarantined {
        tracing::warn!(entry = entry.entry, reason = entry.reason, "a damaged entry of the store was put aside");
    }
    for fault in &report.faults {
        tracing::error!(entry = fault.entry, reason = fault.reason, "an entry of the store is not served");
    }
    if report.lost > 0 {
        tracing::error!(
            objects = report.lost,
            "the store has adapters whose names are lost: they are kept and not served. Restore `names`, or give them \
             names with `polydelta store repair --bind NAME=VERSION`"
        );
    }
    for chore in &report.undone {
        tracing::warn!(
            entry = chore.entry,
            reason = chore.reason,
            "the disk refused a chore; the next start tries again"
        );
    }
    if !report.faults.is_empty() || !report.quarantined.is_empty() {
        tracing::warn!("`polydelta store check` says what is in the store, `polydelta store repair` mends it");
    }
    tracing::info!(
        store = %root.display(),
        adapters = report.adapters,
        removed_uploads = report.removed_uploads,
        removed_objects = report.removed_objects,
        nameless_objects = report.nameless,
        "opened the adapter store"
    );
    Ok((store, temporary))
}

/// An adapter that could not be loaded is not taken either.
fn store_limits(config: &ServeConfig, sizes: Sizes, own_template: Option<Sha256Digest>) -> StoreLimits {
    StoreLimits {
        max_adapter_bytes: config.adapter_limits.max_bytes,
        max_loaded_bytes: HostMemory::max_file_bytes(sizes.load_bytes),
        base_chat_templates: own_template.into_iter().collect(),
        max_uploads_per_client: config.fair_share.max_uploads_per_client as usize,
        idle: config.transport.upload_idle_timeout.max(StoreLimits::default().idle),
        ..StoreLimits::default()
    }
}

/// The share of slots that may be pinned, and the same share of bytes.
fn pin_limits(config: &ServeConfig, sizes: Sizes) -> PinLimits {
    let (pinned, resident) = (config.fair_share.max_pinned_adapters, config.adapter_limits.max_resident);
    let max_bytes = u128::from(sizes.adapter_bytes) * u128::from(pinned) / u128::from(resident.max(1));
    PinLimits { max_adapters: pinned as usize, max_bytes: u64::try_from(max_bytes).unwrap_or(u64::MAX) }
}

fn registry_limits(config: &ServeConfig, sizes: Sizes, store: StoreLimits) -> RegistryLimits {
    RegistryLimits {
        store,
        residency: ResidencyLimits {
            max_resident_adapters: config.adapter_limits.max_resident,
            device_bytes: sizes.adapter_bytes,
        },
        event_history: EVENT_HISTORY,
    }
}

fn sizes(config: &ServeConfig, base: &OpenedBase, computing: &Computing) -> Result<Sizes, AppError> {
    let numerics = computing.numerics();
    sizing::decide(&Demand {
        spec: &base.spec,
        kv: numerics.kv,
        max_model_len: config.max_model_len,
        scheduler: config.scheduler,
        cache: config.cache,
        adapters: config.adapter_limits,
        weight_bytes: base.checkpoint.parameters() * numerics.weights.size() as u64,
        available: available_memory(),
        device: computing.room(&base.spec, config.scheduler.max_num_batched_tokens as usize),
    })
}

/// Bring the adapters that the flags name, before anything large is read: one that is not there ends the start.
fn bring_adapters(
    config: &ServeConfig,
    environment: &Environment,
    front: &Front,
) -> Result<Vec<(AdapterName, Brought)>, AppError> {
    let bring_one = |(name, source): &(AdapterName, AdapterSource)| {
        let failed = |source| AppError::Bring { name: name.clone(), source };
        let brought = bring(source, Saved::ALL, environment).map_err(failed)?;
        brought.notes().iter().for_each(|note| tracing::info!(adapter = %name, "{note}"));
        let template = brought.chat_template().map_or(Ok(()), |template| front.adapter_texts.check(template));
        template.map_err(|error| AppError::Import { name: name.clone(), source: Box::new(error.into()) })?;
        Ok((name.clone(), brought))
    };
    config.adapters.iter().map(bring_one).collect()
}

fn import(intake: &Intake, name: &AdapterName, adapter: &Brought) -> Result<(), AppError> {
    match intake.import(name, adapter.folder(), adapter.saved_tokens().cloned()) {
        Ok(Some(published)) => tracing::info!(
            adapter = %name,
            kind = published.facts.kind,
            version = %published.adapter.version,
            "adapter imported"
        ),
        Ok(None) => tracing::info!(adapter = %name, "the store has this adapter already"),
        Err(source) => return Err(AppError::Import { name: name.clone(), source: Box::new(source) }),
    }
    Ok(())
}

/// Bring what is pinned to the device, while requests are served already.
fn load_pinned(registry: &AdapterRegistry, intake: &Arc<Intake>) {
    let pinned = registry.list(None, usize::MAX).into_iter().filter(|info| info.stored.pinned);
    for name in pinned.map(|info| info.stored.name) {
        let intake = Arc::clone(intake);
        tokio::spawn(async move {
            if let Err(error) = intake.load(&name, None, ClientKey::LOCAL).await {
                tracing::warn!(adapter = %name, %error, "a pinned adapter could not be loaded");
            }
        });
    }
}

/// What the gate reads of the model. Read and checked before the weights are: a file that is wrong is named at once, and
/// not after gigabytes have been moved.
struct Front {
    tokenizer: Arc<Tokenizer>,
    chat_template: Option<Arc<ChatTemplate>>,
    adapter_texts: Arc<AdapterTexts>,
    /// Of the model's own template, whichever is served: an adapter that was saved with it has none of its own.
    own_template: Option<Sha256Digest>,
    defaults: GenerationDefaults,
}

impl Front {
    fn read(base: &OpenedBase, chat_template: Option<&Path>) -> Result<Self, AppError> {
        let settings = base.tokenizer_settings()?;
        let tokenizer = base.tokenizer(&settings)?;
        let vocab_size = u32::try_from(base.spec.vocab_size).unwrap_or(u32::MAX);
        Ok(Self {
            chat_template: ChatTemplate::load(chat_template, &settings, &tokenizer)?.map(Arc::new),
            own_template: settings.chat_template().map(|template| Sha256Digest::of(template.as_bytes())),
            adapter_texts: Arc::new(AdapterTexts::new(Arc::clone(&tokenizer), settings, vocab_size)),
            tokenizer,
            defaults: base.generation_defaults()?,
        })
    }
}

fn gate(
    config: &ServeConfig,
    model: ModelSizes,
    front: Front,
    running: &RunningEngine,
    registry: &Arc<AdapterRegistry>,
    metrics: &Metrics,
    origin: Origin,
) -> Gate {
    Gate::new(GateParts {
        engine: Arc::new(running.engine.clone()),
        registry: Arc::clone(registry),
        installer: Arc::clone(&running.adapters),
        tokenizer: front.tokenizer,
        chat_template: front.chat_template,
        adapter_texts: front.adapter_texts,
        limits: Limits::new(&config.request_limits, model, front.defaults),
        metrics: metrics.clone(),
        max_concurrent: config.request_limits.max_concurrent,
        tokenize_threads: config.threads,
        prefix_salting: match config.cache.prefix_cache {
            PrefixCache::Shared => PrefixSalting::Shared,
            PrefixCache::Salted | PrefixCache::Off => PrefixSalting::ByClient,
        },
        origin,
    })
}

fn model_sizes(base: &OpenedBase, sizes: Sizes) -> ModelSizes {
    ModelSizes {
        context_length: sizes.max_model_len,
        vocab_size: u32::try_from(base.spec.vocab_size).unwrap_or(u32::MAX),
        hidden_size: u32::try_from(base.spec.hidden_size).unwrap_or(u32::MAX),
    }
}

fn server_info(
    config: &ServeConfig,
    base: &OpenedBase,
    origin: &Origin,
    sizes: Sizes,
    running: &RunningEngine,
    has_chat_template: bool,
) -> ServerInfo {
    let model = ModelInfo {
        name: base.name.clone(),
        digest: origin.base_sha256.to_string(),
        architecture: base.architecture(),
        parameters: base.checkpoint.parameters(),
        vocab_size: base.spec.vocab_size,
        context_length: sizes.max_model_len as usize,
        has_chat_template,
        config_digest: origin.config_sha256.to_string(),
    };
    let requests = &config.request_limits;
    let limits = ServerLimits {
        max_sequences: config.scheduler.max_num_seqs as usize,
        max_batched_tokens: config.scheduler.max_num_batched_tokens as usize,
        max_queued_requests: requests.max_queued as usize,
        default_max_tokens: requests.default_max_tokens,
        max_choices: requests.max_choices,
        max_logprobs: requests.max_logprobs,
        max_prompt_bytes: usize::try_from(requests.max_prompt_bytes).unwrap_or(usize::MAX),
        max_resident_adapters: config.adapter_limits.max_resident,
        max_adapter_rank: config.adapter_limits.max_rank,
        max_upload_bytes: config.adapter_limits.max_bytes,
        max_chunk_bytes: MAX_CHUNK_BYTES,
        max_stop_strings: requests.max_stop_strings,
        max_stop_bytes: requests.max_stop_bytes,
        max_request_tokens: MAX_REQUEST_TOKENS,
        max_inputs: MAX_INPUTS as u32,
        max_inline_adapter_bytes: requests.max_inline_adapter_bytes,
        max_receipt_tokens: MAX_RECEIPT_TOKENS,
    };
    ServerInfo {
        model,
        dtype: origin.numerics.compute.clone(),
        device: running.backend.name.to_owned(),
        isa: running.backend.isa.to_owned(),
        threads: running.backend.threads,
        kv_blocks: sizes.kv_blocks as usize,
        kv_block_size: config.cache.block_size as usize,
        limits,
        adapter_kinds: SERVED_KINDS.iter().map(|(kind, _)| (*kind).to_owned()).collect(),
        numerics: origin.numerics.clone(),
    }
}
