//! Greedy ids and log-probabilities of every family and adapter against transformers + peft in f32: alone, and all
//! kinds in one mixed batch.

use polydelta::ops::cpu::{CpuBackend, CpuOptions, Isa};
use polydelta::ops::{Backend, Numerics, reference::ReferenceBackend};

use crate::fixture::{Case, FAMILIES, Family, Runner, Sequence, greedy, log_softmax};

fn cases(family: &Family, context: usize) -> Vec<&Case> {
    family.cases.iter().filter(|case| family.context_length(case) == context).collect()
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

pub(crate) fn check_all<B: Backend>(families: &[&str], make: impl Fn() -> B) {
    for name in families {
        let family = Family::open(name);
        for context in family.context_lengths() {
            let backend = make();
            let cases = cases(&family, context);
            let mut runner = Runner::new(backend, &family, context, &adapters(&cases));
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

/// How far numbers of 16 bits may lie from those of transformers + peft in f32: twice what was measured, of all backends the
/// most, over all cases of [`dense_families`] (some 8700 tokens of random models, whose two best are mostly within 0.5).
#[derive(Clone, Copy)]
pub(crate) struct Narrow {
    numerics: Numerics,
    /// Most that any log-probability is off.
    worst: f32,
    /// Most that those of a family are off on average.
    mean: f32,
    /// Where the oracle's two best are further apart, the choice is the oracle's.
    margin: f32,
}

/// Measured: 0.478, 0.0268 and 0.284.
pub(crate) const BF16: Narrow = Narrow { numerics: Numerics::BF16, worst: 0.96, mean: 0.054, margin: 0.57 };
/// Measured: 0.0657, 0.0033 and 0.0359.
pub(crate) const F16: Narrow = Narrow { numerics: Numerics::F16, worst: 0.13, mean: 0.0066, margin: 0.072 };

/// Those without experts: a router whose best are close chooses others in 16 bits, and the output is another one then.
fn dense_families() -> Vec<&'static str> {
    let families: Vec<&str> = FAMILIES.into_iter().filter(|name| Family::open(name).spec.experts().is_none()).collect();
    assert_eq!(families.len(), FAMILIES.len() - 2);
    families
}

/// How far numbers are off.
#[derive(Debug, Default)]
struct Distances {
    worst: f32,
    sum: f32,
    count: usize,
    /// The largest margin of the oracle at which another token is chosen.
    margin: f32,
}

impl Distances {
    fn take(&mut self, case: &Case, sequence: &Sequence) {
        for (step, expected) in case.ids.iter().enumerate() {
            let logits = &sequence.logits[step];
            for (id, expected) in case.top[step].iter().chain([&(*expected, case.logprobs[step])]) {
                let distance = (log_softmax(logits, *id as usize) - expected).abs();
                assert!(distance.is_finite(), "{}: log-prob of {id} at {step}", case.name);
                self.worst = self.worst.max(distance);
                self.sum += distance;
                self.count += 1;
            }
            if greedy(logits).0 != *expected {
                self.margin = self.margin.max(case.margins[step]);
            }
        }
    }
}

/// All kinds and the base of each family in one batch, every token after the oracle's own.
pub(crate) fn check_narrow<B: Backend>(narrow: Narrow, make: impl Fn(Numerics) -> B) {
    for name in dense_families() {
        let family = Family::open(name);
        let mut found = Distances::default();
        for context in family.context_lengths() {
            let cases = cases(&family, context);
            let mut runner = Runner::with_blocks_of(16, make(narrow.numerics), &family, context, &adapters(&cases));
            for (case, sequence) in cases.iter().zip(runner.follow(&cases, 7)) {
                found.take(case, &sequence);
            }
        }
        let mean = found.sum / found.count as f32;
        let what = format!("{name} in {}: {found:?}, {mean} on average", narrow.numerics.compute.as_str());
        println!("{what}");
        assert!(found.worst < narrow.worst && mean < narrow.mean && found.margin < narrow.margin, "{what}");
    }
}

#[test]
fn every_dense_family_and_adapter_is_near_peft_in_16_bits() {
    for narrow in [BF16, F16] {
        check_narrow(narrow, ReferenceBackend::new);
    }
    check_narrow(BF16, |numerics| CpuBackend::new(CpuOptions { threads: 2, numerics, isa: None }).unwrap());
}

#[test]
fn every_family_and_adapter_agrees_with_peft_on_the_reference_backend() {
    check_all(&FAMILIES, || ReferenceBackend::new(Numerics::F32));
}

#[test]
fn every_family_and_adapter_agrees_with_peft_on_the_cpu_backend() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        check_all(&FAMILIES, || cpu(isa, 2));
    }
}

fn cpu(isa: Isa, threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads, numerics: Numerics::F32, isa: Some(isa) }).unwrap()
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
