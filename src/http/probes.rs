//! Whether the server is well, whether it takes requests, and which program it is. Under the paths at which vLLM answers
//! the same.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use http::{Response, StatusCode};
use serde_json::json;

use super::body::json_response;
use super::site::Site;
use crate::wire::Phase;

/// 200 unless the engine hangs: a server that drains is well. What answers nothing should be started anew.
pub(super) async fn health(State(site): State<Arc<Site>>) -> StatusCode {
    if is_stuck(&site) { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

/// 200 while requests are taken.
pub(super) async fn ready(State(site): State<Arc<Site>>) -> StatusCode {
    let takes = site.lifecycle.phase() < Phase::Draining && !is_stuck(&site);
    if takes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

pub(super) async fn version() -> Response<Body> {
    json_response(&json!({ "version": env!("CARGO_PKG_VERSION") }))
}

fn is_stuck(site: &Site) -> bool {
    *site.lifecycle.stuck().borrow()
}
