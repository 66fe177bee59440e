//! Adapters of other bases, what is known of those of this one, and names that cannot be read.

use super::*;
use crate::adapters::import::AdapterFolder;
use crate::adapters::{CHAT_TEMPLATE_FILE, TOKENIZER_FILE};
use crate::types::BaseDigest;

fn with_base(root: &tempfile::TempDir, base: u8, weight_bytes: usize) -> AdapterRegistry {
    let registry = open(root);
    registry.serve_base(BaseDigest([base; 32]), weight_bytes);
    registry
}

#[test]
fn what_a_version_compiled_to_is_known_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let registry = with_base(&root, 1, 2);
    let mut files = contents(1);
    files[1].1 = vec![1; 2 * ROOM as usize];
    let Begin::Open(mut session) = registry.begin_upload(header("a", &files, None), Instant::now()).unwrap() else {
        panic!("nothing was finished")
    };
    for (index, (_, content)) in files.iter().enumerate() {
        session.write(index, 0, content, Instant::now()).unwrap();
    }
    registry.publish(session.finish().unwrap(), facts(100), SystemTime::now()).unwrap();
    drop(registry);
    let registry = with_base(&root, 1, 2);
    let info = registry.get(&name("a")).unwrap();
    assert_eq!(info.status.facts.as_deref(), Some(&facts(100)));
    assert_eq!((info.base, info.mismatch.is_none()), (Some(BaseDigest([1; 32])), true));
    let want = registry.want(&name("a"), None, ClientKey::LOCAL).unwrap();
    assert!(
        matches!(want.poll(Waker::noop()), Ok(Acquire::Load(_))),
        "its files are larger than the device, it is not"
    );
    drop(want);
    drop(registry);
    // Numbers of another size: a bound on what it needs, until it is compiled again.
    let registry = with_base(&root, 1, 4);
    let facts = registry.get(&name("a")).unwrap().status.facts.unwrap();
    assert_eq!(facts.device_bytes, 4 * facts.parameters);
}

#[test]
fn an_adapter_of_another_base_is_listed_and_refused_until_it_comes_again() {
    let root = tempfile::tempdir().unwrap();
    let registry = with_base(&root, 1, 2);
    let version = upload(&registry, "a", 1).adapter.version;
    drop(registry);
    let registry = with_base(&root, 2, 2);
    let info = registry.get(&name("a")).unwrap();
    assert!(matches!(info.mismatch.as_deref(), Some(AdapterError::BaseMismatch { .. })));
    assert_eq!(info.status.facts.as_deref(), Some(&facts(100)), "it is listed as what it is");
    for refused in [
        registry.lease(&name("a"), None).err(),
        registry.want(&name("a"), None, ClientKey::LOCAL).err(),
        registry.want(&name("a"), Some(version), ClientKey::LOCAL).err(),
    ] {
        let (one, other) = (BaseDigest([1; 32]), BaseDigest([2; 32]));
        let right = matches!(&refused, Some(AdapterError::BaseMismatch { stored, present, .. })
            if (*stored, *present) == (one, other));
        assert!(right, "{refused:?}");
    }
    // The same bytes, meant for this base.
    assert_eq!(upload(&registry, "a", 1).adapter.version, version);
    assert!(registry.lease(&name("a"), None).is_ok());
    drop(registry);
    assert!(with_base(&root, 2, 2).lease(&name("a"), None).is_ok());
    assert!(with_base(&root, 1, 2).lease(&name("a"), None).is_err());
}

