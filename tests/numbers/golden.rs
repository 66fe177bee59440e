//! Greedy ids and log-probabilities of every family and adapter against transformers + peft in f32: alone, and all
//! kinds in one mixed batch.

use polydelta::delta::{DeltaError, SERVED_KINDS};
use polydelta::ops::cpu::{CpuBackend, CpuOptions, Isa};
use polydelta::ops::{Backend, Numerics, reference::ReferenceBackend};

use crate::fixture::{Case, FAMILIES, Family, Runner, Sequence, log_softmax};

/// Adapters of the fixtures that PEFT can make and this server refuses, by name.
const REFUSED: [(&str, &str); 5] = [
    ("save_embed", "modules_to_save"),
    ("save_lm_head", "modules_to_save"),
    ("save_norm", "modules_to_save"),
    ("lora_tokens", "trainable_token_indices"),
    ("trainable_tokens", "TRAINABLE_TOKENS"),
];

pub(crate) fn refused(adapter: &str) -> bool {
    REFUSED.iter().any(|(name, _)| *name == adapter)
}

fn served_cases(family: &Family, context: usize) -> Vec<&Case> {
    let served = |case: &&Case| !case.adapter.as_deref().is_some_and(refused);
    family.cases.iter().filter(|case| family.context_length(case) == context).filter(served).collect()
}

pub(crate) fn adapters(cases: &[&Case]) -> Vec<String> {
    let mut names: Vec<String> = cases.iter().filter_map(|case| case.adapter.clone()).collect();
    names.sort();
    names.dedup();
    names
}

pub(crate) fn check(family: &Family, case: &Case, sequence: &Sequence) {
    let name = format!("{} {}", family.name, case.name);
    for (step, expected) in case.ids.iter().enumerate() {
        assert!(case.margins[step] >= 2e-4, "{name}: a fixture with an unclear margin");
        assert_eq!(sequence.output()[step], *expected, "{name}: id {step}");
        let logits = &sequence.logits[step];
        for (id, expected) in case.top[step].iter().chain([&(*expected, case.logprobs[step])]) {
            let found = log_softmax(logits, *id as usize);
            assert!((found - expected).abs() < 1e-4, "{name}: log-prob of {id} at {step}: {found} vs {expected}");
        }
    }
}

fn check_all<B: Backend>(make: impl Fn() -> B) {
    for name in FAMILIES {
        let family = Family::open(name);
        for context in family.context_lengths() {
            let cases = served_cases(&family, context);
            let mut runner = Runner::new(make(), &family, context, &adapters(&cases));
            for case in &cases {
                let alone = runner.generate(&[case], usize::MAX);
                check(&family, case, &alone[0]);
            }
            // All kinds and the base in one batch, with prompts in chunks that no block boundary divides.
            for (case, sequence) in cases.iter().zip(runner.generate(&cases, 7)) {
                check(&family, case, &sequence);
            }
        }
    }
}

#[test]
fn every_family_and_adapter_agrees_with_peft_on_the_reference_backend() {
    check_all(|| ReferenceBackend::new(Numerics::F32));
}

#[test]
fn every_family_and_adapter_agrees_with_peft_on_the_cpu_backend() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        check_all(|| cpu(isa, 2));
    }
}

fn cpu(isa: Isa, threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads, numerics: Numerics::F32, isa: Some(isa) }).unwrap()
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    for name in FAMILIES {
        let family = Family::open(name);
        for (adapter, feature) in REFUSED {
            if !family.dir.join("adapters").join(adapter).is_dir() {
                continue;
            }
            let error = family.compile(adapter).unwrap_err();
            assert!(matches!(error, DeltaError::UnsupportedField { .. }), "{name} {adapter}: {error}");
            assert!(error.to_string().contains(feature), "{name} {adapter}: {error}");
        }
    }
}

#[test]
fn both_spellings_of_a_config_give_one_spec() {
    for name in FAMILIES {
        let family = Family::open(name);
        let Ok(bytes) = std::fs::read(family.dir.join("base/config.v4.json")) else {
            assert_eq!(name, "llama_bias");
            continue;
        };
        let config: serde_json::Map<_, _> = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(polydelta::model::read_spec(&config).unwrap(), family.spec, "{name}");
    }
}

#[test]
fn every_kind_that_compiles_is_announced() {
    let mut seen = std::collections::BTreeSet::new();
    for name in FAMILIES {
        let family = Family::open(name);
        let cases: Vec<&Case> = family.cases.iter().collect();
        for adapter in adapters(&cases).into_iter().filter(|adapter| !refused(adapter)) {
            let kind = family.compile(&adapter).unwrap().kind;
            assert!(SERVED_KINDS.contains(&kind.as_str()), "{name} {adapter}: {kind}");
            seen.insert(kind);
        }
    }
    assert!(seen.len() >= 7, "the fixtures cover most of them: {seen:?}");
}
