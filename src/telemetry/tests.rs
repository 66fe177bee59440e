use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use super::metrics::QueueCause;
use super::names::{self, Kind};
use super::*;
use crate::types::{OpClass, RowsByClass, Usage};

fn recorder() -> (Metrics, MetricsPage) {
    recorded("tiny", 64).unwrap()
}

fn request(adapter: Option<&str>) -> RequestFacts<'_> {
    RequestFacts {
        adapter,
        outcome: RequestOutcome::Stop,
        usage: Usage { prompt_tokens: 7, completion_tokens: 5, cached_tokens: 0 },
        queue: Duration::from_millis(10),
        prefill: Some(Duration::from_millis(20)),
        decode: Duration::from_millis(400),
        total: Duration::from_millis(430),
    }
}

#[test]
fn names_are_unique_and_their_bounds_ascend() {
    let distinct: BTreeSet<_> = names::ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(distinct.len(), names::ALL.len());
    for metric in names::ALL {
        if let Kind::Histogram(bounds) = metric.kind {
            assert!(bounds.is_sorted() && !bounds.is_empty(), "{}", metric.name);
        }
        // The size of the pool is a gauge for all that its name ends like a counter's.
        let counts = metric.name.ends_with("_total") && metric.name != "polydelta_kv_blocks_total";
        assert_eq!(metric.kind == Kind::Counter, counts, "{}", metric.name);
    }
}

#[test]
fn vllms_names_keep_their_colon_and_labels() {
    let (metrics, page) = recorder();
    let mut rows_by_class = RowsByClass::default();
    rows_by_class.add([OpClass::LowRank, OpClass::Bias].into_iter().collect(), 4);
    rows_by_class.add([OpClass::LowRank].into_iter().collect(), 2);
    metrics.record_step(&StepFacts {
        tokens: 9,
        sequences: 3,
        distinct_adapters: 2,
        rows_by_class,
        duration: Duration::from_millis(5),
        gauges: EngineGauges {
            running: 3,
            waiting: 1,
            parked: 2,
            kv_blocks_used: 25,
            kv_blocks_total: 100,
            parties: 3,
        },
        preemptions: 2,
        prefix_queries: 40,
        prefix_hits: 30,
        shared_layer_hits: 7,
        held_back: 5,
    });
    metrics.record_request(&request(None));
    let text = page.render();
    for line in [
        "polydelta_shared_layer_hits_total 7",
        "vllm:num_requests_running{model_name=\"tiny\",engine=\"0\"} 3",
        "vllm:num_requests_waiting{model_name=\"tiny\",engine=\"0\"} 1",
        "vllm:kv_cache_usage_perc{model_name=\"tiny\",engine=\"0\"} 0.25",
        "vllm:num_preemptions_total{model_name=\"tiny\",engine=\"0\"} 2",
        "vllm:prompt_tokens_total{model_name=\"tiny\",engine=\"0\"} 7",
        "vllm:generation_tokens_total{model_name=\"tiny\",engine=\"0\"} 5",
        "vllm:prefix_cache_hits_total{model_name=\"tiny\",engine=\"0\"} 30",
        "vllm:request_success_total{finished_reason=\"stop\",model_name=\"tiny\",engine=\"0\"} 1",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"tiny\",engine=\"0\",le=\"0.04\"} 1",
        "vllm:request_time_per_output_token_seconds_bucket{model_name=\"tiny\",engine=\"0\",le=\"0.1\"} 1",
        "polydelta_batch_distinct_adapters_bucket{le=\"1\"} 0",
        "polydelta_batch_distinct_adapters_bucket{le=\"2\"} 1",
        "polydelta_adapter_requests_total{adapter=\"base\",outcome=\"stop\"} 1",
        "# HELP vllm:num_requests_running Sequences in execution batches.",
        "# TYPE vllm:time_to_first_token_seconds histogram",
        "polydelta_kv_blocks_used 25",
        "polydelta_op_rows_total{op_class=\"LowRank\"} 6",
        "polydelta_op_rows_total{op_class=\"Bias\"} 4",
        "polydelta_op_rows_total{op_class=\"Gain\"} 0",
        "polydelta_sequences_parked 2",
    ] {
        assert!(text.lines().any(|have| have == line), "{line}\nis missing from\n{text}");
    }
}

#[test]
fn gauges_follow_without_a_step() {
    let (metrics, page) = recorder();
    let gauges =
        EngineGauges { running: 3, waiting: 1, parked: 2, kv_blocks_used: 25, kv_blocks_total: 100, parties: 3 };
    metrics.record_step(&StepFacts { gauges, ..StepFacts::default() });
    metrics.record_gauges(&EngineGauges { kv_blocks_total: 100, ..EngineGauges::default() });
    let text = page.render();
    for line in [
        "vllm:num_requests_running{model_name=\"tiny\",engine=\"0\"} 0",
        "vllm:num_requests_waiting{model_name=\"tiny\",engine=\"0\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"tiny\",engine=\"0\"} 0",
        "polydelta_kv_blocks_used 0",
        "polydelta_step_tokens_count 1",
    ] {
        assert!(text.lines().any(|have| have == line), "{line}\nis missing from\n{text}");
    }
}

