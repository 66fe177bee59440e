//! The resolved configuration of a server.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::checks::Checks;
use super::client::InspectArgs;
use super::environment::Environment;
use super::fair_share::{FairShareConfig, fair_share};
use super::gpu::{CudaGemm, KernelCacheLocation};
use super::listen::ListenAddress;
use super::memory::default_message_memory;
use super::model_source::{ModelSource, model_source};
use super::problem::{ConfigProblem, ConfigProblems};
use super::serve_args::{
    AdapterArgs, DemoArgs, DtypeChoice, Kernels, NetworkArgs, ObservabilityArgs, PrefixCache, RequestArgs,
    SchedulerArgs, ServeArgs, StoreErrors,
};
use super::source::{AdapterSource, adapter_sources};
use super::terminal::Terminal;
use crate::types::AdapterName;

/// Where uploads are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// This folder, created where it does not exist.
    Dir(PathBuf),
    /// A folder that goes with the process.
    Temporary,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU where its driver is there and takes the kernels, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// This GPU, as the driver counts them, or nothing.
    Cuda(u32),
}

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsListen {
    /// Address to bind.
    pub address: ListenAddress,
    /// The user asked for it: a taken port is an error, not a reason to move on.
    pub explicit: bool,
}

/// How steps are made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Most sequences in a step.
    pub max_num_seqs: u32,
    /// Most rows in a step; at least `max_num_seqs`.
    pub max_num_batched_tokens: u32,
}

/// How long a step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// After this it counts as hanging.
    pub step_timeout: Duration,
    /// After this the server ends; `None` waits for ever.
    pub step_abort_timeout: Option<Duration>,
}

/// The KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Tokens in a block; a power of two.
    pub block_size: u32,
    /// Bytes of all blocks; `None` leaves it to the start-up, which knows the model.
    pub kv_cache_bytes: Option<u64>,
    /// Whose equal beginnings share KV.
    pub prefix_cache: PrefixCache,
    /// Layers whose work is shared between adapters that leave them as they are; needs a prefix cache.
    pub shared_layers: Option<u32>,
}

/// Limits on adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterLimits {
    /// Host memory for adapters on their way in; `None` is a share of what is available.
    pub load_bytes: Option<u64>,
    /// Most on the device at a time.
    pub max_resident: u32,
    /// Most bytes of one adapter's files.
    pub max_bytes: u64,
    /// Largest rank of a low-rank op.
    pub max_rank: u32,
    /// Fields of adapter_config.json that are not known are noted instead of refused.
    pub allow_unknown_fields: bool,
    /// Bytes of all of them on the device; `None` leaves it to the start-up.
    pub memory_bytes: Option<u64>,
    /// Requests in a row that fail on one before it is set aside; 0 sets none aside.
    pub max_faults: u32,
}

/// Limits on requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// `max_tokens` where a request does not say.
    pub default_max_tokens: u32,
    /// Requests in the server at a time.
    pub max_concurrent: u32,
    /// Requests waiting for their first step.
    pub max_queued: u32,
    /// Choices of a request.
    pub max_choices: u32,
    /// Bytes of a prompt before it is tokenized.
    pub max_prompt_bytes: u64,
    /// Stop strings of a request.
    pub max_stop_strings: u32,
    /// Bytes of one stop string.
    pub max_stop_bytes: u64,
    /// Alternatives reported with log-probabilities.
    pub max_logprobs: u32,
    /// Largest priority, up and down.
    pub max_priority: u32,
    /// Bytes of an adapter that a request brings; 0 takes none.
    pub max_inline_adapter_bytes: u64,
}

