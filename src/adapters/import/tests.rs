use std::os::unix::fs::symlink;

use super::super::testing::contents;
use super::super::{FolderStore, RegistryLimits, ResidencyLimits};
use super::*;

fn folder_of(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, content) in files {
        fs::write(folder.path().join(path), content).unwrap();
    }
    folder
}

fn read(folder: &Path, limits: &StoreLimits) -> Result<ReadAdapter, AdapterError> {
    read_folder(AdapterFolder { dir: folder, chat_template: None, own_tokens: None }, limits).map(|(_, read)| read)
}

#[test]
fn a_link_is_followed_and_what_is_no_file_is_refused_without_waiting() {
    let files = contents(3);
    let (real, folder) = (folder_of(&files), folder_of(&files[..1]));
    let weights = folder.path().join(WEIGHTS_FILE);
    symlink(real.path().join(WEIGHTS_FILE), &weights).unwrap();
    assert_eq!(read(folder.path(), &StoreLimits::default()).unwrap().weights, files[1].1);
    let place: [&dyn Fn(); 3] =
        [&|| crate::files::testing::fifo(&weights), &|| symlink("/dev/zero", &weights).unwrap(), &|| {
            symlink(folder.path(), &weights).unwrap()
        }];
    for put in place {
        fs::remove_file(&weights).unwrap();
        put();
        let refused = read(folder.path(), &StoreLimits::default()).err();
        assert!(matches!(refused, Some(AdapterError::MissingFile { path: WEIGHTS_FILE })), "{refused:?}");
        let scanned = AdapterFolder { dir: folder.path(), chat_template: None, own_tokens: None }.scan();
        assert!(matches!(scanned, Err(AdapterError::MissingFile { path: WEIGHTS_FILE })), "{scanned:?}");
    }
}

#[test]
fn what_is_too_large_is_refused_by_its_size() {
    let folder = folder_of(&contents(3));
    let weights = fs::File::options().write(true).open(folder.path().join(WEIGHTS_FILE)).unwrap();
    // A hole: it takes no room on the disk, and would take an hour to read.
    weights.set_len(1 << 42).unwrap();
    let refused = read(folder.path(), &StoreLimits::default()).err();
    assert!(matches!(refused, Some(AdapterError::FileTooLarge { bytes, .. }) if bytes == 1 << 42), "{refused:?}");
    weights.set_len(1 << 20).unwrap();
    let little = StoreLimits { max_loaded_bytes: 1 << 20, ..StoreLimits::default() };
    assert!(matches!(read(folder.path(), &little), Err(AdapterError::LargerThanMemory { .. })));
    let store = tempfile::tempdir().unwrap();
    let (store, _) = FolderStore::open(store.path(), little.clone()).unwrap();
    let residency = ResidencyLimits { max_resident_adapters: 1, device_bytes: 1 };
    let limits = RegistryLimits { store: little, residency, event_history: 1 };
    let registry = AdapterRegistry::new(store, limits);
    weights.set_len(1 << 42).unwrap();
    let import = |_: &mut Staged| -> Result<AdapterFacts, AdapterError> { panic!("it is not even read") };
    let from = AdapterFolder { dir: folder.path(), chat_template: None, own_tokens: None };
    let refused = registry.import(&"a".parse().unwrap(), from, false, import);
    assert!(matches!(refused, Err(AdapterError::FileTooLarge { .. })), "{refused:?}");
}
