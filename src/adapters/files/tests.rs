use super::*;
use crate::adapters::testing::{contents, header};

fn check(change: impl FnOnce(&mut UploadHeader)) -> Result<CheckedHeader, AdapterError> {
    let mut header = header("sql", &contents(1), Some("id-1"));
    change(&mut header);
    header.check(&StoreLimits::default())
}

fn file(path: &str, size: u64) -> FileHeader {
    FileHeader { path: path.into(), size, sha256: "0".repeat(64) }
}

#[test]
fn a_plain_peft_folder_is_accepted_and_companions_do_not_change_its_version() {
    let plain = check(|_| {}).unwrap();
    let full = check(|header| {
        for path in ["README.md", "tokenizer.json", "tokenizer_config.json", "chat_template_old.jinja"] {
            header.files.push(file(path, 0));
        }
        header.files.reverse();
    })
    .unwrap();
    assert_eq!(plain.version, full.version);
    assert_eq!(plain.stored_files(), full.stored_files());
    assert_eq!(full.files.len(), 6);
}

#[test]
fn a_chat_template_is_a_part_of_the_version_unless_it_is_the_bases() {
    let template = |size| file(CHAT_TEMPLATE_FILE, size);
    let plain = check(|_| {}).unwrap();
    let own = check(|header| header.files.insert(0, template(7))).unwrap();
    assert_ne!(own.version, plain.version);
    assert_eq!(own.stored_files().last().map(|file| file.path.as_str()), Some(CHAT_TEMPLATE_FILE));
    let mut header = header("sql", &contents(1), None);
    header.files.push(template(7));
    let bases = StoreLimits { base_chat_templates: vec![Sha256Digest([0; 32])], ..StoreLimits::default() };
    assert_eq!(header.check(&bases).unwrap().version, plain.version, "the same template, the same version");
    let error = check(|header| header.files.push(template(0))).unwrap_err();
    assert!(matches!(error, AdapterError::EmptyFile { ref path } if path == CHAT_TEMPLATE_FILE), "{error}");
    let max = StoreLimits::default().max_chat_template_bytes;
    let error = check(|header| header.files.push(template(max + 1))).unwrap_err();
    assert!(matches!(error, AdapterError::FileTooLarge { bytes, .. } if bytes == max + 1), "{error}");
}

#[test]
fn a_tokenizer_is_no_part_of_the_version_before_it_was_read_and_has_limits_of_its_own() {
    let plain = check(|_| {}).unwrap();
    let limits = StoreLimits::default();
    for (path, max) in
        [(TOKENIZER_FILE, limits.max_tokenizer_bytes), (TOKENIZER_CONFIG_FILE, limits.max_tokenizer_config_bytes)]
    {
        let with = check(|header| header.files.push(file(path, max))).unwrap();
        assert_eq!((with.version, with.stored_files()), (plain.version, plain.stored_files()), "{path}");
        assert_eq!(with.files.last().map(|file| file.role), Some(FileRole::Tokenizer));
        let error = check(|header| header.files.push(file(path, max + 1))).unwrap_err();
        assert!(matches!(error, AdapterError::FileTooLarge { bytes, .. } if bytes == max + 1), "{error}");
    }
    // It is not loaded: the memory that there is for adapters is for the others.
    let mut large = header("sql", &contents(1), None);
    large.files.push(file(TOKENIZER_FILE, 1 << 20));
    assert!(large.check(&StoreLimits { max_loaded_bytes: 1100, ..StoreLimits::default() }).is_ok());
}

#[test]
fn weights_by_the_name_of_adapterhub_are_the_same_version_and_not_a_second_file() {
    let renamed = |header: &mut UploadHeader| {
        let weights = header.files.iter_mut().find(|file| file.path == WEIGHTS_FILE).unwrap();
        weights.path = ADAPTERHUB_WEIGHTS_FILE.to_owned();
    };
    let (plain, renamed) = (check(|_| {}).unwrap(), check(renamed).unwrap());
    assert_eq!((plain.version, plain.stored_files()), (renamed.version, renamed.stored_files()));
    let error = check(|header| header.files.push(file(ADAPTERHUB_WEIGHTS_FILE, 1))).unwrap_err();
    assert!(matches!(error, AdapterError::DuplicateFile { .. }), "{error}");
}

#[test]
fn both_files_are_required() {
    for (index, missing) in [CONFIG_FILE, WEIGHTS_FILE].into_iter().enumerate() {
        let error = check(|header| drop(header.files.remove(index))).unwrap_err();
        assert!(matches!(error, AdapterError::MissingFile { path } if path == missing), "{error}");
    }
}

#[test]
fn formats_that_run_code_or_hide_files_are_refused_by_name() {
    for path in [
        "adapter_model.bin",
        "optimizer.pt",
        "rng_state.pth",
        "m.gguf",
        "a.zip",
        "a.tar.gz",
        "TRAINING_ARGS.BIN",
        "adapter_model-00001-of-00002.safetensors",
        "adapter_model.safetensors.index.json",
    ] {
        let error = check(|header| header.files.push(file(path, 1))).unwrap_err();
        assert!(matches!(error, AdapterError::UnsupportedFormat { .. }), "{path}: {error}");
    }
}

