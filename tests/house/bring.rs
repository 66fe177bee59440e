//! Adapters as people have them: from folders, older files and the hub's cache, to a server that runs.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::command::{Served, code, polydelta, root, run, text};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The bundled adapter `severity` with this config, and weights from this file.
fn adapter(config: &[(&str, Value)], weights: &Path, name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let own = fs::read(root("models/demo/adapters/severity/adapter_config.json")).unwrap();
    let mut own: serde_json::Map<String, Value> = serde_json::from_slice(&own).unwrap();
    own.extend(config.iter().map(|(field, value)| ((*field).to_owned(), value.clone())));
    fs::write(folder.path().join("adapter_config.json"), serde_json::to_vec(&own).unwrap()).unwrap();
    fs::copy(weights, folder.path().join(name)).unwrap();
    folder
}

fn document(output: &[u8]) -> Value {
    serde_json::from_slice(output).unwrap()
}

#[test]
fn uploads_come_from_wherever_an_adapter_is() {
    let store = tempfile::tempdir().unwrap();
    let server = Served::start(&store);
    let saved = root("models/demo/adapters/severity/adapter_model.safetensors");
    let plain = adapter(&[], &saved, "adapter_model.safetensors");
    let upload = |name: &str, from: &str| server.ask(&["adapter", "upload", name, from, "--json"]);
    let path = |folder: &TempDir| folder.path().to_str().unwrap().to_owned();
    let uploaded = upload("Org/Severity", &path(&plain));
    assert_eq!(code(&uploaded), 0, "{}", text(&uploaded.stderr));
    let expected = document(&uploaded.stdout);
    assert_eq!((expected["name"].as_str(), expected["kind"].as_str()), (Some("Org/Severity"), Some("LN tuning")));

    let pickled = adapter(&[], &root("tests/fixtures/pickle/severity.bin"), "adapter_model.bin");
    let uploaded = upload("severity", &path(&pickled));
    assert_eq!(code(&uploaded), 0, "{}", text(&uploaded.stderr));
    assert!(text(&uploaded.stderr).contains("converted"), "{}", text(&uploaded.stderr));
    let converted = document(&uploaded.stdout);
    for field in ["kind", "parameters", "ops", "targets", "device_bytes"] {
        assert_eq!(converted[field], expected[field], "{field}");
    }
    let answer = |adapter: &str| {
        let output = server.ask(&["generate", "--adapter", adapter, "failed to write block 42\n=>", "--json"]);
        document(&output.stdout)["choices"][0]["text"].clone()
    };
    assert_eq!(answer("severity"), answer("Org/Severity"));

    // The hub's cache, with nobody to ask.
    let home = tempfile::tempdir().unwrap();
    let repository = home.path().join("hub/models--org--severity");
    let snapshot = repository.join("snapshots").join(COMMIT);
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    for file in fs::read_dir(plain.path()).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), snapshot.join(file.file_name())).unwrap();
    }
    for source in ["hf:org/severity".to_owned(), format!("hf:org/severity@{COMMIT}")] {
        let uploaded = polydelta(&["adapter", "upload", "hub", &source, "--json", "--server", &server.url])
            .env("HF_HOME", home.path())
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap();
        assert_eq!(code(&uploaded), 0, "{}", text(&uploaded.stderr));
        assert_eq!(document(&uploaded.stdout)["version"], expected["version"]);
    }
    let listed = document(&server.ask(&["adapter", "list", "--json"]).stdout);
    let names: Vec<_> = listed["adapters"].as_array().unwrap().iter().map(|adapter| adapter["name"].clone()).collect();
    assert_eq!(names, ["Org/Severity", "hub", "severity"]);
}

/// Of the tokenizer that was saved with an adapter the tokens come with it that the base does not have.
#[test]
fn own_tokens_come_with_an_adapter_and_the_bases_tokenizer_changes_nothing() {
    let store = tempfile::tempdir().unwrap();
    let server = Served::start(&store);
    let saved = root("models/demo/adapters/severity/adapter_model.safetensors");
    let folder = adapter(&[], &saved, "adapter_model.safetensors");
    let path = folder.path().to_str().unwrap();
    let upload = |flags: &[&str]| server.ask(&[&["adapter", "upload", "a", path, "--json"], flags].concat());
    let accepted = |flags: &[&str]| {
        let output = upload(flags);
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        document(&output.stdout)
    };
    let inspected = || document(&run(&["adapter", "inspect", path, "--model", "models/demo", "--json"]).stdout);
    let plain = accepted(&[]);
    let base = fs::read(root("models/demo/tokenizer.json")).unwrap();
    let tokenizer = folder.path().join("tokenizer.json");
    let write_with = |id: u64, content: &str| {
        let mut saved: Value = serde_json::from_slice(&base).unwrap();
        let token = serde_json::json!({"id": id, "content": content, "special": false});
        saved["added_tokens"].as_array_mut().unwrap().push(token);
        fs::write(&tokenizer, saved.to_string()).unwrap();
    };
    fs::write(&tokenizer, &base).unwrap();
    assert_eq!((&accepted(&[])["version"], &inspected()["version"]), (&plain["version"], &plain["version"]));
    write_with(100_000, "<far>");
    let refused = upload(&[]);
    let said = text(&refused.stderr);
    assert!(code(&refused) == 5 && said.contains("\"<far>\"") && said.contains("--no-tokenizer"), "{said}");
    assert_eq!(inspected()["refused"][0].as_str().map(|said| said.contains("\"<far>\"")), Some(true));
    assert_eq!(accepted(&["--no-tokenizer"])["version"], plain["version"]);
    let config: Value = serde_json::from_slice(&fs::read(root("models/demo/config.json")).unwrap()).unwrap();
    write_with(config["vocab_size"].as_u64().unwrap(), "<own>");
    let own = accepted(&[]);
    assert_eq!(own["has_own_tokens"], true);
    assert_ne!(own["version"], plain["version"]);
    let inspection = inspected();
    assert_eq!((&inspection["version"], &inspection["own_tokens"]), (&own["version"], &serde_json::json!(1)));
    // Without a row for it, it is known and named.
    let output = server.ask(&["generate", "--adapter", "a", "severity of <own>", "--json"]);
    assert!(code(&output) == 5 && text(&output.stderr).contains("<own>"), "{}", text(&output.stderr));
}

