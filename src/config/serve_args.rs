//! The flags of `polydelta serve`, by heading, and those of `polydelta demo`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args, FromArgMatches, ValueEnum};

use super::fair_share::FairShareArgs;
use super::gpu::GpuArgs;
use super::listen::ListenAddress;
use super::units::{parse_bytes, parse_duration};

/// `polydelta serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
    /// Adapters.
    #[command(flatten)]
    pub adapters: AdapterArgs,
    /// Scheduler and KV cache.
    #[command(flatten)]
    pub scheduler: SchedulerArgs,
    /// Request limits.
    #[command(flatten)]
    pub requests: RequestArgs,
    /// Fair share.
    #[command(flatten)]
    pub fair_share: FairShareArgs,
    /// Network.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Observability.
    #[command(flatten)]
    pub observability: ObservabilityArgs,
}

impl ServeArgs {
    /// The defaults of every flag, untouched by the environment, with the root folder as model and store.
    ///
    /// # Errors
    /// Where a default written below does not parse.
    pub(super) fn defaults() -> Result<Self, clap::Error> {
        let command = Self::augment_args(clap::Command::new("serve"));
        let matches = command.try_get_matches_from(["serve", "--model", "/", "--store", "/"])?;
        Self::from_arg_matches(&matches)
    }
}

/// `polydelta demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Exit after the table instead of serving on
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub once: bool,
    /// Print the table as JSON
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub json: bool,
    /// Where to serve; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub listen: ListenAddress,
    /// Compute threads; all cores where it is not given
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,
    /// Type of weights and KV cache
    #[arg(long, value_enum, default_value_t)]
    pub dtype: DtypeChoice,
    /// Which implementation computes; the reference is slow and obvious
    #[arg(long, value_enum, default_value_t, hide = true)]
    pub kernels: Kernels,
}

/// Type of weights and KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DtypeChoice {
    /// What the checkpoint has: bf16, f16 or f32. The CPU takes bf16 for f16, and f32 for either where it computes clearly
    /// faster in it.
    #[default]
    Auto,
    /// Nothing is narrowed.
    F32,
    /// Weights, KV cache and GEMM inputs in bf16, sums in f32.
    Bf16,
    /// The same in f16, on a GPU.
    F16,
}

/// Which implementation of the ops computes on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Kernels {
    /// The fast one.
    #[default]
    Cpu,
    /// The definition: slow and obvious, f32.
    Reference,
}

/// What to do where parts of the store cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StoreErrors {
    /// Serve what can be read.
    #[default]
    Degraded,
    /// Do not start.
    Refuse,
}

/// Who reuses the KV of equal prompt beginnings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PrefixCache {
    /// Nobody.
    #[value(aliases = ["false", "0", "no"])]
    Off,
    /// Each client what it sent itself, and those who name a salt what was sent under it.
    #[default]
    #[value(aliases = ["true", "on", "1", "yes"])]
    Salted,
    /// Everybody.
    Shared,
}

/// Which model, on what.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Folder of a Hugging Face model, a GGUF file, or hf:ORG/NAME to fetch one, at a branch, tag or commit as in hf:ORG/NAME@v1.0
    #[arg(long, value_name = "DIR|GGUF|hf:ORG/NAME[@REV]")]
    pub model: Option<String>,
    /// Chat template (Jinja) in the place of the model's own; adapters that bring one of their own keep it
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Type of weights and KV cache: auto takes that of the checkpoint; on the CPU, bf16 for one of 16 bits (f32 if that is measured to be clearly faster). f16 needs a GPU
    #[arg(long, value_enum, default_value_t)]
    pub dtype: DtypeChoice,
    /// What computes: cpu, cuda:N, or auto: a GPU where its driver is there, else the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// Most memory of a GPU, for weights, KV cache, adapters and all else together; by default 92 % of what is free there
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub device_memory: Option<u64>,
    /// Which implementation computes; the reference is slow and obvious
    #[arg(long, value_enum, default_value_t, hide = true)]
    pub kernels: Kernels,
    /// Compute threads; all cores where it is not given
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,
    /// Longest sequence, prompt and output together; the model's own limit where it is not given
    #[arg(long, value_name = "TOKENS")]
    pub max_model_len: Option<u32>,
}

