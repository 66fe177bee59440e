//! Every metric's name, kind and help.
//!
//! Two families come from the same facts: vLLM's names, so that dashboards, autoscalers and routers made for vLLM work
//! unchanged, and our own `polydelta_*` for what only this server has. Prometheus allows the colon of vLLM's names and
//! the exporter keeps it. `vllm:lora_requests_info`, whose
//! labels change from line to line, is not among these: [`lora`](super::lora) writes it.

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// A value now.
    Gauge,
    /// A distribution over these upper bounds.
    Histogram(&'static [f64]),
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Full name.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
    /// For `# HELP`.
    pub help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, help }
}

const fn histogram(name: &'static str, bounds: &'static [f64], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram(bounds), help }
}

/// vLLM's bounds for the time to the first token, in seconds.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// vLLM's bounds for the time between two tokens, in seconds.
const TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
/// vLLM's bounds for the parts of a request, in seconds.
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
/// vLLM's 1-2-5 bounds for token counts.
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0,
    100_000.0,
];
const SMALL_COUNTS: &[f64] = &[0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0];
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Sequences with KV on the device.
pub const VLLM_RUNNING: Metric = gauge("vllm:num_requests_running", "Sequences in execution batches.");
/// Sequences waiting.
pub const VLLM_WAITING: Metric = gauge("vllm:num_requests_waiting", "Sequences waiting to be processed.");
/// KV blocks in use, 0 to 1.
pub const VLLM_KV_USAGE: Metric = gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.");
/// Preemptions.
pub const VLLM_PREEMPTIONS: Metric = counter("vllm:num_preemptions_total", "Preemptions since start.");
/// Prompt tokens.
pub const VLLM_PROMPT_TOKENS: Metric = counter("vllm:prompt_tokens_total", "Prompt tokens processed.");
/// Generated tokens.
pub const VLLM_GENERATION_TOKENS: Metric = counter("vllm:generation_tokens_total", "Generation tokens processed.");
/// Prompt tokens looked up in the prefix index.
pub const VLLM_PREFIX_QUERIES: Metric = counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up.");
/// Prompt tokens found there.
pub const VLLM_PREFIX_HITS: Metric = counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the cache.");
/// Requests that ended well, by `finished_reason`.
pub const VLLM_SUCCESS: Metric = counter("vllm:request_success_total", "Successfully processed requests.");
/// Arrival to first token.
pub const VLLM_TTFT: Metric = histogram("vllm:time_to_first_token_seconds", FIRST_TOKEN, "Time to first token.");
/// Between two tokens of a choice.
pub const VLLM_ITL: Metric = histogram("vllm:inter_token_latency_seconds", TOKEN, "Time between two tokens.");
/// Mean of a request.
pub const VLLM_TPOT: Metric =
    histogram("vllm:request_time_per_output_token_seconds", TOKEN, "Mean time per output token of a request.");
/// Arrival to end.
pub const VLLM_E2E: Metric = histogram("vllm:e2e_request_latency_seconds", REQUEST, "End to end request latency.");
/// Arrival to first step.
pub const VLLM_QUEUE: Metric = histogram("vllm:request_queue_time_seconds", REQUEST, "Time in the WAITING phase.");
/// First step to first token.
pub const VLLM_PREFILL: Metric = histogram("vllm:request_prefill_time_seconds", REQUEST, "Time in the PREFILL phase.");
/// First token to end.
pub const VLLM_DECODE: Metric = histogram("vllm:request_decode_time_seconds", REQUEST, "Time in the DECODE phase.");
/// First step to end.
pub const VLLM_INFERENCE: Metric =
    histogram("vllm:request_inference_time_seconds", REQUEST, "Time in the RUNNING phase.");
/// Prompt length.
pub const VLLM_REQUEST_PROMPT: Metric = histogram("vllm:request_prompt_tokens", TOKENS, "Prefill tokens of a request.");
/// Output length.
pub const VLLM_REQUEST_GENERATION: Metric =
    histogram("vllm:request_generation_tokens", TOKENS, "Generation tokens of a request.");
/// 1, with the cache's layout as labels.
pub const VLLM_CACHE_CONFIG: Metric = gauge("vllm:cache_config_info", "Information of the KV cache configuration.");

