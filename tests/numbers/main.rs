//! Numbers against oracles this project did not write: transformers + peft (committed fixtures) and candle-transformers.

mod engine;
mod fixture;
mod golden;
mod invariance;
mod oracle;
