use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;

use super::manifest::file_name;
use super::*;
use crate::adapters::DiskFault;
use crate::adapters::files::{StoreLimits, version_of};
use crate::adapters::fs::{DiskFs, StoreFs};
use crate::adapters::testing::{EACCES, EIO, EMFILE, ENOSPC, EROFS, Fault, FaultyFs, contents, tree};
use crate::adapters::{CHAT_TEMPLATE_FILE, CONFIG_FILE, StoredFile, TOKENIZER_FILE, WEIGHTS_FILE};
use crate::types::Sha256Digest;

fn name(text: &str) -> AdapterName {
    text.parse().unwrap()
}

fn adapter(text: &str, seed: u8) -> StoredAdapter {
    let file = |(path, content): &(&str, Vec<u8>)| StoredFile {
        path: (*path).to_owned(),
        size: content.len() as u64,
        sha256: Sha256Digest::of(content),
    };
    let files: Vec<_> = contents(seed).iter().map(file).collect();
    let version = version_of(&files);
    StoredAdapter { name: name(text), version, files, created_ms: 1, pinned: false, compiled: None }
}

/// As the registry has it.
fn joined((store, report): (FolderStore, RecoveryReport)) -> (AdapterStore, RecoveryReport) {
    (store.into(), report)
}

/// A week and a day later.
fn later(root: &TempDir) -> (AdapterStore, RecoveryReport) {
    let mut options = StoreOptions::new(StoreLimits::default());
    options.now_ms += 8 * 24 * 3600 * 1000;
    joined(FolderStore::open_with(root.path(), &options, Arc::new(DiskFs)).unwrap())
}

fn open_on(root: &TempDir, fs: &FaultyFs) -> Result<(AdapterStore, RecoveryReport), AdapterError> {
    FolderStore::open_with(root.path(), &StoreOptions::new(StoreLimits::default()), Arc::new(fs.clone())).map(joined)
}

fn refusing() -> StoreOptions {
    StoreOptions { errors: OnStoreError::Refuse, ..StoreOptions::new(StoreLimits::default()) }
}

fn manifest_of(root: &TempDir, text: &str) -> PathBuf {
    root.path().join("names").join(file_name(&name(text)))
}

fn object_of(root: &TempDir, seed: u8) -> PathBuf {
    root.path().join("objects").join(adapter("x", seed).version.to_string())
}

/// A staged upload, as `uploads` leaves it: files and folder synced.
fn stage(store: &AdapterStore, fs: &dyn StoreFs, seed: u8) -> Result<PathBuf, AdapterError> {
    let io = AdapterError::io;
    let dir = store.objects.staging().join(format!("test-{seed}"));
    fs.create_dir(&dir).map_err(io("test"))?;
    for (path, content) in contents(seed) {
        let mut file = fs.create_file(&dir.join(path)).map_err(io("test"))?;
        file.append(&content).map_err(io("test"))?;
        file.sync().map_err(io("test"))?;
    }
    fs.sync_dir(&dir).map_err(io("test"))?;
    Ok(dir)
}

fn put_on(store: &AdapterStore, fs: &dyn StoreFs, text: &str, seed: u8) -> Result<Bound, AdapterError> {
    let dir = stage(store, fs, seed)?;
    let result = store.publish(&dir, adapter(text, seed), Expected::Any);
    drop(fs.remove_dir_all(&dir));
    result
}

fn put(store: &AdapterStore, text: &str, seed: u8) -> Bound {
    put_on(store, &DiskFs, text, seed).unwrap()
}

fn open(root: &TempDir) -> (AdapterStore, RecoveryReport) {
    joined(FolderStore::open(root.path(), StoreLimits::default()).unwrap())
}

fn two_adapters() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = open(&root);
    put(&store, "a", 1);
    put(&store, "b", 2);
    root
}

fn assert_holds(store: &AdapterStore, text: &str, seed: u8) {
    assert_eq!(store.names.get(&name(text)).unwrap().version, adapter(text, seed).version);
    let bytes = store.objects.read(adapter(text, seed).version).unwrap();
    let expected = contents(seed);
    assert!(bytes.config == expected[0].1 && bytes.weights == expected[1].1);
    let template = store.objects.read_optional(adapter(text, seed).version, CHAT_TEMPLATE_FILE).unwrap();
    assert_eq!(template.as_ref(), expected.get(2).map(|(_, template)| template));
}

