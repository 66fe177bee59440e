//! The hall where both wings meet: one OS thread schedules, prepares, executes and publishes; adapters are brought to
//! the device between its steps. Speaks no protocol and knows no text.

mod core;
mod error;
mod executor;
mod handle;

mod prepare;

pub use core::{StartedEngine, StepFacts, StepObserver, start};
pub use error::{EngineError, StepError};
pub use executor::{DeltaLoader, ModelExecutor, ModelLoader, StepExecutor};
pub use handle::{EngineHandle, EngineStats, InstallHandle, Lease, SubmitError};
