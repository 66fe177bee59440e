//! A model as GGUF is the model that its safetensors are: the same numbers in the same order, so the same logits to the
//! bit. Files by llama.cpp's own package (`tools/gguf/make.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use polydelta::model::{Checkpoint, RopeScaling};
use polydelta::ops::Numerics;
use polydelta::ops::reference::ReferenceBackend;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::fixture::{Case, Family, Runner};
use crate::golden::{adapters, check};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

/// The golden family with its base from GGUF.
fn converted(name: &str) -> Family {
    let family = Family::open(name);
    let checkpoint = Checkpoint::open_gguf(&file(&format!("{name}.gguf"))).unwrap();
    let spec = checkpoint.spec().unwrap();
    Family { checkpoint, spec, ..family }
}

#[test]
fn every_tensor_and_every_number_of_the_network_is_that_of_the_safetensors() {
    for name in ["llama_bias", "qwen2", "qwen3"] {
        let (original, converted) = (Family::open(name), converted(name));
        assert_eq!(original.spec, converted.spec, "{name}");
        assert!(original.checkpoint.names().eq(converted.checkpoint.names()), "{name}");
        for tensor in original.checkpoint.names() {
            let shape = original.checkpoint.shape(tensor).unwrap();
            let read = |checkpoint: &Checkpoint| checkpoint.tensor(tensor, shape).unwrap();
            assert!(read(&original.checkpoint) == read(&converted.checkpoint), "{name}: {tensor}");
        }
    }
}

#[test]
fn logits_and_ids_are_those_of_the_safetensors_with_and_without_adapters() {
    for name in ["llama_bias", "qwen2", "qwen3"] {
        let (original, converted) = (Family::open(name), converted(name));
        let cases: Vec<&Case> = original.cases.iter().collect();
        let run = |family: &Family| {
            let backend = ReferenceBackend::new(Numerics::F32);
            Runner::new(backend, family, family.spec.context_length, &adapters(&cases)).generate(&cases, usize::MAX)
        };
        for ((case, a), b) in cases.iter().zip(run(&original)).zip(run(&converted)) {
            assert_eq!(a.output(), b.output(), "{name} {}", case.name);
            assert!(a.logits == b.logits, "{name} {}", case.name);
        }
    }
}

/// The file has the worked-out divisors in f32 where config.json has their formula: another rounding, the same model.
#[test]
fn rotary_frequencies_are_divided_by_the_files_own_divisors() {
    let family = converted("llama3");
    let RopeScaling::Divided { divisors } = &family.spec.ropes[0].scaling else { panic!("{:?}", family.spec.ropes) };
    assert!(divisors.first() == Some(&1.0) && divisors.last() == Some(&8.0), "{divisors:?}");
    assert!(family.spec.tied);
    let cases: Vec<&Case> = family.cases.iter().collect();
    let backend = ReferenceBackend::new(Numerics::F32);
    let mut runner = Runner::new(backend, &family, family.spec.context_length, &adapters(&cases));
    for (case, sequence) in cases.iter().zip(runner.generate(&cases, usize::MAX)) {
        check(&family, case, &sequence);
    }
}

#[derive(Deserialize)]
struct Widened {
    #[serde(rename = "type")]
    kind: String,
    sha256: String,
}

#[derive(Deserialize)]
struct Quants {
    tensors: BTreeMap<String, Widened>,
}

#[test]
fn every_kind_of_block_is_widened_to_the_numbers_of_llama_cpp() {
    let checkpoint = Checkpoint::open_gguf(&file("quants.gguf")).unwrap();
    let spec = checkpoint.spec().unwrap();
    assert!(checkpoint.is_16_bit() && spec.tied);
    let expected: Quants = serde_json::from_slice(&fs::read(file("quants.json")).unwrap()).unwrap();
    let kinds: std::collections::BTreeSet<&str> =
        expected.tensors.values().map(|tensor| tensor.kind.as_str()).collect();
    assert_eq!(kinds.len(), 12, "{kinds:?}");
    for (name, expected) in &expected.tensors {
        let tensor = checkpoint.tensor(name, checkpoint.shape(name).unwrap()).unwrap();
        let bytes: Vec<u8> = tensor.to_f32().iter().flat_map(|number| number.to_le_bytes()).collect();
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, expected.sha256, "{name} of {}", expected.kind);
    }
}

#[test]
fn the_digest_of_the_content_is_of_names_and_bytes_whichever_file_they_lie_in() {
    let digest = |checkpoint: &Checkpoint| checkpoint.content_digest(2).unwrap();
    let of = |name| (digest(&converted(name).checkpoint), digest(&Family::open(name).checkpoint));
    let (qwen2, original) = of("qwen2");
    assert_eq!(qwen2, original, "every byte is the same, and adapters stay with their base");
    let (llama, original) = of("llama_bias");
    assert_ne!(llama, original, "rows are turned");
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("m.gguf");
    let mut bytes = fs::read(file("qwen2.gguf")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&copy, &bytes).unwrap();
    assert_ne!(digest(&Checkpoint::open_gguf(&copy).unwrap()), qwen2);
}
