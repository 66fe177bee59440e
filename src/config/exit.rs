//! Exit codes that scripts may rely on.

use std::process::{ExitCode, Termination};

/// How the process ends. The numbers are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Something that none of the other codes says.
    Failure = 1,
    /// A flag is wrong; nothing was done. clap uses the same code.
    Usage = 2,
    /// The adapter, model or file that was named does not exist.
    NotFound = 3,
    /// The server cannot be reached or is not serving.
    Unavailable = 4,
    /// The server or the checks refused what was sent.
    Rejected = 5,
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}
