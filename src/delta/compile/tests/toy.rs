//! A base of two layers and uploads for it.

use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::delta::compile::{Base, CompileLimits, check_head, compile};
use crate::delta::layout::{
    BaseLayout, BaseReadError, BaseSizes, BaseWeights, LayerSite, Module, ModuleKind, Site, SparseBlock,
};
use crate::delta::{DeltaError, DeltaProgram};
use crate::ops::HostTensor;

pub(super) const LIMITS: CompileLimits =
    CompileLimits { max_rank: 8, max_virtual_tokens: 6, allow_unknown_fields: false };
pub(super) const HIDDEN: usize = 8;
pub(super) const KV: usize = 4;
pub(super) const INNER: usize = 12;
pub(super) const VOCAB: usize = 10;

/// Full path in the file of a module of layer 0.
pub(super) fn key(module: &str, parameter: &str) -> String {
    format!("base_model.model.{module}.{parameter}")
}

pub(super) struct Toy {
    pub(super) layout: BaseLayout,
    weights: BTreeMap<String, HostTensor>,
}

impl BaseWeights for Toy {
    fn tensor(&self, name: &str) -> Result<Option<HostTensor>, BaseReadError> {
        Ok(self.weights.get(name).cloned())
    }
}

impl Toy {
    pub(super) fn new() -> Self {
        Self::with(false)
    }

    pub(super) fn tied() -> Self {
        Self::with(true)
    }

    /// Experts of a layer of the sparse toy.
    pub(super) const EXPERTS: usize = 3;
    /// Columns of gate, and of up, of each.
    pub(super) const INNER_OF_EXPERT: usize = 5;

    /// With a router and experts in the place of the MLP of layer 1.
    pub(super) fn sparse() -> Self {
        let Self { layout, weights } = Self::new();
        let is_kept = |module: &&Module| !module.path.starts_with("model.layers.1.mlp.");
        let modules: Vec<Module> = layout.modules().filter(is_kept).cloned().collect();
        let block = SparseBlock {
            layer: 1,
            path: "model.layers.1.mlp".to_owned(),
            path_apart: "model.layers.1.block_sparse_moe".to_owned(),
            names_apart: ["w1", "w3", "w2"],
            experts: Self::EXPERTS,
            intermediate_size: Self::INNER_OF_EXPERT,
        };
        Self { layout: BaseLayout::new(sizes(false), modules).with_sparse_blocks(vec![block]), weights }
    }

    fn with(tied: bool) -> Self {
        use ModuleKind::{Embedding, Linear, Norm};
        let mut modules = vec![
            module("model.embed_tokens", Site::Embed, Embedding, VOCAB, HIDDEN),
            module("model.norm", Site::FinalNorm, Norm, HIDDEN, HIDDEN),
            module("lm_head", Site::LmHead, Linear, HIDDEN, VOCAB),
        ];
        for layer in 0..2 {
            let mut add = |name: &str, part, kind, input, output| {
                modules.push(module(
                    &format!("model.layers.{layer}.{name}"),
                    Site::Layer(layer, part),
                    kind,
                    input,
                    output,
                ));
            };
            add("input_layernorm", LayerSite::AttentionNorm, Norm, HIDDEN, HIDDEN);
            add("self_attn.q_proj", LayerSite::Q, Linear, HIDDEN, HIDDEN);
            add("self_attn.k_proj", LayerSite::K, Linear, HIDDEN, KV);
            add("self_attn.v_proj", LayerSite::V, Linear, HIDDEN, KV);
            add("self_attn.o_proj", LayerSite::O, Linear, HIDDEN, HIDDEN);
            add("post_attention_layernorm", LayerSite::MlpNorm, Norm, HIDDEN, HIDDEN);
            add("mlp.gate_proj", LayerSite::Gate, Linear, HIDDEN, INNER);
            add("mlp.up_proj", LayerSite::Up, Linear, HIDDEN, INNER);
            add("mlp.down_proj", LayerSite::Down, Linear, INNER, HIDDEN);
        }
        let mut weights = BTreeMap::new();
        for module in &mut modules {
            module.bias = module.path.ends_with("q_proj");
            if tied && module.site == Site::LmHead {
                module.weight = "model.embed_tokens.weight".to_owned();
                continue;
            }
            let shape = match module.kind {
                Linear => vec![module.output, module.input],
                Embedding => vec![module.input, module.output],
                Norm => vec![module.output],
            };
            weights.insert(module.weight.clone(), HostTensor::f32(&shape, numbers(&module.weight, &shape)));
            if module.bias {
                let name = format!("{}.bias", module.path);
                weights.insert(name.clone(), HostTensor::f32(&[module.output], numbers(&name, &[module.output])));
            }
        }
        Self { layout: BaseLayout::new(sizes(tied), modules), weights }
    }

