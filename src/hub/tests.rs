//! Fetching against a stand-in for the hub on loopback.

mod server;

use std::fs;
use std::path::Path;

use super::wanted::WEIGHTS;
use super::*;
use server::{Hub, SHA, Server};

fn repository(text: &str) -> HubRepository {
    text.parse().unwrap()
}

fn adapter() -> Hub {
    Hub::default()
        .small("adapter_config.json", "{\"peft_type\": \"LORA\"}")
        .small("chat_template.jinja", "{{ messages }}")
        .small("README.md", "about")
        .small("tokenizer.json", "{}")
        .large("adapter_model.safetensors", &[5; 4000])
        .large("adapter_model.bin", &[6; 4000])
        .large("optimizer.pt", &[7; 9000])
}

fn fetch_adapter(options: &HubOptions, text: &str) -> Result<PathBuf, HubError> {
    fetch(options, &repository(text), Wanted::Adapter, &mut |_| {})
}

fn model() -> Hub {
    Hub::default()
        .small("config.json", "{\"model_type\": \"llama\"}")
        .small("tokenizer.json", "{}")
        .small("generation_config.json", "{\"eos_token_id\": 2}")
        .small("special_tokens_map.json", "{\"pad_token\": \"<pad>\"}")
        .small("added_tokens.json", "{\"<pad>\": 9}")
        .small("additional_chat_templates/tool_use.jinja", "{{ tools }}")
        .small("README.md", "about")
        .large("model.safetensors", &[7; 100_000])
}

fn sharded() -> Hub {
    let map = serde_json::json!({ "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors" });
    Hub::default()
        .small("config.json", "{}")
        .small("tokenizer.json", "{}")
        .small(INDEX, &serde_json::json!({ "metadata": {}, "weight_map": map }).to_string())
        .large("model-00001-of-00002.safetensors", &[1; 3000])
        .large("model-00002-of-00002.safetensors", &[2; 5000])
}

fn options(cache: &Path, server: &Server) -> HubOptions {
    HubOptions {
        cache: cache.to_owned(),
        endpoint: format!("http://{}", server.address),
        token: None,
        offline: false,
        retries: 0,
    }
}

fn quietly(options: &HubOptions) -> Result<PathBuf, HubError> {
    fetch(options, &repository("org/name"), Wanted::Model, &mut |_| {})
}

/// Files that a reader of the cache would take for whole.
fn whole_files(cache: &Path) -> Vec<String> {
    let blobs = cache.join("models--org--name/blobs");
    let names = fs::read_dir(blobs).into_iter().flatten().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| !name.ends_with(".part") && !name.ends_with(".lock"));
    names
}

#[test]
fn a_model_comes_with_what_it_has_and_a_second_start_asks_for_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let options = options(cache.path(), &server);
    let mut seen = Vec::new();
    let dir = fetch(&options, &repository("org/name"), Wanted::Model, &mut |progress| {
        assert_eq!((progress.file, progress.total), (WEIGHTS, 100_000));
        seen.push(progress.done);
    })
    .unwrap();
    assert_eq!(dir, cache.path().join("models--org--name/snapshots").join(SHA));
    assert_eq!(fs::read(dir.join(WEIGHTS)).unwrap(), [7; 100_000]);
    assert_eq!(fs::read_to_string(dir.join("generation_config.json")).unwrap(), "{\"eos_token_id\": 2}");
    assert!(!dir.join("README.md").exists() && !dir.join("chat_template.jinja").exists());
    assert!(seen.is_sorted() && seen.last() == Some(&100_000), "{seen:?}");
    let asked = server.take_requests();
    assert_eq!(asked[0], "/api/models/org/name/revision/main?blobs=true");
    assert!(!asked.iter().any(|path| path.contains("/chat_template")), "{asked:?}");
    for file in ["special_tokens_map.json", "added_tokens.json", "additional_chat_templates/tool_use.jinja"] {
        assert!(dir.join(file).is_file(), "{file}");
    }

    assert_eq!(quietly(&options).unwrap(), dir);
    assert_eq!(server.take_requests(), [""; 0]);
}

#[test]
fn shards_are_the_ones_the_index_names() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(sharded().large("model-00003-of-00002.safetensors", &[3; 10]));
    let options = options(cache.path(), &server);
    let mut totals = Vec::new();
    let dir = fetch(&options, &repository("org/name"), Wanted::Model, &mut |progress| {
        totals.push((progress.done, progress.total))
    })
    .unwrap();
    assert_eq!(fs::read(dir.join("model-00002-of-00002.safetensors")).unwrap(), [2; 5000]);
    assert!(!dir.join("model-00003-of-00002.safetensors").exists());
    assert_eq!(totals.last(), Some(&(8000, 8000)));
    server.take_requests();
    assert_eq!(quietly(&options).unwrap(), dir);
    assert_eq!(server.take_requests(), [""; 0]);
}