/// The gRPC transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportConfig {
    /// Streams of a connection at a time.
    pub max_concurrent_streams: u32,
    /// Streams of a connection reset for its errors, over its life.
    pub max_local_error_resets: u32,
    /// Streams reset by the peer before they were accepted.
    pub max_pending_resets: u32,
    /// A silent connection is pinged after this.
    pub keepalive_interval: Duration,
    /// and closed this long after an unanswered ping.
    pub keepalive_timeout: Duration,
    /// A connection is asked to go away after this.
    pub max_connection_age: Duration,
    /// and closed after this much more.
    pub max_connection_age_grace: Duration,
    /// A connection without a finished handshake is closed after this.
    pub handshake_timeout: Duration,
    /// An upload that sends nothing for this long ends.
    pub upload_idle_timeout: Duration,
    /// A stream whose client takes nothing for this long ends.
    pub stream_stall_timeout: Duration,
    /// Connections in all.
    pub max_connections: u32,
    /// Connections from one address (IPv6: one /64).
    pub max_connections_per_peer: u32,
    /// Calls at a time, streams included.
    pub max_calls: u32,
    /// Calls at a time from one address.
    pub max_calls_per_peer: u32,
    /// A message that takes longer to arrive than this, and than its size is worth, ends its call.
    pub message_timeout: Duration,
    /// Bytes of messages that are arriving or not yet answered, of all connections together.
    pub message_memory: u64,
    /// Bytes of a request's headers.
    pub max_header_bytes: u32,
    /// Bytes of a message, either way.
    pub max_message_bytes: usize,
}

/// Everything a server needs to start, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// Base model.
    pub model: ModelSource,
    /// Chat template in the place of the model's own.
    pub chat_template: Option<PathBuf>,
    /// Adapters to serve from the start, in the order given.
    pub adapters: Vec<(AdapterName, AdapterSource)>,
    /// Where uploads are kept.
    pub store: StoreLocation,
    /// What to do where parts of it cannot be read.
    pub store_errors: StoreErrors,
    /// Type of weights and KV cache.
    pub dtype: DtypeChoice,
    /// What computes.
    pub device: DeviceChoice,
    /// Most bytes of a GPU's memory; a share of what is free there where it is not given.
    pub device_memory: Option<u64>,
    /// Who multiplies matrices on a GPU.
    pub cuda_gemm: CudaGemm,
    /// Where a GPU's kernels are kept as they were assembled.
    pub kernel_cache: KernelCacheLocation,
    /// Which implementation computes.
    pub kernels: Kernels,
    /// Compute threads.
    pub threads: usize,
    /// Longest sequence; `None` is the model's own limit.
    pub max_model_len: Option<u32>,
    /// Steps.
    pub scheduler: StepLimits,
    /// Steps that hang.
    pub watchdog: WatchdogConfig,
    /// KV cache.
    pub cache: CacheConfig,
    /// Adapters.
    pub adapter_limits: AdapterLimits,
    /// Requests.
    pub request_limits: RequestLimits,
    /// How the server is shared out.
    pub fair_share: FairShareConfig,
    /// gRPC address.
    pub listen: ListenAddress,
    /// gRPC transport.
    pub transport: TransportConfig,
    /// Whether reflection is served.
    pub reflection: bool,
    /// Time for running requests after SIGTERM.
    pub drain_timeout: Duration,
    /// Whether progress is drawn on standard error.
    pub progress: bool,
    /// Metrics address; `None` serves none.
    pub metrics: Option<MetricsListen>,
}

const DAY: Duration = Duration::from_secs(86_400);
const METRICS: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 9464));

impl ServeConfig {
    /// Check the flags of `serve` as a whole. Looks at the file system only to see that named folders exist.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn resolve(args: &ServeArgs, environment: &Environment) -> Result<Self, ConfigProblems> {
        let mut checks = Checks::default();
        let config = Self {
            model: base_model(&mut checks, args.model.model.as_deref()),
            chat_template: args.model.chat_template.clone(),
            adapters: adapter_sources(&mut checks, &args.adapters),
            store: store_location(&mut checks, &args.adapters, environment),
            store_errors: args.adapters.store_errors,
            dtype: args.model.dtype,
            device: device(&mut checks, &args.model.device),
            device_memory: args.model.device_memory,
            cuda_gemm: args.gpu.cuda_gemm,
            kernel_cache: args.gpu.kernel_cache.check(&mut checks, environment),
            kernels: args.model.kernels,
            threads: threads(&mut checks, args.model.threads),
            max_model_len: args.model.max_model_len.map(|len| checks.count("--max-model-len", len, 1, 1 << 24)),
            scheduler: scheduler(&mut checks, &args.scheduler),
            watchdog: watchdog(&mut checks, &args.scheduler),
            cache: cache(&mut checks, &args.scheduler),
            adapter_limits: adapter_limits(&mut checks, &args.adapters),
            request_limits: request_limits(&mut checks, &args.requests, args.fair_share.max_priority),
            fair_share: fair_share(
                &mut checks,
                &args.fair_share,
                args.scheduler.max_num_seqs,
                args.adapters.max_resident_adapters,
            ),
            listen: args.network.listen.clone(),
            transport: transport(&mut checks, &args.network),
            reflection: args.network.reflection,
            drain_timeout: args.network.drain_timeout,
            progress: Terminal::of_process(environment).progress,
            metrics: metrics(&mut checks, &args.observability),
        };
        dtype(&mut checks, args.model.dtype, config.device, args.model.kernels);
        if args.model.kernels == Kernels::Reference && matches!(config.device, DeviceChoice::Cuda(_)) {
            checks.report(ConfigProblem::Unsupported {
                flag: "--device",
                value: args.model.device.clone(),
                reason: "--kernels reference computes on the CPU",
            });
        }
        checks.done(config)
    }

    /// What `demo` serves: the bundled model, a temporary store, a free port, and the defaults of `serve`.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn for_demo(args: &DemoArgs, environment: &Environment) -> Result<Self, ConfigProblems> {
        let mut serve = default_serve_args()?;
        serve.model.threads = args.threads;
        serve.model.dtype = args.dtype;
        serve.model.kernels = args.kernels;
        serve.network.listen = args.listen.clone();
        let config = Self::resolve(&serve, environment)?;
        Ok(Self { model: ModelSource::Bundled, store: StoreLocation::Temporary, ..config })
    }
}

