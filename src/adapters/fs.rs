//! The disk as this room uses it, as a trait, so that a test can make any operation fail, stop the process after any
//! one of them, or forget what was not synced.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use crate::files::{self, Links};

/// Every operation on the disk of a store. Symlinks are never followed, and only regular files are opened.
pub trait StoreFs: Send + Sync {
    // --- looking --------------------------------------------------------------------------------------------------

    /// What is at a path.
    ///
    /// # Errors
    /// Of the system; `NotFound` too.
    fn metadata(&self, path: &Path) -> io::Result<Found>;
    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// Of the system.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;
    /// Open a regular file for reading, without waiting for whatever else may be there.
    ///
    /// # Errors
    /// Of the system; `InvalidInput` for anything but a regular file.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>>;
    /// Lock a folder or a regular file for this process, until the handle is dropped. `None`: another process has it.
    ///
    /// # Errors
    /// Of the system.
    fn lock(&self, path: &Path) -> io::Result<Option<File>>;

    // --- changing -------------------------------------------------------------------------------------------------

    /// Create one folder for this user alone; its parent exists, itself does not.
    ///
    /// # Errors
    /// Of the system.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Create a file for this user alone that does not exist yet.
    ///
    /// # Errors
    /// Of the system; `AlreadyExists` too.
    fn create_file(&self, path: &Path) -> io::Result<Box<dyn StoreFile>>;
    /// Take from others what rights they have to a file or folder.
    ///
    /// # Errors
    /// Of the system.
    fn make_private(&self, path: &Path) -> io::Result<()>;
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

    /// Wait before trying again what failed.
    fn pause(&self, time: Duration);
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symlink, FIFO, socket or device.
    Other,
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub kind: FoundKind,
    /// Size of a file.
    pub bytes: u64,
    /// Others than its owner have rights to it.
    pub shared: bool,
}

impl Found {
    fn of(found: &Metadata) -> Self {
        let kind = match found {
            found if found.is_file() => FoundKind::File,
            found if found.is_dir() => FoundKind::Folder,
            _ => FoundKind::Other,
        };
        Self { kind, bytes: found.len(), shared: is_shared(found) }
    }
}

fn is_shared(found: &Metadata) -> bool {
    found.permissions().mode() & 0o077 != 0
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
    fn metadata(&self, path: &Path) -> io::Result<Found> {
        fs::symlink_metadata(path).map(|found| Found::of(&found))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(files::open_with(OpenOptions::new().read(true), path, Links::Refuse)?))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<File>> {
        let file = match fs::metadata(path)?.is_dir() {
            true => File::open(path)?,
            false => files::open_with(OpenOptions::new().read(true), path, Links::Refuse)?,
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(PRIVATE_FOLDER).create(path)?;
        // The umask may have taken rights from the owner too.
        self.make_private(path)
    }

    fn create_file(&self, path: &Path) -> io::Result<Box<dyn StoreFile>> {
        // create_new refuses to follow a symlink planted at the path.
        let file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE_FILE).open(path)?;
        file.set_permissions(fs::Permissions::from_mode(PRIVATE_FILE))?;
        Ok(Box::new(DiskFile(file)))
    }

    fn make_private(&self, path: &Path) -> io::Result<()> {
        let found = fs::symlink_metadata(path)?;
        let mode = if found.is_dir() { PRIVATE_FOLDER } else { PRIVATE_FILE };
        if found.is_symlink() || found.permissions().mode() & 0o777 == mode {
            return Ok(());
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
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

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

const PRIVATE_FOLDER: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;

struct DiskFile(File);

impl StoreFile for DiskFile {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.0.write_all(data)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_created_is_for_its_owner_alone() {
        let root = tempfile::tempdir().unwrap();
        let (folder, file) = (root.path().join("folder"), root.path().join("file"));
        DiskFs.create_dir(&folder).unwrap();
        drop(DiskFs.create_file(&file).unwrap());
        assert_eq!((mode(&folder), mode(&file)), (0o700, 0o600));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(DiskFs.metadata(&file).unwrap().shared);
        DiskFs.make_private(&file).unwrap();
        assert_eq!(DiskFs.metadata(&file).unwrap(), Found { kind: FoundKind::File, bytes: 0, shared: false });
    }

    #[test]
    fn only_regular_files_are_opened_and_nothing_waits() {
        let root = tempfile::tempdir().unwrap();
        let (fifo, link) = (root.path().join("fifo"), root.path().join("link"));
        crate::files::testing::fifo(&fifo);
        std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
        for path in [fifo.as_path(), link.as_path(), root.path(), Path::new("/dev/zero")] {
            assert!(DiskFs.open(path).is_err(), "{}", path.display());
        }
        assert!(DiskFs.lock(&fifo).is_err() && DiskFs.lock(&link).is_err());
    }
}
