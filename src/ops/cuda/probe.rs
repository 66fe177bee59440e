//! What there is of CUDA on this machine, as plain data. Nothing here panics, whatever is absent: cudarc does, so ask this
//! first.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;
use std::path::{Path, PathBuf};

use libloading::Library;

use super::library::{CudaLibrary, FoundLibrary, MissingLibrary};

/// The least that drivers must take: the PTX in the binary and the calls of the backend are of CUDA 12.2.
pub const NEEDED_CUDA: Version = Version(12, 2);
/// The least that devices must be: Ampere, which has bf16 and asynchronous copies.
pub const NEEDED_COMPUTE: Version = Version(8, 0);

const COMPUTE_MAJOR: c_int = 75;
const COMPUTE_MINOR: c_int = 76;
const MULTIPROCESSORS: c_int = 16;
const NO_DEVICE: c_int = 100;
/// Longest name of a device, with its end.
const NAME_BYTES: usize = 256;

/// A version of CUDA, or a device's compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A GPU as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaDevice {
    /// N of `cuda:N`, in the driver's order.
    pub index: u32,
    /// What it is sold as.
    pub name: String,
    /// Its compute capability.
    pub compute: Version,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// All of its memory.
    pub memory_bytes: u64,
}

/// What there is of CUDA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaProbe {
    /// The driver's library.
    pub library: Result<FoundLibrary, MissingLibrary>,
    /// Newest CUDA that the driver takes.
    pub cuda: Option<Version>,
    /// Version of the driver in the kernel, as in `535.104.05`; of Linux only.
    pub module: Option<String>,
    /// The devices, or why there are none.
    pub devices: Result<Vec<CudaDevice>, CudaUnusable>,
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaUnusable {
    /// There is no driver.
    #[error(transparent)]
    Library(#[from] MissingLibrary),
    /// A function that the driver's library lacks.
    #[error("libcuda has no {symbol}")]
    Symbol {
        /// Its name.
        symbol: &'static str,
    },
    /// A driver too old for the kernels.
    #[error("the driver takes CUDA {found}, and {NEEDED_CUDA} is needed")]
    OldDriver {
        /// What it takes.
        found: Version,
    },
    /// The driver refuses a call.
    #[error("{call} fails with {error} ({code})")]
    Call {
        /// The call.
        call: &'static str,
        /// The driver's number for what is wrong, and its name.
        code: i32,
        /// As in `CUDA_ERROR_SYSTEM_NOT_READY`.
        error: String,
    },
    /// A driver without a device, or with none that is shown to this process.
    #[error("the driver shows no device")]
    NoDevice,
    /// A device that is not there.
    #[error("there is no cuda:{index}; the driver shows {count}")]
    NoSuchDevice {
        /// Asked for.
        index: u32,
        /// How many there are.
        count: usize,
    },
    /// A device too old for the kernels.
    #[error("cuda:{index}, {name}, has compute capability {found}, and {NEEDED_COMPUTE} is needed")]
    OldDevice {
        /// Which.
        index: u32,
        /// What it is sold as.
        name: String,
        /// What it has.
        found: Version,
    },
}

impl CudaProbe {
    /// Ask this machine. `folders` are looked through where the loader does not know the driver. A driver that is found
    /// stays loaded, so that whoever loads it by name later gets this one.
    #[must_use]
    pub fn of_machine(folders: &[PathBuf]) -> Self {
        let module = driver_in_kernel();
        let library = match CudaLibrary::Driver.open(folders) {
            Ok(library) => library,
            Err(missing) => {
                return Self { library: Err(missing.clone()), cuda: None, module, devices: Err(missing.into()) };
            }
        };
        let found = FoundLibrary { path: CudaLibrary::Driver.path_in(&library), version: None };
        let driver = Driver(library);
        let cuda = driver.cuda();
        let devices = match &cuda {
            Ok(found) if *found < NEEDED_CUDA => Err(CudaUnusable::OldDriver { found: *found }),
            Ok(_) => driver.devices(),
            Err(unusable) => Err(unusable.clone()),
        };
        // It has threads of its own by now, and cudarc is to find it loaded.
        std::mem::forget(driver);
        Self { library: Ok(found), cuda: cuda.ok(), module, devices }
    }

    /// The device to compute on: the one that is wanted, else the first that can.
    ///
    /// # Errors
    /// [`CudaUnusable`]: why there is none.
    pub fn choose(&self, wanted: Option<u32>) -> Result<&CudaDevice, CudaUnusable> {
        let devices = self.devices.as_ref().map_err(CudaUnusable::clone)?;
        let Some(index) = wanted else {
            let first = devices.first().ok_or(CudaUnusable::NoDevice)?;
            return devices
                .iter()
                .find(|device| device.check().is_ok())
                .map_or_else(|| first.check().map(|()| first), Ok);
        };
        let device = devices.iter().find(|device| device.index == index);
        let device = device.ok_or(CudaUnusable::NoSuchDevice { index, count: devices.len() })?;
        device.check().map(|()| device)
    }
}

impl CudaDevice {
    /// Whether the kernels run on it.
    ///
    /// # Errors
    /// [`CudaUnusable::OldDevice`].
    pub fn check(&self) -> Result<(), CudaUnusable> {
        if self.compute >= NEEDED_COMPUTE {
            return Ok(());
        }
        Err(CudaUnusable::OldDevice { index: self.index, name: self.name.clone(), found: self.compute })
    }
}

fn driver_in_kernel() -> Option<String> {
    let module = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    module.as_deref().and_then(module_version)
}

/// Version of the driver, as in `535.104.05`: of its library, else of its part in the kernel; `None` where neither says.
pub(super) fn driver_version() -> Option<String> {
    let library = CudaLibrary::Driver.find(&[]).ok();
    library.and_then(|found| library_version(&found.path)).or_else(driver_in_kernel)
}

/// 535.104.05 of `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023`.
fn module_version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(is_version).map(str::to_owned)
}

