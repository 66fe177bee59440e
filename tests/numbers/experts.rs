//! Bases with experts: the two ways in which a checkpoint keeps them, and adapters of experts and routers, which are
//! refused by name.

use std::collections::BTreeMap;
use std::path::Path;

use polydelta::delta::{Base, DeltaError, compile};
use polydelta::model::{Checkpoint, ModelError, base_layout};
use polydelta::ops::Numerics;
use polydelta::ops::cpu::{CpuBackend, CpuOptions};
use safetensors::tensor::{Dtype, TensorView, serialize};
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::json;
use tempfile::TempDir;

use crate::fixture::{Case, Family, LIMITS, Runner};

const FAMILIES: [&str; 2] = ["mixtral", "qwen3_moe"];

type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// The tensors of a family's base.
fn tensors(family: &Family) -> Tensors {
    let file = std::fs::read(family.dir.join("base/model.safetensors")).unwrap();
    let read = SafeTensors::deserialize(&file).unwrap();
    let tensor = |(name, tensor): (String, TensorView<'_>)| (name, (tensor.shape().to_vec(), tensor.data().to_vec()));
    read.tensors().into_iter().map(tensor).collect()
}

/// A folder with the family's config and these tensors.
fn written(family: &Family, tensors: &Tensors) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    std::fs::copy(family.dir.join("base/config.json"), base.join("config.json")).unwrap();
    let views = tensors.iter().map(|(name, (shape, bytes))| (name, view(shape, bytes)));
    serialize_to_file(views, None, &base.join("model.safetensors")).unwrap();
    dir
}

fn view<'a>(shape: &[usize], bytes: &'a [u8]) -> TensorView<'a> {
    TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()
}

fn opened(dir: &Path) -> Result<Family, ModelError> {
    let checkpoint = Checkpoint::open(&dir.join("base"))?;
    let spec = checkpoint.spec()?;
    Ok(Family { name: String::new(), dir: dir.to_owned(), checkpoint, spec, cases: Vec::new() })
}

/// As transformers 5 holds the experts of a layer, and saves them with `save_original_format=False`.
fn together(family: &Family) -> Tensors {
    let mut tensors = tensors(family);
    let experts = family.spec.experts().unwrap();
    let (count, width, hidden) = (experts.experts, experts.intermediate_size, family.spec.hidden_size);
    let (block, [gate, up, down]) = match family.name.as_str() {
        "mixtral" => ("block_sparse_moe", ["w1", "w3", "w2"]),
        _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
    };
    for layer in 0..family.spec.layers.len() {
        let path = format!("model.layers.{layer}");
        let Some(router) = tensors.remove(&format!("{path}.{block}.gate.weight")) else { continue };
        let mut of_all = |names: &[&str]| -> Vec<u8> {
            let mut name = |expert: usize, name: &str| {
                tensors.remove(&format!("{path}.{block}.experts.{expert}.{name}.weight")).unwrap().1
            };
            (0..count).flat_map(|expert| names.iter().flat_map(|n| name(expert, n)).collect::<Vec<_>>()).collect()
        };
        let (gate_up, down) = (of_all(&[gate, up]), of_all(&[down]));
        tensors.insert(format!("{path}.mlp.gate.weight"), router);
        tensors.insert(format!("{path}.mlp.experts.gate_up_proj"), (vec![count, 2 * width, hidden], gate_up));
        tensors.insert(format!("{path}.mlp.experts.down_proj"), (vec![count, hidden, width], down));
    }
    tensors
}

fn logits(family: &Family, cases: &[&Case]) -> Vec<Vec<Vec<f32>>> {
    let backend = CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::F32, isa: None }).unwrap();
    let mut runner = Runner::new(backend, family, family.spec.context_length, &[]);
    runner.generate(cases, 9).into_iter().map(|sequence| sequence.logits).collect()
}

#[test]
fn all_experts_of_a_layer_in_two_tensors_are_the_same_experts() {
    for name in FAMILIES {
        let family = Family::open(name);
        let tensors = together(&family);
        assert!(tensors.keys().all(|name| !name.contains("block_sparse_moe") && !name.contains("experts.0.")));
        let dir = written(&family, &tensors);
        let fused = opened(dir.path()).unwrap();
        assert_eq!(fused.spec, family.spec, "{name}");
        let cases: Vec<&Case> = family.cases.iter().filter(|case| case.adapter.is_none()).collect();
        assert!(logits(&fused, &cases) == logits(&family, &cases), "{name}");
        assert_eq!(fused.checkpoint.parameters(), family.checkpoint.parameters(), "{name}: memory counts all experts");
    }
}

