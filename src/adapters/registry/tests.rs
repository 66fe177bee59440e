use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::adapters::events::AdapterObserver;
use crate::adapters::lease::AdapterLease;
use crate::adapters::residency::{Acquire, AdapterState, Want};
use crate::adapters::store::FolderStore;
use crate::adapters::testing::{contents, facts, header, tree};
use crate::types::AdapterFault;

/// Bytes for adapters on the device.
const ROOM: u64 = 4000;

fn limits() -> RegistryLimits {
    RegistryLimits {
        store: StoreLimits::default(),
        // Until an adapter is compiled its files stand for its size on the device: room for two of `contents`.
        residency: ResidencyLimits { max_resident_adapters: 2, device_bytes: ROOM },
        event_history: 1024,
    }
}

fn open(root: &tempfile::TempDir) -> AdapterRegistry {
    let (store, _) = FolderStore::open(root.path(), StoreLimits::default()).unwrap();
    AdapterRegistry::new(store, limits())
}

/// A week and a day later.
fn later(root: &tempfile::TempDir) -> FolderStore {
    let mut options = crate::adapters::StoreOptions::new(StoreLimits::default());
    options.now_ms += 8 * 24 * 3600 * 1000;
    FolderStore::open_with(root.path(), &options, Arc::new(DiskFs)).unwrap().0
}

fn name(text: &str) -> AdapterName {
    text.parse().unwrap()
}

fn upload_with(
    registry: &AdapterRegistry,
    text: &str,
    seed: u8,
    change: impl FnOnce(&mut UploadHeader),
) -> Result<Published, AdapterError> {
    let files = contents(seed);
    let mut head = header(text, &files, None);
    change(&mut head);
    let mut session = match registry.begin_upload(head, Instant::now())? {
        Begin::Open(session) => session,
        Begin::Finished(published) => return Ok(*published),
    };
    for (index, (_, content)) in files.iter().enumerate() {
        session.write(index, 0, content, Instant::now())?;
    }
    registry.publish(session.finish()?, facts(100), SystemTime::now())
}

fn upload(registry: &AdapterRegistry, text: &str, seed: u8) -> Published {
    upload_with(registry, text, seed, |_| {}).unwrap()
}

fn objects(root: &tempfile::TempDir) -> usize {
    std::fs::read_dir(root.path().join("objects")).unwrap().count()
}

/// Load what `want` asks for, as the hall does.
fn load(want: &Want) -> crate::adapters::ResidentLease {
    match want.poll(Waker::noop()).unwrap() {
        Acquire::Ready(lease) => lease,
        Acquire::Load(ticket) => {
            ticket.begin_install(Arc::new(facts(100))).unwrap().complete();
            load(want)
        }
        Acquire::Pending => panic!("no room"),
    }
}

#[test]
fn an_upload_is_found_by_its_name_and_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root);
    let published = upload(&registry, "a", 1);
    assert!(published.created && published.replaced.is_none());
    let info = registry.get(&name("a")).unwrap();
    assert_eq!(info.stored, published.adapter);
    assert_eq!(info.status.state, AdapterState::Stored);
    assert_eq!(info.status.facts.unwrap().device_bytes, 100);
    drop(registry);
    let registry = open(&root);
    assert_eq!(registry.get(&name("a")).unwrap().stored, published.adapter);
    let lease = registry.lease(&name("a"), Some(published.adapter.version)).unwrap();
    assert_eq!(registry.read(&lease).unwrap().weights, contents(1)[1].1);
}

#[test]
fn replacing_is_a_swap_and_running_requests_keep_their_version() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root);
    let first = upload(&registry, "a", 1).adapter.version;
    let running = registry.lease(&name("a"), None).unwrap();
    let published = upload(&registry, "a", 2);
    assert_eq!((published.created, published.replaced), (false, Some(first)));
    assert_eq!(registry.lease(&name("a"), None).unwrap().version(), published.adapter.version);
    assert_eq!(registry.read(&running).unwrap().weights, contents(1)[1].1);
    let refused = registry.lease(&name("a"), Some(first));
    assert!(matches!(refused, Err(AdapterError::VersionMismatch { .. })));
    assert_eq!(objects(&root), 2);
    drop(running);
    assert_eq!(registry.collect_garbage().unwrap(), 1);
    assert_eq!(objects(&root), 1);
}

