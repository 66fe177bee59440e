//! Batch invariance, bit for bit: a request's logits do not depend on the batch it is in, on how its prompt is cut into
//! chunks, on where its blocks lie, or on being computed again from the start.

use polydelta::ops::cpu::{CpuBackend, CpuOptions, Isa};
use polydelta::ops::{Backend, Numerics, reference::ReferenceBackend};

use crate::fixture::{BLOCK_SIZE, Case, Family, Runner, Sequence};

/// Fixtures that together hold every op class, every kind of attention, and dense and sparse layers.
const FAMILIES: [&str; 6] = ["llama", "llama_bias", "phi3", "gemma3", "mixtral", "qwen3_moe"];

fn bits(sequence: &Sequence) -> Vec<Vec<u32>> {
    sequence.logits.iter().map(|row| row.iter().map(|logit| logit.to_bits()).collect()).collect()
}

pub(crate) fn check_invariance<B: Backend>(make: impl Fn() -> B) {
    check_invariance_in(&FAMILIES, BLOCK_SIZE, make);
}

pub(crate) fn check_invariance_in<B: Backend>(families: &[&str], block_size: usize, make: impl Fn() -> B) {
    for name in families {
        let family = Family::open(name);
        let backend = make();
        let cases: Vec<&Case> = family.cases.iter().collect();
        let mut adapters: Vec<String> = cases.iter().filter_map(|case| case.adapter.clone()).collect();
        adapters.sort();
        adapters.dedup();
        let context = family.spec.context_length;
        let mut runner = Runner::with_blocks_of(block_size, backend, &family, context, &adapters);
        let alone: Vec<_> = cases.iter().map(|case| bits(&runner.generate(&[case], usize::MAX)[0])).collect();
        for chunk in [usize::MAX, 1, 5] {
            for (case, (alone, mixed)) in cases.iter().zip(alone.iter().zip(runner.generate(&cases, chunk))) {
                assert!(*alone == bits(&mixed), "{name} {}: mixed, chunks of {chunk}", case.name);
            }
        }
        let reversed: Vec<&Case> = cases.iter().rev().copied().collect();
        for (case, (alone, mixed)) in reversed.iter().zip(alone.iter().rev().zip(runner.generate(&reversed, 3))) {
            assert!(*alone == bits(&mixed), "{name} {}: in reversed order", case.name);
        }
        for (case, alone) in cases.iter().zip(&alone) {
            assert!(*alone == bits(&runner.recompute(case)), "{name} {}: recomputed at every token", case.name);
        }
    }
}

#[test]
fn the_reference_backend_in_f32_gives_a_request_the_same_bits_in_any_batch() {
    check_invariance(|| ReferenceBackend::new(Numerics::F32));
}

#[test]
fn the_reference_backend_in_bf16_gives_a_request_the_same_bits_in_any_batch() {
    check_invariance(|| ReferenceBackend::new(Numerics::BF16));
}

#[test]
fn the_cpu_backend_gives_a_request_the_same_bits_in_any_batch_on_every_path() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for numerics in [Numerics::F32, Numerics::BF16] {
            check_invariance(|| CpuBackend::new(CpuOptions { threads: 2, numerics, isa: Some(isa) }).unwrap());
        }
    }
}

#[test]
fn the_cpu_backend_gives_the_same_bits_with_any_number_of_threads() {
    for name in ["llama", "mixtral"] {
        let family = Family::open(name);
        let cases: Vec<&Case> = family.cases.iter().collect();
        let mut adapters: Vec<String> = cases.iter().filter_map(|case| case.adapter.clone()).collect();
        adapters.sort();
        adapters.dedup();
        let run = |threads| {
            let backend = CpuBackend::new(CpuOptions { threads, numerics: Numerics::BF16, isa: None }).unwrap();
            let mut runner = Runner::new(backend, &family, family.spec.context_length, &adapters);
            runner.generate(&cases, 9).iter().map(bits).collect::<Vec<_>>()
        };
        let one = run(1);
        assert!(one == run(2), "{name}");
        assert!(one == run(3), "{name}");
    }
}
