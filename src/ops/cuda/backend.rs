//! The backend: a device, its kernels, what ops keep on their way, and how a kernel is launched.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::abi::{Plain, SiteView};
use super::driver::{Assembler, Device, DeviceMemory, Grid, Kernel};
use super::graphs::Graphs;
use super::kernel_cache::KernelCache;
use super::kernels::Kernels;
use super::library_gemm::{LibraryGemm, LibraryGemms};
use super::probe::Version;
use super::uploader::Uploader;
use crate::ops::{Numerics, OpsError, SampledRows, SiteTable};
use crate::types::MAX_ADDED_TOKENS;

/// Threads of a block of the kernels that take any grid.
const THREADS: usize = 256;
/// Blocks of a persistent grid for every processor.
const BLOCKS_EACH: usize = 8;

/// How to set up a [`CudaBackend`].
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Which device, as the driver counts them.
    pub ordinal: u32,
    /// How numbers are kept.
    pub numerics: Numerics,
    /// Most bytes of the device's memory that are taken for everything together; a share of what is free where it is not
    /// given.
    pub memory_bytes: Option<u64>,
    /// Folder in which assembled kernels are kept between starts, of this user alone; none are kept where it is not given.
    pub kernel_cache: Option<PathBuf>,
    /// Products that cuBLASLt computes; ours do all of them where it is not given.
    pub library_gemm: Option<LibraryGemm>,
}

/// Memory and kernels of one GPU. Steps are put on one stream by one thread at a time.
pub struct CudaBackend {
    pub(super) numerics: Numerics,
    pub(super) kernels: Kernels,
    pub(super) uploader: Uploader,
    pub(super) graphs: Mutex<Graphs>,
    pub(super) scratch: Mutex<Scratch>,
    pub(super) library_gemms: Option<LibraryGemms>,
    /// The device's compute capability.
    pub(super) compute: Version,
    /// Dropped last: everything above lies on it.
    pub(super) device: Arc<Device>,
}

/// Memory that ops use on their way; it only grows.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) input: Option<DeviceMemory>,
    pub(super) shrunk: Option<DeviceMemory>,
    pub(super) partial: Option<DeviceMemory>,
    pub(super) sampling: Option<DeviceMemory>,
}

fn load_kernels(device: &Arc<Device>, numerics: Numerics, folder: Option<&Path>) -> Result<Kernels, OpsError> {
    let mut cache = folder.map_or(Ok(None), |folder| KernelCache::open(folder, device))?;
    let kernels = Kernels::load(device, numerics.compute, cache.as_mut())?;
    if let Some(cache) = cache {
        cache.close();
    }
    Ok(kernels)
}

impl CudaBackend {
    /// Take a device, have its driver assemble the kernels, and see that they compute what they should.
    ///
    /// # Errors
    /// [`OpsError::Driver`], [`OpsError::Kernel`], [`OpsError::Library`], [`OpsError::Disagrees`].
    pub fn new(options: CudaOptions) -> Result<Self, OpsError> {
        let CudaOptions { ordinal, numerics, memory_bytes, kernel_cache, library_gemm } = options;
        let device = Device::open(ordinal, memory_bytes)?;
        let compute = Assembler::of(&device)?.compute;
        let kernels = load_kernels(&device, numerics, kernel_cache.as_deref())?;
        let (graphs, scratch, library_gemms) = (Mutex::default(), Mutex::default(), None);
        let uploader = Uploader::new(&device);
        let mut backend = Self { numerics, kernels, uploader, graphs, scratch, library_gemms, compute, device };
        backend.check()?;
        if let Some(library) = library_gemm {
            let of_any = LibraryGemm { from_rows: 1, ..library.clone() };
            backend.library_gemms = Some(LibraryGemms::new(&of_any, &backend.device)?);
            backend.check()?;
            backend.library_gemms.iter_mut().for_each(|gemms| gemms.from_rows = library.from_rows);
        }
        Ok(backend)
    }

    /// Most bytes of the device's memory that are taken.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.device.budget()
    }

    /// Bytes that ops take beside a decoder's buffers, at the most, for a vocabulary, with the tokens that adapters may add to it.
    #[must_use]
    pub fn scratch_bytes(&self, vocab_size: usize) -> u64 {
        /// Rounded inputs, products of A, parts of attention, and steps on their way.
        const OTHERS: u64 = 256 << 20;
        let sampling = 2 * SampledRows::MOST * (vocab_size + MAX_ADDED_TOKENS) * size_of::<f32>();
        let library = self.library_gemms.as_ref().map_or(0, LibraryGemms::bytes);
        sampling as u64 + OTHERS + library
    }

    /// `blocks` on the device.
    pub(super) fn block_list(&self, blocks: &[u32]) -> Result<DeviceMemory, OpsError> {
        let memory = self.uploader.allocate("a block table", size_of_val(blocks))?;
        self.uploader.send(&memory, 0, blocks.len(), size_of::<u32>(), |block, bytes| {
            bytes.copy_from_slice(&blocks[block].to_le_bytes());
        })?;
        Ok(memory)
    }

    /// Put a kernel on the stream of steps. What the driver refuses is reported when the step is finished.
    pub(super) fn launch<A: Plain>(&self, kernel: &Kernel<A>, grid: Grid, arguments: &A) {
        // SAFETY: ops build arguments from memory that the decoder owns with this backend, of sizes that follow from one
        // spec, and freed on the stream of steps.
        let launched = unsafe { kernel.launch(&self.device, &self.device.compute, grid, arguments) };
        self.device.note(launched);
    }

    pub(super) fn graphs(&self) -> MutexGuard<'_, Graphs> {
        self.graphs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At least `bytes` of scratch memory; `None` where there is no more, which the step reports.
    pub(super) fn grown(&self, memory: &mut Option<DeviceMemory>, what: &'static str, bytes: usize) -> Option<u64> {
        if memory.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            if self.graphs().is_recording() {
                // The step is launched once more, unrecorded.
                self.device.note(Err::<(), _>(OpsError::OutOfMemory { what, bytes: bytes as u64 }));
                return None;
            }
            self.device.exchange();
            *memory = None;
            *memory = self.device.note(DeviceMemory::new(&self.device, &self.device.compute, what, bytes));
        }
        memory.as_ref().map(DeviceMemory::address)
    }

    /// Blocks for so many threads, as far as they run at once.
    pub(super) fn spread(&self, threads: usize) -> Grid {
        let most = self.device.processors() as usize * BLOCKS_EACH;
        Grid::of(threads.div_ceil(THREADS).min(most))
    }

    /// A block for each row, as far as they run at once.
    pub(super) fn block_a_row(&self, rows: usize) -> Grid {
        Grid::of(rows.min(self.device.processors() as usize * BLOCKS_EACH))
    }

    pub(super) fn site(&self, deltas: SiteTable<'_, Self>) -> SiteView {
        deltas.table.site(deltas.site)
    }
}
