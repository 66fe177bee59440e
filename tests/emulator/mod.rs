//! The emulated device in place of a GPU: a `libcuda.so` made of `tests/emulator` and the kernels' own source. A test target takes
//! it in by `#[path = "../emulator/mod.rs"] mod emulator;`.
#![allow(unsafe_code)] // The functions below are symbols of a C++ library.
#![allow(dead_code)] // Each test target uses a part of it.

mod build;

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

pub(crate) use build::{Product, build};

/// Makes the process find the emulated driver where it looks for `libcuda.so`. Must come before the first look.
pub(crate) fn preload() {
    load(Product::Driver);
}

/// The emulated driver in place of a GPU's; nothing where `POLYDELTA_TEST_GPU` is set, and the tests are to run on the GPU that
/// this machine has.
pub(crate) fn device() -> Option<&'static Control> {
    std::env::var_os("POLYDELTA_TEST_GPU").is_none().then(|| load(Product::Driver))
}

/// The same, with one of the drivers. A process takes the first.
pub(crate) fn load(product: Product) -> &'static Control {
    static LOADED: OnceLock<Control> = OnceLock::new();
    LOADED.get_or_init(|| Control::open(&build(product)))
}

/// Where a server finds the emulated driver: for its `LD_LIBRARY_PATH`.
pub(crate) fn folder() -> std::path::PathBuf {
    build(Product::Driver).parent().unwrap().to_path_buf()
}

/// Where the emulated cuBLASLt lies.
pub(crate) fn cublaslt_folder() -> std::path::PathBuf {
    build(Product::CublasLt).parent().unwrap().to_path_buf()
}

/// Products that the emulated cuBLASLt of this process was asked for, and what of its own is in use.
pub(crate) fn products() -> (u64, u64) {
    let path = CString::new(build(Product::CublasLt).as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a string that ends in zero; the types are those of the functions in `cublaslt/cublaslt.cpp`.
    unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null(), "{}", dl_error());
        let products = symbol::<unsafe extern "C" fn() -> u64>(handle, c"emulatorProducts");
        let objects = symbol::<unsafe extern "C" fn() -> u64>(handle, c"emulatorProductObjects");
        (products(), objects())
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Memory {
    Device = 0,
    Pinned = 1,
}

#[derive(Clone, Copy)]
pub(crate) enum Direction {
    ToDevice = 0,
    ToHost = 1,
    OnDevice = 2,
}

#[derive(Clone, Copy)]
pub(crate) enum Count {
    GraphLaunches = 0,
    Captures = 1,
    /// Of the host for the device.
    Waits = 2,
    Allocations = 3,
    Sets = 4,
    /// Texts that were assembled, to be loaded or linked.
    Assembled = 5,
}

/// How the threads of blocks take turns.
#[derive(Clone, Copy)]
pub(crate) enum Orders {
    /// Another with every launch.
    Rotating = 0,
    Ascending = 1,
    Descending = 2,
    Random = 3,
}

/// A launch of a dry run: see [`Control::set_dry`].
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) kernel: String,
    pub(crate) args: Vec<u8>,
    /// A number of its own for each.
    pub(crate) stream: u64,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared: u32,
}

/// As `RecordedLaunch` in `driver/dry.cpp`.
#[repr(C)]
struct RecordedLaunch {
    kernel: *const c_char,
    args: *const u8,
    bytes: u64,
    stream: u64,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    pad: u32,
}

/// What the emulated driver can be asked beside what a driver does. Counts begin with the process or the last `reset`.
pub(crate) struct Control {
    launches: unsafe extern "C" fn(*const c_char) -> u64,
    live: unsafe extern "C" fn(u32) -> u64,
    live_allocations: unsafe extern "C" fn(u32) -> u64,
    leaked: unsafe extern "C" fn() -> u64,
    copies: unsafe extern "C" fn(u32) -> u64,
    copied_bytes: unsafe extern "C" fn(u32) -> u64,
    count: unsafe extern "C" fn(u32) -> u64,
    reset: unsafe extern "C" fn(),
    last_error: unsafe extern "C" fn() -> *const c_char,
    orders: unsafe extern "C" fn(u32, u64),
    memory: unsafe extern "C" fn(u64),
    driver_version: unsafe extern "C" fn(u32),
    edges_whole: unsafe extern "C" fn() -> u32,
    dry: unsafe extern "C" fn(u64),
    recorded: unsafe extern "C" fn() -> u64,
    record: unsafe extern "C" fn(u64, *mut RecordedLaunch) -> u32,
    read: unsafe extern "C" fn(u64, *mut u8, u64) -> u32,
    device: unsafe extern "C" fn(u32, u32, u32),
}

