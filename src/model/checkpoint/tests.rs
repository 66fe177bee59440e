use std::fs::OpenOptions;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::files::FileRefusal;
use crate::model::{BaseModel, DecoderSpec, base_layout};
use crate::ops::Numerics;
use crate::ops::reference::ReferenceBackend;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/llama");

/// A copy of a small model that a test may damage.
fn copied() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in [CONFIG, WHOLE] {
        fs::copy(Path::new(FIXTURE).join("base").join(file), dir.path().join(file)).unwrap();
    }
    dir
}

fn truncate(dir: &TempDir, bytes: u64) {
    OpenOptions::new().write(true).open(dir.path().join(WHOLE)).unwrap().set_len(bytes).unwrap();
}

fn load(checkpoint: &Checkpoint, spec: &DecoderSpec, progress: &dyn Fn(usize, usize)) -> Result<(), ModelError> {
    BaseModel::load(&ReferenceBackend::new(Numerics::F32), spec, checkpoint, 16, progress).map(drop)
}

/// A file of raw header and data.
fn file_of(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

/// A folder with a config and, as the whole checkpoint, these bytes.
fn folder(weights: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG), "{}").unwrap();
    fs::write(dir.path().join(WHOLE), weights).unwrap();
    dir
}

fn refused(dir: &TempDir) -> String {
    Checkpoint::open(dir.path()).err().unwrap().to_string()
}

fn with_index(index: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG), "{}").unwrap();
    fs::write(dir.path().join(INDEX), index).unwrap();
    dir
}

const ONE_TENSOR: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