/// Requests by `adapter` and `outcome`.
pub const ADAPTER_REQUESTS: Metric = counter("polydelta_adapter_requests_total", "Requests by adapter and outcome.");
/// Tokens by `adapter` and `direction`.
pub const ADAPTER_TOKENS: Metric = counter("polydelta_adapter_tokens_total", "Tokens by adapter and direction.");
/// Arrival to first token, by `adapter`.
pub const ADAPTER_TTFT: Metric = histogram("polydelta_adapter_ttft_seconds", FIRST_TOKEN, "Time to first token.");
/// Adapters a client can name.
pub const ADAPTERS_REGISTERED: Metric = gauge("polydelta_adapters_registered", "Adapters registered.");
/// Names that the store has and cannot serve.
pub const ADAPTERS_UNREADABLE: Metric = gauge(
    "polydelta_adapters_unreadable",
    "Names of the store that cannot be served: they cannot be read now, or a later version wrote them.",
);
/// Versions that failed too many requests in a row.
pub const ADAPTERS_SET_ASIDE: Metric =
    gauge("polydelta_adapters_set_aside", "Adapter versions set aside: too many requests in a row failed on them.");
/// Adapters on the device.
pub const ADAPTERS_RESIDENT: Metric = gauge("polydelta_adapters_resident", "Adapters resident, by tier.");
/// Their bytes.
pub const ADAPTER_BYTES: Metric = gauge("polydelta_adapter_bytes", "Bytes of resident adapters, by tier.");
/// Time to bring an adapter in, by `stage`.
pub const ADAPTER_LOAD: Metric = histogram("polydelta_adapter_load_seconds", SECONDS, "Adapter load time, by stage.");
/// Adapters taken off the device, by `reason`.
pub const ADAPTER_EVICTIONS: Metric = counter("polydelta_adapter_evictions_total", "Adapters evicted, by reason.");
/// Sequences whose reader is behind.
pub const SEQUENCES_PARKED: Metric =
    gauge("polydelta_sequences_parked", "Sequences laid aside until their reader has caught up.");
/// Rows of a step.
pub const STEP_TOKENS: Metric = histogram("polydelta_step_tokens", TOKENS, "Rows of a step.");
/// Sequences of a step.
pub const BATCH_SIZE: Metric = histogram("polydelta_batch_size", SMALL_COUNTS, "Sequences of a step.");
/// Distinct adapters of a step.
pub const BATCH_ADAPTERS: Metric =
    histogram("polydelta_batch_distinct_adapters", SMALL_COUNTS, "Distinct adapters of a step, the base not counted.");
/// Rows by `op_class`.
pub const OP_ROWS: Metric =
    counter("polydelta_op_rows_total", "Rows computed with an operation of the class; a row counts for each it has.");
/// Duration of a step.
pub const STEP_SECONDS: Metric = histogram("polydelta_step_seconds", SECONDS, "Duration of a step.");
/// Time requests waited, by `cause`.
pub const QUEUE_WAIT: Metric =
    histogram("polydelta_queue_wait_seconds", SECONDS, "Time a request waited before its first row, by cause.");
/// Parties of the fair share: pairs of a client and an adapter.
pub const FAIR_PARTIES: Metric =
    gauge("polydelta_fair_share_parties", "Pairs of a client and an adapter with live sequences.");
/// Rows not given, for fairness.
pub const FAIR_HELD_BACK: Metric = counter(
    "polydelta_fair_share_held_back_total",
    "Running sequences that sat out a step because others had had less.",
);
/// Failed steps by `culprit`.
pub const STEP_FAILURES: Metric =
    counter("polydelta_step_failures_total", "Culprits of failed steps: request, adapter or device.");
