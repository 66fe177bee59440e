//! Counts calls: which route, how it ended, how long it took.

use std::time::Instant;

use http::StatusCode;
use tracing::Span;
use tracing::field::Empty;

use crate::telemetry::metrics::{HttpFacts, Metrics};

/// How a call behaves when the server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Refused while draining; a drain waits for it.
    Work,
    /// Served to the end, so that a drain can be watched.
    Observe,
}

/// A route as metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Its path.
    pub(super) path: &'static str,
    /// What it is.
    pub(super) role: Role,
}

/// All routes.
pub(super) const ROUTES: [Route; 11] = [
    work("/v1/chat/completions"),
    work("/v1/completions"),
    work("/v1/embeddings"),
    work("/v1/models"),
    work("/v1/models/{id}"),
    work("/tokenize"),
    work("/detokenize"),
    observe("/health"),
    observe("/ready"),
    observe("/version"),
    observe("/ping"),
];

/// Any other path is one label, so that a client cannot make metrics grow.
const OTHER: Route = work("other");

const fn work(path: &'static str) -> Route {
    Route { path, role: Role::Work }
}

const fn observe(path: &'static str) -> Route {
    Route { path, role: Role::Observe }
}

/// The route of a path.
pub(super) fn route_of(path: &str) -> Route {
    let matches = |route: &&Route| match route.path.split_once('{') {
        Some((before, _)) => path.strip_prefix(before).is_some_and(|rest| !rest.is_empty()),
        None => route.path == path,
    };
    ROUTES.iter().find(matches).copied().unwrap_or(OTHER)
}

/// RAII: one call. What has no status when it drops was given up by its client.
pub(super) struct CallRecord {
    metrics: Metrics,
    route: Route,
    started: Instant,
    status: Option<StatusCode>,
    span: Span,
}

impl CallRecord {
    pub(super) fn start(metrics: Metrics, route: Route, started: Instant, request_id: &str) -> Self {
        // Of level error, so that every line of the log that belongs to the call can be found by its id, whatever the
        // filter is.
        let span = tracing::error_span!("call", route = route.path, request_id, generation_id = Empty);
        Self { metrics, route, started, status: None, span }
    }

    /// What is logged of the call is logged in this span.
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        let (route, duration) = (self.route.path, self.started.elapsed());
        let status = self.status.map(|status| status.as_u16());
        self.span.in_scope(|| tracing::debug!(status, ?duration, "call ended"));
        self.metrics.record_http(&HttpFacts { route, status, duration });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_known_by_their_routes_and_all_others_are_one() {
        assert_eq!(route_of("/v1/models").path, "/v1/models");
        assert_eq!(route_of("/v1/models/org/name").path, "/v1/models/{id}");
        assert_eq!(route_of("/v1/models/"), OTHER);
        assert_eq!(route_of("/health").role, Role::Observe);
        assert_eq!(route_of("/v1/chat/completions/x"), OTHER);
    }
}