#[test]
fn only_what_is_missing_is_fetched() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(sharded());
    let options = options(cache.path(), &server);
    let dir = quietly(&options).unwrap();
    fs::remove_file(dir.join("model-00001-of-00002.safetensors")).unwrap();
    server.take_requests();
    quietly(&options).unwrap();
    let asked = server.take_requests();
    let others = |path: &&String| !path.contains("model-00001") && !path.starts_with("/api/models/");
    assert_eq!(asked.iter().filter(others).count(), 0, "{asked:?}");
    assert_eq!(fs::read(dir.join("model-00001-of-00002.safetensors")).unwrap(), [1; 3000]);
}

#[test]
fn a_body_that_breaks_off_is_no_file_and_is_gone_on_with() {
    for unmeasured in [false, true] {
        let cache = tempfile::tempdir().unwrap();
        let mut hub = model();
        hub.unmeasured = unmeasured;
        hub.files.get_mut(WEIGHTS).unwrap().sent = 40_000;
        let server = Server::start(hub);
        let options = options(cache.path(), &server);
        let error = quietly(&options).unwrap_err();
        match unmeasured {
            false => assert!(matches!(error, HubError::Broken { .. }), "{error}"),
            true => assert!(matches!(error, HubError::WrongSize { found: 40_000, expected: 100_000, .. }), "{error}"),
        }
        let dir = cache.path().join("models--org--name/snapshots").join(SHA);
        assert!(!dir.join(WEIGHTS).exists());
        assert_eq!(whole_files(cache.path()).len(), 6, "the small files alone");
        assert!(!cache.path().join("models--org--name/refs/main").exists());

        server.hub.lock().unwrap().files.get_mut(WEIGHTS).unwrap().sent = 100_000;
        let mut first = None;
        let fetched = fetch(&options, &repository("org/name"), Wanted::Model, &mut |progress| {
            first.get_or_insert(progress.done);
        });
        assert_eq!(fs::read(fetched.unwrap().join(WEIGHTS)).unwrap(), [7; 100_000]);
        assert_eq!(first == Some(40_000), !unmeasured, "{first:?}");
    }
}

#[test]
fn other_bytes_than_the_hub_lists_are_not_kept() {
    let cache = tempfile::tempdir().unwrap();
    let mut hub = model();
    hub.files.get_mut(WEIGHTS).unwrap().forged = Some(vec![8; 100_000]);
    let server = Server::start(hub);
    let options = options(cache.path(), &server);
    let error = quietly(&options).unwrap_err();
    assert!(matches!(&error, HubError::WrongDigest { file, .. } if file == WEIGHTS), "{error}");
    assert_eq!(whole_files(cache.path()).len(), 6);
    server.hub.lock().unwrap().files.get_mut(WEIGHTS).unwrap().forged = None;
    assert_eq!(fs::read(quietly(&options).unwrap().join(WEIGHTS)).unwrap(), [7; 100_000]);
}

#[test]
fn what_the_hub_refuses_is_said_in_words() {
    let refusal = |hub: Hub, token: Option<&str>| {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(hub);
        let token = token.map(|token| HubToken(token.to_owned()));
        let error = quietly(&HubOptions { token, ..options(cache.path(), &server) }).unwrap_err();
        error.to_string().replace(&server.address.to_string(), "HUB")
    };
    let listing = |status, code| Hub { listing: Some((status, code)), ..model() };
    let not_found = "http://HUB has no repository org/name, or it is private and HF_TOKEN does not open it";
    assert_eq!(refusal(listing(404, "RepoNotFound"), None), not_found);
    // Without a token the hub answers 401 for what does not exist.
    assert_eq!(refusal(listing(401, "RepoNotFound"), None), not_found);
    assert_eq!(
        refusal(listing(401, ""), Some("hf_old")),
        "http://HUB answers 401 for org/name: HF_TOKEN is not accepted"
    );
    assert_eq!(refusal(listing(503, ""), None), "http://HUB answers 503 for org/name");
    let gated = Hub { gate: Some((401, "GatedRepo")), ..model() };
    let ask = "org/name is gated: ask for access at http://HUB/org/name and set HF_TOKEN to a token that has it";
    assert_eq!(refusal(gated.clone(), None), ask);
    assert_eq!(refusal(Hub { gate: Some((403, "GatedRepo")), ..gated }, Some("hf_other")), ask);
}