#[test]
fn adapters_are_there_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = open(&root);
    assert_eq!(put(&store, "a", 1).previous, None);
    assert_eq!(put(&store, "b", 1).previous, None);
    assert_eq!(put(&store, "a", 2).previous, Some(adapter("a", 1).version));
    store.names.set_pinned(&name("b"), true).unwrap();
    let before = store.names.list();
    drop(store);
    let (store, report) = open(&root);
    assert_eq!(report, RecoveryReport { adapters: 2, ..RecoveryReport::default() });
    assert_eq!(store.names.list(), before);
    assert!(store.names.get(&name("b")).unwrap().pinned);
    assert_holds(&store, "a", 2);
    assert_holds(&store, "b", 1);
}

#[test]
fn a_second_process_is_refused_until_the_first_ends() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = open(&root);
    let second = FolderStore::open(root.path(), StoreLimits::default());
    assert!(matches!(second, Err(AdapterError::StoreLocked { .. })));
    drop(store);
    open(&root);
}

#[test]
fn the_lock_holds_whatever_becomes_of_its_file() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = open(&root);
    let second = || FolderStore::open(root.path(), StoreLimits::default()).err();
    let lock = root.path().join("LOCK");
    fs::remove_file(&lock).unwrap();
    assert!(matches!(second(), Some(AdapterError::StoreLocked { .. })), "removed");
    fs::write(&lock, b"").unwrap();
    assert!(matches!(second(), Some(AdapterError::StoreLocked { .. })), "replaced");
    drop(store);
    fs::remove_file(&lock).unwrap();
    crate::files::testing::fifo(&lock);
    assert!(matches!(second(), Some(AdapterError::NotALock { .. })), "a FIFO is refused at once");
    fs::remove_file(&lock).unwrap();
    // A version that knows only the file keeps us out, too.
    let old = fs::File::create(&lock).unwrap();
    old.try_lock().unwrap();
    assert!(matches!(second(), Some(AdapterError::StoreLocked { .. })), "locked by an earlier version");
    drop(old);
    assert!(second().is_none());
}

#[test]
fn everything_in_a_store_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("store");
    let loose = || {
        let mut found = vec![root.clone()];
        let mut at = 0;
        while at < found.len() {
            if found[at].is_dir() {
                found.extend(fs::read_dir(&found[at]).unwrap().map(|entry| entry.unwrap().path()));
            }
            at += 1;
        }
        found.retain(|path| fs::metadata(path).unwrap().permissions().mode() & 0o077 != 0);
        found
    };
    let (store, _) = joined(FolderStore::open(&root, StoreLimits::default()).unwrap());
    put(&store, "a", 1);
    assert_eq!(loose(), Vec::<PathBuf>::new());
    drop(store);
    // As an earlier version left it.
    let object = root.join("objects").join(adapter("a", 1).version.to_string());
    for path in [root.join("names"), object.clone()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for path in [root.join("names").join(file_name(&name("a"))), object.join(WEIGHTS_FILE)] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    drop(FolderStore::open(&root, StoreLimits::default()).unwrap());
    assert_eq!(loose(), Vec::<PathBuf>::new());
}

#[test]
fn a_name_never_becomes_part_of_a_path() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = open(&root);
    put(&store, "con.nul-secret", 1);
    let found = tree(root.path());
    assert!(found.keys().all(|path| !path.to_string_lossy().contains("secret")), "{found:?}");
}

#[test]
fn publishing_the_same_content_again_heals_damage() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = open(&root);
    put(&store, "a", 1);
    let version = adapter("a", 1).version;
    let weights = root.path().join("objects").join(version.to_string()).join(WEIGHTS_FILE);
    let mut damaged = contents(1)[1].1.clone();
    damaged[500] ^= 1;
    fs::write(&weights, damaged).unwrap();
    assert!(matches!(store.objects.read(version), Err(AdapterError::Corrupt { path, .. }) if path == WEIGHTS_FILE));
    put(&store, "a", 1);
    assert_holds(&store, "a", 1);
}

