//! What this room's errors are to whoever asked.

use std::time::Duration;

use super::error::{InstallError, StepError};
use super::handle::SubmitError;
use super::host_memory::TooLargeToLoad;
use crate::ops::OpsError;
use crate::types::{Class, Problem, ToProblem};

/// A wait after which a place in the queue may be free: a few steps.
const RETRY: Duration = Duration::from_millis(250);

impl ToProblem for SubmitError {
    fn to_problem(&self) -> Problem {
        let full = || Problem::new(Class::Exhausted, "QUEUE_FULL", self).retry_after(RETRY);
        match self {
            Self::QueueFull { queued, limit } => full().with("queued", queued).with("limit", limit),
            Self::QueueShare { holder, held, limit } => {
                full().with("share_of", holder.as_str()).with("held", held).with("limit", limit)
            }
            Self::Stopped => Problem::draining(),
        }
    }
}

impl ToProblem for InstallError {
    fn to_problem(&self) -> Problem {
        match self {
            Self::Adapter(error) => error.to_problem(),
            Self::Delta(error) => error.to_problem(),
            Self::Part { source, .. } => source.to_problem().saying(self),
            Self::Step(StepError::Ops(error @ OpsError::OutOfMemory { .. })) => error.to_problem().saying(self),
            Self::Step(_) => Problem::internal("installing an adapter", self),
            Self::Memory(TooLargeToLoad { bytes, limit }) => {
                Problem::quota("LOAD_MEMORY_TOO_SMALL", "load_memory", self).with("bytes", bytes).with("limit", limit)
            }
            Self::Stopped => Problem::draining(),
        }
    }
}
