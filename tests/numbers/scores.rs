//! Log-probabilities of prompts: those of transformers + peft, and to the bit those that generating the same tokens gave.

use std::fs;
use std::sync::Arc;

use polydelta::engine::EventReceiver;
use polydelta::ops::cpu::{CpuBackend, CpuOptions};
use polydelta::ops::{Backend, Numerics, reference::ReferenceBackend};
use polydelta::scheduler::SchedulerConfig;
use polydelta::types::{FinishReason, SamplingParams, SequenceEvent, TokenLogprob};
use serde::Deserialize;

use crate::engine::{Hall, config, hall, hall_of};
use crate::fixture::{Case, Family};

/// A text that transformers + peft have scored in one forward.
#[derive(Deserialize)]
struct Scored {
    adapter: Option<String>,
    tokens: Vec<u32>,
    /// Of every token but the first.
    logprobs: Vec<f32>,
    top: Vec<Vec<(u32, f32)>>,
}

/// What a request says of its prompt and then of its output.
#[derive(Default)]
struct Said {
    prompt: Vec<(u32, TokenLogprob)>,
    output: Vec<(u32, TokenLogprob)>,
}

fn read(mut events: EventReceiver) -> Said {
    let mut said = Said::default();
    while let Some(event) = events.blocking_recv() {
        match event {
            SequenceEvent::PromptLogprob { token, logprob } => said.prompt.push((token, logprob)),
            SequenceEvent::Token { token: Some(token), logprob, .. } => said.output.push((token, logprob.unwrap())),
            SequenceEvent::Token { finish: Some((FinishReason::Length, None)), .. } => {}
            SequenceEvent::Started { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    said
}

fn scoring(top: u32) -> SamplingParams {
    SamplingParams { prompt_logprobs: Some(top), ..SamplingParams::greedy() }
}

fn close(found: f32, expected: f32) -> bool {
    (found - expected).abs() < 1e-4
}

fn check(family: &str, scored: &Scored, found: &[(u32, TokenLogprob)]) {
    let name = format!("{family} {:?}", scored.adapter);
    assert_eq!(found.iter().map(|(token, _)| *token).collect::<Vec<_>>(), scored.tokens[1..], "{name}");
    for (index, (_, found)) in found.iter().enumerate() {
        let (logprob, expected) = (scored.logprobs[index], &scored.top[index]);
        assert!(close(found.logprob, logprob), "{name}: token {index}: {} vs {logprob}", found.logprob);
        assert_eq!(found.top.len(), expected.len(), "{name}");
        for ((id, found), (expected_id, expected)) in found.top.iter().zip(expected) {
            assert!(close(*found, *expected), "{name}: top of {index}: {found} vs {expected}");
            let tie = scored.top[index].iter().filter(|(_, other)| (other - expected).abs() < 2e-4).count() > 1;
            assert!(id == expected_id || tie, "{name}: top of {index}: {id} vs {expected_id}");
        }
    }
}

#[test]
fn every_token_of_a_prompt_is_worth_what_it_is_to_transformers_and_peft() {
    for name in ["llama", "gemma2", "qwen3", "mistral"] {
        let family = Family::open(name);
        let scored: Vec<Scored> = serde_json::from_slice(&fs::read(family.dir.join("scores.json")).unwrap()).unwrap();
        let adapters: Vec<String> = scored.iter().filter_map(|one| one.adapter.clone()).collect();
        assert!(adapters.len() >= 4, "{name}");
        let cpu = CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::F32, isa: None }).unwrap();
        check_all(&family, &scored, hall(&family, &adapters, config(&family, 1024)));
        check_all(&family, &scored, hall_of(&family, &adapters, config(&family, 1024), Arc::new(cpu), |inner| inner));
    }
}

/// All in one batch.
fn check_all(family: &Family, scored: &[Scored], mut hall: Hall) {
    let submit = |one: &Scored| hall.submit_prompt(&one.tokens, one.adapter.as_deref(), scoring(3), 0);
    let receivers: Vec<_> = scored.iter().map(submit).collect();
    for (scored, events) in scored.iter().zip(receivers) {
        check(&family.name, scored, &read(events).prompt);
    }
}

/// A token's id and the bits of its log-probability.
type Bits = (u32, u32);

/// Those of tokens, and of the most likely ones at the place of each.
fn bits(tokens: &[(u32, TokenLogprob)]) -> Vec<(Bits, Vec<Bits>)> {
    let top = |top: &[(u32, f32)]| top.iter().map(|(id, logprob)| (*id, logprob.to_bits())).collect();
    tokens.iter().map(|(token, found)| ((*token, found.logprob.to_bits()), top(&found.top))).collect()
}

/// Generate in one hall; then, in halls that cut and preempt in different ways, score what came out and go on behind it.
fn check_bits<B: Backend>(family: &Family, make: impl Fn() -> B) {
    let cases: Vec<&Case> = family.cases.iter().collect();
    let mut adapters: Vec<String> = cases.iter().filter_map(|case| case.adapter.clone()).collect();
    adapters.sort();
    adapters.dedup();
    let open = |config: SchedulerConfig| hall_of(family, &adapters, config, Arc::new(make()), |executor| executor);
    let mut plain = open(config(family, 1024));
    let receivers: Vec<_> = cases.iter().map(|case| plain.submit(case)).collect();
    let generated: Vec<Said> = receivers.into_iter().map(read).collect();

    let narrow = |num_blocks| SchedulerConfig { max_prefill_chunk: Some(7), ..config(family, num_blocks) };
    let uncached = SchedulerConfig { prefix_cache: false, ..narrow(40) };
    for config in [config(family, 1024), narrow(1024), narrow(40), uncached] {
        let tight = config.num_blocks == 40;
        let mut hall = open(config);
        let text = |case: &Case, said: &Said| -> Vec<u32> {
            case.prompt.iter().copied().chain(said.output.iter().map(|(id, _)| *id)).collect()
        };
        let mut score = |case: &Case, said: &Said| {
            // Going on makes room scarce while others are still scored.
            let sampling = SamplingParams { logprobs: Some(5), ..scoring(5) };
            hall.submit_prompt(&text(case, said), case.adapter.as_deref(), sampling, 16)
        };
        // Pages of virtual tokens that somebody waits for would leave no room for two at a time.
        let fits = |case: &Case| !tight || !case.adapter.as_deref().unwrap_or_default().starts_with('p');
        // An invocation that was generated activates nothing, but it does where it is read.
        let alike = |case: &Case, said: &Said| {
            let from = |adapter: &str, tokens: &[u32]| plain.binding(adapter, tokens).active_from;
            let alike = |adapter: &str| from(adapter, &case.prompt) == from(adapter, &text(case, said));
            case.adapter.as_deref().is_none_or(alike)
        };
        let texts: Vec<(&Case, &Said)> = cases.iter().copied().zip(&generated).collect();
        let texts: Vec<_> = texts.into_iter().filter(|(case, said)| fits(case) && alike(case, said)).collect();
        let receivers: Vec<_> = texts.iter().map(|(case, said)| score(case, said)).collect();
        for ((case, generated), events) in texts.into_iter().zip(receivers) {
            let scored = read(events).prompt;
            assert_eq!(scored.len(), case.prompt.len() - 1 + generated.output.len(), "{}", case.name);
            let behind = &scored[case.prompt.len() - 1..];
            assert!(bits(behind) == bits(&generated.output), "{} {}", family.name, case.name);
        }
        let stats = hall.stats();
        assert_eq!(stats.preemptions > 0, tight, "{stats:?}");
        assert_eq!(stats.running + stats.waiting, 0);
    }
}

#[test]
fn scoring_a_text_gives_the_bits_that_generating_it_gave() {
    check_bits(&Family::open("llama"), || ReferenceBackend::new(Numerics::F32));
    for (name, numerics) in [("llama", Numerics::BF16), ("gemma3", Numerics::F32), ("mistral", Numerics::BF16)] {
        check_bits(&Family::open(name), || CpuBackend::new(CpuOptions { threads: 2, numerics, isa: None }).unwrap());
    }
}
