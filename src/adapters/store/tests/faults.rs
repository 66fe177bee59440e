//! A disk that cannot be read, or lacks a part: nothing that was acknowledged is lost to it.

use proptest::prelude::*;

use super::*;
use crate::adapters::testing::EDQUOT;
use crate::types::BaseDigest;

#[test]
fn one_bad_moment_of_the_disk_is_not_even_noticed() {
    for fault in [Fault::once(EIO), Fault::once(EMFILE), Fault::ShortRead] {
        for at in 0.. {
            let root = two_adapters();
            let fs = FaultyFs::new(Fault::None, 0);
            fs.arm(fault, at);
            let (store, report) = open_on(&root, &fs).unwrap();
            assert_eq!((report.adapters, &report.quarantined, &report.faults), (2, &vec![], &vec![]), "{fault:?} {at}");
            assert_holds(&store, "a", 1);
            assert_holds(&store, "b", 2);
            if fs.operations() <= at {
                assert!(at > 15, "every operation was made to fail");
                break;
            }
        }
    }
}

#[test]
fn a_name_that_cannot_be_read_says_so_until_it_can() {
    for number in [EIO, EMFILE, EACCES] {
        let root = two_adapters();
        let before = tree(root.path());
        let fs = FaultyFs::new(Fault::None, 0);
        fs.deny(&manifest_of(&root, "a"), number);
        let refused = FolderStore::open_with(root.path(), &refusing(), Arc::new(fs.clone())).err();
        assert!(matches!(refused, Some(AdapterError::StoreUnreadable { count: 1, .. })), "{refused:?}");
        let (store, report) = open_on(&root, &fs).unwrap();
        assert_eq!((report.adapters, report.faults.len(), &report.quarantined), (1, 1, &vec![]));
        assert_holds(&store, "b", 2);
        let trouble = |store: &AdapterStore| store.names.trouble(&name("a"));
        assert!(matches!(trouble(&store), Some(AdapterError::Unreadable { .. })));
        assert!(store.names.trouble(&name("c")).is_none());
        // Nothing is decided about it blindly.
        let absent = put_on_expecting(&store, "a", 3, Expected::Absent);
        assert!(matches!(absent, Err(AdapterError::Unreadable { .. })), "{absent:?}");
        assert!(matches!(store.names.unbind(&name("a"), Expected::Any), Err(AdapterError::Unreadable { .. })));
        assert_eq!(store.heal(), vec![]);
        fs.mend();
        assert_eq!(store.heal(), vec![name("a")]);
        assert!(trouble(&store).is_none());
        assert_holds(&store, "a", 1);
        drop(store);
        assert_eq!(tree(root.path()), before, "nothing was moved or removed");
    }
}

fn put_on_expecting(store: &AdapterStore, text: &str, seed: u8, expected: Expected) -> Result<Bound, AdapterError> {
    let dir = stage(store, &DiskFs, seed)?;
    let result = store.publish(&dir, adapter(text, seed), expected);
    drop(fs::remove_dir_all(&dir));
    result
}

#[test]
fn replacing_a_name_that_cannot_be_read_heals_it() {
    let root = two_adapters();
    let fs = FaultyFs::new(Fault::None, 0);
    fs.deny(&manifest_of(&root, "a"), EACCES);
    let (store, _) = open_on(&root, &fs).unwrap();
    fs.mend();
    put(&store, "a", 3);
    assert!(store.names.trouble(&name("a")).is_none());
    drop(store);
    assert_holds(&open(&root).0, "a", 3);
}

#[test]
fn an_object_shared_with_a_name_that_cannot_be_read_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = open(&root);
    put(&store, "a", 1);
    put(&store, "b", 1);
    drop(store);
    let fs = FaultyFs::new(Fault::None, 0);
    fs.deny(&manifest_of(&root, "a"), EIO);
    let (store, _) = open_on(&root, &fs).unwrap();
    store.names.unbind(&name("b"), Expected::Any).unwrap();
    assert!(!store.remove_object(adapter("b", 1).version).unwrap());
    drop(store);
    assert_holds(&open(&root).0, "a", 1);
}

