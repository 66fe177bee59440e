//! The second oracle: candle-transformers' own networks with the same random weights, prefill of whole prompts.
//!
//! candle's networks leave some of a config aside; there both sides run what candle runs, and transformers is the
//! oracle of the rest: its windows hold one token more than transformers' (so prompts stay within the window), its
//! Gemma 2 scales by the head size instead of `query_pre_attn_scalar`. Its Gemma 3 cannot prefill this fixture (its KV
//! cache refuses the strided values of grouped-query attention), so transformers alone judges that family.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models;
use polydelta::ops::{Numerics, reference::ReferenceBackend};
use serde_json::{Value, json};

use crate::fixture::{Case, Family, Runner};

/// Largest difference of a logit. Both sides are f32 with their own order of summation.
const TOLERANCE: f32 = 2e-4;

fn weights(family: &Family) -> VarBuilder<'static> {
    let mut tensors = std::collections::HashMap::new();
    for entry in std::fs::read_dir(family.dir.join("base")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            tensors.extend(candle_core::safetensors::load(path, &Device::Cpu).unwrap());
        }
    }
    VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

/// `config.json` in the spelling candle reads.
fn config(family: &Family) -> Value {
    let bytes = std::fs::read(family.dir.join("base/config.v4.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Logits of the last position of `prompt` by candle.
type Network = Box<dyn FnMut(&Tensor) -> candle_core::Result<Tensor>>;

fn compare(family: &Family, max_prompt: usize, mut network: impl FnMut() -> Network) {
    let mut runner = Runner::new(ReferenceBackend::new(Numerics::F32), family, family.spec.context_length, &[]);
    let mut compared = 0;
    for case in family.cases.iter().filter(|case| case.adapter.is_none() && case.prompt.len() <= max_prompt) {
        let ours = &runner.generate(&[&Case { ids: vec![0], ..case.clone() }], usize::MAX)[0].logits[0].clone();
        let ids = Tensor::new(case.prompt.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let theirs = network()(&ids).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let theirs = &theirs[theirs.len() - ours.len()..];
        for (id, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            assert!((ours - theirs).abs() < TOLERANCE, "{} {} id {id}: {ours} vs {theirs}", family.name, case.name);
        }
        compared += 1;
    }
    assert!(compared > 0, "{}: no case to compare", family.name);
}

fn llama(name: &'static str) {
    let family = Family::open(name);
    let mut json = config(&family);
    json["use_flash_attn"] = json!(false);
    let config: models::llama::LlamaConfig = serde_json::from_value(json).unwrap();
    let config = config.into_config(false);
    compare(&family, usize::MAX, || {
        let model = models::llama::Llama::load(weights(&family), &config).unwrap();
        let mut cache = models::llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
        Box::new(move |ids| model.forward(ids, 0, &mut cache))
    });
}

/// The longest prompt on which windows of 8 and of 9 are the same.
const WITHIN_WINDOW: usize = 8;

fn scale_by_head_size(family: &mut Family) {
    family.spec.attention_scale = (family.spec.head_dim as f32).sqrt().recip();
}

#[test]
fn llama_agrees_with_candle() {
    llama("llama");
}

#[test]
fn mistral_agrees_with_candle() {
    let family = Family::open("mistral");
    let config: models::mistral::Config = serde_json::from_value(config(&family)).unwrap();
    compare(&family, WITHIN_WINDOW, || {
        let mut model = models::mistral::Model::new(&config, weights(&family)).unwrap();
        Box::new(move |ids| model.forward(ids, 0))
    });
}

#[test]
fn qwen2_agrees_with_candle() {
    let family = Family::open("qwen2");
    let mut json = config(&family);
    // candle applies the window whatever `use_sliding_window` says.
    json["sliding_window"] = json!(1 << 20);
    let config: models::qwen2::Config = serde_json::from_value(json).unwrap();
    compare(&family, usize::MAX, || {
        let mut model = models::qwen2::ModelForCausalLM::new(&config, weights(&family)).unwrap();
        Box::new(move |ids| model.forward(ids, 0))
    });
}

#[test]
fn qwen3_agrees_with_candle() {
    let family = Family::open("qwen3");
    let config: models::qwen3::Config = serde_json::from_value(config(&family)).unwrap();
    compare(&family, usize::MAX, || {
        let mut model = models::qwen3::ModelForCausalLM::new(&config, weights(&family)).unwrap();
        Box::new(move |ids| model.forward(ids, 0))
    });
}

#[test]
fn mixtral_agrees_with_candle() {
    let family = Family::open("mixtral");
    let mut json = config(&family);
    json["use_flash_attn"] = json!(false);
    json["sliding_window"] = json!(1 << 20);
    let config: models::mixtral::Config = serde_json::from_value(json).unwrap();
    compare(&family, usize::MAX, || {
        let mut model = models::mixtral::Model::new(&config, weights(&family)).unwrap();
        Box::new(move |ids| model.forward(ids, 0))
    });
}

#[test]
fn qwen3_moe_agrees_with_candle() {
    let family = Family::open("qwen3_moe");
    let mut json = config(&family);
    // Files of transformers 4 name it; without a window it says nothing.
    json["max_window_layers"] = json!(0);
    let config: models::qwen3_moe::Config = serde_json::from_value(json).unwrap();
    compare(&family, usize::MAX, || {
        let mut model = models::qwen3_moe::ModelForCausalLM::new(&config, weights(&family)).unwrap();
        Box::new(move |ids| model.forward(ids, 0))
    });
}

#[test]
fn phi3_agrees_with_candle() {
    let family = Family::open("phi3");
    let config: models::phi3::Config = serde_json::from_value(config(&family)).unwrap();
    compare(&family, usize::MAX, || {
        let mut model = models::phi3::Model::new(&config, weights(&family)).unwrap();
        Box::new(move |ids| model.forward(ids, 0))
    });
}

#[test]
fn gemma2_agrees_with_candle() {
    let mut family = Family::open("gemma2");
    scale_by_head_size(&mut family);
    let config: models::gemma2::Config = serde_json::from_value(config(&family)).unwrap();
    compare(&family, WITHIN_WINDOW, || {
        let mut model = models::gemma2::Model::new(false, &config, weights(&family)).unwrap();
        Box::new(move |ids| model.forward(ids, 0))
    });
}
