//! Check and repair.

use super::*;

fn idle(root: &TempDir) -> IdleStore {
    IdleStore::open(root.path(), Arc::new(DiskFs)).unwrap()
}

fn problems(root: &TempDir) -> Vec<String> {
    idle(root).check().unwrap().problems.into_iter().map(|problem| problem.entry).collect()
}

fn wish(bind: &[(&str, u8)], remove: &[&str]) -> RepairWishes {
    RepairWishes {
        bind: bind.iter().map(|(text, seed)| (name(text), adapter(text, *seed).version)).collect(),
        remove: remove.iter().map(|entry| (*entry).to_owned()).collect(),
    }
}

/// Plan, see that planning changes nothing, carry out.
fn repair(root: &TempDir, wishes: &RepairWishes) -> Vec<Mend> {
    let store = idle(root);
    let before = tree(root.path());
    let mends = store.plan(wishes, 7).unwrap();
    assert_eq!(tree(root.path()), before, "a plan changes nothing");
    store.carry_out(&mends).unwrap();
    mends
}

fn quarantine(root: &TempDir, path: &Path, number: u32) {
    let label = path.file_name().unwrap().to_string_lossy();
    fs::rename(path, root.path().join("quarantine").join(format!("{number}-{label}"))).unwrap();
}

#[test]
fn a_clean_store_is_found_clean_and_left_alone() {
    let root = two_adapters();
    let before = tree(root.path());
    let check = idle(&root).check().unwrap();
    assert_eq!((check.names.len(), check.problems.len(), check.nameless.len()), (2, 0, 0));
    assert!(check.names.iter().all(|name| name.flaw.is_none()));
    assert_eq!(repair(&root, &RepairWishes::default()), vec![]);
    assert_eq!(tree(root.path()), before);
}

#[test]
fn a_store_in_use_is_not_looked_after() {
    let root = two_adapters();
    let (_serving, _) = open(&root);
    let refused = IdleStore::open(root.path(), Arc::new(DiskFs)).err();
    assert!(matches!(refused, Some(AdapterError::StoreLocked { .. })));
}

#[test]
fn one_changed_byte_is_found() {
    let root = two_adapters();
    let weights = object_of(&root, 1).join(WEIGHTS_FILE);
    let mut bytes = fs::read(&weights).unwrap();
    bytes[500] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let check = idle(&root).check().unwrap();
    assert!(matches!(check.names[0].flaw, Some(Flaw::Damaged(_))) && check.names[1].flaw.is_none());
    assert_eq!(check.problems.len(), 1);
    // Set aside, the name says that its files are gone, and an upload heals it.
    repair(&root, &RepairWishes::default());
    let (store, _) = open(&root);
    assert!(matches!(store.objects.read(adapter("a", 1).version), Err(AdapterError::FilesMissing { .. })));
    put(&store, "a", 1);
    assert_holds(&store, "a", 1);
    drop(store);
    assert_eq!(problems(&root), Vec::<String>::new(), "what lies in quarantine has been superseded");
}

#[test]
fn a_chat_template_is_verified_as_the_other_files_are() {
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 3] = [
        ("changed", |template| fs::write(template, fs::read(template).unwrap().to_ascii_uppercase()).unwrap()),
        ("a folder", |template| {
            fs::remove_file(template).unwrap();
            fs::create_dir(template).unwrap();
        }),
        ("gone", |template| fs::remove_file(template).unwrap()),
    ];
    for (what, damage) in damage {
        let root = two_adapters();
        damage(&object_of(&root, 2).join(CHAT_TEMPLATE_FILE));
        let check = idle(&root).check().unwrap();
        assert!(check.names[0].flaw.is_none() && check.names[1].flaw.is_some(), "{what}");
        let (store, _) = open(&root);
        assert!(store.objects.read_optional(adapter("b", 2).version, CHAT_TEMPLATE_FILE).is_err(), "{what}");
        drop(store);
        repair(&root, &RepairWishes::default());
        let (store, _) = open(&root);
        put(&store, "b", 2);
        assert_holds(&store, "b", 2);
        drop(store);
        assert_eq!(problems(&root), Vec::<String>::new(), "{what}");
    }
}

#[test]
fn a_chat_template_or_tokens_beside_an_adapter_that_has_none_are_no_part_of_it() {
    let root = two_adapters();
    for stray in [CHAT_TEMPLATE_FILE, TOKENIZER_FILE] {
        fs::write(object_of(&root, 1).join(stray), b"stray").unwrap();
    }
    fs::write(object_of(&root, 2).join(TOKENIZER_FILE), b"stray").unwrap();
    assert_eq!(problems(&root), Vec::<String>::new());
    let (store, _) = open(&root);
    assert_holds(&store, "a", 1);
    assert_holds(&store, "b", 2);
    // One that has lost its name gets it back without the stray files.
    drop(store);
    fs::remove_file(manifest_of(&root, "a")).unwrap();
    repair(&root, &wish(&[("c", 1)], &[]));
    assert_holds(&open(&root).0, "c", 1);
}