/// Bytes received by uploads.
pub const UPLOAD_BYTES: Metric = counter("polydelta_upload_bytes_total", "Bytes received by uploads.");
/// Uploads by `outcome`.
pub const UPLOADS: Metric = counter("polydelta_uploads_total", "Uploads by outcome.");
/// Requests not admitted, by `reason`.
pub const REJECTED: Metric = counter("polydelta_queue_rejected_total", "Requests not admitted, by reason.");
/// KV blocks in use.
pub const KV_BLOCKS_USED: Metric = gauge("polydelta_kv_blocks_used", "KV blocks in use.");
/// Prompt tokens that `--shared-layers` saved the first layers of.
pub const SHARED_LAYER_HITS: Metric = counter(
    "polydelta_shared_layer_hits_total",
    "Prompt tokens that were not in the prefix cache, but what the shared layers make of them.",
);
/// KV blocks in all.
pub const KV_BLOCKS_TOTAL: Metric = gauge("polydelta_kv_blocks_total", "KV blocks in all.");
/// 1, with the version as a label.
pub const BUILD_INFO: Metric = gauge("polydelta_build_info", "The build that runs.");

/// RPCs begun.
pub const GRPC_STARTED: Metric = counter("grpc_server_started_total", "RPCs started on the server.");
/// RPCs ended, by `grpc_code`.
pub const GRPC_HANDLED: Metric = counter("grpc_server_handled_total", "RPCs completed on the server, by code.");
/// Their duration.
pub const GRPC_SECONDS: Metric = histogram("grpc_server_handling_seconds", SECONDS, "Duration of RPCs.");
/// Calls of HTTP ended, by `route` and `status`.
pub const HTTP_REQUESTS: Metric =
    counter("polydelta_http_requests_total", "HTTP calls completed, by route and status.");
/// Their duration.
pub const HTTP_SECONDS: Metric =
    histogram("polydelta_http_request_seconds", SECONDS, "Duration of HTTP calls, by route.");
/// Connections turned away, by `listener` and `reason`.
pub const CONNECTIONS_REFUSED: Metric =
    counter("polydelta_connections_refused_total", "Connections turned away, by listener and reason.");
/// Lines of the log that could not be written.
pub const LOG_LOST: Metric = counter("polydelta_log_dropped_lines_total", "Lines of the log that were lost.");
/// Resident memory.
pub const PROCESS_MEMORY: Metric = gauge("process_resident_memory_bytes", "Resident memory size in bytes.");
/// Start of the process.
pub const PROCESS_START: Metric = gauge("process_start_time_seconds", "Start time since the Unix epoch in seconds.");

/// All of them.
pub const ALL: &[Metric] = &[
    VLLM_RUNNING,
    VLLM_WAITING,
    VLLM_KV_USAGE,
    VLLM_PREEMPTIONS,
    VLLM_PROMPT_TOKENS,
    VLLM_GENERATION_TOKENS,
    VLLM_PREFIX_QUERIES,
    VLLM_PREFIX_HITS,
    SHARED_LAYER_HITS,
    VLLM_SUCCESS,
    VLLM_TTFT,
    VLLM_ITL,
    VLLM_TPOT,
    VLLM_E2E,
    VLLM_QUEUE,
    VLLM_PREFILL,
    VLLM_DECODE,
    VLLM_INFERENCE,
    VLLM_REQUEST_PROMPT,
    VLLM_REQUEST_GENERATION,
    VLLM_CACHE_CONFIG,
    ADAPTER_REQUESTS,
    ADAPTER_TOKENS,
    ADAPTER_TTFT,
    ADAPTERS_REGISTERED,
    ADAPTERS_UNREADABLE,
    ADAPTERS_SET_ASIDE,
    ADAPTERS_RESIDENT,
    ADAPTER_BYTES,
    ADAPTER_LOAD,
    ADAPTER_EVICTIONS,
    SEQUENCES_PARKED,
    STEP_TOKENS,
    BATCH_SIZE,
    BATCH_ADAPTERS,
    OP_ROWS,
    STEP_SECONDS,
    QUEUE_WAIT,
    FAIR_PARTIES,
    FAIR_HELD_BACK,
    STEP_FAILURES,
    UPLOAD_BYTES,
    UPLOADS,
    REJECTED,
    KV_BLOCKS_USED,
    KV_BLOCKS_TOTAL,
    BUILD_INFO,
    GRPC_STARTED,
    GRPC_HANDLED,
    GRPC_SECONDS,
    HTTP_REQUESTS,
    HTTP_SECONDS,
    CONNECTIONS_REFUSED,
    LOG_LOST,
    PROCESS_MEMORY,
    PROCESS_START,
];
