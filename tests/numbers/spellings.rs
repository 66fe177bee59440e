//! What transformers makes of config.json, spelling by spelling: the same numbers, or a refusal before anything is loaded.

use std::fs;
use std::path::{Path, PathBuf};

use polydelta::model::{Checkpoint, ModelError};
use polydelta::ops::{Backend, Numerics, reference::ReferenceBackend};
use polydelta::scheduler::SchedulerConfig;
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde::Deserialize;
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::engine::{config, hall};
use crate::fixture::{Case, Family, Runner, log_softmax};

const FAMILIES: [&str; 10] =
    ["gemma2", "gemma3_text", "llama", "llama_tied", "mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe"];
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

#[derive(Deserialize)]
struct Spelling {
    name: String,
    set: Map<String, Value>,
    drop: Vec<String>,
    tensors: Option<String>,
    refused: Option<String>,
    /// Computed with transformers' cache, over the length at which the rotary embedding changes.
    #[serde(default)]
    grows: bool,
    #[serde(flatten)]
    rest: Value,
}

#[derive(Deserialize)]
struct Spellings {
    cases: Vec<Spelling>,
}

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/spellings").join(family)
}

fn spellings(family: &str) -> Vec<Spelling> {
    let read: Spellings = serde_json::from_slice(&fs::read(folder(family).join("cases.json")).unwrap()).unwrap();
    read.cases
}

impl Spelling {
    /// A folder with the family's checkpoint, changed as the case says.
    fn written(&self, family: &str) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let base = folder(family).join("base");
        let mut config: Map<String, Value> =
            serde_json::from_slice(&fs::read(base.join("config.json")).unwrap()).unwrap();
        config.retain(|field, _| !self.drop.contains(field));
        config.extend(self.set.clone());
        fs::create_dir(dir.path().join("base")).unwrap();
        fs::write(dir.path().join("base/config.json"), Value::Object(config).to_string()).unwrap();
        let weights = fs::read(base.join("model.safetensors")).unwrap();
        let weights = self.changed_tensors(&weights, &dir.path().join("base/model.safetensors"));
        assert!(weights.is_some(), "{family}: {:?}", self.tensors);
        dir
    }

    fn changed_tensors(&self, file: &[u8], to: &Path) -> Option<()> {
        let read = SafeTensors::deserialize(file).unwrap();
        let mut tensors = read.tensors();
        let embedding = read.tensor(EMBEDDING).unwrap();
        let row = embedding.data().len() / embedding.shape()[0];
        let flipped: Vec<u8> = embedding.data().chunks(row).rev().flatten().copied().collect();
        match self.tensors.as_deref() {
            None => {}
            Some("same_head") => tensors.push((HEAD.to_owned(), embedding)),
            Some("only_head") => {
                tensors.retain(|(name, _)| name != EMBEDDING);
                tensors.push((HEAD.to_owned(), embedding));
            }
            Some("other_head") => {
                let head = TensorView::new(embedding.dtype(), embedding.shape().to_vec(), &flipped).unwrap();
                tensors.push((HEAD.to_owned(), head));
            }
            Some(_) => return None,
        }
        serialize_to_file(tensors, None, to).unwrap();
        Some(())
    }

    fn case(&self) -> Case {
        let mut case = self.rest.clone();
        case["name"] = self.name.clone().into();
        serde_json::from_value(case).unwrap()
    }
}

/// Where the numbers differ from transformers', in words.
fn difference<B: Backend>(backend: B, family: Family, case: &Case) -> Option<String> {
    let context = family.spec.context_length;
    let mut runner = Runner::new(backend, &family, context, &[]);
    let found = runner.generate(&[case], usize::MAX).remove(0);
    for (step, expected) in case.ids.iter().enumerate() {
        for (id, expected) in &case.top[step] {
            let found = log_softmax(&found.logits[step], *id as usize);
            if (found - expected).abs() >= 1e-4 {
                return Some(format!("log-prob of {id} at {step}: {found} vs {expected}"));
            }
        }
        if found.output()[step] != *expected {
            return Some(format!("id {step}: {} vs {expected}", found.output()[step]));
        }
    }
    None
}

#[test]
fn every_spelling_is_read_as_transformers_reads_it_or_refused() {
    let mut wrong = Vec::new();
    let mut served = 0;
    for family in FAMILIES {
        for spelling in spellings(family) {
            let at = format!("{family}, {}", spelling.name);
            let dir = spelling.written(family);
            let checkpoint = Checkpoint::open(&dir.path().join("base")).unwrap();
            match (checkpoint.spec(), &spelling.refused) {
                (Err(error), Some(_)) if names_a_field_or_tensor(&error) => {}
                (Err(error), _) => wrong.push(format!("{at}: {error}")),
                (Ok(_), Some(reason)) => wrong.push(format!("{at}: served, but {reason}")),
                // By the scheduler alone: below.
                (Ok(_), None) if spelling.grows => {}
                (Ok(_), None) => {
                    served += 1;
                    let family = opened(&dir, at.clone());
                    let found = difference(ReferenceBackend::new(Numerics::F32), family, &spelling.case());
                    wrong.extend(found.map(|found| format!("{at}: {found}")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(served > 100, "{served}");
}

fn opened(dir: &TempDir, name: String) -> Family {
    let checkpoint = Checkpoint::open(&dir.path().join("base")).unwrap();
    let spec = checkpoint.spec().unwrap();
    Family { name, dir: dir.path().to_owned(), checkpoint, spec, cases: Vec::new() }
}

/// Short, long, and over the length in between: alone, together with room and without, and again from the prefix cache.
#[test]
fn sequences_outgrow_their_rotary_embedding_as_in_transformers_whoever_is_beside_them() {
    for (name, prefix, growing) in [("llama", "longrope, ", 2), ("phi3", "longrope of Phi-3, ", 3)] {
        let all = spellings(name);
        let grows = all.iter().find(|spelling| spelling.grows).unwrap();
        let dir = grows.written(name);
        let mut family = opened(&dir, name.to_owned());
        // One config for all of them.
        let same = |spelling: &&Spelling| spelling.set == grows.set && spelling.name.starts_with(prefix);
        family.cases = all.iter().filter(same).map(Spelling::case).collect();
        assert_eq!(family.cases.iter().filter(|case| case.ids.len() > 3).count(), growing, "{name}");
        assert_eq!(family.cases.len(), growing + 2, "{name}");
        let cases: Vec<&Case> = family.cases.iter().collect();
        for num_blocks in [256, 20] {
            for prefix_cache in [true, false] {
                let config = SchedulerConfig { prefix_cache, ..config(&family, num_blocks) };
                let mut hall = hall(&family, &[], config);
                for case in &cases {
                    hall.check(&family, &[case]);
                }
                for _ in 0..2 {
                    hall.check(&family, &cases);
                }
            }
        }
    }
}

fn names_a_field_or_tensor(error: &ModelError) -> bool {
    matches!(
        error,
        ModelError::MissingField { .. }
            | ModelError::BadField { .. }
            | ModelError::Unsupported { .. }
            | ModelError::MissingTensor { .. }
            | ModelError::TensorShape { .. }
    )
}
