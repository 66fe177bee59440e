//! Receipts: what they say, and that the answers they describe are computed again, bit for bit, by another server in other
//! batches.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use polydelta::adapters::ResidencyLimits;
use polydelta::cli::{CliError, replay, replay_request};
use polydelta::config::{Args, Command, Exit};
use polydelta::grpc::pb;
use polydelta::grpc::pb::generation_service_client::GenerationServiceClient;
use polydelta::receipt::{ChoiceRecord, DeltaRecord, FinishRecord, LogprobHasher, Receipt, StopRecord};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::files::AdapterFiles;
use super::generation::{collect, events, unary, without_times};
use super::golden::{GoldenServer, case, golden_adapters};
use super::harness::{Options, prompt};

/// Each server has a runtime of its own, which ends with it, as a process does.
fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn wanting_receipt(request: pb::GenerateRequest) -> pb::GenerateRequest {
    let options = pb::OutputOptions { receipt: true, ..request.options.unwrap_or_default() };
    pb::GenerateRequest { options: Some(options), ..request }
}

fn sampled(temperature: f32, seed: Option<u64>) -> pb::SamplingParams {
    pb::SamplingParams { temperature: Some(temperature), seed, ..Default::default() }
}

fn read(text: &str) -> Receipt {
    Receipt::read(text.as_bytes()).unwrap()
}

/// The receipt of an answer, given whole or as a stream.
async fn receipt_of(server: &GoldenServer, request: pb::GenerateRequest, streamed: bool) -> String {
    match streamed {
        true => collect(&events(server, request).await.unwrap()).receipt,
        false => unary(server, request).await.receipt,
    }
}

fn digest(logprobs: &[pb::TokenLogprob]) -> String {
    let mut hasher = LogprobHasher::default();
    logprobs.iter().for_each(|one| hasher.add(one.logprob));
    hasher.digest().to_string()
}

#[tokio::test]
async fn a_receipt_says_what_was_resolved_and_what_came_of_it() {
    let server = GoldenServer::start().await;
    let version = server.upload("sql", &AdapterFiles::golden("lora_r4")).await.version;
    let stopping = pb::StoppingParams { max_tokens: Some(6), stop_token_ids: vec![9], ..Default::default() };
    let asked = pb::GenerateRequest {
        adapter: "sql".into(),
        sampling: Some(pb::SamplingParams { logit_bias: [(9, -100.0)].into(), ..sampled(0.7, None) }),
        stopping: Some(stopping),
        n: 2,
        ..prompt("Hi")
    };
    let plain = unary(&server, asked.clone()).await;
    assert_eq!(plain.receipt, "", "not asked for");
    let bare = unary(&server, wanting_receipt(asked.clone())).await;
    assert!(bare.choices.iter().all(|choice| choice.logprobs.is_empty() && choice.token_ids.is_empty()), "nor these");
    let options =
        pb::OutputOptions { token_ids: true, logprobs: Some(2), prompt_logprobs: Some(0), ..Default::default() };
    let full = unary(&server, wanting_receipt(pb::GenerateRequest { options: Some(options), ..asked })).await;
    let receipt = read(&full.receipt);
    let DeltaRecord::Adapter { name, version: recorded } = &receipt.delta else { panic!("{:?}", receipt.delta) };
    assert_eq!((name.as_str(), recorded.to_string()), ("sql", version));
    assert_eq!((&receipt.prompt_token_ids[..], receipt.active_from), (&[1, 45, 78][..], Some(0)));
    let sampling = &receipt.sampling;
    assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (0.7, 0, 1.0));
    assert_eq!(sampling.logit_bias, [(9, -100.0)].into());
    assert_ne!(sampling.seed, read(&bare.receipt).sampling.seed, "each has the seed that it was drawn with");
    assert_eq!((receipt.stopping.max_tokens, &receipt.stopping.stop_token_ids[..]), (6, &[2, 9][..]));
    assert_eq!(receipt.prompt_logprobs_sha256.unwrap().to_string(), digest(&full.prompt_logprobs));
    assert_eq!(receipt.choices.len(), 2);
    for (recorded, choice) in receipt.choices.iter().zip(&full.choices) {
        assert_eq!(recorded.token_ids, choice.token_ids);
        assert_eq!(recorded.logprobs_sha256.to_string(), digest(&choice.logprobs));
    }
}

