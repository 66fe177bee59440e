//! Held-out prompts of every bundled adapter and mix, and the base on the same prompts, mixed in one batch through gRPC.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use pb::adapter_service_client::AdapterServiceClient;
use pb::generation_service_client::GenerationServiceClient;
use pb::pooling_service_client::PoolingServiceClient;
use pb::server_service_client::ServerServiceClient;
use polydelta::app::{OpenedBase, Server};
use polydelta::config::{Args, Command, Environment, ModelSource, ServeConfig};
use polydelta::grpc::pb;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

/// Requests in the server at a time.
const IN_FLIGHT: usize = 128;
/// Every n-th prompt is asked of the base too: it never says when it is done, and so takes far longer.
const ASKED_OF_BASE: usize = 4;
const MAX_TOKENS: u32 = 48;

#[derive(Clone, Deserialize)]
struct Example {
    prompt: String,
    answer: String,
}

#[derive(Clone, Default, Deserialize)]
struct Entry {
    name: String,
    kind: String,
    /// Of a classification head, in its order.
    #[serde(default)]
    labels: Vec<String>,
    /// Adapters added up for a request.
    #[serde(default)]
    mix: Vec<Part>,
}

#[derive(Clone, Deserialize)]
struct Part {
    adapter: String,
    weight: f32,
}

#[derive(Clone, Copy, Default)]
struct Score {
    asked: u32,
    right: u32,
}