/// Which adapters, and how many.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Adapters")]
pub struct AdapterArgs {
    /// Adapter to serve from the start; may be given several times, in the variable separated by commas
    #[arg(long = "adapter", value_name = "NAME=DIR|NAME=hf:ORG/REPO[@REV]", value_delimiter = ',')]
    pub adapters: Vec<String>,
    /// Folder that keeps uploaded adapters; $XDG_DATA_HOME/polydelta where it is not given
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Where parts of the store cannot be read: serve the rest, while those answer UNAVAILABLE until they can be read
    /// again, or do not start
    #[arg(long, value_enum, default_value_t)]
    pub store_errors: StoreErrors,
    /// Most adapters on the device at a time
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_resident_adapters: u32,
    /// Memory for the adapters on the device, as in `2GiB`; by default 25 % of the available memory
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub adapter_memory: Option<u64>,
    /// Host memory for adapters that are being checked or loaded, about three times their files; larger adapters are
    /// refused, others wait for their turn; by default 25 % of the available memory
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub load_memory: Option<u64>,
    /// Most bytes of one adapter's files
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = parse_bytes)]
    pub max_adapter_bytes: u64,
    /// Largest rank of a low-rank op
    #[arg(long, value_name = "RANK", default_value_t = 512)]
    pub max_lora_rank: u32,
    /// Accept fields of adapter_config.json that are not known here; the adapter shows which. Known ones that change what
    /// an adapter computes and are not served are refused all the same
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub allow_unknown_adapter_fields: bool,
    /// Set an adapter aside when so many requests in a row have failed on it, its rows not finite or failing their step:
    /// new ones are refused until it is loaded by name or uploaded anew; 0 never does
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub max_adapter_faults: u32,
}

/// How steps are made up.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Scheduler")]
pub struct SchedulerArgs {
    /// Most sequences in a step
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_num_seqs: u32,
    /// Most tokens in a step; a longer prompt is prefilled in chunks
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub max_num_batched_tokens: u32,
    /// Tokens in a block of the KV cache: a power of two
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    pub block_size: u32,
    /// Size of the KV cache, as in `4GiB`; by default 20 % of the available memory, or what --max-num-seqs sequences
    /// of full length need where that is less
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub kv_cache_bytes: Option<u64>,
    /// Layers, from the first on, that prompts go through once for the base and all adapters that leave them as they are
    /// (`adapter show` says how many an adapter does). What comes out of them is kept beside the KV cache, 4 bytes times the
    /// model's hidden size for each token. By default none
    #[arg(long, value_name = "N")]
    pub shared_layers: Option<u32>,
    /// A step that takes longer hangs: health says NOT_SERVING until it has ended after all
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub step_timeout: Duration,
    /// A step that takes longer than this is not coming back: the server ends, for its supervisor to start it again; 0s
    /// waits for ever
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    pub step_abort_timeout: Duration,
    /// Who reuses the KV of equal prompt beginnings: nobody (off), each client what it sent itself (salted), everybody
    /// (shared). Where all share, the time of an answer tells whether somebody else has asked the same. Behind a gateway
    /// clients are told apart by --client-header
    #[arg(long, value_enum, default_value_t)]
    pub prefix_cache: PrefixCache,
    /// The same as --prefix-cache off
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub no_prefix_cache: bool,
}