#[test]
fn deleting_hides_the_name_at_once_and_the_files_go_with_the_last_lease() {
    struct Count(AtomicUsize);
    impl AdapterObserver for Count {
        fn on_garbage(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root);
    let count = Arc::new(Count(AtomicUsize::new(0)));
    registry.events().observe(count.clone());
    upload(&registry, "a", 1);
    let want = registry.want(&name("a"), None, ClientKey::LOCAL).unwrap();
    let running = load(&want);
    drop(want);
    registry.delete(&name("a"), Expected::Any).unwrap();
    assert!(matches!(registry.lease(&name("a"), None), Err(AdapterError::NotFound { .. })));
    assert!(matches!(registry.delete(&name("a"), Expected::Any), Err(AdapterError::NotFound { .. })));
    assert_eq!((objects(&root), count.0.load(Ordering::SeqCst)), (1, 0));
    assert!(registry.residency().take_removal().is_none(), "still leased");
    drop(running);
    assert_eq!(count.0.load(Ordering::SeqCst), 1, "someone is told to collect");
    registry.residency().take_removal().unwrap().done();
    assert_eq!(registry.collect_garbage().unwrap(), 1);
    assert_eq!((objects(&root), registry.leases()), (0, 0));
    assert_eq!(registry.residency().stats().bytes_used, 0);
}

/// An observer may do anything, even what takes every lock of the room.
#[test]
fn observers_are_called_with_no_lock_held() {
    struct Curious {
        registry: std::sync::OnceLock<std::sync::Weak<AdapterRegistry>>,
        calls: [AtomicUsize; 3],
    }
    impl Curious {
        fn look(&self, kind: usize) {
            let Some(registry) = self.registry.get().and_then(std::sync::Weak::upgrade) else { return };
            assert!(registry.changes.try_lock().is_ok(), "changes");
            assert!(registry.catalog.try_lock().is_ok(), "catalog");
            assert!(!registry.aliases.try_get(&name("a")).is_locked(), "aliases");
            // Each takes a lock, for which it would wait for ever if its holder were the one who calls.
            let _ = (
                registry.residency.stats(),
                registry.leases(),
                registry.store.names.list(),
                registry.events.revision(),
            );
            self.calls[kind].fetch_add(1, Ordering::SeqCst);
        }
    }
    impl AdapterObserver for Curious {
        fn on_event(&self, _: u64) {
            self.look(0);
        }
        fn on_removal(&self) {
            self.look(1);
        }
        fn on_garbage(&self) {
            self.look(2);
        }
    }
    let root = tempfile::tempdir().unwrap();
    let registry = Arc::new(open(&root));
    let calls = Default::default();
    let curious = Arc::new(Curious { registry: std::sync::OnceLock::new(), calls });
    curious.registry.set(Arc::downgrade(&registry)).unwrap();
    registry.events().observe(curious.clone());
    upload(&registry, "a", 1);
    let want = registry.want(&name("a"), None, ClientKey::LOCAL).unwrap();
    let running = load(&want);
    upload(&registry, "a", 2);
    registry.pin(&name("a"), ClientKey::LOCAL).unwrap();
    registry.unload(&name("a")).unwrap();
    drop((want, running));
    registry.residency().take_removal().unwrap().done();
    for _ in 0..3 {
        let mut lease = load(&registry.want(&name("a"), None, ClientKey::LOCAL).unwrap());
        lease.judge(Err(AdapterFault::NonFinite));
    }
    assert!(matches!(registry.want(&name("a"), None, ClientKey::LOCAL), Err(AdapterError::SetAside { faults: 3, .. })));
    registry.reinstate(&name("a")).unwrap();
    registry.delete(&name("a"), Expected::Any).unwrap();
    registry.collect_garbage().unwrap();
    let told = curious.calls.each_ref().map(|calls| calls.load(Ordering::SeqCst) > 0);
    assert_eq!(told, [true; 3], "every kind was called");
}

#[test]
fn an_adapter_that_is_set_aside_is_refused_by_name_until_it_is_loaded_or_uploaded_anew() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root);
    upload(&registry, "a", 1);
    let fail = || {
        for _ in 0..3 {
            let mut lease = load(&registry.want(&name("a"), None, ClientKey::LOCAL).unwrap());
            lease.judge(Err(AdapterFault::StepFailed));
        }
    };
    let refused = || registry.want(&name("a"), None, ClientKey::LOCAL).err();
    fail();
    let Some(error @ AdapterError::SetAside { .. }) = refused() else { panic!("it is set aside") };
    assert!(error.to_string().starts_with("adapter a is set aside: the last 3 requests"), "{error}");
    assert!(registry.get(&name("a")).unwrap().status.last_error.unwrap().contains("set aside"));
    registry.reinstate(&name("a")).unwrap();
    assert!(refused().is_none());
    fail();
    assert!(matches!(refused(), Some(AdapterError::SetAside { .. })));
    upload(&registry, "a", 1);
    assert!(refused().is_none(), "the same bytes, uploaded anew");
    fail();
    upload(&registry, "a", 2);
    assert!(refused().is_none(), "another version");
    upload(&registry, "b", 3);
    assert!(registry.want(&name("b"), None, ClientKey::LOCAL).is_ok(), "and no other adapter");
}