#[test]
fn an_expert_that_is_missing_or_misshapen_stops_the_start() {
    for name in FAMILIES {
        let family = Family::open(name);
        for tensors in [tensors(&family), together(&family)] {
            for part in tensors.keys().filter(|name| name.contains(".1.") && is_sparse(name)) {
                let mut without = tensors.clone();
                without.remove(part);
                let error = opened(written(&family, &without).path()).err().unwrap();
                // Without one of two, the other says nothing of the way the experts are kept.
                assert!(matches!(&error, ModelError::MissingTensor { .. }), "{name} {part}: {error}");
                let mut other = tensors.clone();
                let (shape, bytes) = other.get_mut(part).unwrap();
                bytes.truncate(bytes.len() / shape[0]);
                shape[0] = 1;
                let error = opened(written(&family, &other).path()).err().unwrap();
                assert!(matches!(&error, ModelError::TensorShape { name, .. } if name == part), "{name}: {error}");
            }
        }
    }
}

fn is_sparse(name: &str) -> bool {
    name.contains("experts") || name.ends_with(".gate.weight")
}

/// An adapter of q, and of one more module.
fn refusal(family: &Family, config: serde_json::Value, tensor: &str, shape: &[usize]) -> DeltaError {
    let (hidden, q) = (family.spec.hidden_size, family.spec.q_dim());
    let numbers = |shape: &[usize]| vec![0_u8; 4 * shape.iter().product::<usize>()];
    let key = |name: &str| format!("base_model.model.{name}");
    let q_proj = |name: &str| key(&format!("model.layers.0.self_attn.q_proj.{name}"));
    let tensors = [(q_proj("lora_A.weight"), vec![1, hidden]), (q_proj("lora_B.weight"), vec![q, 1])];
    let tensors = tensors.into_iter().chain([(key(tensor), shape.to_vec())]);
    let tensors: Tensors = tensors.map(|(name, shape)| (name, (shape.clone(), numbers(&shape)))).collect();
    let weights = serialize(tensors.iter().map(|(name, (shape, bytes))| (name, view(shape, bytes))), None).unwrap();
    let layout = base_layout(&family.spec);
    let base = Base { layout: &layout, weights: &family.checkpoint };
    compile(config.to_string().as_bytes(), &weights, base, LIMITS).unwrap_err()
}

#[test]
fn adapters_of_experts_and_routers_are_refused_by_name() {
    let modules = [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w1", "w1"),
        ("mixtral", "model.layers.1.block_sparse_moe.gate", "gate"),
        ("mixtral", "model.layers.0.mlp.experts.base_layer", "q_proj"),
        ("mixtral", "model.layers.0.mlp.experts", "q_proj"),
        ("mixtral", "model.layers.0.mlp.gate", "gate"),
        ("qwen3_moe", "model.layers.1.mlp.experts.7.gate_proj", "gate_proj"),
        ("qwen3_moe", "model.layers.3.mlp.gate", "gate"),
        ("qwen3_moe", "model.layers.3.mlp.experts", "q_proj"),
    ];
    for (name, module, target) in modules {
        let family = Family::open(name);
        let config = |targets: &[&str]| json!({ "peft_type": "LORA", "r": 1, "target_modules": targets });
        for parameter in ["lora_A.weight", "lora_A.default.weight", "weight"] {
            let tensor = format!("{module}.{parameter}");
            for targets in [&["q_proj", target][..], &["q_proj"], &[target]] {
                let error = refusal(&family, config(targets), &tensor, &[1, family.spec.hidden_size]);
                let named =
                    matches!(&error, DeltaError::UnsupportedTensor { tensor: found, .. } if found.ends_with(&tensor));
                assert!(
                    named && error.to_string().contains("experts or their router"),
                    "{tensor}, {targets:?}: {error}"
                );
            }
        }
        let mut config = config(&["q_proj"]);
        config["target_parameters"] = json!(["mlp.experts.gate_up_proj"]);
        let error = refusal(&family, config, &format!("{module}.lora_A.weight"), &[1, 1]);
        assert!(
            matches!(&error, DeltaError::UnsupportedField { field, .. } if field == "target_parameters"),
            "{error}"
        );
    }
}

#[test]
fn a_dense_layer_among_sparse_ones_takes_adapters_and_a_dense_base_has_no_experts() {
    let family = Family::open("qwen3_moe");
    let dense = json!({ "peft_type": "LORA", "r": 1, "target_modules": ["q_proj", "model.layers.0.mlp.up_proj"] });
    let error = refusal(&family, dense, "model.layers.0.mlp.up_proj.lora_B.weight", &[72, 1]);
    assert!(
        matches!(&error, DeltaError::MissingTensor { module, .. } if module == "model.layers.0.mlp.up_proj"),
        "{error}"
    );
    let family = Family::open("llama");
    let config = json!({ "peft_type": "LORA", "r": 1, "target_modules": ["q_proj"] });
    let error = refusal(&family, config, "model.layers.0.mlp.experts.0.up_proj.lora_A.weight", &[1, 32]);
    assert!(matches!(&error, DeltaError::UnknownTensor { .. }), "{error}");
}