#[test]
fn a_revision_that_is_not_there_is_not_a_missing_repository() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(Hub { listing: Some((404, "RevisionNotFound")), ..model() });
    let said = quietly(&options(cache.path(), &server)).unwrap_err();
    assert!(matches!(said, HubError::NoRevision { .. }) && said.to_string().contains("org/name"), "{said}");
}

#[test]
fn a_token_opens_what_is_gated() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(Hub { gate: Some((401, "GatedRepo")), token: Some("hf_good"), ..model() });
    let options = options(cache.path(), &server);
    assert!(matches!(quietly(&options), Err(HubError::Gated { .. })));
    let options = HubOptions { token: Some(HubToken("hf_good".into())), ..options };
    assert!(quietly(&options).unwrap().join(WEIGHTS).is_file());
    assert!(!format!("{options:?}").contains("hf_good"));
}

#[test]
fn a_repository_without_safetensors_is_refused_before_anything_is_fetched() {
    let without = || Hub::default().small("config.json", "{}").small("tokenizer.json", "{}");
    let adapter = without().small("adapter_config.json", "{}");
    let cases = [
        (without().large("pytorch_model.bin", b"x"), "pickled weights"),
        (without().large("name-Q4_K_M.gguf", b"x"), "GGUF files"),
        (adapter.large("adapter_model.safetensors", b"x"), "an adapter, which is no base model"),
        (without(), "no weights"),
    ];
    for (hub, found) in cases {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(hub);
        let error = quietly(&options(cache.path(), &server)).unwrap_err();
        assert!(matches!(error, HubError::NoSafetensors { .. }) && error.to_string().contains(found), "{error}");
        assert_eq!(server.take_requests().len(), 1);
    }
}

#[test]
fn a_missing_file_and_a_bad_index_are_named() {
    let refusal = |hub: Hub| {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(hub);
        quietly(&options(cache.path(), &server)).unwrap_err().to_string()
    };
    let mut hub = model();
    hub.files.remove("tokenizer.json");
    assert_eq!(refusal(hub), "org/name has no tokenizer.json");
    let mut hub = sharded();
    hub.files.remove("model-00002-of-00002.safetensors");
    assert_eq!(refusal(hub), "org/name has no model-00002-of-00002.safetensors");
    for (index, reason) in [
        ("{\"weight_map\": {\"a\": \"../../x.safetensors\"}}", "is not a plain file name"),
        ("{\"weight_map\": {\"a\": \"x.bin\"}}", "is not a plain file name"),
        ("{\"weight_map\": {}}", "it names no file"),
        ("[", "EOF"),
    ] {
        let found = refusal(sharded().small(INDEX, index));
        assert!(found.contains(reason), "{found}");
    }
}

#[test]
fn offline_uses_the_cache_or_says_that_it_cannot() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let online = options(cache.path(), &server);
    let offline = HubOptions { offline: true, ..online.clone() };
    assert!(matches!(quietly(&offline), Err(HubError::NotCached { .. })));
    assert_eq!(server.take_requests(), [""; 0]);
    let dir = quietly(&online).unwrap();
    // As another tool may have left it: nothing says which optional files the repository has not.
    fs::remove_dir_all(cache.path().join("models--org--name/.no_exist")).unwrap();
    server.take_requests();
    assert_eq!(quietly(&offline).unwrap(), dir);
    assert_eq!(server.take_requests(), [""; 0]);
    assert_eq!(quietly(&online).unwrap(), dir);
    assert_eq!(server.take_requests().len(), 1, "the listing alone");
    fs::remove_file(dir.join(WEIGHTS)).unwrap();
    assert!(matches!(quietly(&offline), Err(HubError::NotCached { .. })));
}

#[test]
fn a_hub_that_does_not_answer_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let options = options(cache.path(), &server);
    drop(server);
    let error = quietly(&options).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&options.endpoint) && error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn a_file_cut_short_in_the_cache_is_fetched_again() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let options = options(cache.path(), &server);
    let dir = quietly(&options).unwrap();
    let blob = fs::canonicalize(dir.join(WEIGHTS)).unwrap();
    fs::write(&blob, [7; 10]).unwrap();
    // A run that was killed before its end leaves no ref.
    fs::remove_file(cache.path().join("models--org--name/refs/main")).unwrap();
    assert_eq!(fs::read(quietly(&options).unwrap().join(WEIGHTS)).unwrap(), [7; 100_000]);
}