#[test]
fn an_object_goes_only_without_a_name() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = open(&root);
    put(&store, "a", 1);
    let version = adapter("a", 1).version;
    assert!(!store.remove_object(version).unwrap());
    let gone = store.names.unbind(&name("a"), Expected::Version(version)).unwrap();
    assert_eq!(gone.version, version);
    store.objects.read(version).unwrap();
    assert!(store.remove_object(version).unwrap());
    assert!(!store.remove_object(version).unwrap());
    assert!(matches!(store.objects.read(version), Err(AdapterError::UnknownVersion { .. })));
    assert!(matches!(store.names.unbind(&name("a"), Expected::Any), Err(AdapterError::NotFound { .. })));
    assert_eq!(tree(root.path()).len(), 1, "only LOCK is left");
}

#[test]
fn quotas_of_names_and_bytes_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let bytes = adapter("a", 1).bytes();
    let limits = StoreLimits { max_adapters: 2, max_store_bytes: bytes, ..StoreLimits::default() };
    let (store, _) = joined(FolderStore::open(root.path(), limits).unwrap());
    put(&store, "a", 1);
    put(&store, "b", 1);
    let result = put_on(&store, &DiskFs, "c", 1);
    assert!(matches!(result, Err(AdapterError::TooManyAdapters { count: 2, max: 2 })));
    let result = put_on(&store, &DiskFs, "a", 2);
    assert!(matches!(result, Err(AdapterError::StoreFull { used, .. }) if used == bytes));
}

#[test]
fn the_bytes_of_objects_are_those_that_lie_there() {
    let root = tempfile::tempdir().unwrap();
    let on_disk = || -> u64 {
        let files = tree(&root.path().join("objects")).into_iter();
        files.map(|(_, content)| content.len() as u64).sum()
    };
    let opened = || FolderStore::open(root.path(), StoreLimits::default()).unwrap().0;
    let store = opened();
    let objects = Arc::clone(&store.objects);
    let store = AdapterStore::from(store);
    let sum = |seeds: &[u8]| seeds.iter().map(|seed| adapter("x", *seed).bytes()).sum::<u64>();
    for (text, seed, there) in [("a", 1, &[1][..]), ("b", 1, &[1]), ("a", 2, &[1, 2]), ("a", 2, &[1, 2])] {
        put(&store, text, seed);
        assert_eq!((objects.bytes(), on_disk()), (sum(there), sum(there)));
    }
    store.names.unbind(&name("b"), Expected::Any).unwrap();
    assert!(store.remove_object(adapter("b", 1).version).unwrap());
    assert!(!store.remove_object(adapter("b", 1).version).unwrap());
    assert_eq!((objects.bytes(), on_disk()), (sum(&[2]), sum(&[2])));
    store.names.unbind(&name("a"), Expected::Any).unwrap();
    drop((store, objects));
    let again = opened();
    assert_eq!(again.objects.bytes(), sum(&[2]), "without a name, and there");
    put(&again.into(), "c", 2);
    assert_eq!(opened().objects.bytes(), sum(&[2]));
    fs::remove_dir_all(object_of(&root, 2)).unwrap();
    assert_eq!(opened().objects.bytes(), 0, "a name does not bring its files back");
}

type Damage = fn(&Path, &Path);

/// What can be wrong with adapter `a` (manifest, object); adapter `b` is intact throughout.
const DAMAGE: [(&str, Damage); 8] = [
    ("manifest truncated", |manifest, _| fs::write(manifest, &fs::read(manifest).unwrap()[..40]).unwrap()),
    ("manifest empty", |manifest, _| fs::write(manifest, b"").unwrap()),
    ("manifest huge", |manifest, _| fs::write(manifest, vec![b' '; 1 << 20]).unwrap()),
    ("manifest is a folder", |manifest, _| {
        fs::remove_file(manifest).unwrap();
        fs::create_dir(manifest).unwrap();
    }),
    ("manifest is a symlink", |manifest, _| {
        let moved = manifest.with_file_name("../moved");
        fs::rename(manifest, &moved).unwrap();
        std::os::unix::fs::symlink(moved, manifest).unwrap();
    }),
    ("object is a symlink", |_, object| {
        let moved = object.with_file_name("../moved");
        fs::rename(object, &moved).unwrap();
        std::os::unix::fs::symlink(moved, object).unwrap();
    }),
    ("weights truncated", |_, object| fs::write(object.join(WEIGHTS_FILE), b"x").unwrap()),
    ("weights are a symlink", |_, object| {
        fs::remove_file(object.join(WEIGHTS_FILE)).unwrap();
        std::os::unix::fs::symlink("/dev/zero", object.join(WEIGHTS_FILE)).unwrap();
    }),
];

