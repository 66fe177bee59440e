//! Numbers against oracles this project did not write: transformers + peft (committed fixtures) and candle-transformers.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test; clippy sees only functions marked as tests.

#[path = "../emulator/mod.rs"]
mod emulator;

mod adapterhub;
mod device;
mod elsewhere;
mod engine;
mod experts;
mod fixture;
mod gguf;
mod golden;
mod heads;
mod hidden;
mod invariance;
mod isolation;
mod methods;
mod mixes;
mod one_batch;
mod oracle;
mod scores;
mod shared_kv;
mod shared_layers;
mod spellings;
mod turned;
mod vocabulary;