#[test]
fn of_an_adapter_its_config_best_weights_template_and_tokenizer_are_fetched_and_nothing_else() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(adapter());
    let options = options(cache.path(), &server);
    assert_eq!(cached(&options, &repository("org/name"), Wanted::Adapter), None);
    let dir = fetch_adapter(&options, "org/name").unwrap();
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json"]);
    assert_eq!(fs::read(dir.join("adapter_model.safetensors")).unwrap(), [5; 4000]);
    server.take_requests();
    assert_eq!(fetch_adapter(&options, "org/name").unwrap(), dir);
    assert_eq!(cached(&options, &repository("org/name"), Wanted::Adapter), Some(dir));
    assert_eq!(cached(&options, &repository("org/name"), Wanted::Model), None, "it is no model");
    assert_eq!(server.take_requests(), [""; 0]);
}

#[test]
fn pickled_or_sharded_weights_of_an_adapter_come_where_there_are_no_others() {
    let mut pickled = adapter();
    pickled.files.remove("adapter_model.safetensors");
    let map = serde_json::json!({ "weight_map": { "a": "adapter_model-00001-of-00001.safetensors" } });
    let sharded = pickled.clone().small(ADAPTER_INDEX, &map.to_string());
    let sharded = sharded.large("adapter_model-00001-of-00001.safetensors", &[8; 100]);
    for (hub, file) in [(pickled, "adapter_model.bin"), (sharded, "adapter_model-00001-of-00001.safetensors")] {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(hub);
        let options = options(cache.path(), &server);
        assert!(fetch_adapter(&options, "org/name").unwrap().join(file).is_file());
        assert!(fetch_adapter(&HubOptions { offline: true, ..options }, "org/name").unwrap().join(file).is_file());
    }
}

#[test]
fn a_revision_is_fetched_and_kept_by_its_name() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(adapter());
    let options = options(cache.path(), &server);
    for (text, asked) in [
        ("org/name@v1.0", "/api/models/org/name/revision/v1.0?blobs=true"),
        ("org/name@refs/pr/3", "/api/models/org/name/revision/refs%2Fpr%2F3?blobs=true"),
    ] {
        assert!(fetch_adapter(&options, text).is_ok());
        assert_eq!(server.take_requests()[0], asked);
        assert!(fetch_adapter(&options, text).is_ok());
        assert_eq!(server.take_requests(), [""; 0], "its ref was kept");
    }
    let offline = HubOptions { offline: true, ..options };
    assert!(fetch_adapter(&offline, &format!("org/name@{SHA}")).is_ok(), "a commit needs no ref");
    let missing = fetch_adapter(&offline, "org/name@other");
    assert!(matches!(missing, Err(HubError::NotCached { repository, .. }) if repository == "org/name@other"));
}

#[test]
fn a_repository_without_an_adapter_says_what_it_has() {
    let refusal = |hub: Hub| {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(hub);
        fetch_adapter(&options(cache.path(), &server), "org/name").unwrap_err().to_string()
    };
    let mut bare = adapter();
    bare.files.retain(|name, _| name == "adapter_config.json");
    let folders = Hub::default()
        .small("checkpoint-10/adapter_config.json", "{}")
        .large("checkpoint-10/adapter_model.safetensors", &[1; 10]);
    for (hub, words) in [
        (model(), "a whole model, which is served with --model"),
        (folders, "adapters in checkpoint-10"),
        (bare, "a config and no adapter_model.safetensors"),
        (Hub::default().small("README.md", ""), "no weights"),
        (Hub::default().large("x.gguf", b"x"), "GGUF files"),
    ] {
        let text = refusal(hub);
        assert!(text.contains("org/name has no adapter at its root") && text.contains(words), "{text}");
    }
    let gated = refusal(Hub { gate: Some((401, "GatedRepo")), ..adapter() });
    assert!(gated.contains("is gated: ask for access"), "{gated}");
    let missing = refusal(Hub { listing: Some((404, "RepoNotFound")), ..adapter() });
    assert!(missing.contains("has no repository org/name"), "{missing}");
}

#[test]
fn options_come_from_the_environment_and_the_saved_token() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("hf")).unwrap();
    fs::write(home.path().join("hf/token"), "hf_saved\n").unwrap();
    let mut environment = Environment::default();
    assert!(matches!(HubOptions::from_environment(&environment), Err(HubError::NoCacheFolder)));
    environment.hub.home = Some(home.path().join("hf"));
    let options = HubOptions::from_environment(&environment).unwrap();
    assert_eq!(options.endpoint, ENDPOINT);
    assert_eq!((options.cache, options.token), (home.path().join("hf/hub"), Some(HubToken("hf_saved".into()))));
    environment.hub.token = Some("hf_given".into());
    environment.hub.endpoint = Some("http://mirror.example/".into());
    let options = HubOptions::from_environment(&environment).unwrap();
    assert_eq!(
        (options.endpoint.as_str(), options.token),
        ("http://mirror.example", Some(HubToken("hf_given".into())))
    );
}