#[tokio::test]
async fn a_receipt_says_what_ended_a_choice_and_a_stream_has_the_same_one() {
    let server = GoldenServer::start().await;
    let greedy = case("base/long");
    let text = unary(&server, greedy.request()).await.choices[0].text.clone();
    let stop = text.chars().skip(3).take(2).collect::<String>();
    let request = |change: &dyn Fn(&mut pb::StoppingParams)| {
        let mut request = wanting_receipt(greedy.request());
        change(request.stopping.as_mut().unwrap());
        request
    };
    let requests = [
        (request(&|_| ()), FinishRecord::Length, None),
        (request(&|s| s.stop = vec![stop.clone()]), FinishRecord::Stop, Some(StopRecord::Text(stop.clone()))),
        (
            request(&|s| s.stop_token_ids = vec![greedy.ids[4]]),
            FinishRecord::Stop,
            Some(StopRecord::TokenId(greedy.ids[4])),
        ),
    ];
    for (request, reason, stop) in requests {
        let whole = unary(&server, request.clone()).await;
        let ChoiceRecord { token_ids, finish_reason, stop_match, .. } = read(&whole.receipt).choices.remove(0);
        assert_eq!((finish_reason, stop_match), (reason, stop));
        assert_eq!(token_ids, whole.choices[0].token_ids);
        let streamed = collect(&events(&server, request).await.unwrap());
        assert_eq!(without_times(streamed), without_times(whole));
    }
}

/// Requests of the base and of adapters, one after another, until told to end.
async fn bustle(mut client: GenerationServiceClient<Channel>, over: Arc<AtomicBool>, names: Vec<String>, seed: u64) {
    for round in seed.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let adapter = names[round as usize * 7 % names.len()].clone();
        let prompt = prompt(&"what else is asked for "[..3 + round as usize % 19]);
        let stopping = pb::StoppingParams { max_tokens: Some(9), ..Default::default() };
        let sampling = Some(sampled(1.0, Some(round)));
        let request = pb::GenerateRequest { adapter, sampling, stopping: Some(stopping), ..prompt };
        client.generate(request).await.unwrap();
    }
}

fn inline(name: &str) -> pb::InlineAdapter {
    let AdapterFiles { config, weights, .. } = AdapterFiles::golden(name);
    pb::InlineAdapter { config, weights }
}

/// What is asked for: every adapter greedily and sampled in several choices with a stop string, mixes, an adapter that is
/// brought, prompts that are scored.
fn asked(names: &[String]) -> Vec<pb::GenerateRequest> {
    let long = case("base/long");
    let one = |adapter: &str| pb::GenerateRequest { adapter: adapter.into(), ..long.request() };
    let several = |request: pb::GenerateRequest| {
        let mut stopping = request.stopping.clone().unwrap();
        (stopping.stop, stopping.ignore_eos) = (vec!["e".into(), "ab".into()], None);
        pb::GenerateRequest { n: 3, sampling: Some(sampled(1.5, None)), stopping: Some(stopping), ..request }
    };
    let mut requests = Vec::new();
    for name in names.iter().map(String::as_str).chain([""]) {
        requests.extend([one(name), several(one(name))]);
    }
    for name in ["mix_two/long", "mix_three/short", "mix_kinds/long", "alora/long", "alora/twice"] {
        requests.extend([case(name).request(), several(case(name).request())]);
    }
    for name in ["loha", "prefix_tuning"] {
        let brought = pb::GenerateRequest { inline_adapter: Some(inline(name)), ..long.request() };
        requests.extend([brought.clone(), several(brought)]);
    }
    let scored = pb::OutputOptions { prompt_logprobs: Some(3), ..Default::default() };
    let scored = pb::GenerateRequest { options: Some(scored), ..one("lora_all_r8") };
    let mut nothing = scored.clone();
    nothing.stopping.as_mut().unwrap().max_tokens = Some(0);
    requests.extend([scored, nothing]);
    requests.into_iter().map(wanting_receipt).collect()
}

