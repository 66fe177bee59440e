//! Kernels as the driver assembled them, kept between starts. The driver has a cache of its own, in a home that
//! containers often have none of, or a new one at each start.
//!
//! A file is named by the digest of all that it was made of, so it is never out of date, and says a digest of itself, so
//! that a damaged one is not given to the driver. What cannot be read or written costs a line in the log and the time to
//! assemble.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::driver::{Assembler, Device, Module};
use crate::files::private::{PrivateFile, PrivateFolder, files_in};
use crate::ops::OpsError;

/// How a file begins; part of what it is named by.
const FORM: &[u8; 16] = b"polydelta cubin\n";
/// FORM, how many bytes there are as u64, room, and their digest. The image behind it is aligned as memory is.
const HEADER: usize = 64;
const ENDING: &str = ".cubin";
/// Most bytes of one file; all kernels together have fewer.
const MOST_BYTES_EACH: u64 = 16 << 20;
/// Most bytes of all files: room for several drivers and devices.
const MOST_BYTES: u64 = 64 << 20;
/// After this nobody goes on writing a file.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A folder of such files, for one device and its driver.
#[derive(Debug)]
pub(super) struct KernelCache {
    path: PathBuf,
    folder: PrivateFolder,
    assembler: Assembler,
    most_bytes: u64,
    /// Texts that were assembled now, and those that had been.
    assembled: usize,
    found: usize,
    writable: bool,
}

/// What lies in such a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCacheSize {
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// What lies in a folder of assembled kernels; nothing where it does not exist.
///
/// # Errors
/// Of the system.
pub fn kernel_cache_size(folder: &Path) -> io::Result<KernelCacheSize> {
    let files = match files_in(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        files => files?,
    };
    let own = files.iter().filter(|file| file.name.ends_with(ENDING));
    Ok(own.fold(KernelCacheSize::default(), |size, file| KernelCacheSize {
        files: size.files + 1,
        bytes: size.bytes + file.bytes,
    }))
}

impl KernelCache {
    /// Open a folder, created where it does not exist; `None` where it cannot be used, which is logged.
    ///
    /// # Errors
    /// [`OpsError::Driver`].
    pub(super) fn open(path: &Path, device: &Device) -> Result<Option<Self>, OpsError> {
        let assembler = Assembler::of(device)?;
        Ok(match PrivateFolder::create(path) {
            Ok(folder) => Some(Self::new(path, folder, assembler)),
            Err(error) => {
                tracing::warn!(folder = %path.display(), %error, "assembled kernels are not kept: the folder cannot be used");
                None
            }
        })
    }

    fn new(path: &Path, folder: PrivateFolder, assembler: Assembler) -> Self {
        let (most_bytes, writable) = (MOST_BYTES, true);
        Self { path: path.to_owned(), folder, assembler, most_bytes, assembled: 0, found: 0, writable }
    }

    /// Load a text, assembled now where it had not been.
    ///
    /// # Errors
    /// [`OpsError::Driver`] where the driver does not take it.
    pub(super) fn module(&mut self, device: &Arc<Device>, text: &'static str) -> Result<Module, OpsError> {
        let key = self.key(text);
        if let Some(module) = self.read(&key).and_then(|image| self.load(device, text, &key, &image)) {
            self.found += 1;
            return Ok(module);
        }
        self.assembled += 1;
        let image = match Assembler::assemble(device, text) {
            Ok(image) => image,
            Err(error) => {
                tracing::warn!(%error, "kernels are assembled without being kept");
                return Module::new(device, text);
            }
        };
        let module = Module::of_image(device, &image, text)?;
        self.write(&key, &image);
        Ok(module)
    }

    /// Say what was done, and make room where something was added.
    pub(super) fn close(self) {
        let Self { assembled, found, .. } = self;
        tracing::info!(assembled, found, folder = %self.path.display(), "the kernels are loaded");
        if assembled > 0 && self.writable {
            self.make_room();
        }
    }

    /// All that decides about an image.
    fn key(&self, text: &str) -> [u8; 32] {
        let Assembler { cuda, driver, compute } = &self.assembler;
        let mut sha = Sha256::new();
        let mut add = |part: &[u8]| {
            sha.update((part.len() as u64).to_le_bytes());
            sha.update(part);
        };
        add(FORM);
        add(&cuda.to_le_bytes());
        add(driver.as_deref().unwrap_or_default().as_bytes());
        add(compute.to_string().as_bytes());
        add(text.as_bytes());
        sha.finalize().into()
    }

