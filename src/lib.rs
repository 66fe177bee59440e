//! polydelta keeps one frozen base language model on the device and serves many small deltas of it at once.
//!
//! Two wings that never import each other meet in one hall; an import may only point down this list.
//!
//! | floor | rooms |
//! |---|---|
//! | house | [`app`], [`cli`] |
//! | porch | [`grpc`]: the only place with generated code, and [`http`] |
//! | gate | [`admission`], [`text`]; beside it [`wire`]: bytes and connections |
//! | hall | [`engine`]: one OS thread, schedule → prepare → execute → publish |
//! | west wing, decides, no tensors | [`scheduler`], `cache`, [`adapters`] |
//! | east wing, computes, no async | [`model`], `sampler`, [`delta`], [`ops`] |
//! | supplies | `hub`: repositories of the Hugging Face hub become folders |
//! | ground | [`types`], `files`, [`config`], [`telemetry`], [`receipt`] |

// What unit tests share with integration tests (`tests/ops`) calls this crate what those call it.
#[cfg(test)]
extern crate self as polydelta;

pub mod adapters;
pub mod admission;
pub mod app;
mod cache;
pub mod cli;
pub mod config;
pub mod delta;
pub mod engine;
mod files;
pub mod grpc;
pub mod http;
mod hub;
pub mod model;
pub mod ops;
pub mod receipt;
mod sampler;
pub mod scheduler;
pub mod telemetry;
pub mod text;
pub mod types;
pub mod wire;
