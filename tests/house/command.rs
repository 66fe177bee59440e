//! The command as a user runs it: exit codes, output, signals.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub(crate) fn polydelta(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polydelta"));
    command.args(arguments).stdin(Stdio::null()).env("NO_COLOR", "1");
    command
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    polydelta(arguments).output().unwrap()
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Those for which it is not empty.
fn lines_with<'a>(answers: &'a [Value], key: &str) -> Vec<&'a Value> {
    answers.iter().filter(|answer| answer[key].as_array().is_some_and(|some| !some.is_empty())).collect()
}

#[test]
fn the_demo_runs_every_adapter_in_one_batch_and_exits() {
    let output = run(&["demo", "--once", "--json"]);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let answers = report["answers"].as_array().unwrap();
    assert!(answers.len() > 18);
    let (scored, mixed) = (lines_with(answers, "labels"), lines_with(answers, "mix"));
    assert!(scored.len() == 1 && scored[0]["probability"].as_f64() > Some(0.9), "{scored:?}");
    assert!(scored[0]["labels"].as_array().unwrap().contains(&scored[0]["output"]), "{scored:?}");
    assert!(mixed.len() == 1 && mixed[0]["output"] == "Call [NAME] in [CITY] at [PHONE].", "{mixed:?}");
    let written: Vec<_> = answers.iter().filter(|answer| answer["probability"].is_null()).collect();
    assert_eq!(written.len(), answers.len() - 1, "{report:#}");
    assert!(written.iter().all(|answer| answer["tokens"].as_u64() > Some(0)), "{report:#}");
    let steps = report["steps_by_distinct_adapters"].as_array().unwrap();
    // The shortest answers may be over before the last request has come in.
    assert!(steps.len() > answers.len() / 2, "the batch was not mixed: {steps:?}");
    assert!(text(&output.stderr).contains("ready in "));
}

