//! Numbers against oracles this project did not write: transformers + peft (committed fixtures) and candle-transformers.

mod fixture;
mod golden;
