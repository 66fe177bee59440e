//! Numbers against oracles this project did not write: transformers + peft (committed fixtures) and candle-transformers.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test; clippy sees only functions marked as tests.

mod elsewhere;
mod engine;
mod fixture;
mod gguf;
mod golden;
mod hidden;
mod invariance;
mod isolation;
mod oracle;
mod scores;
mod spellings;