#[test]
fn two_names_share_one_version_and_one_set_of_files() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root);
    upload(&registry, "a", 1);
    upload(&registry, "b", 1);
    assert_eq!(objects(&root), 1);
    registry.delete(&name("a"), Expected::Any).unwrap();
    let lease = registry.lease(&name("b"), None).unwrap();
    registry.read(&lease).unwrap();
    drop(lease);
    registry.delete(&name("b"), Expected::Any).unwrap();
    assert_eq!(objects(&root), 0);
}

#[test]
fn compare_and_set_refuses_before_the_content_and_again_at_publication() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root);
    let first = upload(&registry, "a", 1).adapter.version;
    let head = UploadHeader { expected: Expected::Absent, ..header("a", &contents(2), Some("id")) };
    let early = registry.begin_upload(head, Instant::now());
    assert!(matches!(early, Err(AdapterError::AlreadyExists { actual, .. }) if actual == first));
    assert_eq!(registry.uploads().open(), (0, 0));

    let files = contents(2);
    let head = UploadHeader { expected: Expected::Version(first), ..header("a", &files, None) };
    let Begin::Open(mut session) = registry.begin_upload(head, Instant::now()).unwrap() else { panic!() };
    for (index, (_, content)) in files.iter().enumerate() {
        session.write(index, 0, content, Instant::now()).unwrap();
    }
    let third = upload(&registry, "a", 3).adapter.version;
    let late = registry.publish(session.finish().unwrap(), facts(100), SystemTime::now());
    assert!(matches!(late, Err(AdapterError::VersionMismatch { actual, .. }) if actual == Some(third)));
    assert_eq!(objects(&root), 1);
    let refused = registry.delete(&name("a"), Expected::Version(first));
    assert!(matches!(refused, Err(AdapterError::VersionMismatch { .. })));
    assert!(tree(&root.path().join("staging")).is_empty());
}

#[test]
fn a_repeated_upload_id_gives_the_same_answer() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root);
    let once = |seed| {
        upload_with(&registry, "a", seed, |head| {
            head.upload_id = Some("job-1".parse().unwrap());
            head.expected = Expected::Absent;
        })
    };
    let (first, again) = (once(1).unwrap(), once(1).unwrap());
    assert_eq!(first.adapter, again.adapter);
    assert!(again.created);
    assert!(matches!(once(2), Err(AdapterError::UploadIdReused { .. })));
    let status = registry.upload_status(&"job-1".parse().unwrap()).unwrap();
    assert!(matches!(status, UploadStatus::Finished(published) if published.adapter == first.adapter));
}

#[test]
fn of_many_concurrent_uploads_of_one_name_exactly_one_creates_it() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root);
    let results: Vec<_> = thread::scope(|scope| {
        let upload = |seed| upload_with(&registry, "a", seed, |head| head.expected = Expected::Absent);
        let threads: Vec<_> = (0..16).map(|i| scope.spawn(move || upload(i % 4))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    let exists = |result: &Result<Published, _>| matches!(result, Err(AdapterError::AlreadyExists { .. }));
    assert!(lost.iter().all(exists), "{lost:?}");
    assert_eq!(objects(&root), 1);
    assert_eq!(registry.get(&name("a")).unwrap().stored, won[0].as_ref().unwrap().adapter);
}

#[test]
fn leases_taken_while_the_name_is_replaced_and_deleted_always_find_their_files() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root);
    upload(&registry, "a", 0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..300 {
                    if let Ok(lease) = registry.lease(&name("a"), None) {
                        registry.read(&lease).unwrap();
                    }
                }
            });
        }
        scope.spawn(|| {
            for seed in 1..40 {
                upload(&registry, "a", seed % 3);
                if seed % 5 == 0 {
                    registry.delete(&name("a"), Expected::Any).unwrap();
                }
            }
        });
    });
    registry.collect_garbage().unwrap();
    assert_eq!((registry.leases(), objects(&root)), (0, 1));
}

