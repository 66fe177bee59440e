//! The CUDA driver as far as this room uses it: a device with its streams, memory, and kernels out of PTX. Thin: what is
//! computed is not known here. cuBLASLt, where it is used, works on the same device and stream.
//!
//! Nothing here may be called before [`super::probe`] has found the driver: `cudarc` panics where the library or a symbol
//! is absent.

mod assembler;
mod cublaslt;
mod device;
mod graph;
mod kernel;
mod memory;
mod mirror;

pub(super) use assembler::Assembler;
pub use cublaslt::CublasLt;
pub(super) use cublaslt::{CublasLtHandle, Product, ProductShape};
pub(super) use device::{Device, Event};
pub(super) use graph::Graph;
pub(super) use kernel::{Grid, Kernel, Module};
pub(super) use memory::{ALIGNMENT, DeviceMemory, Pinned};
pub(super) use mirror::Mirror;
