//! Facts in, metrics out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, NoopRecorder, Recorder, Unit};

use super::log_sink::LostLines;
use super::lora::LoraRequests;
use super::names::{self, Kind, Metric};
use crate::types::{OpClass, Usage};

mod calls;
mod steps;

pub use calls::HttpFacts;
pub use steps::{EngineGauges, StepCulprit, StepFacts};

/// Adapters with series of their own; the others share the label `other`. The base is `base`.
const MAX_ADAPTER_LABELS: usize = 128;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestOutcome {
    /// Stop id or stop string.
    Stop,
    /// `max_tokens` or context.
    Length,
    /// The client went away.
    Cancelled,
    /// The deadline passed.
    DeadlineExceeded,
    /// The engine ended it: non-finite row, failed step, drain.
    Failed,
}

impl RequestOutcome {
    /// Label value; the first two are vLLM's `finished_reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "abort",
            Self::DeadlineExceeded => "deadline",
            Self::Failed => "error",
        }
    }
}

/// A request that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFacts<'a> {
    /// Name of its adapter; `None` is the base.
    pub adapter: Option<&'a str>,
    /// How it ended.
    pub outcome: RequestOutcome,
    /// Its tokens.
    pub usage: Usage,
    /// Arrival to first step.
    pub queue: Duration,
    /// First step to first token; `None` where there was none.
    pub prefill: Option<Duration>,
    /// First token to end.
    pub decode: Duration,
    /// Arrival to end.
    pub total: Duration,
}

/// A unary call or stream that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RpcFacts {
    /// `polydelta.v1.GenerationService`.
    pub service: &'static str,
    /// `Generate`.
    pub method: &'static str,
    /// `unary`, `client_stream`, `server_stream` or `bidi_stream`.
    pub kind: &'static str,
    /// `OK`, `InvalidArgument`, …
    pub code: &'static str,
    /// From the request's head to the trailers.
    pub duration: Duration,
}

/// The adapters as they are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdapterGauges {
    /// Names a client can use.
    pub registered: usize,
    /// Versions on the device.
    pub resident: usize,
    /// Bytes of them.
    pub resident_bytes: u64,
    /// Bytes in the store.
    pub stored_bytes: u64,
    /// Names that cannot be read from the store.
    pub unreadable: usize,
    /// Versions set aside for their faults.
    pub set_aside: usize,
}

/// A part of bringing an adapter in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadStage {
    /// Reading its files.
    Read,
    /// Checking and compiling it.
    Compile,
    /// Moving its ops to the device.
    Install,
}

/// What a request waits for before its first row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueCause {
    /// Its turn at the tokenizer.
    Tokenizing,
    /// Its adapter, until that is on the device.
    Adapter,
    /// Its first row, once it is with the engine.
    Engine,
}

/// How an upload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadOutcome {
    /// Stored under a new name.
    Created,
    /// Stored in place of another version.
    Replaced,
    /// The name had these very bytes already.
    Unchanged,
    /// Found good and not stored, as asked for.
    Validated,
    /// Refused.
    Rejected,
    /// Cut off; it may be resumed.
    Interrupted,
}

/// Turns facts into metrics. Cheap to clone; recording takes no lock but for the adapters' labels.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    recorder: Box<dyn Recorder + Send + Sync>,
    model_name: String,
    steps: StepSeries,
    requests: RequestSeries,
    adapters: Mutex<HashMap<String, AdapterSeries>>,
    lora: LoraRequests,
    lost_lines: OnceLock<LostLines>,
}

struct StepSeries {
    running: Gauge,
    waiting: Gauge,
    parked: Gauge,
    kv_usage: Gauge,
    kv_used: Gauge,
    kv_total: Gauge,
    preemptions: Counter,
    prefix_queries: Counter,
    prefix_hits: Counter,
    shared_layer_hits: Counter,
    parties: Gauge,
    held_back: Counter,
    tokens: Histogram,
    sequences: Histogram,
    distinct_adapters: Histogram,
    seconds: Histogram,
    rows_by_class: [(OpClass, Counter); OpClass::ALL.len()],
}

struct RequestSeries {
    prompt_tokens: Counter,
    generation_tokens: Counter,
    ttft: Histogram,
    itl: Histogram,
    tpot: Histogram,
    e2e: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    prompt_length: Histogram,
    generation_length: Histogram,
}

#[derive(Clone)]
struct AdapterSeries {
    label: String,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    ttft: Histogram,
}

/// Registers series on a recorder, vLLM's ones with vLLM's labels.
struct Registrar<'a> {
    recorder: &'a (dyn Recorder + Send + Sync),
    model_name: &'a str,
}

