//! Adapters of a vocabulary that was resized before the training: tokens that the base does not have stand in prompts, are chosen, and
//! are worth what transformers and PEFT say; and whoever is beside them has the bits that it has alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use polydelta::engine::EventReceiver;
use polydelta::ops::cpu::{CpuBackend, CpuOptions, Isa};
use polydelta::ops::{Backend, Numerics, reference::ReferenceBackend};
use polydelta::types::{SamplingParams, SequenceEvent, TokenLogprob};

use crate::device::{alone, cuda};
use crate::emulator::{Count, device};
use crate::engine::{Hall, config, hall_of};
use crate::fixture::{Case, Family, VOCABULARY};
use crate::golden::{adapters, check_all};
use crate::invariance::check_invariance_in;

fn cpu(numerics: Numerics, isa: Option<Isa>) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: 2, numerics, isa }).unwrap()
}

#[test]
fn every_resized_vocabulary_agrees_with_peft() {
    check_all(&VOCABULARY, || ReferenceBackend::new(Numerics::F32));
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        check_all(&VOCABULARY, || cpu(Numerics::F32, Some(isa)));
    }
}

#[test]
fn a_request_beside_a_resized_vocabulary_or_with_one_has_the_same_bits_in_any_batch() {
    check_invariance_in(&VOCABULARY, 4, || ReferenceBackend::new(Numerics::BF16));
    check_invariance_in(&VOCABULARY, 4, || cpu(Numerics::F32, None));
    check_invariance_in(&VOCABULARY[..1], 4, || cpu(Numerics::BF16, None));
}

#[test]
fn a_program_has_rows_for_every_token_that_the_base_lacks() {
    for name in VOCABULARY {
        let family = Family::open(name);
        for adapter in adapters(&family.cases.iter().collect::<Vec<_>>()) {
            let program = family.compile(&adapter).unwrap();
            let case = family.cases.iter().find(|case| case.adapter.as_ref() == Some(&adapter)).unwrap();
            let largest = case.prompt.iter().chain(&case.ids).max().copied().unwrap() as usize;
            let tokens = program.vocab_size.unwrap();
            assert!(tokens != family.spec.vocab_size && largest < tokens, "{name} {adapter}: {tokens}");
        }
    }
}

/// What a backend with an engine makes of an adapter with added tokens, and of the base beside it.
fn hall<B: Backend>(family: &Family, backend: B) -> Hall {
    let all = adapters(&family.cases.iter().collect::<Vec<_>>());
    hall_of(family, &all, config(family, 1024), Arc::new(backend), |executor| executor)
}

fn read(mut events: EventReceiver) -> Vec<(u32, TokenLogprob)> {
    let mut tokens = Vec::new();
    while let Some(event) = events.blocking_recv() {
        match event {
            SequenceEvent::Token { token: Some(token), logprob: Some(logprob), .. } => tokens.push((token, logprob)),
            SequenceEvent::Started { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    tokens
}

fn check_sampling<B: Backend>(make: impl Fn() -> B) {
    const TOKENS: usize = 5;
    let family = Family::open(VOCABULARY[0]);
    let of = |adapter: Option<&str>| family.cases.iter().find(|case| case.adapter.as_deref() == adapter).unwrap();
    let (own, base) = (of(Some("saved")), of(None));
    let mut hall = hall(&family, make());
    hall.check(&family, &[own, base]);
    let greedy = SamplingParams { logprobs: Some(200), ..SamplingParams::greedy() };
    let wanted = |bias: &[(u32, f32)]| SamplingParams { logit_bias: bias.iter().copied().collect(), ..greedy.clone() };
    let mut ask = |case: &Case, sampling: SamplingParams| {
        hall.submit_prompt(&case.prompt, case.adapter.as_deref(), sampling, TOKENS)
    };
    // A bias on an added token, a penalty on it, and both rows beside each other.
    let biased = ask(own, wanted(&[(102, 100.0)]));
    let same = ask(base, wanted(&[(102, 100.0)]));
    let without = ask(base, greedy.clone());
    let penalized =
        ask(own, SamplingParams { frequency_penalty: 2.0, repetition_penalty: 50.0, ..wanted(&[(101, 30.0)]) });
    let [biased, same, without, penalized] = [biased, same, without, penalized].map(read);
    let ids = |tokens: &[(u32, TokenLogprob)]| tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!(ids(&biased), [102; TOKENS]);
    assert_eq!(same, without, "the base has no such token");
    assert!(ids(&penalized)[0] == 101 && ids(&penalized)[1..].iter().any(|id| *id != 101), "{:?}", ids(&penalized));
    // All of its tokens have a probability, and only its own have.
    for (tokens, count) in [(&biased, 103), (&without, 100)] {
        for (_, logprob) in tokens {
            let all: BTreeMap<u32, f32> = logprob.top.iter().copied().collect();
            let sum: f64 = all.values().map(|logprob| f64::from(*logprob).exp()).sum();
            assert!(all.len() == count && (sum - 1.0).abs() < 1e-4, "{} of {count}: {sum}", all.len());
        }
    }
    // Drawn, twice the same; a hundred draws find an added token.
    let drawn = |seed| SamplingParams { temperature: 3.0, seed, ..greedy.clone() };
    let [first, second]: [Vec<_>; 2] =
        std::array::from_fn(|_| (0..100).map(|seed| read(ask(own, drawn(seed)))).collect());
    assert_eq!(first, second);
    assert!(first.iter().flatten().any(|(id, _)| *id >= 100));
}

#[test]
fn sampling_sees_the_added_tokens_and_nobody_elses_does() {
    check_sampling(|| ReferenceBackend::new(Numerics::F32));
    check_sampling(|| cpu(Numerics::F32, None));
}

#[test]
fn every_resized_vocabulary_agrees_with_peft_on_the_cuda_backend() {
    let _turn = alone();
    check_all(&VOCABULARY, || cuda(Numerics::F32));
}

#[test]
fn the_cuda_backend_gives_a_request_beside_a_resized_vocabulary_or_with_one_the_same_bits_in_any_batch() {
    let _turn = alone();
    check_invariance_in(&VOCABULARY, 16, || cuda(Numerics::BF16));
    check_invariance_in(&VOCABULARY[..1], 16, || cuda(Numerics::F16));
    check_invariance_in(&VOCABULARY[..1], 4, || cuda(Numerics::F32));
}

#[test]
fn sampling_on_the_cuda_backend_sees_the_added_tokens_in_recorded_steps_too() {
    let _turn = alone();
    check_sampling(|| cuda(Numerics::F32));
    let replays = || device().map(|device| device.count(Count::GraphLaunches));
    for name in VOCABULARY {
        let (family, before) = (Family::open(name), replays());
        let cases: Vec<&Case> = family.cases.iter().collect();
        let mut hall = hall(&family, cuda(Numerics::F32));
        // One by one and all at once, with steps recorded of either kind.
        for _ in 0..2 {
            cases.iter().for_each(|case| hall.check(&family, &[case]));
            hall.check(&family, &cases);
        }
        assert!(before.is_none() || replays() > before, "{name}: steps that decode are recorded");
    }
}
