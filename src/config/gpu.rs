//! What is set for GPUs alone.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::checks::Checks;
use super::environment::Environment;
use super::problem::ConfigProblem;

/// What is set for GPUs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "GPU")]
pub struct GpuArgs {
    /// Who multiplies matrices: own, the kernels of the binary, which give a request the same bits in any batch; cublaslt,
    /// NVIDIA's library for all products of steps with prompts, which does not promise that; auto, the library for those
    /// of more than 256 rows, where it is installed
    #[arg(long, value_enum, default_value_t)]
    pub cuda_gemm: CudaGemm,
    /// Assembled kernels.
    #[command(flatten)]
    pub kernel_cache: KernelCacheArgs,
}

/// Who multiplies matrices on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CudaGemm {
    /// The kernels of the binary.
    #[default]
    Own,
    /// cuBLASLt, in all steps with prompts.
    #[value(name = "cublaslt")]
    CublasLt,
    /// cuBLASLt for many rows, where it is installed.
    Auto,
}

/// Where assembled kernels are kept.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "GPU")]
pub struct KernelCacheArgs {
    /// Folder that keeps the kernels as the GPU's driver assembled them, so that it need not at each start, or off;
    /// $XDG_CACHE_HOME/polydelta/kernels where it is not given. It must be this user's, and not be writable by others
    #[arg(long, value_name = "DIR|off")]
    pub kernel_cache: Option<PathBuf>,
}

/// Where assembled kernels are kept between starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelCacheLocation {
    /// In this folder, created where it does not exist.
    Dir(PathBuf),
    /// Nowhere, as was asked for.
    Off,
    /// Nowhere: no folder is named, and neither is a home.
    NoHome,
}

impl KernelCacheLocation {
    /// The folder, if there is one.
    #[must_use]
    pub fn dir(&self) -> Option<&PathBuf> {
        match self {
            Self::Dir(dir) => Some(dir),
            Self::Off | Self::NoHome => None,
        }
    }
}

impl KernelCacheArgs {
    /// What is asked for, or the default.
    pub(super) fn check(&self, checks: &mut Checks, environment: &Environment) -> KernelCacheLocation {
        const FLAG: &str = "--kernel-cache";
        let Some(given) = &self.kernel_cache else {
            let cache = environment.cache_dir().map(|cache| cache.join("kernels"));
            return cache.map_or(KernelCacheLocation::NoHome, KernelCacheLocation::Dir);
        };
        if ["off", "false", "0", "no"].iter().any(|word| given.as_os_str() == *word) {
            return KernelCacheLocation::Off;
        }
        if given.exists() && !given.is_dir() {
            let (value, expected) = (given.display().to_string(), "a folder, which need not exist, or off");
            checks.report(ConfigProblem::Invalid { flag: FLAG, value, expected });
        }
        KernelCacheLocation::Dir(given.clone())
    }
}
