//! The backend under test.

use polydelta::ops::Numerics;
use polydelta::ops::cuda::{CudaBackend, CudaOptions};

use crate::emulator;

pub(crate) const NUMERICS: [Numerics; 3] = Numerics::ALL;

/// A backend on the emulated device.
pub(crate) fn cuda(numerics: Numerics) -> CudaBackend {
    emulator::device();
    CudaBackend::new(CudaOptions { ordinal: 0, numerics, memory_bytes: None, kernel_cache: None, library_gemm: None })
        .unwrap()
}
