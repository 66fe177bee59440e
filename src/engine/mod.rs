//! The hall where both wings meet: one OS thread schedules, prepares, executes and publishes; adapters are brought to
//! the device between its steps. Speaks no protocol and knows no text.

mod core;
mod error;
mod executor;
mod handle;
mod install;
mod isolate;
mod mailbox;
mod prepare;
mod pulse;
mod watchdog;

pub use core::{EngineFact, EngineObserver, StartedEngine, start};
pub use error::{EngineError, InstallError, StepError};
pub use executor::{DeltaLoader, ModelExecutor, ModelLoader, StepExecutor};
pub use handle::{EngineEnd, EngineHandle, EngineStats, HeldAdapter, InstallHandle, Lease, SubmitError};
pub use install::EngineInstaller;
pub use pulse::{EnginePulse, StepInFlight};
pub use watchdog::{Alarm, WatchdogLimits, watch};