#[test]
fn a_refusal_stays_one_and_says_what_to_do() {
    let store = tempfile::tempdir().unwrap();
    let server = Served::start(&store);
    let saved = root("models/demo/adapters/severity/adapter_model.safetensors");
    let refused = |config: &[(&str, Value)], words: &str| {
        let folder = adapter(config, &saved, "adapter_model.safetensors");
        let output = server.ask(&["adapter", "upload", "a", folder.path().to_str().unwrap()]);
        let said = text(&output.stderr);
        assert_eq!(code(&output), 5, "{said}");
        assert!(said.contains(words) && !said.contains("--upload-id"), "{said}");
    };
    refused(&[("modules_to_save", serde_json::json!(["score"]))], "`modules_to_save`");
    refused(&[("a_field_of_tomorrow", serde_json::json!(1))], "--allow-unknown-adapter-fields");
    refused(&[("target_modules", serde_json::json!(["nothing"]))], "does not target");
}

#[test]
fn what_is_no_adapter_is_told_alike_by_every_verb() {
    let parent = tempfile::tempdir().unwrap();
    let saved = root("models/demo/adapters/severity");
    let checkpoint = parent.path().join("checkpoint-7");
    fs::create_dir(&checkpoint).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(saved.join(file), checkpoint.join(file)).unwrap();
    }
    let pointer = adapter(&[], &root("LICENSE"), "adapter_model.safetensors");
    fs::write(pointer.path().join("adapter_model.safetensors"), "version https://git-lfs.github.com/spec/v1\n")
        .unwrap();
    let model = root("models/demo");
    for (path, words) in [
        (parent.path(), "there is an adapter in checkpoint-7"),
        (pointer.path(), "git lfs pull"),
        (model.as_path(), "models/demo"),
    ] {
        let path = path.to_str().unwrap();
        let named = format!("a={path}");
        let nowhere = ["--server", "http://127.0.0.1:1"];
        let upload = run(&[["adapter", "upload", "a", path].as_slice(), &nowhere].concat());
        let inspect = run(&["adapter", "inspect", path]);
        let store = tempfile::tempdir().unwrap();
        let serve = polydelta(&["serve", "--listen", "127.0.0.1:0", "--adapter", &named, "--no-metrics", "--model"])
            .arg(root("models/demo"))
            .arg("--store")
            .arg(store.path())
            .output()
            .unwrap();
        for output in [upload, inspect, serve] {
            let said = text(&output.stderr);
            assert!(said.contains(words), "{said}");
            assert!([3, 5].contains(&code(&output)), "{said}");
        }
    }
}

#[test]
fn inspect_takes_the_base_that_the_config_names() {
    let base = root("tests/fixtures/golden/llama/base");
    let folder = tempfile::tempdir().unwrap();
    let saved = root("tests/fixtures/golden/llama/adapters/dora");
    fs::copy(saved.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors")).unwrap();
    let config = fs::read(saved.join("adapter_config.json")).unwrap();
    let with_base = |name: &str| {
        let mut config: serde_json::Map<String, Value> = serde_json::from_slice(&config).unwrap();
        config.insert("base_model_name_or_path".to_owned(), name.into());
        fs::write(folder.path().join("adapter_config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        let home = tempfile::tempdir().unwrap();
        polydelta(&["adapter", "inspect", folder.path().to_str().unwrap()])
            .env("HF_HOME", home.path())
            .output()
            .unwrap()
    };
    let named = with_base(base.to_str().unwrap());
    assert_eq!(code(&named), 0, "{}", text(&named.stdout));
    assert!(text(&named.stdout).contains("the base that the adapter names"));
    let elsewhere = with_base("org/of-next-year");
    assert_eq!(code(&elsewhere), 5, "the demo's model has other shapes");
    assert!(
        text(&elsewhere.stdout).contains("\"org/of-next-year\", which is no folder here"),
        "{}",
        text(&elsewhere.stdout)
    );
}

#[test]
fn unknown_fields_pass_where_the_operator_says_so() {
    let saved = root("models/demo/adapters/severity/adapter_model.safetensors");
    let folder = adapter(&[("a_field_of_tomorrow", serde_json::json!(1))], &saved, "adapter_model.safetensors");
    let path = folder.path().to_str().unwrap();
    let model = root("models/demo");
    let model = model.to_str().unwrap();
    let refused = run(&["adapter", "inspect", path, "--model", model]);
    assert_eq!(code(&refused), 5);
    assert!(text(&refused.stdout).contains("--allow-unknown-adapter-fields"), "{}", text(&refused.stdout));
    let allowed = run(&["adapter", "inspect", path, "--model", model, "--allow-unknown-adapter-fields", "--json"]);
    assert_eq!(code(&allowed), 0, "{}", text(&allowed.stdout));
    assert_eq!(document(&allowed.stdout)["unknown_fields"], serde_json::json!(["a_field_of_tomorrow"]));
}
