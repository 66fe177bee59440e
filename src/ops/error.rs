//! What can go wrong in this room: memory, and matrices whose shapes do not fit.

use crate::types::{Problem, ToProblem};

/// Errors of building device memory. Kernels return none: what goes wrong in one surfaces in
/// [`Backend::finish`](super::Backend::finish).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpsError {
    /// An allocation was refused.
    #[error("{what} needs {bytes} bytes, which the device refuses")]
    OutOfMemory {
        /// What was to be allocated.
        what: &'static str,
        /// Size asked for.
        bytes: u64,
    },
    /// Stacked segments disagree in their input width, or a matrix is empty.
    #[error("a matrix of {rows} x {cols} cannot be packed with segments of {expected} columns")]
    Shape {
        /// Rows given.
        rows: usize,
        /// Columns given.
        cols: usize,
        /// Columns of the first segment.
        expected: usize,
    },
    /// More threads were asked for than the machine lets start.
    #[error("could not start compute thread {index}: {reason}")]
    Thread {
        /// Which thread.
        index: usize,
        /// The system's words.
        reason: String,
    },
    /// An instruction set path was asked for that this machine lacks.
    #[error("this machine lacks the instructions of the {isa} path")]
    Isa {
        /// Name of the path.
        isa: &'static str,
    },
}

impl ToProblem for OpsError {
    fn to_problem(&self) -> Problem {
        match self {
            Self::OutOfMemory { what, bytes } => {
                Problem::quota("DEVICE_OUT_OF_MEMORY", "device_bytes", self).with("what", what).with("bytes", bytes)
            }
            Self::Shape { .. } | Self::Thread { .. } | Self::Isa { .. } => Problem::internal("the device", self),
        }
    }
}
