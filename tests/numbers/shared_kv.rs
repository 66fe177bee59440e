//! KV that an adapter leaves as the base has it is shared with the base: before an aLoRA is activated, and all of it where
//! every op of a program comes behind the last K and V. What is found in the cache changes no bit.

use std::cell::RefCell;
use std::sync::Arc;

use polydelta::engine::EventReceiver;
use polydelta::ops::cpu::{CpuBackend, CpuOptions};
use polydelta::ops::{Backend, Numerics, reference::ReferenceBackend};
use polydelta::scheduler::SchedulerConfig;
use polydelta::types::{SamplingParams, SequenceEvent, TokenLogprob};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::engine::{Hall, config, hall_of};
use crate::fixture::{BLOCK_SIZE, Case, Family, Runner};

/// Tokens that every request generates.
const TOKENS: usize = 6;

/// A request's tokens with the bits of their log-probabilities, and how much of its prompt the cache had.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) tokens: Vec<(u32, Vec<u32>)>,
    pub(crate) cached: usize,
}

fn bits(logprob: &TokenLogprob) -> Vec<u32> {
    [logprob.logprob].iter().chain(logprob.top.iter().map(|(_, logprob)| logprob)).map(|x| x.to_bits()).collect()
}

fn read(mut events: EventReceiver) -> Outcome {
    let mut outcome = Outcome { tokens: Vec::new(), cached: 0 };
    while let Some(event) = events.blocking_recv() {
        match event {
            SequenceEvent::Started { cached_tokens, .. } => outcome.cached = cached_tokens as usize,
            SequenceEvent::Token { token: Some(token), logprob: Some(logprob), .. } => {
                outcome.tokens.push((token, bits(&logprob)));
            }
            other => panic!("{other:?}"),
        }
    }
    outcome
}

pub(crate) fn run(hall: &mut Hall, prompt: &[u32], adapter: Option<&str>) -> Outcome {
    let sampling = SamplingParams { logprobs: Some(5), ..SamplingParams::greedy() };
    read(hall.submit_prompt(prompt, adapter, sampling, TOKENS))
}

/// The case of an adapter and what its prompt shares with the base, in tokens.
fn cases(family: &Family) -> Vec<(&Case, usize)> {
    let whole = |case: &Case| (case.prompt.len() - 1) / BLOCK_SIZE * BLOCK_SIZE;
    let before = |case: &Case| {
        let tokens = family.compile(case.adapter.as_ref().unwrap()).unwrap().invocation_tokens;
        let at = case.prompt.windows(tokens.len()).rposition(|window| window == tokens);
        at.map_or(whole(case), |at| at / BLOCK_SIZE * BLOCK_SIZE)
    };
    let of = |name: &str| family.cases.iter().find(|case| case.name == name).unwrap();
    let activated = ["alora/long", "alora/twice", "alora/never", "alora/start", "alora/end", "alora_head/twice"];
    let behind = ["lm_head/long", "dora_lm_head/long", "behind_kv/long"];
    let activated = activated.into_iter().map(of).map(|case| (case, before(case)));
    activated.chain(behind.into_iter().map(of).map(|case| (case, whole(case)))).collect()
}

pub(crate) fn check_shared_kv<B: Backend>(backend: B) {
    let family = Family::open("llama");
    let adapters = ["alora", "alora_head", "lm_head", "dora_lm_head", "behind_kv", "lora_r4"].map(str::to_owned);
    let mut hall = hall_of(&family, &adapters, config(&family, 256), Arc::new(backend), |executor| executor);
    for (case, shared) in cases(&family) {
        let (name, own) = (&case.name, case.adapter.as_deref());
        let whole = (case.prompt.len() - 1) / BLOCK_SIZE * BLOCK_SIZE;
        // Under a salt of its own a request finds nothing.
        let mut alone = |adapter| {
            hall.salt += 1;
            run(&mut hall, &case.prompt, adapter)
        };
        let (base, adapted, plain) = (alone(None), alone(own), alone(Some("lora_r4")));
        assert_eq!([base.cached, adapted.cached, plain.cached], [0; 3]);
        assert_eq!(base.tokens == adapted.tokens, name == "alora/never", "{name}");
        let other = if own == Some("lm_head") { "behind_kv" } else { "lm_head" };
        // After the base, after the adapter itself, after a LoRA that shares nothing: who finds how much.
        for (first, then) in [
            (None, [(own, shared), (own, whole), (None, whole)]),
            (own, [(None, shared), (own, whole), (None, whole)]),
            (own, [(Some(other), shared), (Some(other), whole), (None, whole)]),
            (Some("lora_r4"), [(own, 0), (None, shared), (Some("lora_r4"), whole)]),
        ] {
            hall.salt += 1;
            assert_eq!(run(&mut hall, &case.prompt, first).cached, 0);
            for (adapter, cached) in then {
                let found = run(&mut hall, &case.prompt, adapter);
                assert_eq!(found.cached, cached, "{name}: {adapter:?} after {first:?}");
                match adapter {
                    None => assert_eq!(found.tokens, base.tokens, "{name}"),
                    Some("lora_r4") => assert_eq!(found.tokens, plain.tokens, "{name}"),
                    _ if adapter == own => assert_eq!(found.tokens, adapted.tokens, "{name}"),
                    Some(_) => {}
                }
            }
        }
    }
}

