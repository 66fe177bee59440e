//! The command line: what is read from where, what is refused and with which exit code.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use super::command::{Served, code, polydelta, root, run, text};

/// An address where nobody listens.
const NOBODY: &str = "http://127.0.0.1:1";

fn said(output: &Output) -> String {
    text(&output.stderr)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn everything_wrong_with_a_command_line_is_said_at_once() {
    let output = polydelta(&[
        "serve",
        "--model",
        "/does/not/exist",
        "--threads",
        "many",
        "--max-num-seq",
        "8",
        "--kv-cache-bytes=lots",
        "--listen",
        "localhost",
        "--dtype",
        "f64",
        "--block-size",
        "24",
        "--reflection",
        "on",
        "--reflection",
        "off",
        "--drain-timeout",
    ])
    .env("POLYDELTA_MAX_LORA_RANK", "-3")
    .env("POLYDELTA_NO_METRICS", "true")
    .env("POLYDELTA_METRICS_LISTEN", "127.0.0.1:0")
    .output()
    .unwrap();
    assert_eq!(code(&output), 2);
    let said = said(&output);
    for problem in [
        "--model: there is no folder /does/not/exist",
        "--threads is \"many\"",
        "there is no --max-num-seq here; is --max-num-seqs meant?",
        "--kv-cache-bytes is \"lots\"",
        "--listen is \"localhost\": it has no port",
        "--dtype is \"f64\": expected auto, f32, bf16 or f16",
        "--block-size is \"24\"",
        "--reflection is given more than once",
        "--drain-timeout has no value",
        "POLYDELTA_MAX_LORA_RANK is \"-3\"",
        "--no-metrics and --metrics-listen exclude each other",
    ] {
        assert!(said.contains(problem), "{problem:?} is missing from:\n{said}");
    }
    assert!(said.contains("11 things are wrong"), "{said}");
    assert!(said.contains("`polydelta serve --help`"), "{said}");
}

#[test]
fn what_an_unknown_flag_hides_is_found_too() {
    let output = run(&["generate", "--tempratur", "0.5", "--top-k", "x", "--system", "be brief", "hello"]);
    let said = said(&output);
    assert_eq!(code(&output), 2, "{said}");
    for problem in ["there is no --tempratur here", "--top-k is \"x\"", "--system means nothing without --chat"] {
        assert!(said.contains(problem), "{problem:?} is missing from:\n{said}");
    }
    assert!(said.contains("3 things"), "the value of the unknown flag and the prompt are none: {said}");
    let output = run(&["adapter", "show", "--bogus"]);
    assert!(text(&output.stderr).contains("<NAME> is missing"), "{}", text(&output.stderr));
    let output = run(&["serve"]);
    assert_eq!(code(&output), 2);
    assert!(text(&output.stderr).contains("--model <DIR|hf:ORG/NAME> is missing"), "{}", text(&output.stderr));
}

#[test]
fn help_and_versions_are_no_failures_and_fit_a_page() {
    for line in ["--help", "serve --help", "generate --help", "adapter --help", "adapter upload --help", "demo -h"] {
        let output = run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(code(&output), 0, "{line}");
        let help = text(&output.stdout);
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
    let help = text(&run(&["generate", "--help"]).stdout);
    assert!(help.contains("POLYDELTA_GENERATE_TEMPERATURE") && help.contains("POLYDELTA_SERVER"), "{help}");
    let version = text(&run(&["--version"]).stdout);
    assert!(version.starts_with(concat!("polydelta ", env!("CARGO_PKG_VERSION"))), "{version}");
    assert!(version.contains("rustc ") && version.contains("built for "), "{version}");
    assert_eq!(code(&run(&["no-such-verb"])), 2);
}

#[test]
fn a_variable_is_read_by_one_verb_alone() {
    // All of these would be refused by the verbs they do not belong to.
    let mut inspect = polydelta(&["adapter", "inspect", path(&root("models/demo/adapters/severity"))]);
    let output = inspect
        .env("POLYDELTA_MODEL", "/does/not/exist")
        .env("POLYDELTA_ADAPTER", "sql=/does/not/exist")
        .env("POLYDELTA_LISTEN", "nonsense")
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}", said(&output));
    let mut generate = polydelta(&["generate", "x", "--server", NOBODY]);
    let output = generate.env("POLYDELTA_ADAPTER", "sql=./sql").env("POLYDELTA_DEMO_JSON", "?").output().unwrap();
    assert_eq!(code(&output), 4, "{}", said(&output));
    let output = polydelta(&["generate", "x"]).env("POLYDELTA_SERVER", NOBODY).output().unwrap();
    assert_eq!(code(&output), 4, "the connection's are shared: {}", said(&output));
    let output = polydelta(&["generate", "x", "--server", NOBODY]).env("POLYDELTA_GENERATE_TOP_K", "x").output();
    assert_eq!(code(&output.unwrap()), 2);
}

#[test]
fn what_is_wrong_with_a_variables_value_names_the_variable() {
    let mut serve = polydelta(&["serve", "--model", path(&root("models/demo")), "--max-num-seqs", "0"]);
    let output = serve.env("POLYDELTA_BLOCK_SIZE", "7").output().unwrap();
    let said = said(&output);
    assert!(said.contains("POLYDELTA_BLOCK_SIZE: --block-size is \"7\""), "{said}");
    assert!(said.contains("  --max-num-seqs is 0"), "{said}");
    assert_eq!(code(&output), 2);
}

#[test]
fn a_variable_of_no_flag_is_reported_once() {
    let mut list = polydelta(&["adapter", "list", "--server", NOBODY]);
    let output = list.env("POLYDELTA_MAX_NUM_SEQ", "8").output().unwrap();
    let said = said(&output);
    assert_eq!(said.matches("POLYDELTA_MAX_NUM_SEQ is set").count(), 1, "{said}");
    assert!(said.contains("is POLYDELTA_MAX_NUM_SEQS meant?"), "{said}");
}

#[test]
fn a_model_that_is_none_is_told_what_to_do() {
    let adapter = root("models/demo/adapters/severity");
    let refused = |model: &str, words: &str, exit: i32| {
        for verb in [&["serve", "--no-metrics", "--listen", "127.0.0.1:0"][..], &["adapter", "inspect", path(&adapter)]]
        {
            let output = polydelta(verb).args(["--model", model]).output().unwrap();
            assert!(said(&output).contains(words), "{verb:?}: {}", said(&output));
            assert_eq!(code(&output), exit, "{verb:?}: {}", said(&output));
        }
    };
    refused("/does/not/model.gguf", "there is no file", 3);
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(file.path(), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    refused(path(file.path()), "git lfs pull", 5);
    refused(path(&root("Cargo.toml")), "this is a file", 5);
    refused("some-org/some-name", "hf:some-org/some-name fetches it", 3);
    refused("/does/not/exist", "there is no folder", 3);
    refused(path(&root("models/demo/adapters/severity")), "holds an adapter, not a model", 5);
    refused(path(&root("proto")), "has no config.json", 3);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    std::fs::write(folder.path().join("pytorch_model.bin"), "x").unwrap();
    refused(path(folder.path()), "a pickle", 5);
}

#[test]
fn one_cause_has_one_code_in_every_verb() {
    let adapter = root("models/demo/adapters/severity");
    let verbs: [&[&str]; 7] = [
        &["generate", "x"],
        &["adapter", "list"],
        &["adapter", "show", "a"],
        &["adapter", "delete", "a"],
        &["adapter", "load", "a"],
        &["adapter", "unload", "a"],
        &["adapter", "upload", "a", path(&adapter)],
    ];
    for verb in verbs {
        let output = polydelta(verb).args(["--server", NOBODY]).output().unwrap();
        assert_eq!(code(&output), 4, "{verb:?}: {}", said(&output));
        assert!(said(&output).contains("no server answers at http://127.0.0.1:1"), "{}", said(&output));
        assert!(said(&output).contains("polydelta serve --model DIR"), "{}", said(&output));
        let output = polydelta(verb).args(["--server", "ftp://x"]).output().unwrap();
        assert_eq!(code(&output), 2, "{verb:?}: {}", said(&output));
    }
    for verb in [&["adapter", "upload", "a"][..], &["adapter", "inspect"]] {
        for folder in ["/does/not/exist", path(&root("proto"))] {
            let output = polydelta(verb).arg(folder).output().unwrap();
            assert_eq!(code(&output), 3, "{verb:?} {folder}: {}", said(&output));
        }
    }
    let folder = format!("a={}", root("proto").display());
    let mut serve = polydelta(&["serve", "--no-metrics", "--listen", "127.0.0.1:0", "--adapter", &folder]);
    let store = tempfile::tempdir().unwrap();
    let output = serve.arg("--model").arg(root("models/demo")).arg("--store").arg(store.path()).output().unwrap();
    assert_eq!(code(&output), 3, "{}", said(&output));
}

#[test]
fn a_server_has_one_code_for_one_cause_too() {
    let store = tempfile::tempdir().unwrap();
    let server = Served::start(&store);
    for verb in [&["adapter", "show", "a"][..], &["adapter", "load", "a"], &["adapter", "unload", "a"]] {
        assert_eq!(code(&server.ask(verb)), 3, "{verb:?}");
    }
    assert_eq!(code(&server.ask(&["generate", "x", "--adapter", "a"])), 3);
    let refused = server.ask(&["generate", "x", "--presence-penalty", "-9", "--seed", "1"]);
    assert_eq!(code(&refused), 5, "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("presence_penalty"), "{}", text(&refused.stderr));
    let base = root("tests/fixtures/golden/llama/adapters/dora");
    assert_eq!(code(&server.ask(&["adapter", "upload", "a", path(&base)])), 5, "of another base");
    let late = server.ask(&["generate", "x", "--timeout", "1ms", "--max-tokens", "100"]);
    assert_eq!(code(&late), 4, "{}", text(&late.stderr));
}

#[test]
fn generate_reads_and_prints_as_a_filter_does() {
    let store = tempfile::tempdir().unwrap();
    let server = Served::start(&store);
    let piped = |prompt: &str| {
        let mut generate = polydelta(&["generate", "--max-tokens", "3", "--echo", "--server", &server.url]);
        let mut process = generate.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        process.stdin.take().unwrap().write_all(prompt.as_bytes()).unwrap();
        text(&process.wait_with_output().unwrap().stdout)
    };
    let plain = text(&server.ask(&["generate", "--max-tokens", "3", "--echo", "Rosa Vega"]).stdout);
    assert_eq!(piped("Rosa Vega\n"), plain);
    assert_eq!(piped("Rosa Vega\r\n"), plain);
    let messages = store.path().join("messages.json");
    std::fs::write(&messages, "[{\"role\": \"user\"}]").unwrap();
    let refused = server.ask(&["generate", "--messages", path(&messages)]);
    assert_eq!(code(&refused), 2, "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("is no conversation"), "{}", text(&refused.stderr));
    assert_eq!(code(&server.ask(&["generate", "--messages", "/does/not/exist"])), 3);
    std::fs::write(&messages, "[{\"role\": \"user\", \"content\": \"hi\"}]").unwrap();
    let refused = server.ask(&["generate", "--messages", path(&messages)]);
    assert_eq!(code(&refused), 5, "this base has no chat template: {}", text(&refused.stderr));
    let stopped = server.ask(&["generate", "Rosa Vega wants", "--max-tokens", "40", "--stop", r"\n"]);
    assert_eq!(text(&stopped.stdout).lines().count(), 1, "{}", text(&stopped.stdout));
    let table = server.ask(&["generate", "Rosa Vega", "--max-tokens", "3", "--ignore-eos", "--logprobs", "2"]);
    let table = text(&table.stdout);
    let head =
        table.lines().position(|line| line.starts_with("TOKEN ")).unwrap_or_else(|| panic!("no table in {table}"));
    assert_eq!(table.lines().skip(head + 1).count(), 3, "{table}");
    assert!(table.contains('%'), "{table}");
}

#[test]
fn a_server_is_found_at_each_of_its_addresses() {
    let store = tempfile::tempdir().unwrap();
    let server = Served::at(&store, "localhost:0");
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    for address in [format!("localhost:{port}"), format!("127.0.0.1:{port}"), format!(":{port}"), port] {
        let output = polydelta(&["adapter", "list", "--server", &address]).output().unwrap();
        assert_eq!(code(&output), 0, "{address}: {}", said(&output));
    }
}

#[test]
fn an_output_that_nobody_reads_is_no_failure() {
    let mut inspect = polydelta(&["adapter", "inspect", path(&root("models/demo/adapters/severity"))]);
    let mut process = inspect.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(process.stdout.take());
    assert_eq!(process.wait().unwrap().code(), Some(0));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_verb_and_says_how_to_go_on() {
    let adapter = root("models/demo/adapters/severity");
    let interrupted = |verb: &[&str]| {
        // It takes connections and never answers.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = mute.local_addr().unwrap().to_string();
        let mut command = polydelta(verb);
        let process = command.args(["--server", &server]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let _connection = mute.accept().unwrap();
        let kill = std::process::Command::new("kill").args(["-INT", &process.id().to_string()]).status().unwrap();
        assert!(kill.success());
        process.wait_with_output().unwrap()
    };
    for verb in [&["generate", "x"][..], &["adapter", "list"], &["adapter", "upload", "a", path(&adapter)]] {
        let output = interrupted(verb);
        assert_eq!(output.status.code(), Some(130), "{verb:?}: {}", said(&output));
        assert!(said(&output).contains("interrupted"), "{}", said(&output));
    }
    let output = interrupted(&["adapter", "upload", "a", path(&adapter), "--upload-id", "mine"]);
    assert!(said(&output).contains("--upload-id mine"), "{}", said(&output));
}

#[cfg(target_os = "linux")]
#[test]
fn a_cache_that_memory_cannot_hold_is_refused() {
    let store = tempfile::tempdir().unwrap();
    let serve = |size: &str| {
        let words = ["serve", "--no-metrics", "--listen", "127.0.0.1:0", "--kv-cache-bytes", size];
        let mut command = polydelta(&words);
        command.arg("--model").arg(root("models/demo")).arg("--store").arg(store.path());
        command
    };
    let refused = serve("60TiB").output().unwrap();
    assert_eq!(code(&refused), 2, "{}", said(&refused));
    assert!(said(&refused).contains("--kv-cache-bytes 60.0 TiB"), "{}", said(&refused));
    // Under a limit of its own, which leaves less than the machine has.
    let limited = serve("5GiB");
    let words: Vec<_> = limited.get_args().map(|word| word.to_str().unwrap().to_owned()).collect();
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "ulimit -v 4000000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_polydelta")]).args(words);
    let refused = shell.stdin(Stdio::null()).env("NO_COLOR", "1").output().unwrap();
    assert_eq!(code(&refused), 2, "{}", said(&refused));
    assert!(said(&refused).contains("--kv-cache-bytes 5.0 GiB"), "{}", said(&refused));
}
