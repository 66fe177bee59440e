//! The hall where both wings meet: one OS thread schedules, prepares, executes and publishes; adapters are brought to
//! the device between its steps. Speaks no protocol and knows no text.

mod core;
mod error;
mod events;
mod executor;
mod handle;
mod host_memory;
mod input_batch;
mod install;
mod isolate;
mod lease;
mod loaders;
mod mailbox;
mod prepare;
mod problem;
mod pulse;
mod stats;
mod watchdog;

pub use core::{EngineFact, EngineObserver, StartedEngine, start};
pub use error::{EngineError, InstallError, StepError};
pub use events::EventReceiver;
pub use executor::{DeltaLoader, ModelExecutor, ModelLoader, StepExecutor};
pub use handle::{EngineEnd, EngineHandle, EngineLimits, GenerationEngine, InstallHandle, StatsFuture, SubmitError};
pub use host_memory::{HostMemory, HostShare, TooLargeToLoad};
pub use input_batch::{SequenceInput, StepInput};
pub use install::{AcquireFuture, AdapterInstaller, EngineInstaller};
pub use lease::{HeldAdapter, Lease, Leftover};
pub use loaders::Loaders;
pub use pulse::{EnginePulse, StepInFlight};
pub use stats::EngineStats;
pub use watchdog::{Alarm, WatchdogLimits, watch};
