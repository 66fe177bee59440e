//! Metric names, the Prometheus exporter, logs and progress bars.
