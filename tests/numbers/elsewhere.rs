//! Fixtures made for one run, in the form of `tests/fixtures/golden`: bases and adapters with options that are not there.

use std::collections::BTreeMap;
use std::path::Path;

use polydelta::ops::cpu::{CpuBackend, CpuOptions};
use polydelta::ops::{Backend, Numerics, reference::ReferenceBackend};

use crate::fixture::{Case, Family, Runner, Sequence, log_softmax};

const FOLDER: &str = "POLYDELTA_FIXTURES";

/// Where a run leaves PEFT's, in words.
fn difference(case: &Case, sequence: &Sequence) -> Option<String> {
    for (step, expected) in case.ids.iter().enumerate() {
        let logits = &sequence.logits[step];
        for (id, expected) in case.top[step].iter().chain([&(*expected, case.logprobs[step])]) {
            let found = log_softmax(logits, *id as usize);
            if (found - expected).abs() >= 1e-4 {
                return Some(format!("log-prob of {id} at {step}: {found} vs {expected}"));
            }
        }
        if sequence.output()[step] != *expected {
            return Some(format!("id {step}: {} vs {expected}", sequence.output()[step]));
        }
    }
    None
}

fn differences<B: Backend>(make: &impl Fn() -> B, family: &Family) -> Vec<String> {
    let mut found = Vec::new();
    let mut refused = BTreeMap::new();
    for adapter in family.cases.iter().filter_map(|case| case.adapter.clone()) {
        if let Err(error) = family.compile(&adapter) {
            refused.insert(adapter, error.to_string());
        }
    }
    found.extend(refused.iter().map(|(adapter, error)| format!("{} {adapter}: {error}", family.name)));
    let served = |case: &&Case| case.adapter.as_ref().is_none_or(|adapter| !refused.contains_key(adapter));
    let cases: Vec<&Case> = family.cases.iter().filter(served).collect();
    let mut adapters: Vec<String> = cases.iter().filter_map(|case| case.adapter.clone()).collect();
    adapters.sort();
    adapters.dedup();
    let mut runner = Runner::new(make(), family, family.spec.context_length, &adapters);
    for case in &cases {
        let alone = runner.generate(&[case], usize::MAX);
        found.extend(difference(case, &alone[0]).map(|text| format!("{} {}: {text}", family.name, case.name)));
    }
    for (case, sequence) in cases.iter().zip(runner.generate(&cases, 7)) {
        found.extend(difference(case, &sequence).map(|text| format!("{} {} mixed: {text}", family.name, case.name)));
    }
    found
}

#[test]
#[ignore = "needs a folder of fixtures in POLYDELTA_FIXTURES"]
fn fixtures_from_elsewhere_agree_with_peft() {
    let folder = std::env::var(FOLDER).unwrap();
    let mut dirs: Vec<_> = Path::new(&folder).read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.retain(|dir| dir.join("cases.json").is_file());
    dirs.sort();
    assert!(!dirs.is_empty(), "{folder} has no fixtures");
    let (mut found, mut cases) = (Vec::new(), 0);
    for dir in dirs {
        let family = Family::open_dir(dir);
        cases += family.cases.len();
        found.extend(differences(&|| ReferenceBackend::new(Numerics::F32), &family));
        let options = CpuOptions { threads: 2, numerics: Numerics::F32, isa: None };
        found.extend(
            differences(&|| CpuBackend::new(options).unwrap(), &family).into_iter().map(|text| format!("cpu: {text}")),
        );
    }
    assert!(found.is_empty(), "{} differences in {cases} cases:\n{}", found.len(), found.join("\n"));
}
