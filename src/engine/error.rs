//! What can go wrong in the hall.

use super::host_memory::TooLargeToLoad;
use crate::adapters::AdapterError;
use crate::delta::DeltaError;
use crate::model::ModelError;
use crate::ops::OpsError;
use crate::scheduler::SchedulerError;
use crate::types::AdapterVersion;

/// The engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Its limits contradict each other.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// The base model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The system refuses a thread.
    #[error("could not start the {thread} thread: {source}")]
    Thread {
        /// Which thread.
        thread: &'static str,
        /// The system's words.
        source: std::io::Error,
    },
}

/// A step that ended without a result. Those of its requests end that make it fail, and no others.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The step's plan could not be moved to the device.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// The scheduler named a slot that holds no such virtual tokens: a bug, kept from touching other requests.
    #[error("slot {slot} has no saved prefix")]
    NoPrefix {
        /// The slot.
        slot: u32,
    },
    /// A kernel panicked.
    #[error("the step panicked: {message}")]
    Panicked {
        /// The panic's message, where it had one.
        message: String,
    },
}

/// An adapter could not be brought to the device.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The registry or the store refuses.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Its files are refused.
    #[error(transparent)]
    Delta(#[from] DeltaError),
    /// A part of a mix could not be had.
    #[error("part {version}: {source}")]
    Part {
        /// Of the part.
        version: AdapterVersion,
        /// Why.
        source: Box<InstallError>,
    },
    /// It could not be put into its slot.
    #[error("installing the adapter: {0}")]
    Step(#[from] StepError),
    /// It is larger than the memory there is for loading.
    #[error(transparent)]
    Memory(#[from] TooLargeToLoad),
    /// The engine has stopped.
    #[error("the engine is not running")]
    Stopped,
}
