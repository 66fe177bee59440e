//! The command on an emulated GPU (`tests/emulator`), as a process finds one: a driver in the loader's way.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::command::{code, polydelta, root, text};
use super::emulator;

fn beside_a_gpu(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// The command beside an emulated GPU, where it keeps nothing.
fn command(arguments: &[&str]) -> Command {
    let mut command = polydelta(arguments);
    command.env("LD_LIBRARY_PATH", emulator::folder()).env("EMULATOR_MEMORY", (2_u64 << 30).to_string());
    command.env("POLYDELTA_KERNEL_CACHE", "off");
    command
}

/// A start that ends for want of memory, when everything else of a GPU is in order; what it says.
fn start(flags: &[&str], change: impl FnOnce(&mut Command)) -> String {
    let model = root("models/demo");
    let arguments = ["serve", "--model", model.to_str().unwrap(), "--listen", "127.0.0.1:0", "--no-metrics"];
    let small = ["--device", "cuda:0", "--device-memory", "64MiB", "--kv-cache-bytes", "1GiB"];
    let mut command = command(&[&arguments[..], &small, flags].concat());
    change(&mut command);
    let output = command.output().unwrap();
    assert_ne!(code(&output), 0);
    text(&output.stderr)
}

#[test]
fn the_demo_takes_a_gpu_that_is_there_and_answers_as_on_the_cpu() {
    let answers = |output: &Output| -> Vec<(String, String)> {
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let answers = report["answers"].as_array().unwrap();
        answers.iter().map(|one| (one["adapter"].to_string(), one["output"].to_string())).collect()
    };
    let arguments = ["demo", "--once", "--json", "--dtype", "f32"];
    let (gpu, cpu) = (beside_a_gpu(&arguments), polydelta(&arguments).output().unwrap());
    assert_eq!((code(&gpu), code(&cpu)), (0, 0), "{}", text(&gpu.stderr));
    assert!(text(&gpu.stderr).contains("device=\"cuda\""), "{}", text(&gpu.stderr));
    assert!(text(&cpu.stderr).contains("device=\"cpu\""), "{}", text(&cpu.stderr));
    assert_eq!(answers(&gpu), answers(&cpu));
}

#[test]
fn f16_is_served_by_a_gpu_and_refused_without_one() {
    let arguments = ["demo", "--once", "--dtype", "f16"];
    let gpu = beside_a_gpu(&arguments);
    assert_eq!(code(&gpu), 0, "{}", text(&gpu.stderr));
    assert!(text(&gpu.stderr).contains("dtype=\"f16\""), "{}", text(&gpu.stderr));
    let mut alone = polydelta(&arguments);
    let alone = alone.env("LD_LIBRARY_PATH", emulator::folder()).env("EMULATOR_DEVICES", "0").output().unwrap();
    assert_eq!(code(&alone), 1);
    let said = text(&alone.stderr);
    assert!(said.contains("--dtype f16 needs a GPU, and --device auto has none: the driver shows no device"), "{said}");
    assert!(said.contains("The CPU computes in bf16 or f32"), "{said}");
}

#[test]
fn a_gpu_that_is_not_there_or_too_small_is_refused_with_what_would_help() {
    let model = root("models/demo");
    let serve = |flags: &[&str]| {
        let arguments = ["serve", "--model", model.to_str().unwrap(), "--listen", "127.0.0.1:0", "--no-metrics"];
        beside_a_gpu(&[&arguments, flags].concat())
    };
    let other = serve(&["--device", "cuda:3"]);
    assert_eq!(code(&other), 1);
    assert!(text(&other.stderr).contains("there is no cuda:3; the driver shows 1"), "{}", text(&other.stderr));
    let small = serve(&["--device", "cuda:0", "--device-memory", "8MiB"]);
    assert_eq!(code(&small), 2);
    assert!(text(&small.stderr).contains("--device cpu serves"), "{}", text(&small.stderr));
}

#[test]
fn assembled_kernels_are_kept_where_the_command_line_says_and_doctor_finds_them() {
    let above = tempfile::tempdir().unwrap();
    let kernels = above.path().join("kernels");
    let kept = |folder: &Path| start(&["--kernel-cache", folder.to_str().unwrap()], |_| ());
    let said = [kept(&kernels), kept(&kernels)];
    let texts = fs::read_dir(root("kernels/ptx"))
        .unwrap()
        .filter(|file| file.as_ref().is_ok_and(|file| file.path().extension().is_some_and(|ending| ending == "ptx")));
    let all = texts.count();
    let (made, found) = (format!("assembled={all} found=0"), format!("assembled=0 found={all}"));
    assert!(all > 0 && said[0].contains(&made) && said[1].contains(&found), "{said:?}");

    let doctor = |folder: &Path| {
        let mut command = command(&["doctor", "--json", "--no-measure"]);
        let output = command.env("POLYDELTA_KERNEL_CACHE", folder).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["kernel_cache"].clone()
    };
    let found = doctor(&kernels);
    assert_eq!((&found["path"], &found["files"]), (&kernels.to_str().unwrap().into(), &all.into()));
    assert!(found["bytes"].as_u64() > Some(0), "{found:#}");
    assert_eq!(doctor(Path::new("off"))["problem"], "off");

    fs::set_permissions(&kernels, fs::Permissions::from_mode(0o777)).unwrap();
    let said = kept(&kernels);
    assert_eq!(said.matches("it can be written by others").count(), 1, "{said}");
    // Written where the user's caches are unless a folder is named.
    start(&[], |command| {
        command.env_remove("POLYDELTA_KERNEL_CACHE").env("XDG_CACHE_HOME", above.path());
    });
    assert_eq!(fs::read_dir(above.path().join("polydelta/kernels")).unwrap().count(), all);
}

#[test]
fn a_library_that_is_to_multiply_is_loaded_or_missed_by_name() {
    let beside = |choice: &str, folders: &[&Path]| {
        start(&["--cuda-gemm", choice], |command| {
            let folders = std::env::join_paths([emulator::folder().as_path()].iter().chain(folders)).unwrap();
            command.env("LD_LIBRARY_PATH", folders);
        })
    };
    let library = emulator::cublaslt_folder();
    let promise = "the last bits of an output may depend on what it is computed beside";
    for choice in ["cublaslt", "auto"] {
        let said = beside(choice, &[&library]);
        assert!(said.contains(promise) && said.contains("libcublasLt.so.12"), "{said}");
    }
    assert!(!beside("own", &[&library]).contains(promise));
    // A machine may have the library all the same.
    let missed = beside("cublaslt", &[]);
    let named = "--cuda-gemm cublaslt: libcublasLt is not installed (looked for libcublasLt.so, libcublasLt.so.12";
    assert!(missed.contains(promise) || missed.contains(named), "{missed}");
}
