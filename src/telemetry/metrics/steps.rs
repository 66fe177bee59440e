//! Steps of the engine, and what it holds between them.

use std::time::Duration;

use super::super::names;
use super::Metrics;
use crate::types::RowsByClass;

/// What the engine holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineGauges {
    /// Sequences with KV on the device.
    pub running: usize,
    /// Sequences waiting.
    pub waiting: usize,
    /// Sequences laid aside until their reader has caught up.
    pub parked: usize,
    /// KV blocks in use.
    pub kv_blocks_used: usize,
    /// KV blocks in all.
    pub kv_blocks_total: usize,
    /// Clients and adapters, by pairs, with live sequences.
    pub parties: usize,
}

/// What one step did. Counts since start are deltas: what was added by this step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepFacts {
    /// Rows computed.
    pub tokens: usize,
    /// Sequences in the batch.
    pub sequences: usize,
    /// Distinct adapters in the batch, the base not counted.
    pub distinct_adapters: usize,
    /// Rows by the op classes of their adapters.
    pub rows_by_class: RowsByClass,
    /// How long it took.
    pub duration: Duration,
    /// After it.
    pub gauges: EngineGauges,
    /// Sequences preempted to make room for it.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix index for it.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Prompt tokens behind those of which the shared layers were found to be computed, since the last step.
    pub shared_layer_hits: u64,
    /// Running sequences that got no row of it because others had had less.
    pub held_back: u64,
}

/// For whose sake a step failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepCulprit {
    /// One request, whatever its adapter.
    Request,
    /// The adapter of a request.
    Adapter,
    /// Nobody's: not even a row of the base can be computed.
    Device,
}

impl StepCulprit {
    /// Label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Adapter => "adapter",
            Self::Device => "device",
        }
    }
}

impl Metrics {
    /// A step has ended.
    pub fn record_step(&self, facts: &StepFacts) {
        self.record_gauges(&facts.gauges);
        let series = &self.inner.steps;
        series.preemptions.increment(facts.preemptions);
        series.prefix_queries.increment(facts.prefix_queries);
        series.prefix_hits.increment(facts.prefix_hits);
        series.shared_layer_hits.increment(facts.shared_layer_hits);
        series.held_back.increment(facts.held_back);
        series.tokens.record(facts.tokens as f64);
        series.sequences.record(facts.sequences as f64);
        series.distinct_adapters.record(facts.distinct_adapters as f64);
        series.seconds.record(facts.duration.as_secs_f64());
        for (class, rows) in &series.rows_by_class {
            rows.increment(facts.rows_by_class.of(*class));
        }
    }

    /// What the engine holds has changed.
    pub fn record_gauges(&self, gauges: &EngineGauges) {
        let series = &self.inner.steps;
        series.running.set(gauges.running as f64);
        series.waiting.set(gauges.waiting as f64);
        series.parked.set(gauges.parked as f64);
        series.kv_used.set(gauges.kv_blocks_used as f64);
        series.kv_total.set(gauges.kv_blocks_total as f64);
        series.parties.set(gauges.parties as f64);
        series.kv_usage.set(gauges.kv_blocks_used as f64 / gauges.kv_blocks_total.max(1) as f64);
    }

    /// A step failed.
    pub fn record_failed_step(&self, culprit: StepCulprit) {
        self.registrar().counter(names::STEP_FAILURES, &[("culprit", culprit.as_str())]).increment(1);
    }
}