impl InspectArgs {
    /// The base to inspect against where one is named, and the limits that a server sets where its flags do not say.
    ///
    /// # Errors
    /// [`ConfigProblems`] naming `--model`.
    pub fn resolve(&self) -> Result<(Option<ModelSource>, AdapterLimits), ConfigProblems> {
        let mut checks = Checks::default();
        let source = self.model.as_ref().map(|model| model_source(&mut checks, model));
        let limits = adapter_limits(&mut checks, &default_serve_args()?.adapters);
        let limits = AdapterLimits { allow_unknown_fields: self.allow_unknown_adapter_fields, ..limits };
        checks.done((source, limits))
    }
}

fn default_serve_args() -> Result<ServeArgs, ConfigProblems> {
    ServeArgs::defaults().map_err(|error| ConfigProblems(vec![ConfigProblem::Defaults { reason: error.to_string() }]))
}

fn base_model(checks: &mut Checks, model: Option<&str>) -> ModelSource {
    let Some(model) = model else {
        checks.report(ConfigProblem::Missing { what: "--model <DIR|hf:ORG/NAME>".to_owned() });
        return ModelSource::Bundled;
    };
    model_source(checks, model)
}

fn store_location(checks: &mut Checks, args: &AdapterArgs, environment: &Environment) -> StoreLocation {
    let folder = args.store.clone().or_else(|| environment.data_dir());
    if folder.is_none() {
        let reason = "neither XDG_DATA_HOME nor HOME is set";
        checks.report(ConfigProblem::NoDefault { flag: "--store", reason });
    }
    let folder = folder.unwrap_or_default();
    if let Some(scheme) = folder.to_str().filter(|text| text.contains("://")) {
        let reason = "this build keeps adapters in a local folder only";
        checks.report(ConfigProblem::Unsupported { flag: "--store", value: scheme.to_owned(), reason });
    }
    StoreLocation::Dir(folder)
}

fn device(checks: &mut Checks, device: &str) -> DeviceChoice {
    match device {
        "auto" => return DeviceChoice::Auto,
        "cpu" => return DeviceChoice::Cpu,
        "cuda" => return DeviceChoice::Cuda(0),
        _ => {}
    }
    if let Some(ordinal) = device.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()) {
        return DeviceChoice::Cuda(ordinal);
    }
    let expected = "auto, cpu or cuda:N";
    checks.report(ConfigProblem::Invalid { flag: "--device", value: device.to_owned(), expected });
    DeviceChoice::Cpu
}

/// Whether what computes does so in this dtype. A GPU that `auto` may find is looked for later.
fn dtype(checks: &mut Checks, dtype: DtypeChoice, device: DeviceChoice, kernels: Kernels) {
    let (value, reason) = match (dtype, device, kernels) {
        (DtypeChoice::Bf16, _, Kernels::Reference) => ("bf16", "--kernels reference computes in f32"),
        (DtypeChoice::F16, _, Kernels::Reference) => ("f16", "--kernels reference computes in f32"),
        (DtypeChoice::F16, DeviceChoice::Cpu, Kernels::Cpu) => ("f16", "the CPU computes in bf16 or f32"),
        _ => return,
    };
    checks.report(ConfigProblem::Unsupported { flag: "--dtype", value: value.to_owned(), reason });
}