#[test]
fn files_that_cannot_be_read_fail_their_own_adapter_and_heal() {
    let root = two_adapters();
    let fs = FaultyFs::new(Fault::None, 0);
    fs.deny(&object_of(&root, 1), EIO);
    let (store, report) = open_on(&root, &fs).unwrap();
    assert_eq!((report.adapters, report.faults.len(), &report.quarantined), (2, 1, &vec![]));
    let read = store.objects.read(adapter("a", 1).version);
    assert!(matches!(read, Err(AdapterError::Io { fault: DiskFault::Device, .. })), "{read:?}");
    assert_holds(&store, "b", 2);
    fs.mend();
    assert_holds(&store, "a", 1);
}

#[test]
fn missing_names_remove_no_object() {
    let root = two_adapters();
    fs::remove_dir_all(root.path().join("names")).unwrap();
    let before = tree(root.path());
    let refused = FolderStore::open_with(root.path(), &refusing(), Arc::new(DiskFs)).err();
    assert!(matches!(refused, Some(AdapterError::NamesMissing { objects: 2, .. })), "{refused:?}");
    assert_eq!(tree(root.path()), before, "a refusal changes nothing");
    for _ in 0..3 {
        let (store, report) = later(&root);
        assert_eq!((report.adapters, report.nameless, report.removed_objects), (0, 2, 0));
        assert_eq!(report.lost, 2, "told at every start");
        for (seed, removed) in [(1, false), (3, true)] {
            put(&store, "c", seed);
            store.names.unbind(&name("c"), Expected::Any).unwrap();
            assert_eq!(store.remove_object(adapter("c", seed).version).unwrap(), removed);
        }
    }
    assert!(object_of(&root, 1).is_dir() && object_of(&root, 2).is_dir());
}

#[test]
fn missing_files_leave_the_name_and_heal_when_they_are_restored() {
    let root = two_adapters();
    let (object, away) = (object_of(&root, 1), root.path().join("away"));
    fs::rename(&object, &away).unwrap();
    let (store, report) = open(&root);
    assert_eq!((report.adapters, report.faults.len(), &report.quarantined), (2, 1, &vec![]));
    assert!(matches!(store.objects.read(adapter("a", 1).version), Err(AdapterError::FilesMissing { .. })));
    fs::rename(&away, &object).unwrap();
    assert_holds(&store, "a", 1);
    drop(store);
    fs::rename(root.path().join("objects"), &away).unwrap();
    assert_eq!(open(&root).1.adapters, 2);
    fs::remove_dir(root.path().join("objects")).unwrap();
    fs::rename(&away, root.path().join("objects")).unwrap();
    assert_holds(&open(&root).0, "a", 1);
}

#[test]
fn hard_links_and_files_of_others_are_no_damage() {
    let root = two_adapters();
    fs::hard_link(object_of(&root, 1).join(WEIGHTS_FILE), root.path().join("snapshot")).unwrap();
    fs::hard_link(manifest_of(&root, "b"), root.path().join("snapshot-of-b")).unwrap();
    fs::write(object_of(&root, 2).join(".nfs0001"), b"x").unwrap();
    let (store, report) = open(&root);
    assert_eq!((report.adapters, &report.quarantined), (2, &vec![]));
    assert_holds(&store, "a", 1);
    assert_holds(&store, "b", 2);
}

#[test]
fn a_manifest_of_a_later_version_is_left_alone() {
    let root = two_adapters();
    let manifest = manifest_of(&root, "a");
    let newer = r#"{"format":9,"anything":[]}"#;
    fs::write(&manifest, newer).unwrap();
    for _ in 0..2 {
        let (store, report) = later(&root);
        assert_eq!((report.adapters, report.removed_objects, &report.quarantined), (1, 0, &vec![]));
        assert!(matches!(store.names.trouble(&name("a")), Some(AdapterError::NewerFormat { format: 9, known: 4, .. })));
        assert_eq!(store.heal(), vec![]);
    }
    assert_eq!(fs::read_to_string(&manifest).unwrap(), newer);
    assert!(object_of(&root, 1).is_dir());
}

