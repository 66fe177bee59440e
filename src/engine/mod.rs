//! The hall where both wings meet: one OS thread schedules, prepares, executes and publishes.

pub mod handle;

pub use handle::{EngineHandle, EngineStats, SubmitError};
