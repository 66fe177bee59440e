//! Where a server keeps assembled kernels, and how much lies there.

use std::path::PathBuf;

use serde::Serialize;

use crate::config::KernelCacheLocation;
use crate::config::units::format_bytes;
use crate::ops::cuda::{KernelCacheSize, kernel_cache_size};

/// The folder and what lies in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct KernelCacheReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Look.
pub(super) fn report(location: &KernelCacheLocation) -> KernelCacheReport {
    let problem = |text: &str| KernelCacheReport { problem: Some(text.to_owned()), ..KernelCacheReport::default() };
    let dir = match location {
        KernelCacheLocation::Off => return problem("off"),
        KernelCacheLocation::NoHome => return problem("none: neither XDG_CACHE_HOME nor HOME is set"),
        KernelCacheLocation::Dir(dir) => dir,
    };
    let path = Some(dir.clone());
    match kernel_cache_size(dir) {
        Ok(KernelCacheSize { files, bytes }) => {
            KernelCacheReport { path, files: Some(files), bytes: Some(bytes), problem: None }
        }
        Err(error) => KernelCacheReport { path, problem: Some(error.to_string()), ..KernelCacheReport::default() },
    }
}

impl KernelCacheReport {
    /// For people.
    pub(super) fn line(&self) -> String {
        let path = self.path.as_ref().map(|path| path.display().to_string());
        let what = match (self.bytes, self.files) {
            (Some(bytes), Some(files)) if files > 0 => Some(format!("{} in {files} files", format_bytes(bytes))),
            (Some(_), _) => Some("empty".to_owned()),
            (None, _) => self.problem.clone(),
        };
        path.into_iter().chain(what).collect::<Vec<_>>().join(", ")
    }
}