impl Control {
    fn open(library: &Path) -> Self {
        let path = CString::new(library.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is a string that ends in zero; the library's constructors only register kernels.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        assert!(!handle.is_null(), "{}: {}", library.display(), dl_error());
        // SAFETY: the types are those of the functions in `driver/control.cpp`.
        unsafe {
            Self {
                launches: symbol(handle, c"emulatorLaunches"),
                live: symbol(handle, c"emulatorLive"),
                live_allocations: symbol(handle, c"emulatorLiveAllocations"),
                leaked: symbol(handle, c"emulatorLeaked"),
                copies: symbol(handle, c"emulatorCopies"),
                copied_bytes: symbol(handle, c"emulatorCopiedBytes"),
                count: symbol(handle, c"emulatorCount"),
                reset: symbol(handle, c"emulatorReset"),
                last_error: symbol(handle, c"emulatorLastError"),
                orders: symbol(handle, c"emulatorOrders"),
                memory: symbol(handle, c"emulatorMemory"),
                driver_version: symbol(handle, c"emulatorDriverVersion"),
                edges_whole: symbol(handle, c"emulatorEdgesWhole"),
                dry: symbol(handle, c"emulatorDry"),
                recorded: symbol(handle, c"emulatorRecorded"),
                record: symbol(handle, c"emulatorRecord"),
                read: symbol(handle, c"emulatorRead"),
                device: symbol(handle, c"emulatorDevice"),
            }
        }
    }

    /// How often a kernel ran.
    pub(crate) fn launches(&self, kernel: &str) -> u64 {
        let name = CString::new(kernel).unwrap();
        // SAFETY: the name ends in zero and lives until the call returns.
        unsafe { (self.launches)(name.as_ptr()) }
    }

    /// How often any kernel ran.
    pub(crate) fn all_launches(&self) -> u64 {
        // SAFETY: null stands for all names.
        unsafe { (self.launches)(ptr::null()) }
    }

    /// Bytes in use.
    pub(crate) fn live(&self, memory: Memory) -> u64 {
        // SAFETY: a number that the function knows.
        unsafe { (self.live)(memory as u32) }
    }

    /// Allocations in use.
    pub(crate) fn live_allocations(&self, memory: Memory) -> u64 {
        // SAFETY: a number that the function knows.
        unsafe { (self.live_allocations)(memory as u32) }
    }

    /// Allocations that were in use when the last context went.
    pub(crate) fn leaked(&self) -> u64 {
        // SAFETY: reads a number under the driver's lock.
        unsafe { (self.leaked)() }
    }

    /// Copies that ran.
    pub(crate) fn copies(&self, direction: Direction) -> u64 {
        // SAFETY: a number that the function knows.
        unsafe { (self.copies)(direction as u32) }
    }

    /// Bytes that copies moved.
    pub(crate) fn copied_bytes(&self, direction: Direction) -> u64 {
        // SAFETY: a number that the function knows.
        unsafe { (self.copied_bytes)(direction as u32) }
    }

    pub(crate) fn count(&self, what: Count) -> u64 {
        // SAFETY: a number that the function knows.
        unsafe { (self.count)(what as u32) }
    }

    /// Counts begin anew, and an error that stuck is gone.
    pub(crate) fn reset(&self) {
        // SAFETY: changes numbers under the driver's lock.
        unsafe { (self.reset)() }
    }

    /// What was wrong last, with the kernel, the block and the thread where it was a kernel.
    pub(crate) fn last_error(&self) -> String {
        // SAFETY: the text belongs to this thread until it asks again.
        unsafe { CStr::from_ptr((self.last_error)()) }.to_string_lossy().into_owned()
    }

    /// Also decides how streams mix.
    pub(crate) fn set_orders(&self, orders: Orders, seed: u64) {
        // SAFETY: numbers that the function knows.
        unsafe { (self.orders)(orders as u32, seed) }
    }

    /// How much memory the device has from now on.
    pub(crate) fn set_memory(&self, bytes: u64) {
        // SAFETY: changes a number under the driver's lock.
        unsafe { (self.memory)(bytes) }
    }

    /// Which version the driver has from now on, as in 12020.
    pub(crate) fn set_driver_version(&self, version: u32) {
        // SAFETY: changes a number under the driver's lock.
        unsafe { (self.driver_version)(version) }
    }

    /// Whether nobody wrote next to an allocation where no page guards it.
    pub(crate) fn edges_whole(&self) -> bool {
        // SAFETY: reads the device's memory under the driver's lock.
        unsafe { (self.edges_whole)() != 0 }
    }

    /// From here on no kernel runs and launches are written down; allocations of more than `largest` bytes are addresses
    /// without memory, and what is copied or set there moves nothing. `None` ends it for what comes then.
    pub(crate) fn set_dry(&self, largest: Option<u64>) {
        // SAFETY: changes the driver under its lock.
        unsafe { (self.dry)(largest.unwrap_or(0)) }
    }

    /// The launches of a dry run since it began, or since the last `reset`, in the order in which they would run.
    pub(crate) fn recorded(&self) -> Vec<Launch> {
        // SAFETY: reads a number under the driver's lock.
        (0..unsafe { (self.recorded)() }).map(|index| self.record(index)).collect()
    }

    fn record(&self, index: u64) -> Launch {
        let (args, kernel) = (ptr::null(), ptr::null());
        let mut found =
            RecordedLaunch { kernel, args, bytes: 0, stream: 0, grid: [0; 3], threads: 0, shared: 0, pad: 0 };
        // SAFETY: the struct is the one that the function fills.
        assert!(unsafe { (self.record)(index, &raw mut found) } != 0);
        // SAFETY: names of kernels live as long as the library; the arguments until the next reset, which is not now.
        let (kernel, args) =
            unsafe { (CStr::from_ptr(found.kernel), std::slice::from_raw_parts(found.args, found.bytes as usize)) };
        let (kernel, args) = (kernel.to_string_lossy().into_owned(), args.to_vec());
        Launch { kernel, args, stream: found.stream, grid: found.grid, threads: found.threads, shared: found.shared }
    }

    /// Memory of the device, where it is in use and more than an address.
    pub(crate) fn read(&self, address: u64, bytes: usize) -> Option<Vec<u8>> {
        let mut read = vec![0; bytes];
        // SAFETY: the function checks the address, and writes as many bytes as there are.
        (unsafe { (self.read)(address, read.as_mut_ptr(), bytes as u64) } != 0).then_some(read)
    }

    /// The device that is opened next: its compute capability, which decides about shared memory, and its processors.
    pub(crate) fn set_device(&self, (major, minor): (u32, u32), multiprocessors: u32) {
        // SAFETY: changes numbers under the driver's lock.
        unsafe { (self.device)(major, minor, multiprocessors) }
    }
}

/// # Safety
/// `F` must be the type of the function.
unsafe fn symbol<F: Copy>(library: *mut c_void, name: &CStr) -> F {
    assert_eq!(size_of::<F>(), size_of::<*mut c_void>());
    // SAFETY: the handle is open and the name ends in zero.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!found.is_null(), "{name:?}: {}", dl_error());
    // SAFETY: pointers to functions are as large as others, and the caller knows the type.
    unsafe { ptr::from_ref(&found).cast::<F>().read() }
}

fn dl_error() -> String {
    // SAFETY: called after a failure on this thread, so there is a text, which ends in zero.
    unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned()
}
