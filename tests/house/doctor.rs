//! `polydelta doctor`, beside drivers that are whole, old, broken or not there.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use super::command::{code, polydelta, text};

/// A driver of two devices, an old one and one that is as the definitions say.
const DRIVER: &str = r#"
int cuDriverGetVersion(int* version) { *version = CUDA; return 0; }
int cuGetErrorName(int code, const char** name) { *name = "CUDA_ERROR_OF_A_KIND"; return 0; }
int cuInit(unsigned flags) { return flags == 0 ? INIT : 1; }
int cuDeviceGetCount(int* count) { *count = 2; return 0; }
int cuDeviceGet(int* device, int index) { *device = 40 + index; return 0; }
int cuDeviceGetName(char* name, int room, int device) {
    const char* text = device == 40 ? "Old One" : "New One";
    for (int at = 0; at < room; at++) {
        name[at] = text[at];
        if (!text[at]) break;
    }
    return 0;
}
int TOTAL_MEM(unsigned long* bytes, int device) { *bytes = 80ul << 30; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    *value = attribute == 16 ? 132 : attribute == 76 ? 5 : attribute == 75 ? (device == 40 ? 7 : SECOND) : -1;
    return *value < 0;
}
"#;

/// Its library in a folder, compiled with these definitions in the place of those of a driver that works.
fn driver(definitions: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("driver.c");
    fs::write(&source, DRIVER).unwrap();
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]).arg(folder.path().join("libcuda.so"));
    let of_one_that_works = [("CUDA", "12020"), ("INIT", "0"), ("SECOND", "9"), ("TOTAL_MEM", "cuDeviceTotalMem_v2")];
    for (name, value) in of_one_that_works {
        let value = definitions.iter().find(|(given, _)| *given == name).map_or(value, |(_, value)| *value);
        command.arg(format!("-D{name}={value}"));
    }
    assert!(command.arg(&source).status().unwrap().success());
    folder
}

/// Doctor with a folder that the loader looks into first. Memory is measured by one test alone.
fn doctor(libraries: &Path, arguments: &[&str]) -> Output {
    let mut command = polydelta(&["doctor"]);
    let output = command.args(arguments).env("LD_LIBRARY_PATH", libraries).output().unwrap();
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    output
}

fn report(libraries: &Path) -> Value {
    serde_json::from_slice(&doctor(libraries, &["--json", "--no-measure"]).stdout).unwrap()
}

#[test]
fn the_processor_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let output = doctor(folder.path(), &["--json"]).stdout;
    let cpu = &serde_json::from_slice::<Value>(&output).unwrap()["cpu"];
    let paths = ["avx512bf16", "avx512", "avx2", "portable"];
    assert!(paths.contains(&cpu["isa"]["bf16"].as_str().unwrap()), "{cpu:#}");
    // f32 has no use for the products of bf16.
    assert!(paths[1..].contains(&cpu["isa"]["f32"].as_str().unwrap()), "{cpu:#}");
    let threads = std::thread::available_parallelism().unwrap().get();
    assert_eq!(cpu["threads"].as_u64(), Some(threads as u64));
    assert!(cpu["memory"]["bytes_per_second"].as_f64() > Some(0.0), "{cpu:#}");
    assert!(cpu["memory"]["reads"].as_u64() >= Some(5), "{cpu:#}");
}

#[test]
fn what_is_said_of_a_machine_fits_together() {
    let folder = tempfile::tempdir().unwrap();
    let report = report(folder.path());
    let (cuda, chosen) = (&report["cuda"], &report["device_auto"]);
    let libraries: Vec<_> = cuda["libraries"].as_array().unwrap().iter().map(|library| &library["name"]).collect();
    assert_eq!(libraries, ["libcuda", "libnvrtc", "libcublasLt"]);
    for library in cuda["libraries"].as_array().unwrap() {
        assert_ne!(library["path"].is_null(), library["problem"].is_null(), "{library:#}");
    }
    assert!(!chosen["reason"].as_str().unwrap().is_empty());
    // The loader may know a driver all the same.
    let is_gpu = chosen["device"].as_str().unwrap().starts_with("cuda:");
    assert_eq!(is_gpu, chosen["remedy"].is_null(), "{report:#}");
    assert!(is_gpu || chosen["device"] == "cpu");
    assert!(!is_gpu || !cuda["devices"].as_array().unwrap().is_empty());
}

#[test]
fn devices_are_shown_and_the_first_that_can_is_chosen() {
    let folder = driver(&[]);
    let report = report(folder.path());
    let cuda = &report["cuda"];
    assert_eq!(cuda["libraries"][0]["path"], folder.path().join("libcuda.so").to_str().unwrap());
    assert_eq!(cuda["driver"]["cuda"], "12.2");
    let (old, new) = (&cuda["devices"][0], &cuda["devices"][1]);
    assert_eq!((&old["device"], &old["compute"]), (&"cuda:0".into(), &"7.5".into()));
    assert!(old["problem"].as_str().unwrap().contains("8.0 is needed"), "{old:#}");
    assert_eq!((&new["name"], &new["compute"]), (&"New One".into(), &"9.5".into()));
    assert_eq!((&new["memory_bytes"], &new["multiprocessors"]), (&(80_u64 << 30).into(), &132.into()));
    assert!(new["problem"].is_null());
    assert_eq!(report["device_auto"]["device"], "cuda:1");

    let shown = text(&doctor(folder.path(), &["--no-measure"]).stdout);
    assert!(!shown.contains("bandwidth"), "{shown}");
    assert!(shown.contains("New One, compute capability 9.5, 132 multiprocessors, 80"), "{shown}");
    assert!(shown.contains("--device auto   cuda:1: "), "{shown}");
}

#[test]
fn a_driver_that_cannot_serve_says_why_and_the_processor_does() {
    let chosen = |definitions: &[(&str, &str)]| {
        let report = report(driver(definitions).path());
        let chosen = &report["device_auto"];
        assert_eq!(chosen["device"], "cpu", "{report:#}");
        assert!(!chosen["remedy"].as_str().unwrap().is_empty());
        chosen["reason"].as_str().unwrap().to_owned()
    };
    assert_eq!(chosen(&[("CUDA", "11080")]), "the driver takes CUDA 11.8, and 12.2 is needed");
    assert_eq!(chosen(&[("INIT", "803")]), "cuInit fails with CUDA_ERROR_OF_A_KIND (803)");
    assert_eq!(chosen(&[("INIT", "100")]), "the driver shows no device");
    assert_eq!(chosen(&[("TOTAL_MEM", "another_function")]), "libcuda has no cuDeviceTotalMem_v2");
    let old = chosen(&[("SECOND", "6")]);
    assert_eq!(old, "cuda:0, Old One, has compute capability 7.5, and 8.0 is needed");
}

#[test]
fn a_file_that_is_no_library_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("libnvrtc.so"), "no library").unwrap();
    let report = report(folder.path());
    let nvrtc = &report["cuda"]["libraries"][1];
    // One that is whole may lie elsewhere.
    let problem = nvrtc["problem"].as_str().unwrap_or("libnvrtc.so");
    assert!(problem.contains("libnvrtc.so"), "{nvrtc:#}");
    assert_eq!(nvrtc["needed"], false);
}
