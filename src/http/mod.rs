//! What is served over plain HTTP: for now the page of metrics, on a port of its own.
//!
//! It decides nothing; what a door of requests would need beside connections is the gate's and the intake's.

mod metrics;

pub(crate) use metrics::serve_metrics;