/// Slots for some of the adapters only: they come and go while their answers are computed.
fn small(folder: &Options) -> Options {
    let residency = ResidencyLimits { max_resident_adapters: 24, ..folder.residency };
    Options { residency, max_inline_adapter_bytes: 1 << 20, ..folder.clone() }
}

#[test]
fn every_answer_is_computed_again_bit_for_bit_after_a_restart_and_in_another_batch() {
    let options = small(&Options::default());
    let names = golden_adapters();
    let requests = asked(&names);
    // Alone, one after another.
    let kept: Vec<String> = runtime().block_on(async {
        let server = GoldenServer::with(options.clone()).await;
        server.upload_golden(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let mut kept = Vec::new();
        for (index, request) in requests.iter().enumerate() {
            kept.push(receipt_of(&server, request.clone(), index % 2 == 0).await);
        }
        kept
    });
    // Many at a time, beside others.
    runtime().block_on(async {
        let server = Arc::new(GoldenServer::with(options).await);
        let over = Arc::new(AtomicBool::new(false));
        let mut others = JoinSet::new();
        for seed in 0..4 {
            others.spawn(bustle(server.generation().await, Arc::clone(&over), names.clone(), seed * 1000));
        }
        let mut replayed = JoinSet::new();
        for (text, request) in kept.into_iter().zip(requests).rev() {
            let server = Arc::clone(&server);
            let again = replay_request(&read(&text));
            let again = pb::GenerateRequest { inline_adapter: request.inline_adapter, ..again };
            replayed.spawn(async move { (receipt_of(&server, again, false).await, text) });
            if replayed.len() == 12 {
                let (again, text) = replayed.join_next().await.unwrap().unwrap();
                assert_eq!(again, text);
            }
        }
        while let Some(done) = replayed.join_next().await {
            let (again, text) = done.unwrap();
            assert_eq!(again, text);
        }
        over.store(true, Ordering::Relaxed);
        others.join_all().await;
    });
}

/// Answers of the test below, and how many are asked for at a time: 7 before the restart, 40 after it.
const MANY: usize = 10_000;

/// Ask for answers, so many at a time, each on one of a few connections.
async fn ask_all(server: &GoldenServer, requests: Vec<pb::GenerateRequest>, at_a_time: usize) -> Vec<String> {
    let mut receipts = vec![String::new(); requests.len()];
    let connections = [server.generation().await, server.generation().await, server.generation().await];
    let mut running = JoinSet::new();
    for (index, request) in requests.into_iter().enumerate() {
        if running.len() == at_a_time {
            let (index, receipt) = running.join_next().await.unwrap().unwrap();
            receipts[index] = receipt;
        }
        let mut client = connections[index % connections.len()].clone();
        running.spawn(async move { (index, client.generate(request).await.unwrap().into_inner().receipt) });
    }
    while let Some(done) = running.join_next().await {
        let (index, receipt) = done.unwrap();
        receipts[index] = receipt;
    }
    receipts
}

#[test]
fn ten_thousand_sampled_answers_have_the_same_receipts_after_a_restart() {
    const NAMES: [&str; 13] = [
        "lora_r4",
        "dora",
        "ia3",
        "oft",
        "road_2",
        "shira",
        "prefix_tuning",
        "prompt_tuning",
        "alora",
        "boft_butterfly",
        "fourierft",
        "ln_tuning",
        "trainable_tokens",
    ];
    let options = Options::default();
    let text = "a few of the ten thousand words that are asked about";
    let request = |index: usize| {
        let adapter = NAMES.get(index % (NAMES.len() + 1)).copied().unwrap_or_default().to_owned();
        let (from, length) = (index % 23, 2 + index % 9);
        let stopping = pb::StoppingParams { max_tokens: Some(1 + index as u32 % 4), ..Default::default() };
        let sampling = Some(sampled(1.2, None));
        wanting_receipt(pb::GenerateRequest {
            adapter,
            sampling,
            stopping: Some(stopping),
            n: 1 + u32::from(index.is_multiple_of(10)),
            ..prompt(&text[from..from + length])
        })
    };
    let kept = runtime().block_on(async {
        let server = GoldenServer::with(options.clone()).await;
        server.upload_golden(&NAMES).await;
        ask_all(&server, (0..MANY).map(request).collect(), 7).await
    });
    let again = runtime().block_on(async {
        let server = GoldenServer::with(options).await;
        let turned = kept.iter().rev().map(|text| replay_request(&read(text))).collect();
        ask_all(&server, turned, 40).await
    });
    let same = kept.iter().zip(again.iter().rev()).filter(|(kept, again)| kept == again).count();
    assert_eq!((same, kept.len()), (MANY, MANY));
    let mut distinct = kept;
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), MANY, "each has a seed of its own");
}