#[test]
fn adapter_labels_are_bounded() {
    let (metrics, page) = recorder();
    for index in 0..1000 {
        metrics.record_request(&request(Some(&format!("adapter-{index}"))));
    }
    metrics.record_request(&request(None));
    let text = page.render();
    let series = text.lines().filter(|line| line.starts_with("polydelta_adapter_requests_total{")).count();
    assert_eq!(series, 130, "128 adapters, other and base");
    assert!(text.contains("polydelta_adapter_requests_total{adapter=\"other\",outcome=\"stop\"} 872"));
    assert!(text.contains("polydelta_adapter_requests_total{adapter=\"base\",outcome=\"stop\"} 1"));
}

#[test]
fn every_other_fact_shows_up() {
    let (metrics, page) = recorder();
    metrics.record_adapters(&AdapterGauges {
        registered: 4,
        resident: 2,
        resident_bytes: 10,
        stored_bytes: 20,
        unreadable: 2,
        set_aside: 1,
    });
    metrics.record_adapter_load(LoadStage::Compile, Duration::from_millis(3));
    metrics.record_eviction("room");
    metrics.record_queue_wait(QueueCause::Tokenizing, Duration::from_millis(1));
    metrics.record_upload(UploadOutcome::Created, 4096);
    metrics.record_rejection("queue_full");
    metrics.record_rpc_start("polydelta.v1.GenerationService", "Generate", "unary");
    metrics.record_rpc(&RpcFacts {
        service: "polydelta.v1.GenerationService",
        method: "Generate",
        kind: "unary",
        code: "OK",
        duration: Duration::from_millis(1),
    });
    let duration = Duration::from_millis(1);
    metrics.record_http(&HttpFacts { route: "/v1/models", status: None, duration });
    metrics.record_token_interval(Duration::from_millis(20));
    metrics.record_cache(16, 512);
    metrics.record_connection_refused("grpc", "total");
    metrics.record_step(&StepFacts::default());
    metrics.record_failed_step(StepCulprit::Adapter);
    metrics.record_request(&request(Some("sql")));
    let text = page.render();
    assert!(text.contains("polydelta_http_requests_total{route=\"/v1/models\",status=\"canceled\"} 1"));
    for metric in names::ALL {
        assert!(text.contains(&format!("# TYPE {} ", metric.name)), "{} was never recorded", metric.name);
    }
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Sink {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

fn logged(settings: &LogSettings, log: impl FnOnce()) -> String {
    let sink = Sink::default();
    let subscriber = logging::subscriber(settings, sink.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, log);
    String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
}

fn settings(filter: &str, json: bool) -> LogSettings {
    LogSettings { filter: filter.into(), json, color: false }
}

#[test]
fn the_json_log_is_one_object_a_line() {
    let text = logged(&settings("info", true), || tracing::info!(rows = 3, "a step"));
    let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!((&line["message"], &line["rows"], &line["level"]), (&"a step".into(), &3.into(), &"INFO".into()));
}

#[test]
fn the_filter_chooses_by_level_and_module() {
    let log = || {
        tracing::info!(target: "polydelta::engine", "engine info");
        tracing::debug!(target: "polydelta::engine", "engine debug");
        tracing::debug!(target: "polydelta::server", "server debug");
    };
    let text = logged(&settings("info,polydelta::engine=debug", false), log);
    assert!(text.contains("engine info") && text.contains("engine debug") && !text.contains("server debug"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours were asked for");
    let refused = logging::subscriber(&settings("polydelta=loud", false), io::stderr).err();
    assert!(matches!(refused, Some(LoggingError::Filter { filter, .. }) if filter == "polydelta=loud"));
}

#[test]
fn a_panic_is_a_line_of_the_log() {
    let text = logged(&settings("info", true), || {
        let me = std::thread::current().id();
        let before = Arc::new(std::panic::take_hook());
        let others = Arc::clone(&before);
        // The hook is the process's. Another test's panic must not be what first meets the line in the source: tracing
        // would keep of it that nobody there listens.
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().id() == me { logging::log_panic(panic) } else { others(panic) }
        }));
        let result = std::panic::catch_unwind(|| panic!("{} of {}", 3, 4));
        std::panic::set_hook(Box::new(move |panic| before(panic)));
        result.unwrap_err();
    });
    let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&line["message"], &line["level"]), (&"panicked: 3 of 4".into(), &"ERROR".into()));
    assert!(line["location"].as_str().unwrap().contains("telemetry"), "{line}");
}

#[test]
fn lines_the_log_lost_are_counted_by_a_metric() {
    let sink = LogSink::start(io::sink(), 4, |_| {}).unwrap();
    sink.line("longer than the queue\n");
    let (metrics, page) = recorder();
    assert!(page.render().contains("polydelta_log_dropped_lines_total 0"));
    metrics.follow_log(sink.lost());
    assert!(page.render().contains("polydelta_log_dropped_lines_total 1"));
}

#[test]
fn without_a_terminal_progress_is_one_line() {
    let text = logged(&settings("info", false), || {
        let mut progress = Progress::bytes("loading the model", 100, false);
        progress.advance(60);
        progress.advance(40);
        assert_eq!(progress.position(), (100, 100));
        progress.finish();
    });
    assert_eq!(text.lines().count(), 1);
    assert!(text.contains("loading the model done") && text.contains("bytes=100"), "{text}");
}
