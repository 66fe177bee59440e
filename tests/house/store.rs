//! What a store keeps from one server to the next, and the verbs that look after it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::command::{Served, code, model_with, polydelta, root, text};

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)))
}

fn store(store: &TempDir, arguments: &[&str]) -> std::process::Output {
    polydelta(&["store"]).args(arguments).arg("--json").arg("--store").arg(store.path()).output().unwrap()
}

fn adapter(name: &str) -> PathBuf {
    root("models/demo/adapters").join(name)
}

fn upload(server: &Served, name: &str, folder: &Path) -> Value {
    let uploaded = server.ask(&["adapter", "upload", name, folder.to_str().unwrap(), "--json"]);
    assert_eq!(code(&uploaded), 0, "{}", text(&uploaded.stderr));
    json(&uploaded)
}

const PROMPT: &str = "failed to write block 42\n=>";

#[test]
fn kind_and_size_of_an_adapter_are_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let server = Served::start_on(&root("models/demo"), &folder, &[]);
    let before = upload(&server, "redact", &adapter("redact"));
    server.terminate();
    // Room for what it takes on the device, not for its files.
    let room = before["device_bytes"].as_u64().unwrap();
    assert!(room < before["stored_bytes"].as_u64().unwrap());
    let server = Served::start_on(&root("models/demo"), &folder, &["--adapter-memory", &room.to_string()]);
    assert_eq!(json(&server.ask(&["adapter", "show", "redact", "--json"])), before);
    let answer = server.ask(&["generate", "--adapter", "redact", PROMPT, "--max-tokens", "2"]);
    assert_eq!(code(&answer), 0, "{}", text(&answer.stderr));
    server.terminate();
}

#[test]
fn an_adapter_of_another_base_is_refused_by_name_however_alike_the_bases_are() {
    let folder = tempfile::tempdir().unwrap();
    let server = Served::start_on(&root("models/demo"), &folder, &[]);
    upload(&server, "logs", &adapter("severity"));
    server.terminate();

    let mut weights = fs::read(root("models/demo/model.safetensors")).unwrap();
    let at = weights.len() - 2;
    weights[at] ^= 1;
    let other = model_with(&[("model.safetensors", &weights)]);
    let server = Served::start_on(other.path(), &folder, &[]);
    let listed = json(&server.ask(&["adapter", "list", "--json"]));
    let listed = &listed["adapters"][0];
    assert_eq!((listed["name"].as_str(), listed["base_mismatch"].as_bool()), (Some("logs"), Some(true)));
    assert!(text(&server.ask(&["adapter", "list"]).stdout).contains("other base"));
    for refused in [server.ask(&["generate", "--adapter", "logs", PROMPT]), server.ask(&["adapter", "load", "logs"])] {
        assert_eq!(code(&refused), 5);
        let said = text(&refused.stderr);
        assert!(said.contains("[BASE_MISMATCH]") && said.contains("--adapter logs=DIR"), "{said}");
    }
    upload(&server, "logs", &adapter("severity"));
    assert_eq!(code(&server.ask(&["generate", "--adapter", "logs", PROMPT, "--max-tokens", "2"])), 0);
    server.terminate();
    // The operator's own word is as good.
    let flag = format!("logs={}", adapter("severity").display());
    let server = Served::start_on(&root("models/demo"), &folder, &["--adapter", &flag]);
    assert_eq!(code(&server.ask(&["generate", "--adapter", "logs", PROMPT, "--max-tokens", "2"])), 0);
    server.terminate();
}

#[test]
fn a_store_is_checked_and_mended_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(code(&polydelta(&["store", "check", "--store", "/does/not/exist"]).output().unwrap()), 3);
    let server = Served::start_on(&root("models/demo"), &folder, &[]);
    let version = upload(&server, "logs", &adapter("severity"))["version"].as_str().unwrap().to_owned();
    assert_eq!(code(&store(&folder, &["check"])), 4, "a server uses it");
    server.terminate();

    let clean = store(&folder, &["check"]);
    assert_eq!(code(&clean), 0, "{}", text(&clean.stderr));
    let clean = json(&clean);
    assert_eq!((clean["adapters"][0]["name"].as_str(), clean["problems"].as_array().unwrap().len()), (Some("logs"), 0));
    // As an earlier version of the server did when the disk had a bad moment.
    let manifest = fs::read_dir(folder.path().join("names")).unwrap().next().unwrap().unwrap();
    let aside = format!("1-{}", manifest.file_name().to_string_lossy());
    fs::rename(manifest.path(), folder.path().join("quarantine").join(aside)).unwrap();
    let object = folder.path().join("objects").join(&version);
    fs::rename(&object, folder.path().join("quarantine").join(format!("2-{version}"))).unwrap();

    assert_eq!(code(&store(&folder, &["check"])), 6);
    let planned = store(&folder, &["repair"]);
    assert_eq!((code(&planned), json(&planned)["steps"].as_array().unwrap().len()), (6, 2));
    assert!(!object.exists(), "nothing is done without --yes");
    let mended = store(&folder, &["repair", "--yes"]);
    assert_eq!(code(&mended), 0, "{}", text(&mended.stderr));
    let server = Served::start_on(&root("models/demo"), &folder, &["--store-errors", "refuse"]);
    assert_eq!(code(&server.ask(&["generate", "--adapter", "logs", PROMPT, "--max-tokens", "2"])), 0);
    server.terminate();
}