/// `polydelta replay --json` of a receipt in a file: the exit code, the report, and what is said at the end.
async fn replayed(server: &GoldenServer, receipt: &str, more: &[&str]) -> (Exit, Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answer.receipt");
    fs::write(&file, receipt).unwrap();
    let url = format!("http://{}", server.address);
    let words = ["polydelta", "replay", file.to_str().unwrap(), "--server", &url, "--json"];
    let args = Args::try_parse_from(words.iter().chain(more)).unwrap();
    let Command::Replay(args) = args.command else { panic!("another verb") };
    let mut out = Vec::new();
    let ended: Result<(), CliError> = replay(&args, &mut out).await;
    let report = serde_json::from_slice(&out).unwrap_or(Value::Null);
    match ended {
        Ok(()) => (Exit::Ok, report, String::new()),
        Err(error) => (error.exit(), report, error.to_string()),
    }
}

/// What a report has to say but that something agrees: what, verdict, and what is here.
fn complaints(report: &Value) -> Vec<(&str, &str, &str)> {
    let other = report["findings"].as_array().unwrap().iter().filter(|finding| finding["verdict"] != "agrees");
    other.map(|one| ["what", "verdict", "found"].map(|field| one[field].as_str().unwrap()).into()).collect()
}

#[tokio::test]
async fn replay_says_what_agrees_what_differs_and_what_is_not_here() {
    let server = GoldenServer::with(small(&Options::default())).await;
    let version = server.upload("sql", &AdapterFiles::golden("lora_r4")).await.version;
    let request = pb::GenerateRequest { adapter: "sql".into(), n: 2, ..case("base/long").request() };
    let text = unary(&server, wanting_receipt(request)).await.receipt;
    let (exit, report, _) = replayed(&server, &text, &[]).await;
    assert_eq!((exit, complaints(&report)), (Exit::Ok, vec![]));
    assert_eq!((&report["agrees"], &report["replayed"]), (&true.into(), &true.into()));

    // One that says what was not answered.
    let mut other = read(&text);
    other.choices[1].token_ids[2] += 1;
    let (exit, report, said) = replayed(&server, &other.text(), &[]).await;
    let found = format!("12, number 2 is {}", read(&text).choices[1].token_ids[2]);
    assert_eq!((exit, complaints(&report)), (Exit::Differs, vec![("choice 1 tokens", "differs", found.as_str())]));
    assert_eq!(said, "the answer is not the receipt's: choice 1 tokens");

    // One that somebody has written into.
    let changed = text.replacen("\"top_k\":0", "\"top_k\":1", 1);
    let (exit, _, said) = replayed(&server, &changed, &[]).await;
    assert_eq!(exit, Exit::Rejected);
    assert!(said.contains("it was changed after it was made"), "{said}");

    // Another adapter of this name, and none.
    let now = server.upload("sql", &AdapterFiles::golden("lora_r1")).await.version;
    let (exit, report, said) = replayed(&server, &text, &[]).await;
    assert_eq!((exit, complaints(&report)), (Exit::NotHere, vec![("version of sql", "not_here", now.as_str())]));
    assert!(said.contains("version of sql"), "{said}");
    assert!(report["findings"].as_array().unwrap().iter().any(|finding| finding["recorded"] == version.as_str()));
    let request = pb::DeleteAdapterRequest { name: "sql".into(), ..Default::default() };
    server.adapters().await.delete_adapter(request).await.unwrap();
    let (exit, report, _) = replayed(&server, &text, &[]).await;
    let none = ("version of sql", "not_here", "there is none of this name");
    assert_eq!((exit, complaints(&report), &report["replayed"]), (Exit::NotHere, vec![none], &false.into()));
    assert_eq!(server.engine.submits(), 3, "nothing was computed for what cannot be compared");
}