#[test]
fn a_watcher_sees_the_life_of_a_name_in_order() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root);
    let first = upload(&registry, "a", 1).adapter.version;
    upload(&registry, "a", 1);
    upload(&registry, "a", 2);
    registry.pin(&name("a"), ClientKey::LOCAL).unwrap();
    registry.delete(&name("a"), Expected::Any).unwrap();
    let events = registry.events().since(0).unwrap();
    let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
    let expected = [
        AdapterEventKind::Created,
        AdapterEventKind::Replaced { previous: first },
        AdapterEventKind::Pinned { pinned: true },
        AdapterEventKind::Deleted,
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn pages_go_by_name_and_survive_changes_between_them() {
    let root = tempfile::tempdir().unwrap();
    let registry = open(&root);
    for (seed, text) in ["d", "b", "a", "c"].into_iter().enumerate() {
        upload(&registry, text, seed as u8);
    }
    let names = |page: Vec<AdapterInfo>| page.iter().map(|info| info.stored.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(registry.list(None, 2)), ["a", "b"]);
    registry.delete(&name("b"), Expected::Any).unwrap();
    assert_eq!(names(registry.list(Some(&name("b")), 9)), ["c", "d"]);
    assert_eq!(registry.len(), 3);
}

#[derive(Clone, Debug)]
enum Op {
    Upload { name: usize, seed: u8, absent: bool },
    Delete { name: usize },
    Lease { name: usize },
    Release { index: usize },
    Collect,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..3usize, 0..4u8, any::<bool>()).prop_map(|(name, seed, absent)| Op::Upload { name, seed, absent }),
        2 => (0..3usize).prop_map(|name| Op::Delete { name }),
        4 => (0..3usize).prop_map(|name| Op::Lease { name }),
        3 => (0..8usize).prop_map(|index| Op::Release { index }),
        1 => Just(Op::Collect),
        1 => Just(Op::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a model that is one map from names to seeds and one list of leased seeds.
    #[test]
    fn the_registry_behaves_like_a_map_with_leases(ops in prop::collection::vec(op(), 1..40)) {
        const NAMES: [&str; 3] = ["a", "b", "c"];
        let root = tempfile::tempdir().unwrap();
        let mut registry = open(&root);
        let mut names: BTreeMap<usize, u8> = BTreeMap::new();
        let mut leases: Vec<(u8, AdapterLease)> = Vec::new();
        for op in ops {
            match op {
                Op::Upload { name, seed, absent } => {
                    let expected = if absent { Expected::Absent } else { Expected::Any };
                    let result = upload_with(&registry, NAMES[name], seed, |head| head.expected = expected);
                    prop_assert_eq!(result.is_ok(), !absent || !names.contains_key(&name));
                    if result.is_ok() {
                        names.insert(name, seed);
                    }
                }
                Op::Delete { name: index } => {
                    let result = registry.delete(&name(NAMES[index]), Expected::Any);
                    prop_assert_eq!(result.is_ok(), names.remove(&index).is_some());
                }
                Op::Lease { name: index } => {
                    let result = registry.lease(&name(NAMES[index]), None);
                    prop_assert_eq!(result.is_ok(), names.contains_key(&index));
                    if let Ok(lease) = result {
                        leases.push((names[&index], lease));
                    }
                }
                Op::Release { index } if index < leases.len() => drop(leases.swap_remove(index)),
                Op::Release { .. } => {}
                Op::Collect => drop(registry.collect_garbage().unwrap()),
                Op::Restart => {
                    leases.clear();
                    drop(registry);
                    registry = open(&root);
                }
            }
            prop_assert_eq!(registry.leases(), leases.len());
            for (seed, lease) in &leases {
                prop_assert_eq!(&registry.read(lease).unwrap().weights, &contents(*seed)[1].1);
            }
        }
        leases.clear();
        registry.collect_garbage().unwrap();
        prop_assert_eq!(registry.leases(), 0);
        drop(registry);
        // What a restart found without a name goes when it has had none for a while.
        drop(open(&root));
        drop(later(&root));
        let live: std::collections::BTreeSet<_> = names.values().collect();
        prop_assert_eq!(objects(&root), live.len());
    }
}

mod bases;
mod pins;
