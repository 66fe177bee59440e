//! Exit codes that scripts may rely on.

use std::process::{ExitCode, Termination};

/// How the process ends. The numbers are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Something that none of the other codes says: a disk, a port, an error inside the program or the server.
    Failure = 1,
    /// The command line, a variable or the configuration is wrong; nothing was done. clap uses the same code.
    Usage = 2,
    /// What was named does not exist: a file, a folder, a model, an adapter.
    NotFound = 3,
    /// The server cannot be reached, is not serving, is overloaded, or did not answer in time.
    Unavailable = 4,
    /// The server or the checks refused what was given: a request, an adapter, a model.
    Rejected = 5,
    /// A check found problems.
    Problems = 6,
    /// A replayed answer is not the one of its receipt.
    Differs = 7,
    /// A receipt cannot be replayed on this server: it has another base, other numerics, or not the adapter.
    NotHere = 8,
    /// Ended by Ctrl-C, as a shell reports it.
    Interrupted = 130,
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}
