//! Files that others wrote, opened so that nothing waits and nothing grows without bound: a path may name a FIFO, a
//! device or a folder, a file may be larger than anybody meant, JSON may say one thing twice, and a header may claim what
//! is not there. Knows no field of any format; whoever reads says how much is plausible.

pub(crate) mod gguf;
mod json;
pub(crate) mod private;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use json::{Json, JsonError, parse_object, parse_ordered};

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Most bytes of a file of settings: config.json, generation_config.json, the index of a checkpoint, a chat template.
pub(crate) const MAX_SETTINGS_BYTES: u64 = 16 << 20;
/// Most bytes of a tokenizer.json; the largest published ones have some 35 MB.
pub(crate) const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Why a path is not read, where the system itself would not mind. Comes inside an [`io::Error`], whose kind is
/// [`io::ErrorKind::InvalidInput`], [`io::ErrorKind::FileTooLarge`], [`io::ErrorKind::InvalidData`] or [`io::ErrorKind::PermissionDenied`], so that callers keep one kind of error for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileRefusal {
    /// Something else than a regular file (or a link to one).
    #[error("it is {found}, not a regular file")]
    NotRegular {
        /// In words: `a FIFO`, `a folder`.
        found: &'static str,
    },
    /// More than the reader takes.
    #[error("it has {bytes} bytes or more, the limit is {max}")]
    TooLarge {
        /// By its metadata, or read before it was given up.
        bytes: u64,
        /// Allowed.
        max: u64,
    },
    /// What Git leaves in the place of a large file where LFS was not there to fetch it. As a chat template it would even
    /// render.
    #[error("it is a Git LFS pointer and not the file: run `git lfs pull` in its folder")]
    LfsPointer,
    /// What somebody else may have written, where only this user's own is read.
    #[error("it {why}")]
    Exposed {
        /// In words: `belongs to another user`.
        why: &'static str,
    },
}

/// How every Git LFS pointer begins, whatever its version.
pub(crate) const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/";

impl FileRefusal {
    /// The refusal inside an error, if it is one.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()).copied()
    }
}

impl From<FileRefusal> for io::Error {
    fn from(refusal: FileRefusal) -> Self {
        let kind = match refusal {
            FileRefusal::NotRegular { .. } => io::ErrorKind::InvalidInput,
            FileRefusal::TooLarge { .. } => io::ErrorKind::FileTooLarge,
            FileRefusal::LfsPointer => io::ErrorKind::InvalidData,
            FileRefusal::Exposed { .. } => io::ErrorKind::PermissionDenied,
        };
        Self::new(kind, refusal)
    }
}

/// Whether a path may be a symlink itself. Links in the folders above it are followed either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// As in the hub's cache, where every file is a link to a blob.
    Follow,
    /// In folders of our own, where nobody puts links.
    Refuse,
}

/// Open a regular file for reading, following links. Never waits.
///
/// # Errors
/// What the system says, and [`FileRefusal::NotRegular`].
pub(crate) fn open(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().read(true), path, Links::Follow)
}

/// Open a regular file with options of one's own, such as creating it. Never waits: not for the other end of a FIFO,
/// not for a device.
///
/// # Errors
/// What the system says, and [`FileRefusal::NotRegular`].
pub(crate) fn open_with(options: &mut OpenOptions, path: &Path, links: Links) -> io::Result<File> {
    // Opening alone can move a tape or hang up a line: what is plainly something else is not opened at all.
    let look = match links {
        Links::Follow => fs::metadata(path),
        Links::Refuse => fs::symlink_metadata(path),
    };
    match look {
        Ok(found) => require_regular(&found)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let no_links = if links == Links::Refuse { libc::O_NOFOLLOW } else { 0 };
    let file = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | no_links).open(path)?;
    // What was opened is what counts: the path may have changed its meaning in between.
    require_regular(&file.metadata()?)?;
    Ok(file)
}

/// Read a regular file whole, following links.
///
/// # Errors
/// What the system says, and [`FileRefusal`].
pub(crate) fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    read_open(open(path)?, max_bytes)
}

/// As [`read`]; `None` where there is no such file.
///
/// # Errors
/// What the system says, and [`FileRefusal`].
pub(crate) fn read_if_there(path: &Path, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    match read(path, max_bytes) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Read an opened file from where it stands to its end. Memory is reserved fallibly and by what is there, not by what
/// is allowed.
///
/// # Errors
/// What the system says, [`FileRefusal::TooLarge`], [`FileRefusal::LfsPointer`], and [`io::ErrorKind::OutOfMemory`].
pub(crate) fn read_open(file: File, max_bytes: u64) -> io::Result<Vec<u8>> {
    let bytes = file.metadata()?.len();
    if bytes > max_bytes {
        return Err(FileRefusal::TooLarge { bytes, max: max_bytes }.into());
    }
    let mut content = Vec::new();
    let size = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    content.try_reserve_exact(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
    // It may grow while it is read.
    let got = file.take(max_bytes.saturating_add(1)).read_to_end(&mut content)? as u64;
    match got {
        _ if got > max_bytes => Err(FileRefusal::TooLarge { bytes: got, max: max_bytes }.into()),
        _ if content.starts_with(LFS_POINTER) => Err(FileRefusal::LfsPointer.into()),
        _ => Ok(content),
    }
}

fn require_regular(found: &Metadata) -> Result<(), FileRefusal> {
    let kind = found.file_type();
    let found = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a folder",
        _ if kind.is_symlink() => "a link",
        _ if kind.is_fifo() => "a FIFO",
        _ if kind.is_socket() => "a socket",
        _ if kind.is_char_device() || kind.is_block_device() => "a device",
        _ => "something else",
    };
    Err(FileRefusal::NotRegular { found })
}

#[cfg(test)]
mod tests;