    pub(super) fn weight(&self, name: &str) -> Vec<f32> {
        self.weights[name].to_f32()
    }
}

fn sizes(tied: bool) -> BaseSizes {
    BaseSizes {
        layers: 2,
        hidden_size: HIDDEN,
        q_dim: HIDDEN,
        kv_dim: KV,
        kv_heads: 2,
        intermediate_size: INNER,
        vocab_size: VOCAB,
        norm_offset: 0.0,
        tied,
        model_type: "llama",
    }
}

fn module(path: &str, site: Site, kind: ModuleKind, input: usize, output: usize) -> Module {
    Module { path: path.to_owned(), site, kind, input, output, bias: false, weight: format!("{path}.weight") }
}

/// Numbers that every 16-bit type holds exactly, different for every name.
pub(super) fn numbers(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = name.bytes().fold(7usize, |seed, byte| (seed * 31 + byte as usize) % 1009);
    (0..shape.iter().product()).map(|at| ((seed + 37 * at) % 64) as f32 / 32.0 - 1.0).collect()
}

/// Files on their way to the compiler.
#[derive(Clone)]
pub(super) struct Upload {
    /// Fields as raw JSON, in file order.
    config: Vec<(String, String)>,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<f32>)>,
}

impl Upload {
    pub(super) fn new(peft_type: &str) -> Self {
        Self { config: Vec::new(), tensors: BTreeMap::new() }.set("peft_type", &format!("{peft_type:?}"))
    }

