//! What tests of several rooms put in the place of a regular file.

use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

/// A FIFO at `path`. Made by a system call and not by `mkfifo(1)`: between its fork and its exec a child holds every
/// descriptor of this process, the locked ones of stores that other tests are about to open again included.
pub(crate) fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}