/// Version of the driver's library, as its file's name has it: 535.104.05 of `libcuda.so.535.104.05`.
#[must_use]
pub fn library_version(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let version = path.file_name()?.to_str()?.strip_prefix("libcuda.so.")?.to_owned();
    version.contains('.').then_some(version)
}

/// The driver's functions, each looked up before it is called.
struct Driver(Library);

/// Call a function of the driver by its name, and take what it returns other than 0 for a failure.
macro_rules! call {
    ($driver:expr, $name:ident($($arg:expr => $ty:ty),* $(,)?)) => {{
        let symbol = stringify!($name);
        let name = concat!(stringify!($name), "\0").as_bytes();
        let function = $driver.0.get::<unsafe extern "C" fn($($ty),*) -> c_int>(name);
        let function = function.map_err(|_| CudaUnusable::Symbol { symbol })?;
        $driver.outcome(symbol, function($($arg),*))
    }};
}

impl Driver {
    fn cuda(&self) -> Result<Version, CudaUnusable> {
        let mut version: c_int = 0;
        // SAFETY: `CUresult cuDriverGetVersion(int*)`, which may be called before `cuInit`.
        unsafe { call!(self, cuDriverGetVersion(&raw mut version => *mut c_int)) }?;
        let version = version.unsigned_abs();
        Ok(Version(version / 1000, version % 1000 / 10))
    }

    fn devices(&self) -> Result<Vec<CudaDevice>, CudaUnusable> {
        let mut count: c_int = 0;
        // SAFETY: `CUresult cuInit(unsigned int)`, whose flags must be 0, and `CUresult cuDeviceGetCount(int*)`.
        unsafe {
            call!(self, cuInit(0 => c_uint))?;
            call!(self, cuDeviceGetCount(&raw mut count => *mut c_int))?;
        }
        if count < 1 {
            return Err(CudaUnusable::NoDevice);
        }
        (0..count).map(|index| self.device(index)).collect()
    }

    fn device(&self, index: c_int) -> Result<CudaDevice, CudaUnusable> {
        let (mut device, mut memory_bytes): (c_int, usize) = (0, 0);
        let mut name = [0_u8; NAME_BYTES];
        // SAFETY: `cuDeviceGet(CUdevice*, int)`, where a device is an int, `cuDeviceGetName(char*, int, CUdevice)`, which
        // writes as many bytes as it is told at most, and `cuDeviceTotalMem_v2(size_t*, CUdevice)`.
        unsafe {
            call!(self, cuDeviceGet(&raw mut device => *mut c_int, index => c_int))?;
            let room = NAME_BYTES as c_int;
            call!(self, cuDeviceGetName(name.as_mut_ptr().cast() => *mut c_char, room => c_int, device => c_int))?;
            call!(self, cuDeviceTotalMem_v2(&raw mut memory_bytes => *mut usize, device => c_int))?;
        }
        let name = CStr::from_bytes_until_nul(&name).map(CStr::to_string_lossy).unwrap_or_default();
        Ok(CudaDevice {
            index: index.unsigned_abs(),
            name: name.chars().filter(|character| !character.is_control()).collect(),
            compute: Version(self.attribute(COMPUTE_MAJOR, device)?, self.attribute(COMPUTE_MINOR, device)?),
            multiprocessors: self.attribute(MULTIPROCESSORS, device)?,
            memory_bytes: memory_bytes as u64,
        })
    }

