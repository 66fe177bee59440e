//! Metrics in Prometheus' text form. Who asks for them, and how often, is the business of whoever serves them.

use std::time::SystemTime;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::metrics::Metrics;
use super::names::{self, Kind};

/// Why there are no metrics: a histogram without bounds, which is a defect of the build.
#[derive(Debug, thiserror::Error)]
#[error("the recorder refuses a histogram: {0}")]
pub struct MetricsError(#[from] BuildError);

/// Everything recorded so far, as text. Cheap to clone.
#[derive(Clone)]
pub struct MetricsPage {
    handle: PrometheusHandle,
    metrics: Metrics,
    max_lora: u32,
}

impl MetricsPage {
    /// The page as it is now, in version 0.0.4 of the text format. Takes milliseconds.
    #[must_use]
    pub fn render(&self) -> String {
        self.metrics.record_process();
        let mut page = self.handle.render();
        page.push_str(&self.metrics.lora_requests().render(self.max_lora, SystemTime::now()));
        page
    }

    /// Sum up what was recorded since last time. Histograms grow until this or [`MetricsPage::render`] is called.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// Metrics and the page on which they appear; `model_name` is the label that vLLM's metrics carry, `max_lora` how many
/// adapters the device may hold.
///
/// # Errors
/// [`MetricsError`].
pub fn recorded(model_name: &str, max_lora: u32) -> Result<(Metrics, MetricsPage), MetricsError> {
    let mut builder = PrometheusBuilder::new();
    for metric in names::ALL {
        if let Kind::Histogram(bounds) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)?;
        }
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    let metrics = Metrics::new(Box::new(recorder), model_name);
    Ok((metrics.clone(), MetricsPage { handle, metrics, max_lora }))
}
