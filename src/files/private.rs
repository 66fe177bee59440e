//! A folder of this user's in which nobody else can put a file, for what is worth keeping and can be made again.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::{FileRefusal, read_open, require_regular};

const PRIVATE_FOLDER: u32 = 0o700;
/// Rights by which somebody else could write.
const OTHERS_WRITE: u32 = 0o022;

/// Such a folder. It stays the one that was opened, whatever its path means later.
#[derive(Debug)]
pub(crate) struct PrivateFolder {
    path: PathBuf,
    handle: OwnedFd,
}

/// A file in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrivateFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// Written, or read by [`PrivateFolder::read`].
    pub(crate) used: SystemTime,
}

impl PrivateFolder {
    /// Open a folder, and create it for this user alone, with those above it, where it does not exist.
    ///
    /// # Errors
    /// What the system says, and [`FileRefusal::Exposed`] where it is another user's or others may write there. A link is
    /// not followed.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER).create(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        require_own(&handle.metadata()?)?;
        Ok(Self { path: path.to_owned(), handle: handle.into() })
    }

    /// Read a file whole; `None` where there is none. It counts as used now.
    ///
    /// # Errors
    /// What the system says, and [`FileRefusal`], [`FileRefusal::Exposed`] where it is another user's or others may write
    /// to it.
    pub(crate) fn read(&self, name: &str, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.handle, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let found = file.metadata()?;
        require_regular(&found)?;
        require_own(&found)?;
        // Where nothing can be written it is read all the same: only the order in which files grow old suffers.
        let _ = file.set_modified(SystemTime::now());
        read_open(file, max_bytes).map(Some)
    }

    /// Put a file of these parts there, for this user alone, in the place of one of that name. Readers see the one or the
    /// other; after a crash it may be neither, which whoever reads has to notice.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn replace(&self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        let unfinished = format!("{name}.{}{}", std::process::id(), Self::UNFINISHED);
        let written = self.write(&unfinished, parts);
        let placed = written.and_then(|()| Ok(rustix::fs::renameat(&self.handle, &unfinished, &self.handle, name)?));
        if placed.is_err() {
            // What failed is the news.
            let _ = self.remove(&unfinished);
        }
        placed
    }

    /// How names of files end that were not finished.
    pub(crate) const UNFINISHED: &str = ".unfinished";

    fn write(&self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        let create = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&self.handle, name, flags, Mode::RUSR | Mode::WUSR)
        };
        let file = match create() {
            // Of a process that had this one's number and did not finish.
            Err(rustix::io::Errno::EXIST) => {
                self.remove(name)?;
                create()
            }
            created => created,
        };
        let mut file = File::from(file?);
        parts.iter().try_for_each(|part| file.write_all(part))
    }

    /// Its regular files whose names are text, the one that was used last first.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn files(&self) -> io::Result<Vec<PrivateFile>> {
        files_in(&self.path)
    }

    /// Remove a file.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.handle, name, AtFlags::empty())?)
    }
}

/// The regular files of a folder whose names are text, the one that was used last first.
///
/// # Errors
/// What the system says.
pub(crate) fn files_in(folder: &Path) -> io::Result<Vec<PrivateFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (Ok(name), Ok(found)) = (entry.file_name().into_string(), entry.metadata()) else { continue };
        if found.is_file() {
            files.push(PrivateFile { name, bytes: found.len(), used: found.modified()? });
        }
    }
    files.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.name.cmp(&b.name)));
    Ok(files)
}

fn require_own(found: &fs::Metadata) -> Result<(), FileRefusal> {
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(FileRefusal::Exposed { why: "belongs to another user" });
    }
    if found.mode() & OTHERS_WRITE != 0 {
        return Err(FileRefusal::Exposed { why: "can be written by others" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Duration;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn what_is_kept_is_for_its_owner_alone_and_replaced_whole() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("above/folder");
        let folder = PrivateFolder::create(&path).unwrap();
        assert_eq!(folder.read("a", 9).unwrap(), None);
        folder.replace("a", &[b"on", b"e"]).unwrap();
        assert_eq!(folder.read("a", 9).unwrap().as_deref(), Some(&b"one"[..]));
        // What a process with this one's number left behind is in nobody's way.
        fs::write(path.join(format!("a.{}.unfinished", std::process::id())), "half").unwrap();
        folder.replace("a", &[b"two"]).unwrap();
        assert_eq!(folder.read("a", 9).unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!((mode(&path), mode(&path.join("a"))), (0o700, 0o600));
        assert_eq!(folder.files().unwrap().len(), 1);
        let refused = folder.read("a", 2).unwrap_err();
        assert_eq!(FileRefusal::of(&refused), Some(FileRefusal::TooLarge { bytes: 3, max: 2 }));
        folder.remove("a").unwrap();
        assert!(folder.files().unwrap().is_empty());
    }

    #[test]
    fn what_others_could_have_put_there_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let (path, link) = (root.path().join("folder"), root.path().join("link"));
        let folder = PrivateFolder::create(&path).unwrap();
        folder.replace("a", &[b"one"]).unwrap();
        let exposed = Some(FileRefusal::Exposed { why: "can be written by others" });
        for shared in [0o620, 0o602] {
            set_mode(&path.join("a"), shared);
            assert_eq!(FileRefusal::of(&folder.read("a", 9).unwrap_err()), exposed);
        }
        symlink("/etc/hostname", path.join("link")).unwrap();
        crate::files::testing::fifo(&path.join("fifo"));
        for name in ["link", "fifo"] {
            assert!(folder.read(name, 1 << 20).is_err(), "{name}");
        }
        set_mode(&path, 0o770);
        assert_eq!(FileRefusal::of(&PrivateFolder::create(&path).unwrap_err()), exposed);
        set_mode(&path, 0o755);
        assert!(PrivateFolder::create(&path).is_ok(), "others may look");
        symlink(&path, &link).unwrap();
        assert!(PrivateFolder::create(&link).is_err());
        fs::write(root.path().join("file"), "").unwrap();
        assert!(PrivateFolder::create(&root.path().join("file")).is_err());
    }

    #[test]
    fn a_file_that_is_read_is_young_again() {
        let root = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::create(&root.path().join("folder")).unwrap();
        for (name, age) in [("a", 30), ("b", 20), ("c", 10)] {
            folder.replace(name, &[b"x"]).unwrap();
            let file = File::options().write(true).open(root.path().join("folder").join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        let names = || folder.files().unwrap().into_iter().map(|file| file.name).collect::<Vec<_>>();
        assert_eq!(names(), ["c", "b", "a"]);
        folder.read("a", 9).unwrap();
        assert_eq!(names(), ["a", "c", "b"]);
    }
}