/// What one request, and all of them, may ask for.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Request limits")]
pub struct RequestArgs {
    /// Most tokens to generate where a request does not say
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    pub default_max_tokens: u32,
    /// Most requests in the server at a time, running and queued
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_concurrent_requests: u32,
    /// Most requests waiting for their first step; more are refused with RESOURCE_EXHAUSTED
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_queued_requests: u32,
    /// Most choices of a request
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub max_choices: u32,
    /// Most bytes of a prompt, checked before it is tokenized
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = parse_bytes)]
    pub max_prompt_bytes: u64,
    /// Most stop strings of a request
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub max_stop_strings: u32,
    /// Most bytes of one stop string
    #[arg(long, value_name = "SIZE", default_value = "256", value_parser = parse_bytes)]
    pub max_stop_bytes: u64,
    /// Most alternatives reported with log-probabilities
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub max_logprobs: u32,
    /// Most bytes of the files of an adapter that a request brings, which also have to fit --max-message-bytes; 0 takes none
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_bytes)]
    pub max_inline_adapter_bytes: u64,
}

/// The gRPC transport.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkArgs {
    /// Where to serve gRPC and OpenAI's API: HOST:PORT, where the host is an IP address or a name such as localhost, which
    /// is the loopback of both families; :PORT is every interface, port 0 a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051")]
    pub listen: ListenAddress,
    /// Serve reflection, which grpcurl and ghz ask for
    #[arg(long, value_name = "on|off", default_value = "on", action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub reflection: bool,
    /// After SIGTERM, running requests may take this long to finish
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub drain_timeout: Duration,
    /// Most connections
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_connections: u32,
    /// Most connections from one IPv4 address or IPv6 /64; half of --max-connections, but no more than 256, where it is
    /// not given
    #[arg(long, value_name = "N")]
    pub max_connections_per_peer: Option<u32>,
    /// Most calls at a time, streams included
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_calls: u32,
    /// Most calls at a time from one address; half of --max-calls where it is not given
    #[arg(long, value_name = "N")]
    pub max_calls_per_peer: Option<u32>,
    /// Most streams of a connection at a time
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_concurrent_streams: u32,
    /// Close a connection that has not finished its handshake after this time
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub handshake_timeout: Duration,
    /// Ping a silent connection after this time
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = parse_duration)]
    pub keepalive_interval: Duration,
    /// Close it where the answer takes longer than this
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub keepalive_timeout: Duration,
    /// Ask a connection to go away after this time
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
    pub max_connection_age: Duration,
    /// and close it after this much more
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    pub max_connection_age_grace: Duration,
    /// End a call whose message takes longer than this to arrive; every 32 KiB of it are worth a second more
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub message_timeout: Duration,
    /// Memory for messages that are arriving or not yet answered, of all connections together; one address has half of
    /// it at most [default: 256MiB, or an eighth of the available memory where that is less]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub message_memory: Option<u64>,
    /// End an upload that sends nothing for this time
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub upload_idle_timeout: Duration,
    /// End a stream whose client takes nothing for this time
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse_duration)]
    pub stream_stall_timeout: Duration,
    /// Most streams of a connection reset for its errors, over its life (a guard against MadeYouReset)
    #[arg(long, value_name = "N", default_value_t = 1024, hide_short_help = true)]
    pub max_local_error_resets: u32,
    /// Most streams reset by the peer before they were accepted (a guard against rapid reset)
    #[arg(long, value_name = "N", default_value_t = 20, hide_short_help = true)]
    pub max_pending_resets: u32,
    /// Most bytes of a request's headers
    #[arg(long, value_name = "SIZE", default_value = "16KiB", value_parser = parse_bytes, hide_short_help = true)]
    pub max_header_bytes: u64,
    /// Most bytes of a message, either way
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = parse_bytes, hide_short_help = true)]
    pub max_message_bytes: u64,
}

/// What can be seen from outside.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Observability")]
pub struct ObservabilityArgs {
    /// Where to serve Prometheus metrics, as --listen; 127.0.0.1:9464 where it is not given, or the next free port if that is taken
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<ListenAddress>,
    /// Serve no metrics
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub no_metrics: bool,
}