impl Score {
    fn share(self) -> f64 {
        f64::from(self.right) / f64::from(self.asked)
    }
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

/// The adapters and mixes that the demo names, with their kinds.
fn entries() -> Vec<Entry> {
    let entries: Vec<Entry> = serde_json::from_slice(&fs::read(model().join("demo.json")).unwrap()).unwrap();
    entries.into_iter().filter(|entry| !entry.name.is_empty()).collect()
}

fn examples(name: &str) -> Vec<Example> {
    let text = fs::read_to_string(model().join("eval").join(format!("{name}.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn config(store: &Path) -> ServeConfig {
    let mut words = vec!["polydelta".to_owned(), "serve".to_owned(), "--no-metrics".to_owned()];
    words.extend(["--listen".to_owned(), "127.0.0.1:0".to_owned()]);
    // Not what `auto` finds: a test beside this one may have the emulated driver in the process.
    words.extend(["--device".to_owned(), "cpu".to_owned()]);
    words.extend(["--store".to_owned(), store.display().to_string()]);
    words.extend(["--model".to_owned(), model().display().to_string()]);
    for entry in entries().iter().filter(|entry| entry.mix.is_empty()) {
        let folder = model().join("adapters").join(&entry.name);
        words.extend(["--adapter".to_owned(), format!("{}={}", entry.name, folder.display())]);
    }
    let Command::Serve(args) = Args::parse_from(words).command else { panic!("serve was asked for") };
    ServeConfig::resolve(&args, &Environment::default()).unwrap()
}

/// What an adapter, a mix or the base says.
async fn answer(channel: Channel, asked: Entry, prompt: String) -> String {
    if !asked.labels.is_empty() {
        return label(channel, asked, prompt).await;
    }
    let part =
        |part: &Part| pb::MixPart { adapter: part.adapter.clone(), weight: part.weight, ..pb::MixPart::default() };
    let request = pb::GenerateRequest {
        adapter: if asked.mix.is_empty() { asked.name } else { String::new() },
        mix: asked.mix.iter().map(part).collect(),
        input: Some(pb::generate_request::Input::Prompt(prompt)),
        stopping: Some(pb::StoppingParams { max_tokens: Some(MAX_TOKENS), ..pb::StoppingParams::default() }),
        ..pb::GenerateRequest::default()
    };
    let response = GenerationServiceClient::new(channel).generate(request).await.unwrap().into_inner();
    response.choices[0].text.trim().to_owned()
}

/// The likeliest one.
async fn label(channel: Channel, asked: Entry, prompt: String) -> String {
    let input = pb::PoolInput { input: Some(pb::pool_input::Input::Prompt(prompt)) };
    let request = pb::ScoreRequest { adapter: asked.name, inputs: vec![input], ..pb::ScoreRequest::default() };
    let response = PoolingServiceClient::new(channel).score(request).await.unwrap().into_inner();
    let probabilities = &response.texts[0].scores[0].probabilities;
    assert_eq!(probabilities.len(), asked.labels.len());
    let best = probabilities.iter().zip(asked.labels).max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.unwrap().1
}

/// Ask everything at once; scores by (adapter asked, task).
async fn scores(channel: &Channel) -> BTreeMap<(String, String), Score> {
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut calls = JoinSet::new();
    let tasks: Vec<_> = entries().into_iter().map(|entry| (examples(&entry.name), entry)).collect();
    // By turns, so that neighbours in a batch have different adapters.
    let longest = tasks.iter().map(|(examples, _)| examples.len()).max().unwrap();
    for index in 0..longest {
        for (examples, task) in &tasks {
            let Some(example) = examples.get(index).cloned() else { continue };
            let base = index % ASKED_OF_BASE == 0;
            for asked in [Some(task.clone()), base.then(Entry::default)].into_iter().flatten() {
                let (places, channel, example) = (places.clone(), channel.clone(), example.clone());
                let key = (asked.name.clone(), task.name.clone());
                calls.spawn(async move {
                    let _place = places.acquire_owned().await.unwrap();
                    let said = answer(channel, asked, example.prompt).await;
                    (key, said == example.answer)
                });
            }
        }
    }
    let mut scores: BTreeMap<_, Score> = BTreeMap::new();
    while let Some(call) = calls.join_next().await {
        let (key, right) = call.unwrap();
        let score = scores.entry(key).or_default();
        score.asked += 1;
        score.right += u32::from(right);
    }
    scores
}

/// Of each group of delta tuning what the others cannot stand for, and a head.
async fn has_one_of_each(channel: &Channel) {
    let listed = AdapterServiceClient::new(channel.clone()).list_adapters(pb::ListAdaptersRequest::default()).await;
    let listed = listed.unwrap().into_inner().adapters;
    let has = |kind: &str, group: &str| listed.iter().any(|one| one.kind == kind && one.group == group);
    let wanted = [("bottleneck", "addition"), ("OFT", "reparameterization"), ("SHiRA", "specification")];
    for (kind, group) in wanted {
        assert!(has(kind, group), "no {kind}: {listed:#?}");
    }
    assert!(listed.iter().any(|one| one.task == "SEQ_CLS" && one.labels > 1), "no head: {listed:#?}");
    assert!(entries().iter().any(|entry| entry.mix.len() > 1), "no mix");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bundled_adapter_does_its_task_and_the_base_does_none() {
    let store = tempfile::tempdir().unwrap();
    let base = OpenedBase::open(&ModelSource::Dir(model()), &Environment::default()).unwrap();
    let server = Server::start(&config(store.path()), &base, &Environment::default(), Instant::now()).await.unwrap();
    let channel = Endpoint::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
    let scores = scores(&channel).await;

    has_one_of_each(&channel).await;
    let stats = ServerServiceClient::new(channel).get_stats(pb::GetStatsRequest {}).await.unwrap().into_inner();
    assert!(stats.max_distinct_adapters as usize >= entries().len() - 1, "the batch was not mixed: {stats:?}");
    let mut bad = Vec::new();
    for entry in entries() {
        let share = scores[&(entry.name.clone(), entry.name.clone())].share();
        let alone = scores[&(String::new(), entry.name.clone())].share();
        let low_rank = ["LoRA", "rsLoRA", "DoRA", "mix"].iter().any(|kind| entry.kind.starts_with(kind));
        println!("{:<16} {:<42} {share:.3} (base {alone:.3})", entry.name, entry.kind);
        if share < if low_rank { 0.95 } else { 0.85 } || alone > 0.1 {
            bad.push(format!("{}: {share:.3}, base {alone:.3}", entry.name));
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
    server.lifecycle().drain();
    server.ended().await.unwrap();
}
