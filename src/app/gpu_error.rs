//! Why a GPU does not compute.

use std::path::PathBuf;

use crate::ops::OpsError;
use crate::ops::cuda::CudaUnusable;
use crate::ops::cuda::library::MissingLibrary;

/// Why a GPU does not compute.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// There is none, or none that can be used.
    #[error(transparent)]
    Unusable(#[from] CudaUnusable),
    /// The library that is to multiply matrices is not there.
    #[error("--cuda-gemm cublaslt: {missing}{}", searched(folders))]
    NoCublasLt {
        /// What was looked for.
        missing: MissingLibrary,
        /// Where, beside the places that the loader knows.
        folders: Vec<PathBuf>,
    },
    /// Its driver does not take the kernels.
    #[error(transparent)]
    Ops(#[from] OpsError),
}

fn searched(folders: &[PathBuf]) -> String {
    if folders.is_empty() {
        return " where the loader looks".to_owned();
    }
    let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    format!(" where the loader looks, and in {}", folders.join(", "))
}
