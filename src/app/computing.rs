//! What computes: the CPU, or a GPU where one was asked for or is there.

use std::path::PathBuf;
use std::sync::Arc;

use super::base::OpenedBase;
use super::dtype;
use super::error::AppError;
use super::gpu_error::GpuError;
use super::sizing::DeviceRoom;
use crate::config::{CudaGemm, DeviceChoice, DtypeChoice, Environment, KernelCacheLocation, Kernels, ServeConfig};
use crate::model::{DecoderSpec, workspace_bytes};
use crate::ops::cpu::{CpuBackend, CpuOptions};
use crate::ops::cuda::folders::library_folders;
use crate::ops::cuda::{CublasLt, CudaBackend, CudaOptions, CudaProbe, LibraryGemm};
use crate::ops::reference::ReferenceBackend;
use crate::ops::{Backend, Numerics};

/// A backend, and where the model will lie.
pub(super) enum Computing {
    Cpu(Box<CpuBackend>),
    Reference(ReferenceBackend),
    Cuda(Box<CudaBackend>),
}

impl Computing {
    /// Open what the configuration means for a base.
    ///
    /// # Errors
    /// A GPU that was asked for, by itself or by a dtype that only one has, and cannot be used; threads that the system refuses.
    pub(super) fn open(config: &ServeConfig, base: &OpenedBase, environment: &Environment) -> Result<Self, AppError> {
        if config.kernels == Kernels::Reference {
            return Ok(Self::Reference(ReferenceBackend::new(Numerics::F32)));
        }
        match config.device {
            DeviceChoice::Cpu => Self::cpu(config, base),
            DeviceChoice::Cuda(index) => Ok(Self::cuda(config, base, environment, Some(index))?),
            DeviceChoice::Auto => match Self::cuda(config, base, environment, None) {
                Ok(computing) => Ok(computing),
                // There is a GPU, and what was asked for by name is not.
                Err(missing @ GpuError::NoCublasLt { .. }) => Err(missing.into()),
                Err(reason) if config.dtype == DtypeChoice::F16 => Err(AppError::F16NeedsGpu { reason }),
                Err(reason) => {
                    tracing::info!(%reason, "no GPU: the CPU computes. `polydelta doctor` says more");
                    Self::cpu(config, base)
                }
            },
        }
    }

    fn cpu(config: &ServeConfig, base: &OpenedBase) -> Result<Self, AppError> {
        let numerics = dtype::choose(config, base)?;
        Ok(Self::Cpu(Box::new(CpuBackend::new(CpuOptions { threads: config.threads, numerics, isa: None })?)))
    }

    fn cuda(
        config: &ServeConfig,
        base: &OpenedBase,
        environment: &Environment,
        index: Option<u32>,
    ) -> Result<Self, GpuError> {
        let folders = library_folders(environment);
        let ordinal = CudaProbe::of_machine(&folders).choose(index)?.index;
        if config.kernel_cache == KernelCacheLocation::NoHome {
            tracing::warn!(
                "neither XDG_CACHE_HOME nor HOME is set: kernels are assembled at each start; --kernel-cache names a folder"
            );
        }
        let options = CudaOptions {
            ordinal,
            numerics: dtype::of_checkpoint(config.dtype, base),
            memory_bytes: config.device_memory,
            kernel_cache: config.kernel_cache.dir().cloned(),
            library_gemm: library_gemm(config.cuda_gemm, folders)?,
        };
        Ok(Self::Cuda(Box::new(CudaBackend::new(options)?)))
    }

    pub(super) fn numerics(&self) -> Numerics {
        match self {
            Self::Cpu(backend) => backend.numerics(),
            Self::Reference(backend) => backend.numerics(),
            Self::Cuda(backend) => backend.numerics(),
        }
    }

    /// The memory that the model will lie in, where that is not this process's; `rows` are the most of a step.
    pub(super) fn room(&self, spec: &DecoderSpec, rows: usize) -> Option<DeviceRoom> {
        let Self::Cuda(backend) = self else { return None };
        let experts = spec.experts().map_or(0, |experts| backend.experts_bytes(rows, spec.hidden_size, &experts));
        let of_ops = backend.scratch_bytes(spec.vocab_size).saturating_add(experts);
        let workspace_bytes = workspace_bytes(spec, rows).saturating_add(of_ops);
        Some(DeviceRoom { bytes: backend.memory_bytes(), workspace_bytes })
    }
}

/// Rows up to which `auto` leaves products to our own kernels: a step of decoding has fewer, a long prompt more.
const AUTO_ROWS: usize = 256;

/// The library and its products, where it was asked for.
fn library_gemm(choice: CudaGemm, folders: Vec<PathBuf>) -> Result<Option<LibraryGemm>, GpuError> {
    let from_rows = match choice {
        CudaGemm::Own => return Ok(None),
        CudaGemm::CublasLt => 1,
        CudaGemm::Auto => AUTO_ROWS + 1,
    };
    let library = match (CublasLt::open(&folders), choice) {
        (Ok(library), _) => Arc::new(library),
        (Err(missing), CudaGemm::CublasLt) => return Err(GpuError::NoCublasLt { missing, folders }),
        (Err(missing), _) => {
            tracing::info!(reason = %missing, "--cuda-gemm auto: our own kernels multiply all matrices");
            return Ok(None);
        }
    };
    tracing::warn!(
        library = %library.path().display(),
        from_rows,
        "cuBLASLt multiplies matrices of prompts: the last bits of an output may depend on what it is computed beside"
    );
    Ok(Some(LibraryGemm { library, from_rows }))
}