    fn attribute(&self, attribute: c_int, device: c_int) -> Result<u32, CudaUnusable> {
        let mut value: c_int = 0;
        // SAFETY: `CUresult cuDeviceGetAttribute(int*, CUdevice_attribute, CUdevice)`, where an attribute is an int.
        unsafe {
            call!(self, cuDeviceGetAttribute(&raw mut value => *mut c_int, attribute => c_int, device => c_int))?;
        }
        Ok(value.unsigned_abs())
    }

    fn outcome(&self, call: &'static str, code: c_int) -> Result<(), CudaUnusable> {
        match code {
            0 => Ok(()),
            NO_DEVICE => Err(CudaUnusable::NoDevice),
            code => Err(CudaUnusable::Call { call, code, error: self.error_name(code) }),
        }
    }

    fn error_name(&self, code: c_int) -> String {
        let mut name: *const c_char = std::ptr::null();
        // SAFETY: `CUresult cuGetErrorName(CUresult, const char**)` gives a string of the library's own, or null.
        let text = unsafe {
            let function = self.0.get::<unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int>(b"cuGetErrorName\0");
            let known = function.is_ok_and(|function| function(code, &raw mut name) == 0);
            (known && !name.is_null()).then(|| CStr::from_ptr(name))
        };
        text.map_or_else(|| "an error".to_owned(), |text| text.to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, compute: Version) -> CudaDevice {
        CudaDevice { index, name: "GPU".to_owned(), compute, multiprocessors: 1, memory_bytes: 1 }
    }

    fn with(devices: Result<Vec<CudaDevice>, CudaUnusable>) -> CudaProbe {
        let found = FoundLibrary { path: "libcuda.so.1".into(), version: None };
        CudaProbe { library: Ok(found), cuda: Some(NEEDED_CUDA), module: None, devices }
    }

    #[test]
    fn the_first_device_that_can_is_chosen_unless_one_is_wanted() {
        let probe = with(Ok(vec![device(0, Version(7, 5)), device(1, Version(9, 0)), device(2, Version(8, 0))]));
        let index = |wanted| probe.choose(wanted).map(|device| device.index);
        assert_eq!((index(None), index(Some(2))), (Ok(1), Ok(2)));
        let old = CudaUnusable::OldDevice { index: 0, name: "GPU".to_owned(), found: Version(7, 5) };
        assert_eq!(index(Some(0)), Err(old.clone()));
        assert_eq!(index(Some(3)), Err(CudaUnusable::NoSuchDevice { index: 3, count: 3 }));
        assert_eq!(with(Ok(vec![device(0, Version(7, 5))])).choose(None), Err(old));
        assert_eq!(with(Err(CudaUnusable::NoDevice)).choose(Some(0)), Err(CudaUnusable::NoDevice));
    }

    #[test]
    fn a_machine_is_asked_without_a_panic_and_says_why_it_has_no_device() {
        let probe = CudaProbe::of_machine(&[]);
        match (&probe.library, &probe.devices) {
            (Err(missing), devices) => assert_eq!(devices, &Err(missing.clone().into())),
            (Ok(_), Ok(devices)) => assert!(!devices.is_empty()),
            (Ok(_), Err(unusable)) => assert!(!matches!(unusable, CudaUnusable::Library(_)), "{unusable}"),
        }
    }

    #[test]
    fn versions_compare_by_number_and_are_found_in_texts() {
        assert!(Version(12, 10) > Version(12, 2) && Version(8, 0) < Version(8, 6) && Version(9, 0) > Version(8, 9));
        let text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 11.4.0\n";
        assert_eq!(module_version(text).as_deref(), Some("535.104.05"));
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build";
        assert_eq!(module_version(open).as_deref(), Some("580.65.06"));
        assert_eq!(module_version("something else 1.2"), None);
    }

    #[test]
    fn the_version_of_a_driver_is_in_the_name_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libcuda.so.535.104.05");
        std::fs::write(&file, "").unwrap();
        let link = folder.path().join("libcuda.so.1");
        #[cfg(unix)]
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(library_version(&link).as_deref(), Some("535.104.05"));
        let plain = folder.path().join("libcuda.so");
        std::fs::write(&plain, "").unwrap();
        assert_eq!(library_version(&plain), None);
    }
}