const METADATA: Metadata<'static> = Metadata::new("polydelta", Level::INFO, None);

impl Registrar<'_> {
    fn key(&self, metric: Metric, labels: &[(&'static str, &str)]) -> Key {
        let mut all: Vec<Label> = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
        if metric.name.starts_with("vllm:") {
            all.push(Label::new("model_name", self.model_name.to_owned()));
            all.push(Label::new("engine", "0"));
        }
        Key::from_parts(metric.name, all)
    }

    fn counter(&self, metric: Metric, labels: &[(&'static str, &str)]) -> Counter {
        debug_assert_eq!(metric.kind, Kind::Counter);
        self.recorder.register_counter(&self.key(metric, labels), &METADATA)
    }

    fn gauge(&self, metric: Metric, labels: &[(&'static str, &str)]) -> Gauge {
        debug_assert_eq!(metric.kind, Kind::Gauge);
        self.recorder.register_gauge(&self.key(metric, labels), &METADATA)
    }

    fn histogram(&self, metric: Metric, labels: &[(&'static str, &str)]) -> Histogram {
        debug_assert!(matches!(metric.kind, Kind::Histogram(_)));
        self.recorder.register_histogram(&self.key(metric, labels), &METADATA)
    }

    fn describe(&self) {
        for metric in names::ALL {
            let (name, help) = (metric.name.into(), metric.help.into());
            // A unit would append itself to the name; names here already carry theirs.
            let unit: Option<Unit> = None;
            match metric.kind {
                Kind::Counter => self.recorder.describe_counter(name, unit, help),
                Kind::Gauge => self.recorder.describe_gauge(name, unit, help),
                Kind::Histogram(_) => self.recorder.describe_histogram(name, unit, help),
            }
        }
    }

    fn steps(&self) -> StepSeries {
        StepSeries {
            running: self.gauge(names::VLLM_RUNNING, &[]),
            waiting: self.gauge(names::VLLM_WAITING, &[]),
            parked: self.gauge(names::SEQUENCES_PARKED, &[]),
            kv_usage: self.gauge(names::VLLM_KV_USAGE, &[]),
            kv_used: self.gauge(names::KV_BLOCKS_USED, &[]),
            kv_total: self.gauge(names::KV_BLOCKS_TOTAL, &[]),
            preemptions: self.counter(names::VLLM_PREEMPTIONS, &[]),
            prefix_queries: self.counter(names::VLLM_PREFIX_QUERIES, &[]),
            prefix_hits: self.counter(names::VLLM_PREFIX_HITS, &[]),
            shared_layer_hits: self.counter(names::SHARED_LAYER_HITS, &[]),
            parties: self.gauge(names::FAIR_PARTIES, &[]),
            held_back: self.counter(names::FAIR_HELD_BACK, &[]),
            tokens: self.histogram(names::STEP_TOKENS, &[]),
            sequences: self.histogram(names::BATCH_SIZE, &[]),
            distinct_adapters: self.histogram(names::BATCH_ADAPTERS, &[]),
            seconds: self.histogram(names::STEP_SECONDS, &[]),
            rows_by_class: OpClass::ALL
                .map(|class| (class, self.counter(names::OP_ROWS, &[("op_class", class.as_str())]))),
        }
    }

    fn requests(&self) -> RequestSeries {
        RequestSeries {
            prompt_tokens: self.counter(names::VLLM_PROMPT_TOKENS, &[]),
            generation_tokens: self.counter(names::VLLM_GENERATION_TOKENS, &[]),
            ttft: self.histogram(names::VLLM_TTFT, &[]),
            itl: self.histogram(names::VLLM_ITL, &[]),
            tpot: self.histogram(names::VLLM_TPOT, &[]),
            e2e: self.histogram(names::VLLM_E2E, &[]),
            queue: self.histogram(names::VLLM_QUEUE, &[]),
            prefill: self.histogram(names::VLLM_PREFILL, &[]),
            decode: self.histogram(names::VLLM_DECODE, &[]),
            inference: self.histogram(names::VLLM_INFERENCE, &[]),
            prompt_length: self.histogram(names::VLLM_REQUEST_PROMPT, &[]),
            generation_length: self.histogram(names::VLLM_REQUEST_GENERATION, &[]),
        }
    }

    fn adapter(&self, label: &str) -> AdapterSeries {
        AdapterSeries {
            label: label.to_owned(),
            prompt_tokens: self.counter(names::ADAPTER_TOKENS, &[("adapter", label), ("direction", "prompt")]),
            generation_tokens: self.counter(names::ADAPTER_TOKENS, &[("adapter", label), ("direction", "generation")]),
            ttft: self.histogram(names::ADAPTER_TTFT, &[("adapter", label)]),
        }
    }
}

impl Metrics {
    /// Record into `recorder`; `model_name` is the label vLLM's metrics carry.
    #[must_use]
    pub fn new(recorder: Box<dyn Recorder + Send + Sync>, model_name: &str) -> Self {
        let registrar = Registrar { recorder: &*recorder, model_name };
        registrar.describe();
        let (steps, requests) = (registrar.steps(), registrar.requests());
        registrar.gauge(names::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        registrar.gauge(names::PROCESS_START, &[]).set(started.as_secs_f64());
        registrar.counter(names::LOG_LOST, &[]).absolute(0);
        let model_name = model_name.to_owned();
        let (adapters, lora, lost_lines) = (Mutex::default(), LoraRequests::default(), OnceLock::new());
        Self { inner: Arc::new(Inner { recorder, model_name, steps, requests, adapters, lora, lost_lines }) }
    }

    /// Record nothing.
    #[must_use]
    pub fn disabled() -> Self {
        Self::new(Box::new(NoopRecorder), "")
    }

    fn registrar(&self) -> Registrar<'_> {
        Registrar { recorder: &*self.inner.recorder, model_name: &self.inner.model_name }
    }

    /// A token of a choice came this long after the one before it.
    pub fn record_token_interval(&self, interval: Duration) {
        self.inner.requests.itl.record(interval.as_secs_f64());
    }

    /// A request has ended.
    pub fn record_request(&self, facts: &RequestFacts<'_>) {
        let series = &self.inner.requests;
        let adapter = self.adapter_series(facts.adapter);
        let (prompt, generated) = (u64::from(facts.usage.prompt_tokens), u64::from(facts.usage.completion_tokens));
        series.prompt_tokens.increment(prompt);
        series.generation_tokens.increment(generated);
        series.prompt_length.record(prompt as f64);
        series.generation_length.record(generated as f64);
        series.queue.record(facts.queue.as_secs_f64());
        series.e2e.record(facts.total.as_secs_f64());
        if let Some(prefill) = facts.prefill {
            let first_token = (facts.queue + prefill).as_secs_f64();
            series.ttft.record(first_token);
            series.prefill.record(prefill.as_secs_f64());
            series.decode.record(facts.decode.as_secs_f64());
            series.inference.record((prefill + facts.decode).as_secs_f64());
            adapter.ttft.record(first_token);
            if generated > 1 {
                series.tpot.record(facts.decode.as_secs_f64() / (generated - 1) as f64);
            }
        }
        adapter.prompt_tokens.increment(prompt);
        adapter.generation_tokens.increment(generated);
        let registrar = self.registrar();
        let labels = [("adapter", adapter.label.as_str()), ("outcome", facts.outcome.as_str())];
        registrar.counter(names::ADAPTER_REQUESTS, &labels).increment(1);
        if matches!(facts.outcome, RequestOutcome::Stop | RequestOutcome::Length) {
            let reason = [("finished_reason", facts.outcome.as_str())];
            registrar.counter(names::VLLM_SUCCESS, &reason).increment(1);
        }
    }

    /// A request was not admitted; `reason` is one of a few fixed words.
    pub fn record_rejection(&self, reason: &'static str) {
        self.registrar().counter(names::REJECTED, &[("reason", reason)]).increment(1);
    }

    /// The adapters as they are now.
    pub fn record_adapters(&self, gauges: &AdapterGauges) {
        let registrar = self.registrar();
        registrar.gauge(names::ADAPTERS_REGISTERED, &[]).set(gauges.registered as f64);
        registrar.gauge(names::ADAPTERS_UNREADABLE, &[]).set(gauges.unreadable as f64);
        registrar.gauge(names::ADAPTERS_SET_ASIDE, &[]).set(gauges.set_aside as f64);
        registrar.gauge(names::ADAPTERS_RESIDENT, &[("tier", "device")]).set(gauges.resident as f64);
        registrar.gauge(names::ADAPTER_BYTES, &[("tier", "device")]).set(gauges.resident_bytes as f64);
        registrar.gauge(names::ADAPTER_BYTES, &[("tier", "disk")]).set(gauges.stored_bytes as f64);
    }

    /// A stage of bringing an adapter in took this long.
    pub fn record_adapter_load(&self, stage: LoadStage, duration: Duration) {
        let stage = match stage {
            LoadStage::Read => "read",
            LoadStage::Compile => "validate",
            LoadStage::Install => "upload_to_device",
        };
        self.registrar().histogram(names::ADAPTER_LOAD, &[("stage", stage)]).record(duration.as_secs_f64());
    }

    /// An adapter was taken off the device; `reason` is one of a few fixed words.
    pub fn record_eviction(&self, reason: &'static str) {
        self.registrar().counter(names::ADAPTER_EVICTIONS, &[("tier", "device"), ("reason", reason)]).increment(1);
    }

    /// A request waited this long for one thing.
    pub fn record_queue_wait(&self, cause: QueueCause, duration: Duration) {
        let cause = match cause {
            QueueCause::Tokenizing => "tokenizing",
            QueueCause::Adapter => "adapter",
            QueueCause::Engine => "engine",
        };
        self.registrar().histogram(names::QUEUE_WAIT, &[("cause", cause)]).record(duration.as_secs_f64());
    }

    /// An upload has ended after receiving `bytes`.
    pub fn record_upload(&self, outcome: UploadOutcome, bytes: u64) {
        let outcome = match outcome {
            UploadOutcome::Created => "created",
            UploadOutcome::Replaced => "replaced",
            UploadOutcome::Unchanged => "unchanged",
            UploadOutcome::Validated => "validated",
            UploadOutcome::Rejected => "rejected",
            UploadOutcome::Interrupted => "interrupted",
        };
        self.registrar().counter(names::UPLOADS, &[("outcome", outcome)]).increment(1);
        self.registrar().counter(names::UPLOAD_BYTES, &[]).increment(bytes);
    }

    /// An RPC has begun.
    pub fn record_rpc_start(&self, service: &'static str, method: &'static str, kind: &'static str) {
        let labels = [("grpc_type", kind), ("grpc_service", service), ("grpc_method", method)];
        self.registrar().counter(names::GRPC_STARTED, &labels).increment(1);
    }

    /// An RPC has ended.
    pub fn record_rpc(&self, facts: &RpcFacts) {
        let labels = [
            ("grpc_type", facts.kind),
            ("grpc_service", facts.service),
            ("grpc_method", facts.method),
            ("grpc_code", facts.code),
        ];
        self.registrar().counter(names::GRPC_HANDLED, &labels).increment(1);
        self.registrar().histogram(names::GRPC_SECONDS, &labels[..3]).record(facts.duration.as_secs_f64());
    }

    /// Which adapters have requests now.
    #[must_use]
    pub fn lora_requests(&self) -> &LoraRequests {
        &self.inner.lora
    }

    /// The layout of the KV cache, once at start.
    pub fn record_cache(&self, block_size: u32, blocks: usize) {
        let (block_size, count) = (block_size.to_string(), blocks.to_string());
        let labels = [("block_size", block_size.as_str()), ("num_gpu_blocks", count.as_str())];
        self.registrar().gauge(names::VLLM_CACHE_CONFIG, &labels).set(1.0);
        self.inner.steps.kv_total.set(blocks as f64);
    }

    /// Report the lines that this log lost, from now on. The first log that is followed stays the one.
    pub fn follow_log(&self, lost: LostLines) {
        // Set already: the process has one log.
        let _ = self.inner.lost_lines.set(lost);
    }

    /// A connection was turned away; `listener` is `grpc` or `metrics`, `reason` one of a few fixed words.
    pub fn record_connection_refused(&self, listener: &'static str, reason: &'static str) {
        let labels = [("listener", listener), ("reason", reason)];
        self.registrar().counter(names::CONNECTIONS_REFUSED, &labels).increment(1);
    }

    /// Lines lost by the log, and the resident memory of this process, where the system says (Linux). Call it from
    /// time to time.
    pub fn record_process(&self) {
        if let Some(lost) = self.inner.lost_lines.get() {
            self.registrar().counter(names::LOG_LOST, &[]).absolute(lost.count());
        }
        let status = std::fs::read_to_string("/proc/self/status").ok();
        let resident = status.as_deref().and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        });
        if let Some(kibibytes) = resident {
            self.registrar().gauge(names::PROCESS_MEMORY, &[]).set(kibibytes as f64 * 1024.0);
        }
    }

    /// The series of an adapter, those of `other` once there are many.
    fn adapter_series(&self, adapter: Option<&str>) -> AdapterSeries {
        let name = adapter.unwrap_or("base");
        let mut known = self.inner.adapters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = known.get(name) {
            return series.clone();
        }
        // An adapter may be called `base` or `other` too; it then shares that series, which bounds them all the same.
        let label = if known.len() < MAX_ADAPTER_LABELS || adapter.is_none() { name } else { "other" };
        let series = known.get(label).cloned().unwrap_or_else(|| self.registrar().adapter(label));
        known.entry(label.to_owned()).or_insert(series).clone()
    }
}
