//! Calls of HTTP.

use std::time::Duration;

use super::super::names;
use super::Metrics;

/// A call of HTTP that has ended.
#[derive(Clone, Copy, Debug)]
pub struct HttpFacts {
    /// `/v1/chat/completions`.
    pub route: &'static str,
    /// 200, 404, …; `None` where its client gave it up first.
    pub status: Option<u16>,
    /// From the request's head to the last of its answer.
    pub duration: Duration,
}

impl Metrics {
    /// A call of HTTP has ended.
    pub fn record_http(&self, facts: &HttpFacts) {
        let status = facts.status.map_or_else(|| "canceled".to_owned(), |status| status.to_string());
        let labels = [("route", facts.route), ("status", status.as_str())];
        self.registrar().counter(names::HTTP_REQUESTS, &labels).increment(1);
        self.registrar().histogram(names::HTTP_SECONDS, &labels[..1]).record(facts.duration.as_secs_f64());
    }
}
