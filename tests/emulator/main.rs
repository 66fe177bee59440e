//! The emulated device finds what it is there to find, and cudarc takes it for a driver.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test; clippy sees only functions marked as tests.
#![allow(unsafe_code)] // Launches are unsafe: their arguments must be those of the kernel.

#[path = "mod.rs"]
mod emulator;
mod experts;
mod kernel_cache;

use std::ffi::{CStr, CString, c_void};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, DevicePtr, result};

use emulator::{Control, Count, Direction, Memory, Product};

#[test]
fn every_mistake_it_is_there_for_is_found() {
    let program = emulator::build(Product::SelfTest);
    let output = Command::new(&program).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {}\n{said}", program.display(), output.status);
    assert!(said.contains(" tests, 0 failed"), "{said}");
}

/// The driver with the kernels that test it, for one test at a time: counts and errors are those of the process.
fn device() -> (MutexGuard<'static, ()>, &'static Control) {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    (alone, emulator::load(Product::DriverForTests))
}

/// As `ProbeArgs` in `selftest/kernels.h`.
#[repr(C)]
struct ProbeArgs {
    from: u64,
    to: u64,
    number: u32,
    count: u32,
}

const PROBES: &CStr = c"
.version 7.0
.target sm_80
.address_size 64
.visible .entry probe_add(.param .align 8 .b8 probe_add_param_0[24])
.maxntid 64, 1, 1
{
    ret;
}
";

/// The PTX that travels in the binary has the kernels that are run here, with the same arguments, in words an old driver knows.
#[test]
fn the_ptx_of_the_kernels_fits_them() {
    let (_alone, control) = device();
    let context = CudaContext::new(0).unwrap();
    context.bind_to_thread().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/ptx");
    let mut texts = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "ptx") {
            continue;
        }
        let text = CString::new(fs::read(&path).unwrap()).unwrap();
        // SAFETY: the text ends in zero.
        let loaded = unsafe { result::module::load_data(text.as_ptr().cast()) };
        assert!(loaded.is_ok(), "{}: {}", path.display(), control.last_error());
        texts += 1;
    }
    assert!(texts > 0);
}

#[test]
fn cudarc_takes_it_for_a_driver() {
    let (_alone, control) = device();
    // SAFETY: the library that is found is the one loaded above.
    assert!(unsafe { cudarc::driver::sys::is_culib_present() });
    let context = CudaContext::new(0).unwrap();
    // SAFETY: the streams below are ordered by hand.
    unsafe { context.disable_event_tracking() };
    assert_eq!(context.name().unwrap(), "emulated device");
    assert_eq!(context.compute_capability().unwrap(), (8, 6));
    let stream = context.new_stream().unwrap();
    // SAFETY: the text ends in zero.
    let module = unsafe { result::module::load_data(PROBES.as_ptr().cast()) }.unwrap();
    // SAFETY: the module was loaded above.
    let add = unsafe { result::module::get_function(module, c"probe_add".to_owned()) }.unwrap();
    control.reset();

    let mut numbers = stream.clone_htod(&[1.0f32; 64]).unwrap();
    let launch = |to: u64| {
        let mut args = ProbeArgs { from: 0, to, number: 3, count: 64 };
        let pointers = &mut [ptr::from_mut(&mut args).cast::<c_void>()];
        // SAFETY: the kernel takes one ProbeArgs, which the driver copies, and ends without harm where `to` is wrong.
        unsafe { result::launch_kernel(add, (2, 1, 1), (32, 1, 1), 0, stream.cu_stream(), pointers) }.unwrap();
    };
    let address = numbers.device_ptr(&stream).0;
    launch(address);
    assert_eq!(stream.clone_dtoh(&numbers).unwrap(), [4.0; 64]);
    assert_eq!((control.launches("probe_add"), control.all_launches()), (1, 1));

    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    launch(address);
    launch(address);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    graph.launch().unwrap();
    stream.memset_zeros(&mut numbers).unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&numbers).unwrap(), [6.0; 64]);
    assert_eq!(
        (control.count(Count::GraphLaunches), control.count(Count::Captures), control.launches("probe_add")),
        (2, 1, 5)
    );
    assert_eq!((control.copies(Direction::ToDevice), control.copied_bytes(Direction::ToHost)), (1, 512));
    assert_eq!((control.live(Memory::Device), control.live_allocations(Memory::Device)), (256, 1));
    assert!(control.edges_whole());

    launch(address + 256);
    assert_eq!(stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let said = control.last_error();
    assert!(
        said.contains("kernel probe_add") && said.contains("of an allocation of 256 bytes (behind its end)"),
        "{said}"
    );
    control.reset();
    drop(numbers);
    stream.synchronize().unwrap();
    assert_eq!(control.live(Memory::Device), 0);
}

/// Nothing of what is large is there, and nothing runs; what was asked for can be read.
#[test]
fn a_dry_run_writes_launches_down() {
    let (_alone, control) = device();
    let context = CudaContext::new(0).unwrap();
    // SAFETY: the streams below are ordered by hand.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    // SAFETY: the text ends in zero; the module was loaded just before.
    let add = unsafe {
        let module = result::module::load_data(PROBES.as_ptr().cast()).unwrap();
        result::module::get_function(module, c"probe_add".to_owned()).unwrap()
    };
    control.reset();
    control.set_memory(1 << 40);
    control.set_dry(Some(1024));
    let mut large = stream.alloc_zeros::<u8>(1 << 36).unwrap();
    let small = stream.clone_htod(&[7u8; 64]).unwrap();
    stream.memcpy_htod(&[1u8; 32], &mut large).unwrap();
    let (at, small_at) = (large.device_ptr(&stream).0, small.device_ptr(&stream).0);
    let mut args = ProbeArgs { from: small_at, to: at, number: 3, count: 1 << 20 };
    let pointers = &mut [ptr::from_mut(&mut args).cast::<c_void>()];
    // SAFETY: the kernel takes one ProbeArgs, and does not run.
    unsafe { result::launch_kernel(add, (5, 2, 1), (64, 1, 1), 16, stream.cu_stream(), pointers) }.unwrap();
    stream.synchronize().unwrap();
    let launches = control.recorded();
    assert_eq!(launches.len(), 1);
    assert_eq!((launches[0].kernel.as_str(), launches[0].grid, launches[0].shared), ("probe_add", [5, 2, 1], 16));
    assert_eq!(launches[0].args[8..16], at.to_le_bytes());
    assert_eq!(
        (control.read(small_at, 2), control.read(at, 2), control.read(small_at, 512)),
        (Some(vec![7, 7]), None, None)
    );
    assert_eq!(control.launches("probe_add"), 1);
    drop((large, small));
    stream.synchronize().unwrap();
    control.set_dry(None);
    control.set_memory(512 << 20);
    control.reset();
}
