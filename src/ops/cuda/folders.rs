//! Where CUDA's libraries lie when the loader does not know of them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Environment;

/// Folders of libraries, in the order in which they are looked through: toolkits, the driver under WSL, and the wheels of
/// Python environments.
#[must_use]
pub fn library_folders(environment: &Environment) -> Vec<PathBuf> {
    below(Path::new("/"), environment)
}

/// As if `root` were the root of the file system.
fn below(root: &Path, environment: &Environment) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = environment.cuda.toolkits.iter().map(|toolkit| toolkit.join("lib64")).collect();
    folders.extend(["usr/local/cuda/lib64", "opt/cuda/lib64", "usr/lib/wsl/lib"].map(|path| root.join(path)));
    folders.extend(matching(&root.join("usr/local"), "cuda-").into_iter().map(|toolkit| toolkit.join("lib64")));
    let own = environment.home.iter().map(|home| home.join(".local"));
    let bases = environment.cuda.python.iter().cloned().chain(own);
    for base in bases.chain(["usr/local", "usr"].map(|path| root.join(path))) {
        folders.push(base.join("lib"));
        for python in matching(&base.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                let wheels = matching(&python.join(packages).join("nvidia"), "");
                folders.extend(wheels.into_iter().map(|wheel| wheel.join("lib")));
            }
        }
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

/// What a folder has whose name begins so, the last name first: it is the newest version as a rule.
fn matching(folder: &Path, beginning: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = |name: &Path| name.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning));
    let mut found: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| names(path)).collect();
    found.sort_unstable();
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toolkits_come_before_the_wheels_of_python() {
        let root = tempfile::tempdir().unwrap();
        let folders = [
            "usr/local/cuda-12.4/lib64",
            "usr/local/cuda-13.0/lib64",
            "usr/local/lib/python3.12/dist-packages/nvidia/cu13/lib",
            "opt/toolkit/lib64",
            "venv/lib/python3.11/site-packages/nvidia/cublas/lib",
            "venv/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib",
            "venv/lib/python3.11/site-packages/other/lib",
        ];
        folders.iter().for_each(|folder| fs::create_dir_all(root.path().join(folder)).unwrap());
        let mut environment = Environment::default();
        environment.cuda.toolkits = vec![root.path().join("opt/toolkit"), root.path().join("opt/gone")];
        environment.cuda.python = vec![root.path().join("venv")];
        let found = below(root.path(), &environment);
        let wanted = [
            "opt/toolkit/lib64",
            "usr/local/cuda-13.0/lib64",
            "usr/local/cuda-12.4/lib64",
            "venv/lib",
            "venv/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib",
            "venv/lib/python3.11/site-packages/nvidia/cublas/lib",
            "usr/local/lib",
            "usr/local/lib/python3.12/dist-packages/nvidia/cu13/lib",
        ];
        assert_eq!(found, wanted.map(|folder| root.path().join(folder)));
    }
}
