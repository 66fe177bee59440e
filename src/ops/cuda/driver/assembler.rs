//! What the driver makes of PTX, as bytes that it takes again.

use std::ffi::{CString, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUdevice_attribute};

use super::device::{Device, refused};
use crate::ops::OpsError;
use crate::ops::cuda::library::CudaLibrary;
use crate::ops::cuda::probe::{self, Version};

/// Who assembles: two with the same description make the same of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Assembler {
    /// Newest CUDA that the driver takes.
    pub(in super::super) cuda: i32,
    /// The driver's own version, as in `535.104.05`, where it can be found out.
    pub(in super::super) driver: Option<String>,
    /// For what.
    pub(in super::super) compute: Version,
}

/// The driver's functions that this file calls.
const SYMBOLS: [&str; 4] = ["cuLinkCreate_v2", "cuLinkAddData_v2", "cuLinkComplete", "cuLinkDestroy"];

impl Assembler {
    /// That of a device.
    ///
    /// # Errors
    /// [`OpsError::Driver`].
    pub(in super::super) fn of(device: &Device) -> Result<Self, OpsError> {
        let mut cuda = 0;
        // SAFETY: writes one number.
        unsafe { sys::cuDriverGetVersion(&raw mut cuda) }.result().map_err(refused("cuDriverGetVersion"))?;
        let major = device.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = device.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(Self { cuda, driver: probe::driver_version(), compute: Version(major, minor) })
    }

    /// Assemble a text for a device: a cubin.
    ///
    /// # Errors
    /// [`OpsError::Driver`] where the driver does not take it, or has no linker.
    pub(in super::super) fn assemble(device: &Device, text: &str) -> Result<Vec<u8>, OpsError> {
        // cudarc panics where a symbol is absent.
        let library = CudaLibrary::Driver.open(&[]).ok();
        let has = |symbol: &&str| library.as_ref().is_some_and(|library| CudaLibrary::has(library, symbol));
        if let Some(absent) = SYMBOLS.iter().find(|symbol| !has(symbol)) {
            return Err(OpsError::Driver { call: absent, error: "the driver has no such function".to_owned() });
        }
        let text = CString::new(text).map_err(|_| OpsError::Kernel {
            name: "a module".to_owned(),
            reason: "its PTX holds a zero byte".to_owned(),
        })?;
        device.enter()?;
        Linker::new()?.link(&text)
    }
}

/// A linker with what it made.
struct Linker(sys::CUlinkState);

impl Linker {
    fn new() -> Result<Self, OpsError> {
        let mut state = ptr::null_mut();
        // SAFETY: no options; a context is current.
        unsafe { sys::cuLinkCreate_v2(0, ptr::null_mut(), ptr::null_mut(), &raw mut state) }
            .result()
            .map_err(refused("cuLinkCreate"))?;
        Ok(Self(state))
    }

    fn link(&self, text: &CString) -> Result<Vec<u8>, OpsError> {
        let (mut image, mut bytes) = (ptr::null_mut::<c_void>(), 0);
        let data = text.as_bytes_with_nul();
        // SAFETY: PTX with its zero byte, which the driver keeps nothing of and does not write to; a name; no options.
        unsafe {
            sys::cuLinkAddData_v2(
                self.0,
                sys::CUjitInputType::CU_JIT_INPUT_PTX,
                data.as_ptr().cast_mut().cast(),
                data.len(),
                c"kernels".as_ptr(),
                0,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        }
        .result()
        .map_err(refused("cuLinkAddData"))?;
        // SAFETY: the linker lives.
        unsafe { sys::cuLinkComplete(self.0, &raw mut image, &raw mut bytes) }
            .result()
            .map_err(refused("cuLinkComplete"))?;
        if image.is_null() {
            return Ok(Vec::new());
        }
        // SAFETY: so many bytes, which are the linker's and live as long as it does.
        Ok(unsafe { std::slice::from_raw_parts(image.cast::<u8>(), bytes) }.to_vec())
    }
}

impl Drop for Linker {
    fn drop(&mut self) {
        // SAFETY: it lives, and what it made was copied. A driver that refuses here has nobody left to tell.
        let _ = unsafe { sys::cuLinkDestroy(self.0) };
    }
}
