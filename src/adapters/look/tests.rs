//! Folders as people have them.

use super::*;

/// A folder with these files; a name that ends in `/` is a folder.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let place = root.path().join(name);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        if name.ends_with('/') {
            fs::create_dir_all(place).unwrap();
        } else {
            fs::write(place, content).unwrap();
        }
    }
    root
}

const CONFIG: (&str, &str) = (CONFIG_FILE, "{}");
const WEIGHTS: (&str, &str) = (WEIGHTS_FILE, "x");
const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n";

fn refused(files: &[(&str, &str)]) -> String {
    look(folder(files).path()).unwrap_err().to_string()
}

#[test]
fn an_adapter_is_found_in_every_form_with_what_lies_beside_it() {
    let root =
        folder(&[CONFIG, WEIGHTS, ("README.md", ""), ("optimizer.pt", ""), ("adapter_model.bin", ""), ("runs/x", "")]);
    let found = look(root.path()).unwrap();
    assert_eq!(found.weights, FoundWeights::Safetensors);
    assert_eq!(found.others, ["README.md", "adapter_model.bin", "optimizer.pt", "runs"]);
    let root = folder(&[CONFIG, ("adapter_model.bin", "x")]);
    assert_eq!(
        look(root.path()).unwrap(),
        FoundAdapter { weights: FoundWeights::Pickle(PICKLE_FILE), others: Vec::new() }
    );
    let (first, second) = ("adapter_model-00001-of-00002.safetensors", "adapter_model-00002-of-00002.safetensors");
    let index = format!(r#"{{"weight_map": {{"a": "{second}", "b": "{first}", "c": "{first}"}}}}"#);
    let root = folder(&[CONFIG, (INDEX_FILE, &index), (first, "x"), (second, "y"), ("README.md", "")]);
    let found = look(root.path()).unwrap();
    assert_eq!(found.weights, FoundWeights::Parts(vec![first.to_owned(), second.to_owned()]));
    assert_eq!(found.others, ["README.md"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_pipes_are_no_files() {
    let real = folder(&[CONFIG, WEIGHTS]);
    let linked = tempfile::tempdir().unwrap();
    for name in [CONFIG_FILE, WEIGHTS_FILE] {
        std::os::unix::fs::symlink(real.path().join(name), linked.path().join(name)).unwrap();
    }
    assert_eq!(look(linked.path()).unwrap().weights, FoundWeights::Safetensors);
    let text = refused(&[CONFIG, ("adapter_model.safetensors/", "")]);
    assert!(text.contains("adapter_model.safetensors in") && text.contains("is no file"), "{text}");
    let device = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/zero", device.path().join(CONFIG_FILE)).unwrap();
    assert!(matches!(look(device.path()), Err(NotAnAdapter::NotAFile { .. })));
    let dangling = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/does/not/exist", dangling.path().join(CONFIG_FILE)).unwrap();
    assert!(matches!(look(dangling.path()), Err(NotAnAdapter::Io { .. })));
}

#[test]
fn the_wrong_depth_is_told_in_both_directions() {
    let checkpoints = [
        ("checkpoint-50/adapter_config.json", "{}"),
        ("checkpoint-1000/adapter_config.json", "{}"),
        ("default/adapter_config.json", "{}"),
        ("runs/log", ""),
        ("nested/run/adapter_config.json", "{}"),
    ];
    let text = refused(&checkpoints);
    assert!(
        text.contains("there is an adapter in checkpoint-1000, checkpoint-50, default, nested/run: name one"),
        "{text}"
    );
    let many: Vec<_> = (0..8).map(|at| format!("checkpoint-{at}/adapter_config.json")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), "{}")).collect();
    assert!(refused(&many).contains("checkpoint-3 and 3 more"));
    let root = folder(&[CONFIG, WEIGHTS, ("runs/log", "")]);
    let text = look(&root.path().join("runs")).unwrap_err().to_string();
    assert!(text.contains("the folder above has one"), "{text}");
    // An adapter beside its checkpoints is the adapter.
    assert!(look(folder(&[CONFIG, WEIGHTS, checkpoints[0]]).path()).is_ok());
}

#[test]
fn what_is_no_adapter_is_named_with_what_to_do() {
    for (files, words) in [
        (
            &[("config.json", "{}"), ("model.safetensors", "x")][..],
            "is a whole model and no adapter (it has model.safetensors)",
        ),
        (&[CONFIG, ("model-00001-of-00002.safetensors", "x")], "is a whole model"),
        (&[("pytorch_model.bin.index.json", "{}")], "is a whole model"),
        (&[CONFIG, ("adapter_model.safetensors", POINTER)], "run `git lfs pull`"),
        (&[(CONFIG_FILE, POINTER), WEIGHTS], "adapter_config.json in"),
        (&[CONFIG, ("adapter_model.bin", POINTER)], "adapter_model.bin in"),
        (&[("sql.tar.gz", "x")], "the archive sql.tar.gz: unpack it"),
        (&[WEIGHTS], "has adapter_model.safetensors and no adapter_config.json"),
        (&[CONFIG, ("adapters.safetensors", "x")], "an adapter of MLX"),
        (
            &[CONFIG, ("adapter.safetensors", "x"), ("head_config.json", r#"{"config": null}"#)],
            "save_adapter(..., with_head=False)",
        ),
        (
            &[CONFIG, ("pytorch_adapter.bin", "x"), ("head_config.json", r#"{"config": {"head_type": "causal_lm"}}"#)],
            "save_adapter(..., with_head=False)",
        ),
        (&[CONFIG, ("adapter.gguf", "x")], "an adapter of llama.cpp"),
        (&[CONFIG, ("global_step10/x", "")], "a checkpoint of DeepSpeed"),
        (
            &[CONFIG, ("adapter_model-00001-of-00002.safetensors", "x")],
            "a part, and no adapter_model.safetensors.index.json",
        ),
        (&[CONFIG, ("checkpoint-3/adapter_config.json", "{}")], "there is an adapter in checkpoint-3"),
        (&[CONFIG], "neither adapter_model.safetensors nor adapter_model.bin"),
        (&[CONFIG, (INDEX_FILE, "{}")], "weight_map"),
        (&[CONFIG, (INDEX_FILE, r#"{"weight_map": {}}"#)], "it names no file"),
        (
            &[CONFIG, (INDEX_FILE, r#"{"weight_map": {"a": "../x.safetensors"}}"#)],
            "is no safetensors file in this folder",
        ),
        (&[CONFIG, (INDEX_FILE, r#"{"weight_map": {"a": "x.bin"}}"#), ("x.bin", "")], "is no safetensors file"),
        (&[], "has no adapter_config.json"),
    ] {
        let text = refused(files);
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(matches!(look(Path::new("/does/not/exist")), Err(NotAnAdapter::Missing { .. })));
}

#[test]
fn a_file_in_place_of_a_folder_is_told_by_its_name() {
    for (name, words) in [
        ("sql.zip", "an archive: unpack it"),
        ("SQL.TAR.GZ", "an archive"),
        ("adapter_model.safetensors", "name the folder that has it"),
        ("adapter_config.json", "name the folder that has it"),
        ("x.gguf", "a GGUF file"),
        ("last.ckpt", "a checkpoint"),
        ("notes.txt", "name the folder with adapter_config.json"),
    ] {
        let root = folder(&[(name, "x")]);
        let text = look(&root.path().join(name)).unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn an_adapter_of_adapterhub_is_found_by_its_names_and_a_classifier_beside_it_is_left_aside() {
    let head = ("head_config.json", r#"{"config": {"head_type": "classification"}}"#);
    for (file, weights) in [
        ("adapter.safetensors", FoundWeights::AdapterHub),
        ("pytorch_adapter.bin", FoundWeights::Pickle("pytorch_adapter.bin")),
    ] {
        let found = look(folder(&[CONFIG, (file, "x"), head, ("model_head.safetensors", "x")]).path()).unwrap();
        let others = ["head_config.json", "model_head.safetensors"].map(str::to_owned).to_vec();
        assert_eq!(found, FoundAdapter { weights, others });
    }
}
