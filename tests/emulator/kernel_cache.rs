//! Kernels that were assembled once are taken from where they are kept, or assembled again. What counts is what the
//! driver counts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use polydelta::ops::Numerics;
use polydelta::ops::cuda::{CudaBackend, CudaOptions, KernelCacheSize, kernel_cache_size};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::emulator::{Control, Count};

/// Texts of kernels.
const ALL: usize = 13;
/// Of a file, before what the driver made.
const HEADER: usize = 64;

/// A folder that is not there yet, in one that goes with the test.
fn folder() -> (TempDir, PathBuf) {
    let above = tempfile::tempdir().unwrap();
    let folder = above.path().join("cache/kernels");
    (above, folder)
}

/// Start with a folder; how many texts the driver assembled.
fn start(control: &Control, folder: &Path) -> usize {
    control.reset();
    let kernel_cache = Some(folder.to_owned());
    let options =
        CudaOptions { ordinal: 0, numerics: Numerics::F32, memory_bytes: None, kernel_cache, library_gemm: None };
    drop(CudaBackend::new(options).unwrap());
    control.count(Count::Assembled) as usize
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

#[test]
fn the_second_start_assembles_nothing() {
    let (_alone, control) = super::device();
    let (_above, folder) = folder();
    assert_eq!(start(control, &folder), ALL);
    let made = files(&folder);
    assert_eq!(made.len(), ALL);
    assert_eq!(start(control, &folder), 0);
    assert_eq!(files(&folder), made);
    let bytes = made.values().map(Vec::len).sum::<usize>() as u64;
    assert_eq!(kernel_cache_size(&folder).unwrap(), KernelCacheSize { files: ALL, bytes });
}

#[test]
fn what_is_damaged_or_strange_to_the_driver_is_made_anew() {
    let (_alone, control) = super::device();
    let (_above, folder) = folder();
    start(control, &folder);
    let made = files(&folder);
    let paths: Vec<&PathBuf> = made.keys().collect();
    let damaged = |path: &PathBuf| {
        let mut bytes = made[path].clone();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    let strange = |path: &PathBuf| {
        let image = String::from_utf8(made[path][HEADER..].to_vec()).unwrap().replacen("sm_86", "sm_90", 1);
        let key = hex::decode(path.file_stem().unwrap().to_str().unwrap()).unwrap();
        let digest = Sha256::new().chain_update(key).chain_update(&image).finalize();
        [&made[path][..HEADER - 32], &digest[..], image.as_bytes()].concat()
    };
    fs::write(paths[0], damaged(paths[0])).unwrap();
    fs::write(paths[1], &made[paths[1]][..100]).unwrap();
    fs::write(paths[2], "").unwrap();
    fs::write(paths[3], &made[paths[4]]).unwrap();
    fs::write(paths[5], strange(paths[5])).unwrap();
    assert_eq!(start(control, &folder), 5);
    assert!(control.last_error().contains("an image for sm_90"), "{}", control.last_error());
    assert_eq!(files(&folder), made);
    assert_eq!(start(control, &folder), 0);
}

#[test]
fn another_driver_assembles_for_itself() {
    let (_alone, control) = super::device();
    let (_above, folder) = folder();
    assert_eq!(start(control, &folder), ALL);
    control.set_driver_version(12030);
    assert_eq!((start(control, &folder), start(control, &folder)), (ALL, 0));
    control.set_driver_version(12020);
    assert_eq!(start(control, &folder), 0);
    assert_eq!(files(&folder).len(), 2 * ALL);
}

#[test]
fn a_folder_that_cannot_be_written_costs_the_time_to_assemble() {
    let (_alone, control) = super::device();
    let (above, folder) = folder();
    let file = above.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(start(control, &file.join("kernels")), ALL);
    // Rights do not bind every user that tests run as; a folder in the place of a file does.
    start(control, &folder);
    for path in files(&folder).into_keys() {
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
    }
    assert_eq!(start(control, &folder), ALL);
    assert!(fs::read_dir(&folder).unwrap().all(|entry| entry.unwrap().path().is_dir()), "nothing is left half written");
}

#[test]
fn what_others_could_have_written_is_not_read() {
    let (_alone, control) = super::device();
    let (_above, folder) = folder();
    start(control, &folder);
    let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let one = files(&folder).into_keys().next().unwrap();
    set_mode(&one, 0o622);
    assert_eq!(start(control, &folder), 1);
    assert_eq!(fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o600);
    set_mode(&folder, 0o733);
    assert_eq!(start(control, &folder), ALL);
}
