//! The disk operations that change something, as a trait, so that a test can stop the process after any one of them.
//!
//! Reading goes straight to `std::fs`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Every operation by which this room changes the disk.
pub trait StoreFs: Send + Sync {
    /// Create one folder; its parent exists, itself does not.
    ///
    /// # Errors
    /// Of the system.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Create a file that does not exist yet.
    ///
    /// # Errors
    /// Of the system; `AlreadyExists` too.
    fn create_file(&self, path: &Path) -> io::Result<Box<dyn StoreFile>>;
    /// Rename, replacing a file at `to`.
    ///
    /// # Errors
    /// Of the system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Make the entries of a folder durable.
    ///
    /// # Errors
    /// Of the system.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Remove one file or symlink.
    ///
    /// # Errors
    /// Of the system.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Remove a folder with all it holds; symlinks in it are removed, never followed.
    ///
    /// # Errors
    /// Of the system.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
}

/// A file being written.
pub trait StoreFile: Send {
    /// Append.
    ///
    /// # Errors
    /// Of the system.
    fn append(&mut self, data: &[u8]) -> io::Result<()>;
    /// Make content and length durable. After an error the file must be thrown away: the kernel may have dropped the
    /// pages and report success the next time.
    ///
    /// # Errors
    /// Of the system.
    fn sync(&mut self) -> io::Result<()>;
}

/// The disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFs;

impl StoreFs for DiskFs {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create_file(&self, path: &Path) -> io::Result<Box<dyn StoreFile>> {
        // create_new refuses to follow a symlink planted at the path.
        Ok(Box::new(DiskFile(OpenOptions::new().write(true).create_new(true).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }
}

struct DiskFile(File);

impl StoreFile for DiskFile {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.0.write_all(data)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}