#[test]
fn a_lost_name_comes_back_with_its_chat_template() {
    let root = two_adapters();
    fs::remove_file(manifest_of(&root, "b")).unwrap();
    repair(&root, &wish(&[("c", 2)], &[]));
    assert_holds(&open(&root).0, "c", 2);
}

#[test]
fn what_was_put_aside_though_intact_is_put_back() {
    let root = two_adapters();
    quarantine(&root, &manifest_of(&root, "a"), 1);
    quarantine(&root, &object_of(&root, 1), 2);
    quarantine(&root, &object_of(&root, 2), 3);
    assert_eq!(problems(&root).len(), 4, "three in quarantine, and b has no files");
    repair(&root, &RepairWishes::default());
    assert_eq!(problems(&root), Vec::<String>::new());
    let (store, report) = open(&root);
    assert_eq!((report.adapters, report.quarantined.len()), (2, 0));
    assert_holds(&store, "a", 1);
    assert_holds(&store, "b", 2);
}

#[test]
fn a_damaged_object_is_replaced_by_an_intact_one() {
    let root = two_adapters();
    let object = object_of(&root, 1);
    quarantine(&root, &object, 1);
    fs::create_dir(&object).unwrap();
    for (path, _) in contents(1) {
        fs::write(object.join(path), b"x").unwrap();
    }
    repair(&root, &RepairWishes::default());
    assert_holds(&open(&root).0, "a", 1);
}

#[test]
fn a_binding_that_proves_itself_is_written_anew() {
    let root = two_adapters();
    for (text, place) in [("a", manifest_of(&root, "a")), ("b", manifest_of(&root, "b"))] {
        let written = fs::read_to_string(&place).unwrap();
        fs::write(&place, written.replacen("\"pinned\":false", "\"pinned\":true", 1)).unwrap();
        assert!(
            text == "a" || {
                quarantine(&root, &place, 1);
                true
            }
        );
    }
    let mends = repair(&root, &RepairWishes::default());
    assert_eq!(mends.iter().filter(|mend| matches!(mend, Mend::Bind(_))).count(), 2, "{mends:?}");
    let (store, _) = open(&root);
    assert_holds(&store, "a", 1);
    assert_holds(&store, "b", 2);
    assert!(!store.names.get(&name("a")).unwrap().pinned);
}

#[test]
fn objects_that_lost_their_names_get_new_ones_or_go_and_nothing_goes_unasked() {
    let root = two_adapters();
    fs::remove_dir_all(root.path().join("names")).unwrap();
    assert_eq!(problems(&root).len(), 3, "the names, and two objects");
    repair(&root, &wish(&[("new", 1)], &[]));
    let (store, _) = open(&root);
    assert_holds(&store, "new", 1);
    drop(store);
    assert!(object_of(&root, 2).is_dir());
    let store = idle(&root);
    let taken = store.plan(&wish(&[("new", 2)], &[]), 7);
    assert!(matches!(taken, Err(RepairError::NameTaken { .. })));
    let bound = store.plan(&wish(&[("other", 1)], &[]), 7);
    assert!(matches!(bound, Err(RepairError::NotNameless { .. })));
    let in_use = format!("objects/{}", adapter("new", 1).version);
    for entry in [in_use.as_str(), "names", "../x", "quarantine/1-x"] {
        assert!(matches!(store.plan(&wish(&[], &[entry]), 7), Err(RepairError::NotRemovable { .. })), "{entry}");
    }
    drop(store);
    repair(&root, &wish(&[], &["nameless"]));
    assert!(!object_of(&root, 2).exists() && object_of(&root, 1).is_dir());
}

#[test]
fn what_is_beyond_repair_stays_until_it_is_named() {
    let root = two_adapters();
    fs::write(manifest_of(&root, "a"), b"{").unwrap();
    repair(&root, &RepairWishes::default());
    let left = problems(&root);
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].starts_with("quarantine/1-"));
    assert!(object_of(&root, 1).is_dir());
    repair(&root, &wish(&[("a", 1)], &[left[0].as_str()]));
    assert_eq!(problems(&root), Vec::<String>::new());
    assert_holds(&open(&root).0, "a", 1);
}

#[test]
fn leftovers_and_loose_rights_are_mended_and_what_cannot_be_read_is_not_touched() {
    use std::os::unix::fs::PermissionsExt;
    let root = two_adapters();
    fs::create_dir(root.path().join("staging/upload-4")).unwrap();
    fs::write(root.path().join("names/x.tmp"), b"{").unwrap();
    fs::set_permissions(manifest_of(&root, "b"), fs::Permissions::from_mode(0o644)).unwrap();
    let disk = FaultyFs::new(Fault::None, 0);
    disk.deny(&manifest_of(&root, "a"), EIO);
    let store = IdleStore::open(root.path(), Arc::new(disk)).unwrap();
    assert_eq!(store.check().unwrap().problems.len(), 2);
    let mends = store.plan(&RepairWishes::default(), 7).unwrap();
    assert_eq!(mends.len(), 3, "{mends:?}");
    store.carry_out(&mends).unwrap();
    drop(store);
    assert_eq!(problems(&root), Vec::<String>::new());
    assert_holds(&open(&root).0, "a", 1);
}