#[test]
fn the_demo_shows_a_table() {
    let output = run(&["demo", "--once"]);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let table = text(&output.stdout);
    assert!(table.starts_with("ADAPTER"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    assert!(table.contains("distinct adapters in a step:"), "{table}");
    assert!(!table.contains("grpcurl"), "nothing serves on after --once");
}

#[test]
fn every_problem_of_the_flags_is_reported_at_once() {
    let output = run(&["serve", "--model", "/does/not/exist", "--threads", "0", "--max-num-seqs", "0"]);
    assert_eq!(code(&output), 2);
    let said = text(&output.stderr);
    assert!(["--model", "--threads", "--max-num-seqs"].iter().all(|flag| said.contains(flag)), "{said}");
}

/// The bundled model with some files replaced by others.
pub(crate) fn model_with(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(root("models/demo")).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

/// The store is opened before weights are read: where it was not, neither were they. Shapes come from headers alone.
#[test]
fn the_small_files_of_a_model_are_checked_before_its_weights_are_read() {
    let weights = std::fs::read(root("tests/fixtures/golden/llama/base/model.safetensors")).unwrap();
    let weights = ("model.safetensors", weights.as_slice());
    let store = tempfile::tempdir().unwrap();
    let serve = |files: &[(&str, &[u8])]| {
        let model = model_with(files);
        let store = store.path().join("store");
        let mut command = polydelta(&["serve", "--listen", "127.0.0.1:0", "--no-metrics", "--model"]);
        let output = command.arg(model.path()).arg("--store").arg(&store).output().unwrap();
        assert_eq!(code(&output), 5);
        (text(&output.stderr), store.exists())
    };
    let broken: [(&str, &[u8], &str); 3] = [
        ("tokenizer.json", b"{}", "not a tokenizer.json"),
        ("chat_template.jinja", b"{% for %}", "chat template"),
        ("generation_config.json", b"{\"eos_token_id\": []}", "eos_token_id is []"),
    ];
    for (name, content, wanted) in broken {
        let (said, store_opened) = serve(&[(name, content)]);
        assert!(said.contains(wanted), "{name}: {said}");
        assert!(!store_opened, "{name}");
    }
    let (said, store_opened) = serve(&[weights]);
    assert!(said.contains("model.embed_tokens.weight") && !store_opened, "{said}");
}

#[test]
fn inspect_says_what_an_adapter_compiles_to_or_why_not() {
    let adapter = root("tests/fixtures/golden/llama/adapters/dora");
    let base = root("tests/fixtures/golden/llama/base");
    let (adapter, base) = (adapter.to_str().unwrap(), base.to_str().unwrap());
    let output = run(&["adapter", "inspect", adapter, "--model", base, "--json"]);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let inspection: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(inspection["kind"], "DoRA");
    let refused = run(&["adapter", "inspect", adapter]);
    assert_eq!(code(&refused), 5, "the bundled base has other shapes");
    assert!(text(&refused.stdout).contains("refused"));
    assert_eq!(code(&run(&["adapter", "inspect", "/does/not/exist"])), 3);
}

#[test]
fn inspect_says_what_an_adapter_does_to_the_base_and_to_prompts() {
    let adapter = root("models/demo/adapters/severity");
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts.txt");
    let inspect = |flags: &[&str]| {
        let paths = [adapter.to_str().unwrap(), "--prompts", prompts.to_str().unwrap()];
        run(&[&["adapter", "inspect"], &paths[..], flags].concat())
    };
    fs::write(&prompts, "How many orders?\n\nI hate these shoes.\n").unwrap();
    let output = inspect(&["--against-base", "--json"]);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let inspection: Value = serde_json::from_slice(&output.stdout).unwrap();
    let logits = &inspection["drift"]["logits"];
    assert_eq!(logits["prompts"], 2);
    assert!(logits["tokens"].as_u64().unwrap() > 4 && logits["largest"].as_f64().unwrap() > 0.0, "{logits}");
    assert!(text(&inspect(&["--against-base"]).stdout).contains("another token is the most likely behind"));
    assert_eq!(code(&inspect(&[])), 2, "prompts are for a comparison");
    fs::write(&prompts, "\n").unwrap();
    let empty = inspect(&["--against-base"]);
    assert!(code(&empty) == 2 && text(&empty.stderr).contains("prompts.txt"), "{}", text(&empty.stderr));
}

#[test]
fn export_writes_a_lora_that_is_shown_or_says_what_a_lora_has_not() {
    let path = |name: &str| root(name).to_str().unwrap().to_owned();
    let base = path("tests/fixtures/golden/llama/base");
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("lora");
    let export = |adapter: &str, to: &Path| {
        let adapter = path(&format!("tests/fixtures/golden/llama/adapters/{adapter}"));
        let to = to.to_str().unwrap();
        run(&["adapter", "export", &adapter, "--as", "lora", "--to", to, "--model", &base, "--json"])
    };
    let output = export("loha", &to);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let inspection: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&inspection["kind"], &inspection["trained_on"]), (&"LoRA".into(), &"golden/llama".into()));
    let again = run(&["adapter", "inspect", to.to_str().unwrap(), "--model", &base, "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&again.stdout).unwrap(), inspection);
    assert_eq!(code(&export("loha", &to)), 1, "the folder is not empty");
    let other = folder.path().join("other");
    let refused = export("dora", &other);
    assert_eq!(code(&refused), 5);
    assert!(text(&refused.stderr).contains("OutputScale of layer 0 q"), "{}", text(&refused.stderr));
    assert!(!other.exists(), "nothing is written of what is refused");
}

#[test]
fn inspect_takes_folders_of_adapterhub_in_both_forms() {
    let base = root("tests/fixtures/golden/llama/base");
    let inspect = |folder: &Path| {
        run(&["adapter", "inspect", folder.to_str().unwrap(), "--model", base.to_str().unwrap(), "--json"])
    };
    let adapters = root("tests/fixtures/adapterhub/llama/adapters");
    for (adapter, kind) in [("seq_bn", "bottleneck"), ("ln_before", "bottleneck"), ("compacter", "Compacter")] {
        let output = inspect(&adapters.join(adapter));
        assert_eq!(code(&output), 0, "{adapter}: {}", text(&output.stderr));
        let inspection: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(inspection["kind"], kind, "{adapter}");
    }
    // As the library saves it when it is not asked to leave the head.
    let with_head = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter.safetensors"] {
        std::fs::copy(adapters.join("seq_bn").join(file), with_head.path().join(file)).unwrap();
    }
    std::fs::write(with_head.path().join("head_config.json"), r#"{"config": null}"#).unwrap();
    let output = inspect(with_head.path());
    assert_eq!(code(&output), 5, "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("with_head=False"), "{}", text(&output.stderr));
}

#[test]
fn a_server_that_is_not_there_is_unavailable() {
    let output = run(&["adapter", "list", "--server", "http://127.0.0.1:1"]);
    assert_eq!(code(&output), 4, "{}", text(&output.stderr));
}

/// A running server, its address read from its log.
pub(crate) struct Served {
    process: Child,
    pub(crate) url: String,
    log: BufReader<Box<dyn Read>>,
}

/// A test that fails leaves no server behind.
impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Served {
    pub(crate) fn start(store: &TempDir) -> Self {
        Self::at(store, "127.0.0.1:0")
    }

    pub(crate) fn at(store: &TempDir, listen: &str) -> Self {
        Self::start_with(&root("models/demo"), store, listen, &[])
    }

    pub(crate) fn start_on(model: &Path, store: &TempDir, arguments: &[&str]) -> Self {
        Self::start_with(model, store, "127.0.0.1:0", arguments)
    }

    /// In bf16: which dtype `auto` takes is the machine's, and sizes and answers depend on it.
    fn start_with(model: &Path, store: &TempDir, listen: &str, arguments: &[&str]) -> Self {
        let mut command = polydelta(&["serve", "--listen", listen, "--log-format", "json", "--dtype", "bf16"]);
        command.arg("--model").arg(model).arg("--store").arg(store.path()).args(arguments);
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut served = Self { process, url: String::new(), log: BufReader::new(Box::new(std::io::empty())) };
        let address = log.by_ref().lines().find_map(|line| {
            let entry: Value = serde_json::from_str(&line.unwrap()).unwrap();
            entry["grpc"].as_str().map(str::to_owned)
        });
        served.url = format!("http://{}", address.expect("the server ended before it was ready"));
        served.log = BufReader::new(Box::new(log));
        served
    }

    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        polydelta(arguments).args(["--server", &self.url]).output().unwrap()
    }

    #[cfg(unix)]
    pub(crate) fn terminate(mut self) {
        let kill = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap();
        assert!(kill.success());
        assert!(self.process.wait().unwrap().success(), "SIGTERM is a clean end");
        let rest: Vec<_> = self.log.by_ref().lines().map(Result::unwrap).collect();
        assert!(rest.iter().any(|line| line.contains("draining")), "{rest:?}");
    }
}

/// The words of the README.
#[cfg(unix)]
#[test]
fn an_answer_is_replayed_by_its_receipt_after_a_restart() {
    let store = tempfile::tempdir().unwrap();
    let file = store.path().join("answer.receipt");
    let file = file.to_str().unwrap();
    let adapter = root("models/demo/adapters/severity");
    let server = Served::start(&store);
    assert_eq!(code(&server.ask(&["adapter", "upload", "logs", adapter.to_str().unwrap()])), 0);
    let prompt = "failed to write block 42\n=>";
    let asked =
        ["generate", "--adapter", "logs", "--temperature", "0.9", "--max-tokens", "12", "--receipt", file, prompt];
    let generated = server.ask(&asked);
    assert_eq!(code(&generated), 0, "{}", text(&generated.stderr));
    let receipt = std::fs::read_to_string(file).unwrap();
    server.terminate();

    let server = Served::start(&store);
    let replayed = server.ask(&["replay", file]);
    assert_eq!(code(&replayed), 0, "{}", text(&replayed.stderr));
    let lines = text(&replayed.stdout);
    let words = lines.lines().map(|line| line.contains("  agrees    "));
    assert!(words.clone().count() >= 10 && words.clone().all(|agrees| agrees), "{lines}");
    // A stream and one message have the same receipt.
    let seed = receipt.split("\"seed\":\"").nth(1).unwrap().split('"').next().unwrap();
    let whole = server.ask(&[&asked[..], &["--no-stream", "--seed", seed]].concat());
    assert_eq!((code(&whole), std::fs::read_to_string(file).unwrap()), (0, receipt.clone()), "{}", text(&whole.stderr));
    std::fs::write(file, receipt.replacen("\"top_k\":0", "\"top_k\":3", 1)).unwrap();
    let changed = server.ask(&["replay", file]);
    assert_eq!(code(&changed), 5, "{}", text(&changed.stdout));
    assert!(text(&changed.stderr).contains("it was changed after it was made"), "{}", text(&changed.stderr));
    std::fs::write(file, &receipt).unwrap();
    assert_eq!(code(&server.ask(&["adapter", "delete", "logs"])), 0);
    let gone = server.ask(&["replay", file]);
    assert_eq!(code(&gone), 8, "{}", text(&gone.stderr));
    assert!(text(&gone.stdout).contains("there is none of this name"), "{}", text(&gone.stdout));
    assert!(text(&gone.stderr).contains("version of logs"), "{}", text(&gone.stderr));
    assert_eq!(code(&server.ask(&["replay", "/does/not/exist"])), 3);
    server.terminate();
}

#[cfg(unix)]
#[test]
fn what_was_uploaded_is_there_after_a_restart() {
    let store = tempfile::tempdir().unwrap();
    let adapter = root("models/demo/adapters/severity");
    let adapter = adapter.to_str().unwrap();
    let server = Served::start(&store);
    let uploaded = server.ask(&["adapter", "upload", "logs", adapter, "--json"]);
    assert_eq!(code(&uploaded), 0, "{}", text(&uploaded.stderr));
    let version = serde_json::from_slice::<Value>(&uploaded.stdout).unwrap()["version"].clone();
    let busy = polydelta(&["serve", "--listen", "127.0.0.1:0", "--model"])
        .arg(root("models/demo"))
        .arg("--store")
        .arg(store.path())
        .output()
        .unwrap();
    assert_eq!(code(&busy), 4, "a store serves one process");
    server.terminate();

    let server = Served::start(&store);
    let listed = server.ask(&["adapter", "list", "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["adapters"][0]["version"], version);
    let table = text(&server.ask(&["adapter", "list"]).stdout);
    assert!(table.contains("LN tuning  specification  CAUSAL_LM"), "{table}");
    let generated = server.ask(&["generate", "--adapter", "logs", "failed to write block 42\n=>", "--json"]);
    assert_eq!(code(&generated), 0, "{}", text(&generated.stderr));
    let generated: Value = serde_json::from_slice(&generated.stdout).unwrap();
    assert_eq!(generated["adapter_version"], version);
    assert_eq!(code(&server.ask(&["generate", "--adapter", "nobody", "x"])), 3);
    assert_eq!(code(&server.ask(&["generate", "x", "--top-p", "2"])), 5);
    assert_eq!(code(&server.ask(&["adapter", "delete", "logs"])), 0);
    assert_eq!(code(&server.ask(&["adapter", "show", "logs"])), 3);
    server.terminate();
}