#[test]
fn damage_is_put_aside_and_the_rest_is_served() {
    for (what, damage) in DAMAGE {
        let root = tempfile::tempdir().unwrap();
        let (store, _) = open(&root);
        put(&store, "a", 1);
        put(&store, "b", 2);
        drop(store);
        let manifest = root.path().join("names").join(file_name(&name("a")));
        let object = root.path().join("objects").join(adapter("a", 1).version.to_string());
        damage(&manifest, &object);
        let (store, report) = open(&root);
        assert!(!report.quarantined.is_empty(), "{what}");
        // A name whose manifest is intact stays known, and says that its files are gone.
        if let Some(found) = store.names.get(&name("a")) {
            assert!(matches!(store.objects.read(found.version), Err(AdapterError::FilesMissing { .. })), "{what}");
        }
        assert_holds(&store, "b", 2);
        put(&store, "a", 1);
        assert_holds(&store, "a", 1);
        drop(store);
        let (_, report) = open(&root);
        assert_eq!((report.adapters, report.quarantined), (2, vec![]), "{what}: the second start is clean");
    }
}

#[test]
fn foreign_entries_are_put_aside_and_leftovers_removed() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = open(&root);
    put(&store, "a", 1);
    let orphan = stage(&store, &DiskFs, 9).unwrap();
    drop(store);
    fs::rename(orphan, root.path().join("objects").join(adapter("x", 9).version.to_string())).unwrap();
    fs::create_dir(root.path().join("staging/upload-3")).unwrap();
    fs::write(root.path().join("names/half.json.tmp"), b"{").unwrap();
    let (store, report) = open(&root);
    assert_eq!((report.removed_objects, report.removed_uploads, report.quarantined.len()), (0, 1, 0));
    assert_eq!(report.nameless, 1, "it may have lost its name a moment ago");
    drop(store);
    let (store, report) = later(&root);
    assert_eq!((report.removed_objects, report.nameless), (1, 0));
    drop(store);
    fs::write(root.path().join("names/notes.txt"), b"hello").unwrap();
    std::os::unix::fs::symlink("/etc", root.path().join("objects/etc")).unwrap();
    let (store, report) = open(&root);
    assert_eq!((report.adapters, report.quarantined.len()), (1, 2));
    assert_holds(&store, "a", 1);
    assert!(Path::new("/etc").is_dir());
}

#[test]
fn an_object_is_kept_while_its_name_may_be_a_damaged_one() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = open(&root);
    put(&store, "a", 1);
    put(&store, "b", 1);
    drop(store);
    fs::write(manifest_of(&root, "a"), b"{}").unwrap();
    for _ in 0..3 {
        let (store, report) = later(&root);
        assert_eq!((report.removed_objects, report.adapters), (0, 1));
        assert_holds(&store, "b", 1);
    }
    let (store, _) = open(&root);
    store.names.unbind(&name("b"), Expected::Any).unwrap();
    assert!(!store.remove_object(adapter("b", 1).version).unwrap(), "the damaged name may be bound to it, too");
    assert!(object_of(&root, 1).is_dir());
}

#[test]
fn a_folder_of_the_store_that_is_a_symlink_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), root.path().join("objects")).unwrap();
    let result = FolderStore::open(root.path(), StoreLimits::default());
    assert!(matches!(result, Err(AdapterError::NotAFolder { .. })));
}

/// One life of a server that crashes at change `at` of the script; returns what was acknowledged and how many changes
/// there were.
fn live_and_crash(root: &TempDir, fault: Fault, at: usize) -> (Vec<bool>, usize) {
    let fs = FaultyFs::new(Fault::None, 0);
    let (store, _) = open_on(root, &fs).unwrap();
    put_on(&store, &fs, "old", 1).unwrap();
    put_on(&store, &fs, "gone", 2).unwrap();
    let before = fs.changes();
    fs.arm(fault, at);
    let acknowledged = vec![
        put_on(&store, &fs, "new", 3).is_ok(),
        put_on(&store, &fs, "old", 4).is_ok(),
        store.names.unbind(&name("gone"), Expected::Any).is_ok(),
        store.remove_object(adapter("gone", 2).version).is_ok_and(|removed| removed),
        store.names.set_pinned(&name("new"), true).is_ok(),
    ];
    drop(store);
    fs.reboot();
    (acknowledged, fs.changes() - before)
}