fn threads(checks: &mut Checks, threads: Option<u32>) -> usize {
    match threads {
        Some(threads) => checks.count("--threads", threads, 1, 1024) as usize,
        None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
    }
}

fn scheduler(checks: &mut Checks, args: &SchedulerArgs) -> StepLimits {
    let max_num_seqs = checks.count("--max-num-seqs", args.max_num_seqs, 1, 1 << 16);
    let max_num_batched_tokens = checks.count("--max-num-batched-tokens", args.max_num_batched_tokens, 1, 1 << 20);
    // Every running sequence must get its one token in a step, or a full batch would never finish.
    if max_num_batched_tokens < max_num_seqs {
        checks.report(ConfigProblem::LessThan {
            flag: "--max-num-batched-tokens",
            value: u64::from(max_num_batched_tokens),
            other: "--max-num-seqs",
            other_value: u64::from(max_num_seqs),
        });
    }
    StepLimits { max_num_seqs, max_num_batched_tokens }
}

fn watchdog(checks: &mut Checks, args: &SchedulerArgs) -> WatchdogConfig {
    let abort = args.step_abort_timeout;
    WatchdogConfig {
        step_timeout: checks.duration("--step-timeout", args.step_timeout, DAY),
        step_abort_timeout: (!abort.is_zero()).then(|| checks.duration("--step-abort-timeout", abort, DAY)),
    }
}

fn cache(checks: &mut Checks, args: &SchedulerArgs) -> CacheConfig {
    let block_size = checks.count("--block-size", args.block_size, 1, 256);
    if !block_size.is_power_of_two() {
        let (value, expected) = (block_size.to_string(), "a power of two");
        checks.report(ConfigProblem::Invalid { flag: "--block-size", value, expected });
    }
    if let Some(bytes) = args.kv_cache_bytes {
        checks.range("--kv-cache-bytes", bytes, 1, 1 << 46);
    }
    let prefix_cache = if args.no_prefix_cache { PrefixCache::Off } else { args.prefix_cache };
    if let Some(layers) = args.shared_layers {
        checks.range("--shared-layers", u64::from(layers), 1, 1 << 16);
        if prefix_cache == PrefixCache::Off {
            let (value, expected) = (layers.to_string(), "nothing where --prefix-cache is off: it finds equal prompts");
            checks.report(ConfigProblem::Invalid { flag: "--shared-layers", value, expected });
        }
    }
    let (kv_cache_bytes, shared_layers) = (args.kv_cache_bytes, args.shared_layers);
    CacheConfig { block_size, kv_cache_bytes, prefix_cache, shared_layers }
}

fn adapter_limits(checks: &mut Checks, args: &AdapterArgs) -> AdapterLimits {
    checks.range("--max-adapter-bytes", args.max_adapter_bytes, 1, 1 << 40);
    if let Some(bytes) = args.load_memory {
        checks.range("--load-memory", bytes, 1 << 20, 1 << 46);
    }
    if let Some(bytes) = args.adapter_memory {
        checks.range("--adapter-memory", bytes, 1, 1 << 46);
    }
    AdapterLimits {
        memory_bytes: args.adapter_memory,
        load_bytes: args.load_memory,
        max_resident: checks.count("--max-resident-adapters", args.max_resident_adapters, 1, 1 << 20),
        max_bytes: args.max_adapter_bytes,
        max_rank: checks.count("--max-lora-rank", args.max_lora_rank, 1, 1 << 16),
        allow_unknown_fields: args.allow_unknown_adapter_fields,
        max_faults: args.max_adapter_faults,
    }
}

