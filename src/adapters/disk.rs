//! Patience with the disk: what may only be unlucky is tried again before anything is concluded from it.

use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

use super::disk_fault::{DiskFault, is_input_output, is_too_many_files};
use super::error::AdapterError;
use super::fs::{Found, StoreFs};

/// Tries of one operation, the first included.
const TRIES: u32 = 3;
/// Before the second try; four times as long before the third.
const PAUSE: Duration = Duration::from_millis(10);
/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// A limit on the pauses of one piece of work, so that ten thousand files on a dead disk do not take an hour.
#[derive(Debug)]
pub(super) struct Patience {
    pauses: u32,
}

impl Patience {
    /// Of what is tried again anyhow.
    pub(super) fn none() -> Self {
        Self { pauses: 0 }
    }

    /// Of one read.
    pub(super) fn short() -> Self {
        Self { pauses: TRIES }
    }

    /// Of opening a whole store.
    pub(super) fn long() -> Self {
        Self { pauses: 64 }
    }

    /// Do `work`, again where it failed in a way that may pass.
    pub(super) fn attempt<T>(&mut self, fs: &dyn StoreFs, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match work() {
                Err(error) if is_transient(&error) && self.pauses > 0 => {
                    self.pauses -= 1;
                    fs.pause(pause);
                    pause *= 4;
                }
                result => return result,
            }
        }
        work()
    }

    pub(super) fn metadata(&mut self, fs: &dyn StoreFs, path: &Path) -> io::Result<Found> {
        self.attempt(fs, || fs.metadata(path))
    }

    /// As [`Patience::metadata`]; `None`: there is nothing.
    pub(super) fn look(&mut self, fs: &dyn StoreFs, path: &Path) -> io::Result<Option<Found>> {
        match self.metadata(fs, path) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Read the `bytes` that a regular file was found to have. A file that ends earlier is not taken for what it is:
    /// `UnexpectedEof`.
    pub(super) fn read(&mut self, fs: &dyn StoreFs, path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
        self.attempt(fs, || {
            let mut content = Vec::new();
            let size = usize::try_from(bytes).map_err(|_| io::Error::from(ErrorKind::OutOfMemory))?;
            content.try_reserve_exact(size).map_err(|_| io::Error::from(ErrorKind::OutOfMemory))?;
            fs.open(path)?.take(bytes).read_to_end(&mut content)?;
            if content.len() < size { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(content) }
        })
    }

    /// As [`Patience::read`], but handed to `take` piece by piece; `begin` is called before every try.
    pub(super) fn stream<S>(
        &mut self,
        fs: &dyn StoreFs,
        path: &Path,
        begin: impl Fn() -> S,
        take: impl Fn(&mut S, &[u8]),
    ) -> io::Result<(u64, S)> {
        self.attempt(fs, || {
            let (mut file, mut state, mut bytes) = (fs.open(path)?, begin(), 0);
            let mut chunk = vec![0; CHUNK];
            loop {
                match file.read(&mut chunk)? {
                    0 => return Ok((bytes, state)),
                    got => {
                        take(&mut state, &chunk[..got]);
                        bytes += got as u64;
                    }
                }
            }
        })
    }
}

/// May it work when it is tried again?
pub(super) fn is_transient(error: &io::Error) -> bool {
    let kind = matches!(
        error.kind(),
        ErrorKind::Interrupted
            | ErrorKind::WouldBlock
            | ErrorKind::TimedOut
            | ErrorKind::ResourceBusy
            | ErrorKind::StaleNetworkFileHandle
            | ErrorKind::UnexpectedEof
    );
    kind || is_input_output(error) || is_too_many_files(error)
}

impl AdapterError {
    /// Sort a failure of the disk.
    pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, fault: DiskFault::of(&source), source }
    }
}
