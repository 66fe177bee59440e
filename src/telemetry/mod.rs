//! What can be seen from outside: metrics, log, progress.
//!
//! Rooms hand plain facts to [`Metrics`], which is passed as an argument like everything else; there is no global
//! recorder. This room decides nothing and knows no other room but the plain types.

pub mod exporter;
pub mod log_sink;
pub mod logging;
pub mod lora;
pub mod metrics;
pub mod names;
pub mod progress;

#[cfg(test)]
mod tests;

pub use exporter::{MetricsError, MetricsPage, recorded};
pub use log_sink::{LogSink, LostLines};
pub use logging::{LogSettings, LoggingError, init_logging, panic_message};
pub use lora::{LoraRequest, LoraRequests};
pub use metrics::{
    AdapterGauges, EngineGauges, HttpFacts, LoadStage, Metrics, RequestFacts, RequestOutcome, RpcFacts, StepCulprit,
    StepFacts, UploadOutcome,
};
pub use progress::{Progress, Spinner};