#[test]
fn paths_are_plain_names() {
    for path in
        ["../x", "/etc/passwd", "a/b", "", ".", "..", ".hidden", "a\0", "a\\b", "é.json", " a", &"x".repeat(129)]
    {
        let error = check(|header| header.files.push(file(path, 1))).unwrap_err();
        assert!(matches!(error, AdapterError::BadPath { .. }), "{path:?}: {error}");
    }
    let error = check(|header| header.files.push(file("notes.txt", 1))).unwrap_err();
    assert!(matches!(error, AdapterError::UnknownFile { .. }), "{error}");
}

#[test]
fn a_path_twice_is_refused() {
    let error = check(|header| header.files.push(file(CONFIG_FILE, 1))).unwrap_err();
    assert!(matches!(error, AdapterError::DuplicateFile { .. }), "{error}");
}

#[test]
fn digests_are_lower_case_hexadecimal() {
    for digest in ["", "0", &"A".repeat(64), &"g".repeat(64), &"0".repeat(65)] {
        let error = check(|header| digest.clone_into(&mut header.files[0].sha256)).unwrap_err();
        assert!(matches!(error, AdapterError::BadDigest { .. }), "{digest}");
    }
}

#[test]
fn sizes_are_checked_without_overflow() {
    let error = check(|header| header.files[1].size = 0).unwrap_err();
    assert!(matches!(error, AdapterError::EmptyFile { .. }));
    let error = check(|header| header.files[0].size = (8 << 20) + 1).unwrap_err();
    assert!(matches!(error, AdapterError::FileTooLarge { max, .. } if max == 8 << 20));
    let error = check(|header| header.files[1].size = u64::MAX).unwrap_err();
    assert!(matches!(error, AdapterError::FileTooLarge { .. }));
    let error = check(|header| {
        header.files[1].size = 1 << 30;
        header.files.push(file("README.md", 1 << 30));
    })
    .unwrap_err();
    assert!(matches!(error, AdapterError::AdapterTooLarge { .. }));
    let little = StoreLimits { max_loaded_bytes: 20, ..StoreLimits::default() };
    let mut large = header("sql", &contents(1), None);
    (large.files[0].size, large.files[1].size) = (8, 12);
    large.files.push(file("README.md", 1000));
    assert!(large.check(&little).is_ok(), "what is thrown away is not loaded");
    large.files[1].size = 13;
    assert!(matches!(large.check(&little), Err(AdapterError::LargerThanMemory { bytes: 21, max: 20 })));
    let error = check(|header| header.files.extend((0..40).map(|i| file(&format!("tokenizer{i}"), 1)))).unwrap_err();
    assert!(matches!(error, AdapterError::TooManyFiles { files: 42, max: 32 }));
}

#[test]
fn upload_ids_follow_the_allow_list() {
    for good in ["a", "550e8400-e29b-41d4-a716-446655440000", "ci:42.1_x", &"x".repeat(128)] {
        assert!(good.parse::<UploadId>().is_ok(), "{good}");
    }
    for bad in ["", "a b", "~1", "a/b", "é", &"x".repeat(129)] {
        assert!(bad.parse::<UploadId>().is_err(), "{bad}");
    }
}

#[test]
fn the_version_depends_on_every_field_and_not_on_the_order() {
    let one = StoredFile { path: "a".into(), size: 1, sha256: Sha256Digest([1; 32]) };
    let two = StoredFile { path: "b".into(), size: 2, sha256: Sha256Digest([2; 32]) };
    let version = version_of(&[one.clone(), two.clone()]);
    assert_eq!(version, version_of(&[two.clone(), one.clone()]));
    let others = [
        version_of(std::slice::from_ref(&one)),
        version_of(&[one.clone(), StoredFile { path: "c".into(), ..two.clone() }]),
        version_of(&[one.clone(), StoredFile { size: 3, ..two.clone() }]),
        version_of(&[one, StoredFile { sha256: Sha256Digest([3; 32]), ..two }]),
    ];
    for (index, other) in others.iter().enumerate() {
        assert_ne!(version, *other);
        assert!(!others[..index].contains(other));
    }
}

#[test]
fn compare_and_set_distinguishes_its_three_forms() {
    let name: AdapterName = "a".parse().unwrap();
    let (v1, v2) = (AdapterVersion([1; 32]), AdapterVersion([2; 32]));
    assert!(Expected::Any.check(&name, None).is_ok() && Expected::Any.check(&name, Some(v1)).is_ok());
    assert!(Expected::Absent.check(&name, None).is_ok());
    assert!(matches!(Expected::Absent.check(&name, Some(v1)), Err(AdapterError::AlreadyExists { .. })));
    assert!(Expected::Version(v1).check(&name, Some(v1)).is_ok());
    for actual in [None, Some(v2)] {
        let result = Expected::Version(v1).check(&name, actual);
        assert!(matches!(result, Err(AdapterError::VersionMismatch { actual: found, .. }) if found == actual));
    }
}