#[test]
fn a_crash_at_any_change_loses_nothing_acknowledged_and_shows_nothing_half_done() {
    for fault in [Fault::Kill, Fault::PowerLoss] {
        let root = tempfile::tempdir().unwrap();
        let (acknowledged, changes) = live_and_crash(&root, fault, usize::MAX);
        assert!(acknowledged.iter().all(|ok| *ok) && changes > 30, "{acknowledged:?} {changes}");
        for at in 0..changes {
            let root = tempfile::tempdir().unwrap();
            let (acknowledged, _) = live_and_crash(&root, fault, at);
            let case = format!("{fault:?} at change {at}, acknowledged {acknowledged:?}");
            let (store, report) = open(&root);
            assert_eq!(report.quarantined, vec![], "{case}");
            for stored in store.names.list() {
                store.objects.read(stored.version).unwrap_or_else(|error| panic!("{case}: {error}"));
                let template = store.objects.read_optional(stored.version, CHAT_TEMPLATE_FILE);
                template.unwrap_or_else(|error| panic!("{case}: {error}"));
            }
            let version = |text: &str| store.names.get(&name(text)).map(|stored| stored.version);
            let (old, replaced) = (adapter("old", 1).version, adapter("old", 4).version);
            let names = [version("new"), version("old"), version("gone")];
            // Without an acknowledgement either outcome may be found, but only whole.
            assert!(names[0] == Some(adapter("new", 3).version) || !acknowledged[0], "{case}");
            assert!(names[1] == Some(replaced) || (!acknowledged[1] && names[1] == Some(old)), "{case}");
            assert!(names[2].is_none() || !acknowledged[2], "{case}");
            let pinned = store.names.get(&name("new")).is_some_and(|stored| stored.pinned);
            assert!(pinned || !acknowledged[4], "{case}");
            drop(store);
            drop(later(&root));
            let objects = fs::read_dir(root.path().join("objects")).unwrap().count();
            assert_eq!(objects, names.iter().flatten().count(), "{case}: no orphans");
            assert_eq!(fs::read_dir(root.path().join("staging")).unwrap().count(), 0, "{case}");
        }
    }
}

#[test]
fn a_failing_disk_is_reported_and_the_next_attempt_works() {
    for (number, fault) in [(ENOSPC, DiskFault::Full), (EIO, DiskFault::Device), (EROFS, DiskFault::ReadOnly)] {
        for at in 0.. {
            let root = tempfile::tempdir().unwrap();
            let fs = FaultyFs::new(Fault::None, 0);
            let (store, _) = open_on(&root, &fs).unwrap();
            put_on(&store, &fs, "a", 1).unwrap();
            let dir = stage(&store, &fs, 2).unwrap();
            fs.arm(Fault::ChangeErrno { number, times: 1 }, at);
            let changes = fs.changes();
            let result = store.publish(&dir, adapter("a", 2), Expected::Any);
            if result.is_ok() {
                assert!(at >= fs.changes() - changes && at > 5, "every change was made to fail");
                break;
            }
            assert!(matches!(&result, Err(AdapterError::Io { fault: found, .. }) if *found == fault), "{result:?}");
            // Whatever is visible is whole.
            store.objects.read(store.names.get(&name("a")).unwrap().version).unwrap();
            drop(fs::remove_dir_all(&dir));
            put_on(&store, &fs, "a", 2).unwrap();
            assert_holds(&store, "a", 2);
            drop(store);
            assert_holds(&open(&root).0, "a", 2);
        }
    }
}

#[test]
fn reading_checks_that_files_are_regular_and_of_the_right_size() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = open(&root);
    put(&store, "a", 1);
    let version = adapter("a", 1).version;
    let config = root.path().join("objects").join(version.to_string()).join(CONFIG_FILE);
    fs::write(&config, vec![b'x'; 1 << 20]).unwrap();
    assert!(matches!(store.objects.read(version), Err(AdapterError::Corrupt { .. })));
    fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &config).unwrap();
    assert!(matches!(store.objects.read(version), Err(AdapterError::Corrupt { .. })));
    fs::remove_file(&config).unwrap();
    assert!(matches!(store.objects.read(version), Err(AdapterError::Corrupt { .. })));
}

mod faults;
mod mending;
