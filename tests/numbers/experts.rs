//! Bases with experts: the two ways in which a checkpoint keeps them, and what is refused of adapters of experts and routers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use polydelta::delta::{Base, CompileLimits, DeltaError, DeltaProgram, ExportError, compile};
use polydelta::engine::{DeltaLoader, ModelLoader};
use polydelta::model::{Checkpoint, ModelError, base_layout};
use polydelta::ops::cpu::{CpuBackend, CpuOptions};
use polydelta::ops::reference::ReferenceBackend;
use polydelta::ops::{Backend, Numerics};
use polydelta::types::OpClass;
use safetensors::tensor::{Dtype, TensorView, serialize};
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::json;
use tempfile::TempDir;

use crate::device::{alone, cuda};
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

/// An adapter of q, and of one more tensor.
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
fn tensors_of_experts_and_routers_that_make_no_adapter_are_refused_by_name() {
    // Of both spellings what is not a target, what another method would have, and weights themselves.
    let modules = [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w1"),
        ("mixtral", "model.layers.1.block_sparse_moe.gate"),
        ("mixtral", "model.layers.0.mlp.experts"),
        ("mixtral", "model.layers.0.mlp.gate"),
        ("qwen3_moe", "model.layers.1.mlp.experts.7.gate_proj"),
        ("qwen3_moe", "model.layers.3.mlp.gate"),
        ("qwen3_moe", "model.layers.3.mlp.experts"),
    ];
    for (name, module) in modules {
        let family = Family::open(name);
        let config = json!({ "peft_type": "LORA", "r": 1, "target_modules": ["model.layers.0.self_attn.q_proj"] });
        for parameter in ["lora_A.weight", "lora_B.weight", "weight", "ia3_l", "lora_magnitude_vector"] {
            let tensor = format!("{module}.{parameter}");
            let error = refusal(&family, config.clone(), &tensor, &[1, family.spec.hidden_size]);
            let named = match &error {
                DeltaError::NotTargeted { tensor: found } => found.ends_with(&tensor) && parameter.ends_with("weight"),
                DeltaError::UnsupportedTensor { tensor: found, .. } => found.ends_with(&tensor),
                _ => false,
            };
            assert!(named, "{tensor}: {error}");
            assert_eq!(
                matches!(error, DeltaError::NotTargeted { .. }),
                parameter.starts_with("lora_") && named && parameter.ends_with("weight")
            );
        }
    }
    for (name, module, experts) in [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.6.w1", 6),
        ("qwen3_moe", "model.layers.1.mlp.experts.8.up_proj", 8),
    ] {
        let family = Family::open(name);
        let config = json!({ "peft_type": "LORA", "r": 1, "target_modules": ["q_proj", "w1", "up_proj"] });
        let error = refusal(&family, config, &format!("{module}.lora_A.weight"), &[1, family.spec.hidden_size]);
        assert!(
            matches!(&error, DeltaError::NoSuchExpert { experts: of, expert, .. } if *of == experts && *expert == experts as u64),
            "{error}"
        );
    }
}

fn loader<B: Backend>(family: &Family, backend: B) -> ModelLoader<B> {
    let checkpoint = Arc::new(Checkpoint::open(&family.dir.join("base")).unwrap());
    ModelLoader::new(Arc::new(backend), base_layout(&family.spec), checkpoint, LIMITS)
}

#[test]
fn adapters_of_experts_and_routers_are_taken_and_prepared_by_every_backend() {
    fn check<B: Backend>(family: &Family, backend: B) {
        let loader = loader(family, backend);
        for adapter in ["lora_experts", "lora_router"] {
            let read = |file: &str| std::fs::read(family.dir.join("adapters").join(adapter).join(file)).unwrap();
            let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
            loader.check(&config, &weights).unwrap();
            loader.prepare(loader.compile(&config, &weights).unwrap()).unwrap();
        }
    }
    let family = Family::open("mixtral");
    let _turn = alone();
    check(&family, cuda(Numerics::F32));
    check(&family, ReferenceBackend::new(Numerics::F32));
    check(&family, CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::F32, isa: None }).unwrap());
}

#[test]
fn a_mix_counts_the_ranks_of_each_expert_and_an_export_refuses_it_by_name() {
    let family = Family::open("mixtral");
    let part = || family.compile("lora_experts").unwrap();
    let limits = |max_rank| CompileLimits { max_rank, ..LIMITS };
    DeltaProgram::sum(vec![part(), part()], limits(4)).unwrap();
    let error = DeltaProgram::sum(vec![part(), part()], limits(3)).unwrap_err();
    assert!(matches!(error, DeltaError::Rank { rank: 4, max: 3, .. }), "{error}");
    let error = part().weighted(f32::MAX).unwrap_err();
    assert!(matches!(error, DeltaError::NonFinite { .. }), "{error}");
    let layout = base_layout(&family.spec);
    let error = part().to_lora(&layout, None).unwrap_err();
    let of_experts = matches!(&error, ExportError::Op { class: OpClass::ExpertLowRank, .. });
    assert!(of_experts, "{error}");
    let error = family.compile("lora_router").unwrap().to_lora(&layout, None).unwrap_err();
    assert!(error.to_string().contains("router"), "{error}");
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
