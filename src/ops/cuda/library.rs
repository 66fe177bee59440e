//! CUDA's libraries: under which names the loader knows them, and where they lie when it does not.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::path::{Path, PathBuf};

use libloading::Library;

/// A library of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CudaLibrary {
    /// The driver: all that is needed.
    Driver,
    /// The compiler of kernels.
    Nvrtc,
    /// Products of matrices.
    CublasLt,
}

/// Where a library was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundLibrary {
    /// Its file, as the loader names it.
    pub path: PathBuf,
    /// What it says of itself, if it does: 13.0 as (13, 0).
    pub version: Option<(u32, u32)>,
}

/// A library that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingLibrary {
    /// No file of its names.
    #[error("{library} is not installed (looked for {names})")]
    NotFound {
        /// Its name.
        library: &'static str,
        /// Names of its file.
        names: String,
    },
    /// A file that the loader refuses.
    #[error("{library} cannot be loaded: {reason}")]
    Refused {
        /// Its name.
        library: &'static str,
        /// The loader's words.
        reason: String,
    },
}

impl CudaLibrary {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Driver, Self::Nvrtc, Self::CublasLt];

    /// The name without ending.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "libcuda",
            Self::Nvrtc => "libnvrtc",
            Self::CublasLt => "libcublasLt",
        }
    }

    /// True for what a GPU cannot be used without.
    #[must_use]
    pub fn is_needed(self) -> bool {
        self == Self::Driver
    }

    /// Names of the file, in the order in which cudarc asks for them.
    fn file_names(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &["libcuda.so", "libcuda.so.1"],
            Self::Nvrtc => &["libnvrtc.so", "libnvrtc.so.12", "libnvrtc.so.13"],
            Self::CublasLt => &["libcublasLt.so", "libcublasLt.so.12", "libcublasLt.so.13"],
        }
    }

    /// A function that every version has.
    fn landmark(self) -> &'static [u8] {
        match self {
            Self::Driver => b"cuInit\0",
            Self::Nvrtc => b"nvrtcVersion\0",
            Self::CublasLt => b"cublasLtGetVersion\0",
        }
    }

    /// Look for it.
    ///
    /// # Errors
    /// [`MissingLibrary`]: it is nowhere, or is there and cannot be loaded.
    pub fn find(self, folders: &[PathBuf]) -> Result<FoundLibrary, MissingLibrary> {
        let library = self.open(folders)?;
        Ok(FoundLibrary { path: self.path_in(&library), version: self.version_of(&library) })
    }

    /// Load it: where the loader looks by itself, else from one of these folders.
    pub(super) fn open(self, folders: &[PathBuf]) -> Result<Library, MissingLibrary> {
        let names = self.file_names();
        let in_folders = folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name)));
        let candidates = names.iter().map(PathBuf::from).chain(in_folders.filter(|path| path.is_file()));
        let mut refused = None;
        for candidate in candidates {
            match load(&candidate) {
                // SAFETY: the symbol is not called.
                Ok(library) if unsafe { library.get::<*const c_void>(self.landmark()) }.is_ok() => return Ok(library),
                Ok(_) => {
                    refused.get_or_insert_with(|| format!("{} is another library", candidate.display()));
                }
                Err(reason) if is_absence(&candidate, &reason) => {}
                Err(reason) => {
                    refused.get_or_insert(reason);
                }
            }
        }
        Err(match refused {
            Some(reason) => MissingLibrary::Refused { library: self.name(), reason },
            None => MissingLibrary::NotFound { library: self.name(), names: names.join(", ") },
        })
    }

    /// The file it was loaded from; its name where the system does not say.
    pub(super) fn path_in(self, library: &Library) -> PathBuf {
        // SAFETY: the symbol is not called.
        let landmark = unsafe { library.get::<*const c_void>(self.landmark()) };
        landmark.ok().and_then(|symbol| file_of(*symbol)).unwrap_or_else(|| self.name().into())
    }

    /// Whether a library has a function.
    pub(super) fn has(library: &Library, symbol: &str) -> bool {
        // SAFETY: the symbol is not called.
        unsafe { library.get::<*const c_void>(symbol) }.is_ok()
    }

    fn version_of(self, library: &Library) -> Option<(u32, u32)> {
        match self {
            Self::Driver => None,
            // SAFETY: `nvrtcResult nvrtcVersion(int*, int*)` since its first version; both are written where it returns 0.
            Self::Nvrtc => unsafe {
                let version = library.get::<unsafe extern "C" fn(*mut i32, *mut i32) -> i32>(self.landmark()).ok()?;
                let (mut major, mut minor) = (0, 0);
                let done = version(&raw mut major, &raw mut minor) == 0;
                done.then_some((major.unsigned_abs(), minor.unsigned_abs()))
            },
            // SAFETY: `size_t cublasLtGetVersion(void)` since its first version.
            Self::CublasLt => unsafe {
                let version = library.get::<unsafe extern "C" fn() -> usize>(self.landmark()).ok()?();
                // 130002 is 13.0.2, and 120103 is 12.1.3.
                Some(((version / 10_000) as u32, (version / 100 % 100) as u32))
            },
        }
    }
}

fn load(path: &Path) -> Result<Library, String> {
    // SAFETY: the libraries of CUDA, which set up nothing but themselves when they are loaded. Who may put another file in
    // their place where the loader looks has the process in his hands as it is.
    unsafe { Library::new(path) }.map_err(|error| with_cause(&error))
}

/// libloading keeps the loader's words in the source.
fn with_cause(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// True where no file has the name, as glibc, musl and macOS say it; one that lacks a library which it needs in turn is
/// there.
fn is_absence(candidate: &Path, reason: &str) -> bool {
    let named = candidate.file_name().is_some_and(|name| reason.contains(&*name.to_string_lossy()));
    named && ["No such file", "no such file", "image not found"].iter().any(|words| reason.contains(words))
}

#[cfg(unix)]
fn file_of(address: *const c_void) -> Option<PathBuf> {
    use std::ffi::{CStr, OsStr};
    use std::mem::MaybeUninit;
    use std::os::unix::ffi::OsStrExt;

    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked for, and what is written is a `Dl_info`, of which zeros are one as well.
    let info = unsafe {
        if libc::dladdr(address, info.as_mut_ptr()) == 0 {
            return None;
        }
        info.assume_init()
    };
    if info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: a C string of the loader's, which lives as long as the library; the caller holds it.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

#[cfg(not(unix))]
fn file_of(_: *const c_void) -> Option<PathBuf> {
    None
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_no_library_is_told_from_none() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().to_owned()];
        for library in CudaLibrary::ALL {
            let installed = library.open(&[]).is_ok();
            fs::write(folder.path().join(library.file_names()[0]), "no library").unwrap();
            let found = library.find(&folders);
            if installed {
                assert!(found.is_ok(), "what the loader finds by itself comes first");
            } else {
                let refused = matches!(&found, Err(MissingLibrary::Refused { reason, .. }) if reason.contains(".so"));
                assert!(refused, "{found:?}");
                assert!(library.find(&[]) == library.find(&["/does/not/exist".into()]));
            }
        }
    }

    #[test]
    fn reasons_that_mean_absence_are_known() {
        let name = Path::new("libpolydelta-of-no-machine.so");
        let missing = load(name).err().unwrap();
        assert!(is_absence(name, &missing), "{missing}");
        assert!(!is_absence(Path::new("libwhat-needs-it.so"), &missing));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.so");
        fs::write(&path, "no library").unwrap();
        let refused = load(&path).err().unwrap();
        assert!(!is_absence(&path, &refused), "{refused}");
    }
}
