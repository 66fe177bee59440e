//! The door of plain HTTP: OpenAI's API over the same gate as gRPC, probes, and the page of metrics on a port of its own.
//!
//! | part | job |
//! |---|---|
//! | [`site`] | what it is made of |
//! | `call` | what surrounds every call: request id, panics, refusal while draining |
//! | `body`, `fields` | JSON on its way in: memory and time that it may take; every field of it is known or refused |
//! | `error`, `refused` | what went wrong, in the shape that OpenAI's API gives errors |
//! | `observe` | which route, how it ended, how long it took |
//! | `probes` | health, readiness, version |
//! | `openai` | models, completions, chats, embeddings, tokens |
//! | `routes` | which path is which |
//! | `metrics` | `GET /metrics` |
//!
//! It decides nothing about requests; that is the gate's. Connections are those of `wire`.

mod body;
mod call;
mod error;
mod fields;
mod metrics;
mod observe;
mod openai;
mod probes;
mod refused;
mod routes;
pub mod site;

pub(crate) use metrics::serve_metrics;
pub use routes::Routes;
pub use site::Site;

use self::call::{CallService, CallShared};
use crate::config::TransportConfig;
use crate::telemetry::metrics::Metrics;
use crate::wire::{CallLimits, ClientIdentity, Connected, Lifecycle};

/// What answers calls on a connection that are not gRPC's. Once [`Lifecycle::drain`] is called new calls are refused and
/// running ones go on; [`Lifecycle::cut`] ends these.
pub(crate) fn door(
    routes: Routes,
    limits: CallLimits,
    config: &TransportConfig,
    identity: ClientIdentity,
    lifecycle: Lifecycle,
    metrics: Metrics,
) -> impl Fn(Connected) -> CallService<axum::Router> {
    let shared = CallShared::new(lifecycle, identity, metrics, limits, config);
    let router = routes.into_router();
    move |connected| CallService::new(router.clone(), shared.clone(), connected)
}
