//! The hall where both wings meet: one OS thread schedules, prepares, executes and publishes; adapters are brought to
//! the device between its steps. Speaks no protocol and knows no text.

mod core;
mod error;
mod executor;
mod handle;
mod install;
mod prepare;

pub use core::{StartedEngine, StepObserver, start};
pub use error::{EngineError, InstallError, StepError};
pub use executor::{DeltaLoader, ModelExecutor, ModelLoader, StepExecutor};
pub use handle::{EngineHandle, EngineStats, InstallHandle, Lease, SubmitError};
pub use install::EngineInstaller;