fn request_limits(checks: &mut Checks, args: &RequestArgs, max_priority: u32) -> RequestLimits {
    checks.range("--max-prompt-bytes", args.max_prompt_bytes, 1, 1 << 30);
    checks.range("--max-stop-bytes", args.max_stop_bytes, 1, 1 << 16);
    checks.range("--max-inline-adapter-bytes", args.max_inline_adapter_bytes, 0, 1 << 30);
    RequestLimits {
        default_max_tokens: checks.count("--default-max-tokens", args.default_max_tokens, 1, 1 << 24),
        max_concurrent: checks.count("--max-concurrent-requests", args.max_concurrent_requests, 1, 1 << 20),
        max_queued: checks.count("--max-queued-requests", args.max_queued_requests, 1, 1 << 20),
        max_choices: checks.count("--max-choices", args.max_choices, 1, 1024),
        max_prompt_bytes: args.max_prompt_bytes,
        max_stop_strings: checks.count("--max-stop-strings", args.max_stop_strings, 0, 1024),
        max_stop_bytes: args.max_stop_bytes,
        max_logprobs: checks.count("--max-logprobs", args.max_logprobs, 0, 1024),
        max_priority: checks.count("--max-priority", max_priority, 0, 1000),
        max_inline_adapter_bytes: args.max_inline_adapter_bytes,
    }
}

fn transport(checks: &mut Checks, args: &NetworkArgs) -> TransportConfig {
    // A chunk of an upload is 1 MiB, and its message a little more.
    checks.range("--max-message-bytes", args.max_message_bytes, (1 << 20) + 1024, 1 << 30);
    checks.range("--max-header-bytes", args.max_header_bytes, 1024, 1 << 20);
    // One address has half of it, and the largest message must fit that.
    let least = args.max_message_bytes.saturating_mul(2).min(1 << 40);
    let message_memory = args.message_memory.unwrap_or_else(|| default_message_memory().max(least));
    checks.range("--message-memory", message_memory, least, 1 << 46);
    let max_connections = checks.count("--max-connections", args.max_connections, 1, 1 << 20);
    let max_calls = checks.count("--max-calls", args.max_calls, 1, 1 << 20);
    TransportConfig {
        max_concurrent_streams: checks.count("--max-concurrent-streams", args.max_concurrent_streams, 1, 1 << 20),
        max_local_error_resets: checks.count("--max-local-error-resets", args.max_local_error_resets, 1, 1 << 20),
        max_pending_resets: checks.count("--max-pending-resets", args.max_pending_resets, 1, 1 << 20),
        keepalive_interval: checks.duration("--keepalive-interval", args.keepalive_interval, DAY),
        keepalive_timeout: checks.duration("--keepalive-timeout", args.keepalive_timeout, DAY),
        max_connection_age: checks.duration("--max-connection-age", args.max_connection_age, DAY * 365),
        max_connection_age_grace: checks.duration("--max-connection-age-grace", args.max_connection_age_grace, DAY),
        handshake_timeout: checks.duration("--handshake-timeout", args.handshake_timeout, DAY),
        upload_idle_timeout: checks.duration("--upload-idle-timeout", args.upload_idle_timeout, DAY),
        stream_stall_timeout: checks.duration("--stream-stall-timeout", args.stream_stall_timeout, DAY),
        max_connections,
        max_connections_per_peer: match args.max_connections_per_peer {
            Some(max) => checks.count("--max-connections-per-peer", max, 1, 1 << 20),
            None => half(max_connections).min(256),
        },
        max_calls,
        max_calls_per_peer: match args.max_calls_per_peer {
            Some(max) => checks.count("--max-calls-per-peer", max, 1, 1 << 20),
            None => half(max_calls),
        },
        message_timeout: checks.duration("--message-timeout", args.message_timeout, DAY),
        message_memory,
        max_header_bytes: u32::try_from(args.max_header_bytes).unwrap_or(u32::MAX),
        max_message_bytes: usize::try_from(args.max_message_bytes).unwrap_or(usize::MAX),
    }
}

/// What one client has at most, so that it cannot have everything.
fn half(of_all: u32) -> u32 {
    (of_all / 2).max(1)
}

fn metrics(checks: &mut Checks, args: &ObservabilityArgs) -> Option<MetricsListen> {
    if args.no_metrics && args.metrics_listen.is_some() {
        checks.report(ConfigProblem::Conflict { flag: "--no-metrics", other: "--metrics-listen" });
    }
    match (args.no_metrics, args.metrics_listen.clone()) {
        (true, _) => None,
        (false, Some(address)) => Some(MetricsListen { address, explicit: true }),
        (false, None) => Some(MetricsListen { address: METRICS.into(), explicit: false }),
    }
}
