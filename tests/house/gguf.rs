//! A model that is one GGUF file, as a user runs it.

use std::fs;

use serde_json::Value;

use super::command::{Served, code, root, run, text};

#[test]
fn a_gguf_file_is_served_with_its_own_tokenizer_and_keeps_its_adapters() {
    let (store, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = folder.path().join("tiny.gguf");
    fs::copy(root("tests/fixtures/gguf/llama_bias.gguf"), &file).unwrap();
    let adapter = root("tests/fixtures/golden/llama_bias/adapters/dora");
    let adapter = adapter.to_str().unwrap();

    let inspected = run(&["adapter", "inspect", adapter, "--model", file.to_str().unwrap(), "--json"]);
    assert_eq!(code(&inspected), 0, "{}", text(&inspected.stderr));
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!((&inspected["kind"], &inspected["base"]["name"]), (&"DoRA".into(), &"tiny".into()));

    let answer = |server: &Served| {
        let asked = ["generate", "--adapter", "dora", "hello the world", "--max-tokens", "8", "--json"];
        let generated = server.ask(&asked);
        assert_eq!(code(&generated), 0, "{}", text(&generated.stderr));
        let generated: Value = serde_json::from_slice(&generated.stdout).unwrap();
        let text = &generated["choices"][0]["text"];
        assert!(text.is_string(), "{generated:#}");
        text.clone()
    };
    // The folder holds nothing else that could be the model.
    let server = Served::start_on(folder.path(), &store, &[]);
    let uploaded = server.ask(&["adapter", "upload", "dora", adapter]);
    assert_eq!(code(&uploaded), 0, "{}", text(&uploaded.stderr));
    let first = answer(&server);
    drop(server);
    // The base is its content, wherever it lies.
    let server = Served::start_on(&file, &store, &[]);
    assert_eq!(answer(&server), first);
}
