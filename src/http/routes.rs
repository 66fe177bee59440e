//! Which path is which.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::routing::get;

use super::refused::Refused;
use super::site::Site;
use super::{openai, probes};

/// Everything that is answered.
#[derive(Clone)]
pub struct Routes(Router);

impl Routes {
    /// The routes of a server.
    #[must_use]
    pub fn new(site: Site) -> Self {
        let router = openai::routes()
            .route("/health", get(probes::health))
            .route("/ping", get(probes::health))
            .route("/ready", get(probes::ready))
            .route("/version", get(probes::version))
            .fallback(no_route)
            .method_not_allowed_fallback(no_method);
        Self(router.with_state(Arc::new(site)))
    }

    pub(super) fn into_router(self) -> Router {
        self.0
    }
}

async fn no_route(request: Request) -> Refused {
    Refused::NoRoute { path: shown(&request) }
}

async fn no_method(request: Request) -> Refused {
    Refused::NoMethod { path: shown(&request), method: request.method().to_string() }
}

fn shown(request: &Request) -> String {
    request.uri().path().chars().take(128).collect()
}