#[test]
fn a_folder_is_imported_once() {
    let (root, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let registry = open(&root);
    let from = |chat_template| AdapterFolder { dir: folder.path(), chat_template, own_tokens: None };
    let import = |pin| {
        registry.import(&name("a"), from(None), pin, |staged| {
            assert!(staged.dir().is_dir() && !staged.has_chat_template());
            Ok::<_, AdapterError>(facts(100))
        })
    };
    assert!(matches!(import(false), Err(AdapterError::MissingFile { .. })));
    for (path, content) in contents(1) {
        std::fs::write(folder.path().join(path), content).unwrap();
    }
    std::fs::write(folder.path().join("optimizer.pt"), b"left alone").unwrap();
    assert!(import(false).unwrap().unwrap().created);
    assert!(import(false).unwrap().is_none());
    assert!(import(true).unwrap().unwrap().adapter.pinned);
    let own = || {
        registry.import(&name("a"), from(Some(b"own")), true, |staged| {
            assert_eq!(staged.chat_template().unwrap().as_deref(), Some(&b"own"[..]));
            Ok::<_, AdapterError>(facts(100))
        })
    };
    assert!(own().unwrap().unwrap().replaced.is_some(), "another template, another version");
    assert!(own().unwrap().is_none());
    assert_eq!(registry.read_chat_template(&registry.lease(&name("a"), None).unwrap()).unwrap(), b"own");
    let speaking = |keep: bool| {
        let from = AdapterFolder { own_tokens: Some(b"tokens"), ..from(Some(b"own")) };
        registry.import(&name("a"), from, true, |staged| {
            assert_eq!(staged.tokenizer()?.tokenizer.as_deref(), Some(&b"tokens"[..]));
            if keep {
                staged.keep_tokenizer(Some(b"tokens"))?;
            }
            Ok::<_, AdapterError>(facts(100))
        })
    };
    assert!(speaking(true).unwrap().unwrap().replaced.is_some(), "other tokens, another version");
    assert!(speaking(true).unwrap().is_none());
    let lease = registry.lease(&name("a"), None).unwrap();
    assert_eq!(registry.read_own_tokens(&lease).unwrap(), b"tokens");
    assert_eq!(registry.read_chat_template(&lease).unwrap(), b"own");
    assert!(own().unwrap().is_some());
    // What nobody says to be kept is not, and leaves nothing behind.
    let dropped = speaking(false).unwrap().unwrap().adapter;
    assert!(dropped.own_tokens().is_none());
    let object = root.path().join("objects").join(dropped.version.to_string());
    assert!(object.join(CHAT_TEMPLATE_FILE).exists() && !object.join(TOKENIZER_FILE).exists());
    assert_eq!(tree(&root.path().join("staging")).len(), 0);
}

#[test]
fn a_folder_is_imported_again_for_another_base() {
    let (root, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (path, content) in contents(1) {
        std::fs::write(folder.path().join(path), content).unwrap();
    }
    let import = |registry: &AdapterRegistry| {
        registry
            .import(
                &name("a"),
                AdapterFolder { dir: folder.path(), chat_template: None, own_tokens: None },
                false,
                |_| Ok::<_, AdapterError>(facts(100)),
            )
            .unwrap()
    };
    assert!(import(&with_base(&root, 1, 2)).is_some());
    assert!(import(&with_base(&root, 1, 2)).is_none());
    let registry = with_base(&root, 2, 2);
    assert!(import(&registry).is_some());
    assert!(registry.lease(&name("a"), None).is_ok());
}

#[test]
fn what_an_early_store_does_not_know_is_learned_at_the_first_load() {
    let root = tempfile::tempdir().unwrap();
    // Without a base nothing is written down of what it compiled to, as in the first format.
    drop(upload(&open(&root), "a", 1));
    let registry = with_base(&root, 1, 2);
    let version = registry.get(&name("a")).unwrap().stored.version;
    assert!(registry.get(&name("a")).unwrap().stored.compiled.is_none());
    registry.learn(version, &Arc::new(facts(100)));
    drop(registry);
    let registry = with_base(&root, 1, 2);
    assert_eq!(registry.get(&name("a")).unwrap().status.facts.as_deref(), Some(&facts(100)));
    drop(registry);
    assert!(with_base(&root, 2, 2).lease(&name("a"), None).is_err(), "the first base adopted it");
}

#[test]
fn a_name_that_cannot_be_read_is_not_taken_for_absent_and_comes_back() {
    use crate::adapters::testing::{EIO, Fault, FaultyFs};
    let root = tempfile::tempdir().unwrap();
    upload(&open(&root), "a", 1);
    let manifest = std::fs::read_dir(root.path().join("names")).unwrap().next().unwrap().unwrap().path();
    let fs = FaultyFs::new(Fault::None, 0);
    fs.deny(&manifest, EIO);
    let options = crate::adapters::StoreOptions::new(StoreLimits::default());
    let (store, _) = FolderStore::open_with(root.path(), &options, Arc::new(fs.clone())).unwrap();
    let registry = AdapterRegistry::new(store, limits());
    for refused in [registry.lease(&name("a"), None).err(), registry.get(&name("a")).err()] {
        assert!(matches!(refused, Some(AdapterError::Unreadable { .. })), "{refused:?}");
    }
    assert!(matches!(registry.lease(&name("b"), None), Err(AdapterError::NotFound { .. })));
    assert_eq!((registry.heal(), registry.unreadable()), (0, 1));
    fs.mend();
    assert_eq!((registry.heal(), registry.unreadable()), (1, 0));
    assert!(registry.lease(&name("a"), None).is_ok());
    let events = registry.events().since(0).unwrap();
    assert_eq!(events.iter().map(|event| event.kind).collect::<Vec<_>>(), [AdapterEventKind::Created]);
}
