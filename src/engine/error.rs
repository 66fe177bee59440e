//! What can go wrong in the hall.

use crate::model::ModelError;
use crate::ops::OpsError;
use crate::scheduler::SchedulerError;

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

/// A step that ended without a result. Every request of the step fails, and no other.
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