#[test]
fn a_file_truncated_before_it_is_opened_is_named() {
    let dir = copied();
    let whole = fs::metadata(dir.path().join(WHOLE)).unwrap().len();
    truncate(&dir, whole - 1);
    match Checkpoint::open(dir.path()) {
        Err(ModelError::Truncated { path, expected, found }) => {
            assert_eq!((path, expected, found), (dir.path().join(WHOLE), whole, whole - 1));
        }
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn a_file_truncated_while_it_is_loaded_ends_in_an_error_whenever_it_happens() {
    for at_layer in 0..2 {
        let dir = copied();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let spec = checkpoint.spec().unwrap();
        let cut = |done| {
            if done == at_layer {
                truncate(&dir, 4096);
            }
        };
        cut(0);
        let loaded = load(&checkpoint, &spec, &|done, _| cut(done));
        assert!(matches!(loaded, Err(ModelError::Truncated { found: 4096, .. })), "{loaded:?}");
    }
}

#[test]
fn a_file_truncated_after_the_start_fails_what_reads_the_base_and_nothing_else() {
    let dir = copied();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let spec = checkpoint.spec().unwrap();
    load(&checkpoint, &spec, &|_, _| ()).unwrap();
    truncate(&dir, 0);
    let layout = base_layout(&spec);
    let compile = |adapter: &str| {
        let read = |file| fs::read(Path::new(FIXTURE).join("adapters").join(adapter).join(file)).unwrap();
        let limits = crate::delta::CompileLimits { max_rank: 64, max_virtual_tokens: 64, allow_unknown_fields: false };
        let base = crate::delta::Base { layout: &layout, weights: &checkpoint };
        crate::delta::compile(&read("adapter_config.json"), &read("adapter_model.safetensors"), base, limits)
    };
    // DoRA's norms are those of the base's weights.
    let error = compile("dora").unwrap_err().to_string();
    assert!(error.contains("is truncated") && error.contains("has 0"), "{error}");
    assert!(compile("lora_r4").is_ok());
}

#[test]
fn a_file_written_to_under_the_server_is_not_mixed_with_what_was_there() {
    let dir = copied();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let spec = checkpoint.spec().unwrap();
    let file = OpenOptions::new().append(true).open(dir.path().join(WHOLE)).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(matches!(load(&checkpoint, &spec, &|_, _| ()), Err(ModelError::Changed { .. })));
}

#[test]
fn a_file_replaced_as_a_whole_does_not_disturb_what_was_opened() {
    let dir = copied();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let spec = checkpoint.spec().unwrap();
    fs::write(dir.path().join("new"), file_of(ONE_TENSOR, 8)).unwrap();
    fs::rename(dir.path().join("new"), dir.path().join(WHOLE)).unwrap();
    load(&checkpoint, &spec, &|_, _| ()).unwrap();
}

#[test]
fn a_fifo_in_the_place_of_any_file_is_refused_at_once() {
    let shard = r#"{"weight_map": {"a": "shard.safetensors"}}"#;
    for name in [CONFIG, WHOLE, INDEX, "shard.safetensors"] {
        let dir = with_index(shard);
        let path = dir.path().join(name);
        drop(fs::remove_file(&path));
        crate::files::testing::fifo(&path);
        match Checkpoint::open(dir.path()) {
            Err(ModelError::Read { path: named, source }) => {
                assert_eq!(FileRefusal::of(&source), Some(FileRefusal::NotRegular { found: "a FIFO" }));
                assert_eq!(named, path);
            }
            other => panic!("{name}: {:?}", other.err()),
        }
    }
}

#[test]
fn an_index_names_files_below_its_folder_and_nothing_else() {
    let outside = folder(&file_of(ONE_TENSOR, 8));
    let absolute = outside.path().join(WHOLE).display().to_string();
    for file in [absolute.as_str(), "../model.safetensors", "sub/../../model.safetensors", "./..", "/", ""] {
        let error = refused(&with_index(&serde_json::json!({"weight_map": {"a": file}}).to_string()));
        assert!(error.contains("`a` is said to be in") && error.contains("no path below the folder"), "{error}");
    }
    for (index, reason) in [
        (r#"{"weight_map": {"a": 1}}"#, "`a` has 1 in the place of a file's name"),
        (r#"{"weight_map": {"a": null}}"#, "`a` has null in the place of a file's name"),
        (r#"{"weight_map": {}}"#, "it names no file"),
        (r#"{"weight_map": ["x"]}"#, "it has no object `weight_map`"),
        ("{}", "it has no object `weight_map`"),
        (r#"{"weight_map": {"a": "x", "a": "y"}}"#, "`a` appears twice"),
    ] {
        let error = refused(&with_index(index));
        assert!(error.starts_with("model.safetensors.index.json is not valid: "), "{error}");
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn shards_may_lie_in_folders_below_and_be_links_as_in_the_hubs_cache() {
    let dir = with_index(r#"{"weight_map": {"a": "parts/1.safetensors", "b": "2.safetensors"}}"#);
    let blobs = tempfile::tempdir().unwrap();
    fs::write(blobs.path().join("blob"), file_of(ONE_TENSOR, 8)).unwrap();
    fs::create_dir(dir.path().join("parts")).unwrap();
    symlink(blobs.path().join("blob"), dir.path().join("parts/1.safetensors")).unwrap();
    fs::write(dir.path().join("2.safetensors"), file_of(&ONE_TENSOR.replace("\"a\"", "\"b\""), 8)).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(checkpoint.tensor("a", &[2]).unwrap().to_f32(), [0.0, 0.0]);
}

#[test]
fn headers_are_refused_before_anything_is_allocated_for_what_they_claim() {
    let tensor = |shape: &str, begin: u64, end: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let two = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    let cases: [(Vec<u8>, &str); 9] = [
        (b"abc".to_vec(), "it has 3 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "its header claims 18446744073709551615 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "it is a git lfs pointer"),
        (file_of("[1, 2]", 0), "invalid type"),
        (file_of(&two(tensor("[2]", 0, 8), tensor("[2]", 4, 12)), 12), "invalid offset"),
        (file_of(&two(tensor("[2]", 0, 8), tensor("[2]", 16, 24)), 24), "invalid offset"),
        (file_of(&two(tensor("[3]", 0, 8), tensor("[2]", 8, 16)), 16), "invalid shape, data type"),
        (file_of(&two(tensor("[4294967296, 4294967296, 2]", 0, 0), tensor("[2]", 0, 8)), 8), "overflow"),
        (file_of(ONE_TENSOR, 9), "its tensors end at byte"),
    ];
    for (bytes, reason) in cases {
        let error = refused(&folder(&bytes));
        assert!(error.contains("is no safetensors file that can be served"), "{error}");
        assert!(error.to_lowercase().contains(reason), "{reason}: {error}");
    }
    let short = refused(&folder(&file_of(ONE_TENSOR, 7)));
    assert!(short.contains("is truncated"), "{short}");
}

#[test]
fn a_config_that_readers_could_disagree_on_is_refused_with_its_place() {
    let dir = folder(&file_of(ONE_TENSOR, 8));
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(200), "]".repeat(200));
    for (config, reason) in [
        (r#"{"vocab_size": 1, "vocab_size": 2}"#, "`vocab_size` appears twice"),
        (r#"{"rms_norm_eps": NaN}"#, "line 1 column"),
        (deep.as_str(), "recursion limit"),
        ("[]", "it is a list, not an object"),
    ] {
        fs::write(dir.path().join(CONFIG), config).unwrap();
        let error = refused(&dir);
        assert!(error.starts_with("config.json is not valid: ") && error.contains(reason), "{error}");
    }
}