    fn read(&self, key: &[u8; 32]) -> Option<Vec<u8>> {
        let name = name_of(key);
        match self.folder.read(&name, MOST_BYTES_EACH) {
            Ok(None) => None,
            Ok(Some(bytes)) if is_whole(&bytes, key) => Some(bytes),
            Ok(Some(bytes)) => {
                tracing::warn!(file = name, bytes = bytes.len(), "a file of assembled kernels is damaged: made anew");
                None
            }
            Err(error) => {
                tracing::warn!(file = name, %error, "a file of assembled kernels is not read: made anew");
                None
            }
        }
    }

    fn load(&self, device: &Arc<Device>, text: &'static str, key: &[u8; 32], file: &[u8]) -> Option<Module> {
        match Module::of_image(device, &file[HEADER..], text) {
            Ok(module) => Some(module),
            Err(error) => {
                let name = name_of(key);
                tracing::warn!(file = name, %error, "the driver does not take a file of assembled kernels: made anew");
                None
            }
        }
    }

    fn write(&mut self, key: &[u8; 32], image: &[u8]) {
        if !self.writable {
            return;
        }
        // Not synced: what a crash leaves half of is seen by its digest.
        if let Err(error) = self.folder.replace(&name_of(key), &[&header(key, image), image]) {
            self.writable = false;
            tracing::warn!(folder = %self.path.display(), %error, "assembled kernels are not kept: the folder cannot be written");
        }
    }

    /// Remove what was not used for longest, until the rest fits.
    fn make_room(&self) {
        let removed = self.folder.files().and_then(|files| {
            let superfluous = superfluous(files, self.most_bytes, SystemTime::now());
            superfluous.iter().try_for_each(|name| self.folder.remove(name))
        });
        if let Err(error) = removed {
            tracing::warn!(folder = %self.path.display(), %error, "old files of assembled kernels are not removed");
        }
    }
}

/// Names of the files that go: old ones beyond the limit, and those that nobody will finish. Strangers' stay.
fn superfluous(files: Vec<PrivateFile>, most_bytes: u64, now: SystemTime) -> Vec<String> {
    let mut total = 0;
    let goes = |file: &PrivateFile| {
        if file.name.ends_with(ENDING) {
            total += file.bytes;
            return total > most_bytes;
        }
        let unfinished = file.name.contains(ENDING) && file.name.ends_with(PrivateFolder::UNFINISHED);
        unfinished && now.duration_since(file.used).is_ok_and(|age| age > ABANDONED)
    };
    files.into_iter().filter(goes).map(|file| file.name).collect()
}

fn name_of(key: &[u8; 32]) -> String {
    format!("{}{ENDING}", hex::encode(key))
}

fn header(key: &[u8; 32], image: &[u8]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..16].copy_from_slice(FORM);
    header[16..24].copy_from_slice(&(image.len() as u64).to_le_bytes());
    header[32..].copy_from_slice(&Sha256::new().chain_update(key).chain_update(image).finalize());
    header
}

fn is_whole(file: &[u8], key: &[u8; 32]) -> bool {
    file.split_at_checked(HEADER).is_some_and(|(head, image)| !image.is_empty() && head == header(key, image))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_under_its_own_name_alone() {
        let (key, image) = ([7; 32], b"image");
        let whole = [&header(&key, image)[..], image].concat();
        assert!(is_whole(&whole, &key));
        assert!(!is_whole(&whole, &[8; 32]), "of another text");
        for at in 0..whole.len() {
            assert!(!is_whole(&whole[..at], &key), "{at} bytes");
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(!is_whole(&damaged, &key), "byte {at}");
        }
        assert!(!is_whole(&[&whole[..], &[0]].concat(), &key));
        assert!(!is_whole(&header(&key, b""), &key), "an image has bytes");
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let now = SystemTime::now();
        let file =
            |name: &str, bytes, age| PrivateFile { name: name.to_owned(), bytes, used: now - Duration::from_secs(age) };
        let files = vec![
            file("a.cubin", 40, 1),
            file("b.cubin.12.unfinished", 90, 2),
            file("c.cubin", 60, 3),
            file("d.cubin", 1, 4),
            file("e.cubin.13.unfinished", 1, 4000),
            file("notes.txt", 500, 5000),
        ];
        assert_eq!(superfluous(files.clone(), 100, now), ["d.cubin", "e.cubin.13.unfinished"]);
        assert_eq!(superfluous(files, 1000, now), ["e.cubin.13.unfinished"]);
    }

    #[test]
    fn what_is_not_there_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(kernel_cache_size(&folder.path().join("none")).unwrap(), KernelCacheSize::default());
        std::fs::write(folder.path().join("a.cubin"), "12345").unwrap();
        std::fs::write(folder.path().join("b.txt"), "1").unwrap();
        assert_eq!(kernel_cache_size(folder.path()).unwrap(), KernelCacheSize { files: 1, bytes: 5 });
        assert!(kernel_cache_size(&folder.path().join("b.txt")).is_err());
    }
}