#[tokio::test]
async fn replay_needs_the_base_and_the_numerics_and_not_the_program() {
    let server = GoldenServer::start().await;
    let text = unary(&server, wanting_receipt(case("base/short").request())).await;
    let text = text.receipt;
    let elsewhere = async |change: &dyn Fn(&mut Options)| {
        let mut options = Options::default();
        change(&mut options);
        let server = GoldenServer::with(options).await;
        let (exit, report, _) = replayed(&server, &text, &[]).await;
        let what = complaints(&report).into_iter().map(|(what, verdict, _)| format!("{what} {verdict}"));
        (exit, what.collect::<Vec<_>>(), server.engine.submits())
    };
    let numerics = elsewhere(&|options| options.origin.numerics.isa = "avx512".into()).await;
    assert_eq!(numerics, (Exit::NotHere, vec!["numerics not_here".into()], 0));
    let base = elsewhere(&|options| options.origin.base_sha256.0[0] = 9).await;
    assert_eq!(base, (Exit::NotHere, vec!["base not_here".into()], 0));
    let config = elsewhere(&|options| options.origin.config_sha256.0[0] = 9).await;
    assert_eq!(config, (Exit::Ok, vec!["config.json warning".into()], 1));
    let mut earlier = read(&text);
    earlier.origin.program = "0.0.1".into();
    let (exit, report, _) = replayed(&server, &earlier.text(), &[]).await;
    assert_eq!((exit, complaints(&report)), (Exit::Ok, vec![("program", "warning", env!("CARGO_PKG_VERSION"))]));
    assert_eq!(report["agrees"], true);
}

#[tokio::test]
async fn an_adapter_that_was_brought_is_to_be_brought_again() {
    let server = GoldenServer::with(small(&Options::default())).await;
    let request = pb::GenerateRequest { inline_adapter: Some(inline("loha")), ..case("base/long").request() };
    let text = unary(&server, wanting_receipt(request)).await.receipt;
    let (exit, report, _) = replayed(&server, &text, &[]).await;
    assert_eq!((exit, complaints(&report)[0].0), (Exit::NotHere, "adapter"));
    let folder = |name: &str| super::files::golden_dir().join("adapters").join(name).display().to_string();
    let (exit, report, _) = replayed(&server, &text, &["--inline-adapter", &folder("loha")]).await;
    assert_eq!((exit, complaints(&report)), (Exit::Ok, vec![]));
    let (exit, report, _) = replayed(&server, &text, &["--inline-adapter", &folder("dora")]).await;
    assert_eq!((exit, complaints(&report)[0].0), (Exit::NotHere, "adapter"));
}