    /// LoRA of rank 2 on `q_proj` of both layers.
    pub(super) fn lora() -> Self {
        let upload = Self::new("LORA").set("r", "2").set("lora_alpha", "4").set("target_modules", r#"["q_proj"]"#);
        upload.pair("model.layers.0.self_attn.q_proj", 2).pair("model.layers.1.self_attn.q_proj", 2)
    }

    pub(super) fn ia3() -> Self {
        let mut upload = Self::new("IA3")
            .set("target_modules", r#"["k_proj", "down_proj"]"#)
            .set("feedforward_modules", r#"["down_proj"]"#);
        for layer in 0..2 {
            upload = upload
                .tensor(&key(&format!("model.layers.{layer}.self_attn.k_proj"), "ia3_l"), &[KV, 1])
                .tensor(&key(&format!("model.layers.{layer}.mlp.down_proj"), "ia3_l"), &[1, INNER]);
        }
        upload
    }

    pub(super) fn ln_tuning() -> Self {
        Self::new("LN_TUNING")
            .set("target_modules", r#"["model.norm"]"#)
            .tensor(&key("model.norm", "ln_tuning_layers.weight"), &[HIDDEN])
    }

    pub(super) fn prompt() -> Self {
        Self::new("PROMPT_TUNING").set("num_virtual_tokens", "3").tensor("prompt_embeddings", &[3, HIDDEN])
    }

    pub(super) fn prefix() -> Self {
        Self::new("PREFIX_TUNING").set("num_virtual_tokens", "3").tensor("prompt_embeddings", &[3, 2 * 2 * KV])
    }

    /// Set a field to raw JSON.
    pub(super) fn set(mut self, field: &str, value: &str) -> Self {
        match self.config.iter_mut().find(|(name, _)| name == field) {
            Some((_, old)) => value.clone_into(old),
            None => self.config.push((field.to_owned(), value.to_owned())),
        }
        self
    }

    pub(super) fn tensor(self, name: &str, shape: &[usize]) -> Self {
        let values = numbers(name, shape);
        self.values(name, shape, values)
    }

    pub(super) fn values(mut self, name: &str, shape: &[usize], values: Vec<f32>) -> Self {
        self.tensors.insert(name.to_owned(), (Dtype::F32, shape.to_vec(), values));
        self
    }

    /// Integers, in a dtype of the file.
    pub(super) fn indices(mut self, name: &str, dtype: Dtype, shape: &[usize], values: &[i64]) -> Self {
        let values = values.iter().map(|value| *value as f32).collect();
        self.tensors.insert(name.to_owned(), (dtype, shape.to_vec(), values));
        self
    }

    /// The numbers of a tensor.
    pub(super) fn stored(&self, name: &str) -> Vec<f32> {
        self.tensors[name].2.clone()
    }

    /// Of all tensors.
    pub(super) fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    pub(super) fn pair(self, module: &str, rank: usize) -> Self {
        let (input, output) = sizes_of(module);
        self.tensor(&key(module, "lora_A.weight"), &[rank, input])
            .tensor(&key(module, "lora_B.weight"), &[output, rank])
    }

    pub(super) fn without(mut self, name: &str) -> Self {
        assert!(self.tensors.remove(name).is_some(), "{name}");
        self
    }

    pub(super) fn renamed(mut self, from: &str, to: &str) -> Self {
        let tensors = std::mem::take(&mut self.tensors);
        self.tensors = tensors.into_iter().map(|(name, tensor)| (name.replace(from, to), tensor)).collect();
        self
    }

    pub(super) fn in_dtype(mut self, dtype: Dtype) -> Self {
        self.tensors.values_mut().for_each(|tensor| tensor.0 = dtype);
        self
    }

    pub(super) fn config_bytes(&self) -> Vec<u8> {
        let fields: Vec<_> = self
            .config
            .iter()
            .map(|(name, value)| format!("{}: {value}", serde_json::to_string(name).unwrap()))
            .collect();
        format!("{{{}}}", fields.join(", ")).into_bytes()
    }

    pub(super) fn weight_bytes(&self) -> Vec<u8> {
        let encode_all = |(name, (dtype, shape, values)): (&String, &(Dtype, Vec<usize>, Vec<f32>))| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| encode(*dtype, *value)).collect();
            (name.clone(), *dtype, shape.clone(), bytes)
        };
        let encoded: Vec<_> = self.tensors.iter().map(encode_all).collect();
        let views = encoded
            .iter()
            .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    /// Also sees that the early check says the same, as far as it can without numbers.
    pub(super) fn compile(&self, toy: &Toy) -> Result<DeltaProgram, DeltaError> {
        let (config, weights, base) =
            (self.config_bytes(), self.weight_bytes(), Base { layout: &toy.layout, weights: toy });
        let compiled = compile(&config, &weights, base, LIMITS);
        let header = weights.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length) as usize);
        let early =
            |have: usize| check_head(Some(&config), Some((&weights[..have], weights.len() as u64)), base, LIMITS);
        match (&compiled, early(8 + header)) {
            (Ok(_), early) => early.unwrap(),
            (Err(error), Err(early)) => {
                assert!(early.to_string() == error.to_string() || takes_numbers(error), "{early}")
            }
            (Err(error), Ok(())) => assert!(takes_numbers(error), "not found early: {error}"),
        }
        if compiled.is_ok() {
            for have in [0, 7, 8, 9, 7 + header] {
                early(have).unwrap();
            }
        }
        compiled
    }

    /// As [`Upload::compile`] where the operator lets unknown fields pass.
    pub(super) fn compile_allowing_unknown(&self, toy: &Toy) -> Result<DeltaProgram, DeltaError> {
        let limits = CompileLimits { allow_unknown_fields: true, ..LIMITS };
        compile(&self.config_bytes(), &self.weight_bytes(), Base { layout: &toy.layout, weights: toy }, limits)
    }

    /// Compiled against an untied toy.
    pub(super) fn ops(&self) -> DeltaProgram {
        self.compile(&Toy::new()).unwrap()
    }

    /// Refused by an untied toy.
    pub(super) fn refusal(&self) -> DeltaError {
        self.compile(&Toy::new()).unwrap_err()
    }
}

/// Whether it takes numbers, and not only names and shapes, to find this.
fn takes_numbers(error: &DeltaError) -> bool {
    use crate::delta::safetensors::SafetensorsError;
    matches!(
        error,
        DeltaError::Safetensors(SafetensorsError::NonFinite { .. })
            | DeltaError::NonFinite { .. }
            | DeltaError::Index { .. }
            | DeltaError::BaseMismatch { .. }
            | DeltaError::UnsupportedTensor { .. }
            | DeltaError::Untied { .. }
    )
}

fn encode(dtype: Dtype, value: f32) -> Vec<u8> {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F64 => f64::from(value).to_le_bytes().to_vec(),
        Dtype::U8 => vec![value as u8],
        Dtype::I16 => (value as i16).to_le_bytes().to_vec(),
        Dtype::I32 => (value as i32).to_le_bytes().to_vec(),
        Dtype::I64 => (value as i64).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

/// Input and output of a linear module.
fn sizes_of(module: &str) -> (usize, usize) {
    match module.rsplit('.').next().unwrap_or_default() {
        "k_proj" | "v_proj" => (HIDDEN, KV),
        "gate_proj" | "up_proj" => (HIDDEN, INNER),
        "down_proj" => (INNER, HIDDEN),
        "lm_head" => (HIDDEN, VOCAB),
        _ => (HIDDEN, HIDDEN),
    }
}
