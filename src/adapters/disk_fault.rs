//! Kinds of failure of a disk, told apart by what is to be done about them. Decides nothing.

use std::io;

/// The kinds of failure of a disk that call for different reactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// ENOSPC.
    Full,
    /// EDQUOT.
    Quota,
    /// EROFS.
    ReadOnly,
    /// EACCES, EPERM.
    Denied,
    /// EMFILE, ENFILE.
    TooManyFiles,
    /// ENOMEM, or memory that was refused to us.
    Memory,
    /// EIO: the device failed.
    Device,
    /// Anything else.
    Other,
}

impl DiskFault {
    /// The kind of a failure.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull => Self::Full,
            io::ErrorKind::QuotaExceeded => Self::Quota,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            io::ErrorKind::PermissionDenied => Self::Denied,
            io::ErrorKind::OutOfMemory => Self::Memory,
            _ if is_too_many_files(error) => Self::TooManyFiles,
            _ if is_input_output(error) => Self::Device,
            _ => Self::Other,
        }
    }
}

impl std::fmt::Display for DiskFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full => "the disk is full",
            Self::Quota => "the disk quota of the server's user is used up",
            Self::ReadOnly => "the file system is read-only",
            Self::Denied => "the server's user has no right to do it",
            Self::TooManyFiles => "too many files are open (ulimit -n)",
            Self::Memory => "there is no memory for it",
            Self::Device => "the disk reports an input/output error",
            Self::Other => "the system refused",
        })
    }
}

/// EIO: the device, or the network before it, failed.
pub(super) fn is_input_output(error: &io::Error) -> bool {
    error.raw_os_error() == Some(5)
}

/// ENFILE, EMFILE: the system, or this process, has as many files open as it may.
pub(super) fn is_too_many_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}
