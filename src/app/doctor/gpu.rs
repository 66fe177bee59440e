//! GPUs: which libraries of CUDA there are, what the driver shows, which device `--device auto` takes, and how to mend
//! what is missing.

use std::path::PathBuf;

use serde::Serialize;

use crate::ops::Numerics;
use crate::ops::cuda::library::{CudaLibrary, FoundLibrary, MissingLibrary};
use crate::ops::cuda::probe::{CudaDevice, CudaProbe, CudaUnusable, NEEDED_CUDA, library_version};

/// What there is of CUDA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct CudaReport {
    pub libraries: Vec<LibraryReport>,
    pub driver: DriverReport,
    pub devices: Vec<DeviceReport>,
}

/// A library that was looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LibraryReport {
    pub name: &'static str,
    /// Nothing runs on a GPU without it; the others are looked for because they may help.
    pub needed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The driver. Its library and its part in the kernel have one version, or it does not work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct DriverReport {
    pub version: Option<String>,
    pub module: Option<String>,
    /// Newest CUDA that it takes.
    pub cuda: Option<String>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct DeviceReport {
    pub device: String,
    pub name: String,
    pub compute: String,
    pub multiprocessors: u32,
    pub memory_bytes: u64,
    /// What its kernels compute in.
    pub dtypes: [&'static str; Numerics::ALL.len()],
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The device that `--device auto` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ChosenDevice {
    pub device: String,
    pub reason: String,
    /// What would give a GPU to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Look for everything.
pub(super) fn report(folders: &[PathBuf]) -> (CudaReport, ChosenDevice) {
    let probe = CudaProbe::of_machine(folders);
    let libraries = CudaLibrary::ALL.into_iter().map(|library| match library {
        CudaLibrary::Driver => library_report(library, probe.library.clone()),
        other => library_report(other, other.find(folders)),
    });
    let libraries = libraries.collect();
    let version = probe.library.as_ref().ok().and_then(|found| library_version(&found.path));
    let cuda = probe.cuda.map(|cuda| cuda.to_string());
    let devices = probe.devices.iter().flatten().map(device_report).collect();
    let driver = DriverReport { version, module: probe.module.clone(), cuda };
    (CudaReport { libraries, driver, devices }, choose(&probe))
}

fn library_report(library: CudaLibrary, found: Result<FoundLibrary, MissingLibrary>) -> LibraryReport {
    let problem = found.as_ref().err().map(ToString::to_string);
    let found = found.ok();
    let version = found.as_ref().and_then(|found| found.version).map(|(major, minor)| format!("{major}.{minor}"));
    let path = found.map(|found| found.path);
    LibraryReport { name: library.name(), needed: library.is_needed(), path, version, problem }
}

fn device_report(device: &CudaDevice) -> DeviceReport {
    DeviceReport {
        device: format!("cuda:{}", device.index),
        name: device.name.clone(),
        compute: device.compute.to_string(),
        multiprocessors: device.multiprocessors,
        memory_bytes: device.memory_bytes,
        dtypes: Numerics::ALL.map(|numerics| numerics.compute.as_str()),
        problem: device.check().err().map(|unusable| unusable.to_string()),
    }
}

fn choose(probe: &CudaProbe) -> ChosenDevice {
    match probe.choose(None) {
        Ok(device) => ChosenDevice {
            device: format!("cuda:{}", device.index),
            reason: format!("the first device that can, {}", device.name),
            remedy: None,
        },
        Err(unusable) => ChosenDevice {
            device: "cpu".to_owned(),
            reason: unusable.to_string(),
            remedy: Some(remedy(&unusable, probe.module.as_deref())),
        },
    }
}

/// What to do, where it is a GPU that is wanted.
fn remedy(unusable: &CudaUnusable, module: Option<&str>) -> String {
    const NEW_DRIVER: &str = "NVIDIA's driver of branch 535 or a later one";
    match (unusable, module) {
        (CudaUnusable::Library(MissingLibrary::NotFound { .. }), Some(module)) => format!(
            "the kernel has NVIDIA's driver {module}, so its library is hidden from this process: in a container, start it \
             with GPUs (`--gpus all` with NVIDIA's container toolkit); else put the folder of libcuda.so.1 into \
             LD_LIBRARY_PATH"
        ),
        (CudaUnusable::Library(MissingLibrary::NotFound { .. }), None) => {
            format!("install {NEW_DRIVER}; a CUDA toolkit is not needed")
        }
        (CudaUnusable::Library(MissingLibrary::Refused { .. }) | CudaUnusable::Symbol { .. }, _) => {
            format!("that file is not a whole driver's: install {NEW_DRIVER}, or take the file out of LD_LIBRARY_PATH")
        }
        (CudaUnusable::OldDriver { .. }, _) => format!("install {NEW_DRIVER}, which takes CUDA {NEEDED_CUDA}"),
        (CudaUnusable::NoDevice, _) => {
            "look at CUDA_VISIBLE_DEVICES, at what the container is given, and at `nvidia-smi`".to_owned()
        }
        (CudaUnusable::Call { .. }, _) => {
            "see whether `nvidia-smi` works; after an update of the driver its module and its library differ until the \
             machine is started again"
                .to_owned()
        }
        (CudaUnusable::OldDevice { .. } | CudaUnusable::NoSuchDevice { .. }, _) => {
            "a device from Ampere on (A100, RTX 30) is needed".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_mended_by_what_hides_it() {
        let missing = || MissingLibrary::NotFound { library: "libcuda", names: "libcuda.so".to_owned() };
        let unusable = CudaUnusable::Library(missing());
        assert!(remedy(&unusable, Some("535.104.05")).contains("--gpus all"));
        assert!(remedy(&unusable, None).contains("535"));
        let probe = CudaProbe {
            library: Err(missing()),
            cuda: None,
            module: None,
            devices: Err(CudaUnusable::Library(missing())),
        };
        let chosen = choose(&probe);
        assert_eq!((chosen.device.as_str(), chosen.reason.contains("libcuda")), ("cpu", true));
        assert!(chosen.remedy.is_some());
    }
}