#[test]
fn a_store_of_the_first_format_is_served_and_rewritten_only_where_it_changes() {
    use super::super::manifest::tests::first_version;
    let root = two_adapters();
    for (text, seed) in [("a", 1), ("b", 2)] {
        fs::write(manifest_of(&root, text), first_version(&adapter(text, seed))).unwrap();
    }
    let before = fs::read(manifest_of(&root, "b")).unwrap();
    let (store, report) = open(&root);
    assert_eq!((report.adapters, &report.quarantined), (2, &vec![]));
    let (one, other) = (BaseDigest([1; 32]), BaseDigest([2; 32]));
    assert_eq!(store.names.adopt(one), one);
    store.names.set_pinned(&name("a"), true).unwrap();
    drop(store);
    assert_eq!(fs::read(manifest_of(&root, "b")).unwrap(), before);
    let (store, _) = open(&root);
    assert_eq!(store.names.adopt(other), one, "the first base has adopted them for good");
    assert!(store.names.get(&name("a")).unwrap().pinned);
    assert_holds(&store, "b", 2);
}

#[test]
fn a_read_only_store_is_served_and_refuses_changes_as_such() {
    let root = two_adapters();
    fs::create_dir(root.path().join("staging/upload-7")).unwrap();
    fs::write(root.path().join("names/x.tmp"), b"{").unwrap();
    let fs = FaultyFs::new(Fault::ChangeErrno { number: EROFS, times: usize::MAX }, 0);
    let (store, report) = open_on(&root, &fs).unwrap();
    assert_eq!((report.adapters, report.undone.len()), (2, 2), "{report:?}");
    assert_holds(&store, "a", 1);
    let result = put_on(&store, &fs, "c", 3);
    assert!(matches!(result, Err(AdapterError::Io { fault: DiskFault::ReadOnly, .. })), "{result:?}");
    fs.mend();
    put(&store, "c", 3);
}

#[test]
fn half_written_manifests_block_nobody() {
    let root = two_adapters();
    let (store, _) = open(&root);
    for number in 0..3 {
        fs::create_dir(root.path().join("names").join(format!("{}.{number}.tmp", file_name(&name("a"))))).unwrap();
    }
    put(&store, "a", 3);
    assert_holds(&store, "a", 3);
    drop(store);
    assert_holds(&open(&root).0, "a", 3);
    assert_eq!(fs::read_dir(root.path().join("names")).unwrap().count(), 2);
}

#[test]
fn a_damaged_record_costs_no_adapter() {
    let root = two_adapters();
    let open = || FolderStore::open(root.path(), StoreLimits::default()).unwrap();
    let (store, _) = open();
    store.names.remember_base("files".into(), BaseDigest([1; 32])).unwrap();
    assert_eq!(store.names.known_base("files"), Some(BaseDigest([1; 32])));
    drop(store);
    fs::write(root.path().join("store.json"), b"{").unwrap();
    let (store, report) = open();
    assert_eq!((report.adapters, report.quarantined.len()), (2, 1));
    assert_eq!(store.names.known_base("files"), None);
    assert_holds(&store.into(), "a", 1);
}

/// What a client asked for.
#[derive(Clone, Debug)]
enum Change {
    Put(u8, u8),
    Delete(u8),
    Pin(u8),
    Restart,
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0u8..3, 1u8..4).prop_map(|(name, seed)| Change::Put(name, seed)),
        2 => (0u8..3).prop_map(Change::Delete),
        1 => (0u8..3).prop_map(Change::Pin),
        1 => Just(Change::Restart),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    let number = prop::sample::select(vec![EIO, EMFILE, EACCES, ENOSPC, EROFS, EDQUOT]);
    let times = prop::sample::select(vec![1usize, 2, 7, usize::MAX]);
    prop_oneof![
        6 => (number, times).prop_map(|(number, times)| Fault::Errno { number, times }),
        1 => Just(Fault::ShortRead),
    ]
}

