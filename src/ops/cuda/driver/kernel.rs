//! Kernels out of PTX, and launches.

use std::ffi::CString;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::{Device, Stream, refused};
use crate::ops::OpsError;
use crate::ops::cuda::abi::Plain;
use crate::ops::cuda::ptx::{self, PtxEntry};

/// PTX that the driver has assembled for a device.
#[derive(Debug)]
pub(in super::super) struct Module {
    device: Arc<Device>,
    handle: sys::CUmodule,
    entries: Vec<PtxEntry<'static>>,
}

// SAFETY: a module is a handle that any thread may use whose current context is its own.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Have the driver assemble a text.
    ///
    /// # Errors
    /// [`OpsError::Driver`] where it does not take it.
    pub(in super::super) fn new(device: &Arc<Device>, text: &'static str) -> Result<Self, OpsError> {
        let image = CString::new(text).map_err(|_| OpsError::Kernel {
            name: "a module".to_owned(),
            reason: "its PTX holds a zero byte".to_owned(),
        })?;
        Self::of_image(device, image.as_bytes_with_nul(), text)
    }

    /// Load what a driver made of a text, or the text with a zero byte at its end.
    ///
    /// # Errors
    /// [`OpsError::Driver`] where it does not take it.
    pub(in super::super) fn of_image(device: &Arc<Device>, image: &[u8], text: &'static str) -> Result<Self, OpsError> {
        device.enter()?;
        // SAFETY: an image as `Assembler` gives it, whose own header says how long it is, or PTX that ends with a zero
        // byte; the driver keeps nothing of it.
        let handle =
            unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(refused("cuModuleLoadData"))?;
        Ok(Self { device: Arc::clone(device), handle, entries: ptx::entries(text).collect() })
    }

    /// The kernel of that name, where it has one.
    ///
    /// # Errors
    /// [`OpsError::Kernel`] where its argument has another size than `A`.
    pub(in super::super) fn kernel<A: Plain>(&self, name: &str) -> Option<Result<Kernel<A>, OpsError>> {
        let entry = self.entries.iter().find(|entry| entry.name == name)?;
        Some(self.load(entry))
    }

    fn load<A: Plain>(&self, entry: &PtxEntry<'_>) -> Result<Kernel<A>, OpsError> {
        let wrong = |reason: String| OpsError::Kernel { name: entry.name.to_owned(), reason };
        if entry.parameters != [size_of::<A>()] {
            let (has, given) = (&entry.parameters, size_of::<A>());
            return Err(wrong(format!("its arguments have {has:?} bytes, the host's {given}")));
        }
        let threads = entry.threads.ok_or_else(|| wrong("it does not say how many threads a block has".to_owned()))?;
        self.device.enter()?;
        let symbol = CString::new(entry.name).map_err(|_| wrong("its name holds a zero byte".to_owned()))?;
        // SAFETY: the module lives.
        let function = unsafe { result::module::get_function(self.handle, symbol) };
        let function = function.map_err(refused("cuModuleGetFunction"))?;
        let most = i32::try_from(self.device.shared_bytes()).unwrap_or(i32::MAX);
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is the module's.
        unsafe { result::function::set_function_attribute(function, attribute, most) }
            .map_err(refused("cuFuncSetAttribute"))?;
        Ok(Kernel { function, threads, argument: PhantomData })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        self.device.note(self.device.enter());
        // SAFETY: kernels are kept beside their module and not launched after it.
        let unloaded = unsafe { result::module::unload(self.handle) };
        self.device.note(unloaded.map_err(refused("cuModuleUnload")));
    }
}

/// How a kernel is launched: blocks, and shared memory of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Grid {
    pub(in super::super) blocks: [u32; 3],
    pub(in super::super) shared_bytes: u32,
    /// Threads of a block, where they are fewer than the kernel's most.
    pub(in super::super) threads: Option<u32>,
}

impl Grid {
    /// So many blocks along x.
    pub(in super::super) fn of(blocks: usize) -> Self {
        Self::plane(blocks, 1)
    }

    /// Blocks along x and y.
    pub(in super::super) fn plane(x: usize, y: usize) -> Self {
        let [x, y] = [x, y].map(|blocks| u32::try_from(blocks).unwrap_or(u32::MAX));
        Self { blocks: [x, y, 1], shared_bytes: 0, threads: None }
    }

    /// As many of them along z.
    pub(in super::super) fn deep(self, z: usize) -> Self {
        let [x, y, _] = self.blocks;
        Self { blocks: [x, y, u32::try_from(z).unwrap_or(u32::MAX)], ..self }
    }

    pub(in super::super) fn threads(self, threads: usize) -> Self {
        Self { threads: u32::try_from(threads).ok(), ..self }
    }

    pub(in super::super) fn shared(self, bytes: usize) -> Self {
        Self { shared_bytes: u32::try_from(bytes).unwrap_or(u32::MAX), ..self }
    }
}

/// A kernel that takes one `A`.
#[derive(Debug)]
pub(in super::super) struct Kernel<A> {
    function: sys::CUfunction,
    threads: u32,
    argument: PhantomData<fn(A)>,
}

// SAFETY: a function is a handle that any thread may launch whose current context is its module's.
unsafe impl<A> Send for Kernel<A> {}
// SAFETY: as above.
unsafe impl<A> Sync for Kernel<A> {}

impl<A: Plain> Kernel<A> {
    /// Put it on a stream of steps. A grid without blocks launches nothing.
    ///
    /// # Safety
    /// Every address in `argument` must be that of memory which is large enough for what the kernel does there, and
    /// whose owner frees it on the stream of steps behind this, or after it was waited for.
    pub(in super::super) unsafe fn launch(
        &self,
        device: &Device,
        stream: &Stream,
        grid: Grid,
        argument: &A,
    ) -> Result<(), OpsError> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        device.enter()?;
        let [x, y, z] = grid.blocks;
        let mut arguments = [std::ptr::from_ref(argument).cast_mut().cast()];
        // SAFETY: the function takes one argument of this size, as checked when it was loaded, which the driver copies;
        // what it points to is the caller's promise.
        let launched = unsafe {
            let threads = (grid.threads.unwrap_or(self.threads).min(self.threads), 1, 1);
            result::launch_kernel(self.function, (x, y, z), threads, grid.shared_bytes, stream.0, &mut arguments)
        };
        launched.map_err(refused("cuLaunchKernel"))
    }
}