/// An adapter and a prompt in which parts of invocations and whole ones come together by chance.
fn requests() -> impl Strategy<Value = (Option<&'static str>, Vec<u32>)> {
    let adapter = prop::option::weighted(0.8, prop::sample::select(vec!["alora", "alora_bias", "alora_head"]));
    let part = prop::sample::select(vec![&[17, 42, 8][..], &[17, 42], &[61], &[61, 61], &[23], &[5], &[17], &[9, 8]]);
    let common = [5, 9, 17, 42, 8, 23, 5, 61, 61, 9, 17, 42, 8];
    let prompt = (0..=common.len(), prop::collection::vec(part, 1..6))
        .prop_map(move |(shared, parts)| [&common[..shared], &parts.concat()].concat());
    (adapter, prompt)
}

/// One row at a time, each with the adapter that PEFT's mask gives it, and nothing kept from one request to the next.
fn row_by_row(runner: &mut Runner<ReferenceBackend>, prompt: &[u32], adapter: Option<&str>) -> Vec<(u32, f32)> {
    let case = Case {
        name: String::new(),
        adapter: adapter.map(str::to_owned),
        mix: Vec::new(),
        prompt: prompt.to_vec(),
        ids: vec![0; TOKENS],
        logprobs: Vec::new(),
        margins: Vec::new(),
        top: Vec::new(),
        max_model_len: None,
    };
    let sequence = runner.generate(&[&case], 1).remove(0);
    sequence.output().iter().copied().zip(sequence.logprobs.iter().copied()).collect()
}

#[test]
fn random_prompts_give_what_they_give_row_by_row_however_they_are_cut_and_whatever_is_cached() {
    let family = Family::open("llama");
    let adapters = ["alora", "alora_bias", "alora_head"].map(str::to_owned);
    let reference = || ReferenceBackend::new(Numerics::F32);
    let runner = RefCell::new(Runner::new(reference(), &family, family.spec.context_length, &adapters));
    let halls = [Some(1), Some(3), None].map(|max_prefill_chunk| {
        // So few blocks that some of what is shared is gone again.
        let config = SchedulerConfig { max_prefill_chunk, ..config(&family, 48) };
        RefCell::new(hall_of(&family, &adapters, config, Arc::new(reference()), |executor| executor))
    });
    let config = ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() };
    let check = |(adapter, prompt): (Option<&'static str>, Vec<u32>)| {
        let expected = row_by_row(&mut runner.borrow_mut(), &prompt, adapter);
        let found = halls.each_ref().map(|hall| run(&mut hall.borrow_mut(), &prompt, adapter).tokens);
        prop_assert!(found[0] == found[1] && found[1] == found[2], "{adapter:?} {prompt:?}: cut otherwise");
        for ((id, bits), (expected_id, logprob)) in found[0].iter().zip(&expected) {
            let distance = (f32::from_bits(bits[0]) - logprob).abs();
            prop_assert!(id == expected_id && distance < 1e-5, "{adapter:?} {prompt:?}: {distance}");
        }
        Ok(())
    };
    TestRunner::new(config).run(&requests(), check).unwrap();
    let hits = halls.each_ref().map(|hall| hall.borrow().stats().prefix_hits);
    assert!(hits.iter().all(|hits| *hits > 20), "{hits:?}");
}

#[test]
fn kv_that_is_the_bases_is_shared_with_it_to_the_bit_on_the_reference_backend() {
    check_shared_kv(ReferenceBackend::new(Numerics::F32));
}

#[test]
fn kv_that_is_the_bases_is_shared_with_it_to_the_bit_on_the_cpu_backend() {
    for numerics in [Numerics::F32, Numerics::BF16] {
        check_shared_kv(CpuBackend::new(CpuOptions { threads: 2, numerics, isa: None }).unwrap());
    }
}