const NAMES: [&str; 3] = ["a", "b", "c"];

/// What may be found under a name: after an acknowledgement one thing, after a failed call what was or what was asked.
type Possible = Vec<Option<u8>>;

/// One call; its name ends up as `after` if it is acknowledged.
fn call(store: &AdapterStore, disk: &FaultyFs, change: &Change, possible: &mut [Possible; 3]) {
    let (at, result, after) = match change {
        Change::Put(at, seed) => (*at, put_on(store, disk, NAMES[*at as usize], *seed).map(drop), Some(*seed)),
        Change::Delete(at) => {
            let result = store.names.unbind(&name(NAMES[*at as usize]), Expected::Any);
            if let Ok(gone) = &result {
                drop(store.remove_object(gone.version));
            }
            (*at, result.map(drop), None)
        }
        Change::Pin(at) => return drop(store.names.set_pinned(&name(NAMES[*at as usize]), true)),
        Change::Restart => return,
    };
    let possible = &mut possible[at as usize];
    match result {
        Ok(()) => *possible = vec![after],
        Err(AdapterError::NotFound { .. }) => {}
        Err(_) => possible.push(after),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// Whatever fails whenever: once the disk is well again, what was acknowledged is there.
    #[test]
    fn what_was_acknowledged_survives_any_fault(
        script in prop::collection::vec(changes(), 1..12),
        faults in prop::collection::vec((fault(), 0usize..120), 1..4),
    ) {
        let root = tempfile::tempdir().unwrap();
        let disk = FaultyFs::new(Fault::None, 0);
        let mut store = Some(open_on(&root, &disk).unwrap().0);
        let mut possible: [Possible; 3] = std::array::from_fn(|_| vec![None]);
        let mut faults = faults.into_iter();
        for (step, change) in script.iter().enumerate() {
            if step % 3 == 0 && let Some((fault, after)) = faults.next() {
                disk.arm(fault, after);
            }
            if matches!(change, Change::Restart) {
                drop(store.take());
                store = open_on(&root, &disk).ok().map(|(store, _)| store);
            }
            if let Some(store) = &store {
                drop(store.heal());
                call(store, &disk, change, &mut possible);
            }
        }
        drop(store);
        disk.mend();
        for reopen in [open, later, open] {
            let (store, report) = reopen(&root);
            prop_assert_eq!(&report.quarantined, &vec![]);
            prop_assert_eq!(&report.faults, &vec![]);
            for (text, possible) in NAMES.iter().zip(&possible) {
                let found = store.names.get(&name(text)).map(|found| found.version);
                let expected = |seed: &Option<u8>| found == seed.map(|seed| adapter(text, seed).version);
                prop_assert!(possible.iter().any(expected), "{} is {:?}, possible {:?}", text, found, possible);
                if let Some(version) = found {
                    store.objects.read(version).unwrap();
                }
            }
        }
    }
}

#[test]
fn what_the_disk_would_not_let_go_goes_with_the_next() {
    for at in 0.. {
        let root = two_adapters();
        let fs = FaultyFs::new(Fault::None, 0);
        let (store, _) = open_on(&root, &fs).unwrap();
        store.names.unbind(&name("a"), Expected::Any).unwrap();
        store.names.unbind(&name("b"), Expected::Any).unwrap();
        fs.arm(Fault::ChangeErrno { number: EIO, times: 1 }, at);
        let first = store.remove_object(adapter("a", 1).version);
        fs.mend();
        if first.is_ok() {
            assert!(at >= 3, "moving, syncing and removing were made to fail");
            break;
        }
        for version in [adapter("a", 1).version, adapter("b", 2).version] {
            store.remove_object(version).unwrap();
        }
        assert!(tree(root.path()).iter().all(|(path, _)| !path.starts_with("staging/")), "{:?}", tree(root.path()));
        assert!(!object_of(&root, 1).exists() && !object_of(&root, 2).exists());
    }
}
