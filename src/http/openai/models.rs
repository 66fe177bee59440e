//! `GET /v1/models`: the base, and every adapter that requests may name.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use http::Response;
use serde_json::{Value, json};

use super::super::body::json_response;
use super::super::refused::Refused;
use super::super::site::{Site, unix_seconds};
use super::delta;
use crate::adapters::AdapterInfo;

const OWNER: &str = "polydelta";

pub(super) async fn list(State(site): State<Arc<Site>>) -> Response<Body> {
    let mut data = vec![base(&site)];
    // Those of another base are refused.
    let served = site.registry.list(None, usize::MAX).into_iter().filter(|info| info.mismatch.is_none());
    data.extend(served.map(|info| adapter(&site, &info)));
    json_response(&json!({ "object": "list", "data": data }))
}

pub(super) async fn one(State(site): State<Arc<Site>>, Path(id): Path<String>) -> Result<Response<Body>, Refused> {
    let document = match delta::of_model(&id, &site)? {
        None => base(&site),
        Some(name) => {
            let info = site.registry.get(&name).map_err(|error| Refused::Admission(error.into()))?;
            adapter(&site, &info)
        }
    };
    Ok(json_response(&document))
}

fn base(site: &Site) -> Value {
    json!({
        "id": site.base,
        "object": "model",
        "created": unix_seconds(site.started),
        "owned_by": OWNER,
        "root": site.base,
        "parent": null,
        "max_model_len": site.max_model_len,
        "permission": [],
    })
}

/// As vLLM describes one, but for its place on the disk, which is nobody's business: `root` is its name.
fn adapter(site: &Site, info: &AdapterInfo) -> Value {
    json!({
        "id": info.stored.name.as_str(),
        "object": "model",
        "created": info.stored.created_ms / 1000,
        "owned_by": OWNER,
        "root": info.stored.name.as_str(),
        "parent": site.base,
        "max_model_len": site.max_model_len,
        "permission": [],
    })
}
