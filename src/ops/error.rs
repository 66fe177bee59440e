//! What can go wrong in this room: memory, and matrices whose shapes do not fit.

use crate::types::{Problem, ToProblem};

/// Errors of building device memory. Kernels return none: what goes wrong in one surfaces in
/// [`Backend::finish`](super::Backend::finish).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
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
    /// The driver of a GPU refused a call, or reported what went wrong in an earlier launch.
    #[error("the CUDA driver answers {call} with {error}")]
    Driver {
        /// The function.
        call: &'static str,
        /// The driver's name of the error.
        error: String,
    },
    /// A library of CUDA refused a call.
    #[error("cuBLASLt answers {call} with {error}")]
    Library {
        /// The function.
        call: &'static str,
        /// The library's name of the error.
        error: String,
    },
    /// A kernel that travels in the binary does not fit the host's side.
    #[error("the kernel {name} cannot be used: {reason}")]
    Kernel {
        /// Which.
        name: String,
        /// Why.
        reason: String,
    },
    /// A device computes something else than the definition of an op.
    #[error("{op} gives {got} on the device and {want} by its definition")]
    Disagrees {
        /// The op.
        op: &'static str,
        /// The device's number.
        got: f32,
        /// The right one.
        want: f32,
    },
    /// A size that the kernels of a GPU cannot work with.
    #[error("{what} is {found}; the kernels need {expected}")]
    Unsupported {
        /// What has the size.
        what: &'static str,
        /// The size.
        found: usize,
        /// What it should be.
        expected: &'static str,
    },
    /// Numbers of a type that the kernels of a backend do not multiply.
    #[error("the kernels of the {backend} do not compute in {dtype}")]
    Dtype {
        /// The type.
        dtype: &'static str,
        /// The backend.
        backend: &'static str,
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
            Self::Shape { .. }
            | Self::Thread { .. }
            | Self::Driver { .. }
            | Self::Library { .. }
            | Self::Kernel { .. }
            | Self::Unsupported { .. }
            | Self::Dtype { .. }
            | Self::Disagrees { .. }
            | Self::Isa { .. } => Problem::internal("the device", self),
        }
    }
}
