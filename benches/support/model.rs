//! Model folders with random bf16 weights: what a checkpoint of those sizes costs to run depends on no number in it.

use std::borrow::Cow;
use std::path::Path;

use half::bf16;
use polydelta::model::{DecoderSpec, base_layout, read_spec};
use polydelta::ops::ExpertsSpec;
use safetensors::tensor::{Dtype, View};
use serde_json::{Value, json};

use super::Failure;
use super::numbers::weights;

/// A model the benches can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shape {
    /// The sizes of Llama-3.1-8B: 32 layers, hidden 4096, 32 heads over 8 KV heads, a head of 128 256.
    Llama8b,
    /// The sizes of Qwen2.5-0.5B: 24 layers, hidden 896, 14 heads over 2 KV heads, a tied head of 151 936.
    Qwen05b,
    /// The sizes of Llama-3.2-1B: 16 layers, hidden 2048, 32 heads over 8 KV heads, a tied head of 128 256.
    Llama1b,
    /// A Llama of 160 M parameters: 12 layers, hidden 768, 12 heads, a head of 32 000.
    Llama160m,
    /// A Mixtral of 145 M parameters: 8 layers, hidden 512, 8 experts of 1024, 2 per token.
    Mixtral145m,
    /// Two layers of hidden 256, for a quick look.
    Tiny,
}

impl Shape {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Llama8b => "llama8b",
            Self::Qwen05b => "qwen05b",
            Self::Llama1b => "llama1b",
            Self::Llama160m => "llama160m",
            Self::Mixtral145m => "mixtral145m",
            Self::Tiny => "tiny",
        }
    }

    pub(crate) fn config(self) -> Value {
        let sizes = |model: &str, layers: u32, hidden: u32, inner: u32, heads: (u32, u32), vocab: u32, tied: bool| {
            json!({
                "model_type": model, "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner,
                "num_attention_heads": heads.0, "num_key_value_heads": heads.1, "vocab_size": vocab,
                "tie_word_embeddings": tied, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
                "rope_theta": 10000.0, "hidden_act": "silu", "torch_dtype": "bfloat16", "use_sliding_window": false,
            })
        };
        match self {
            Self::Llama8b => sizes("llama", 32, 4096, 14_336, (32, 8), 128_256, false),
            Self::Qwen05b => sizes("qwen2", 24, 896, 4864, (14, 2), 151_936, true),
            Self::Llama1b => sizes("llama", 16, 2048, 8192, (32, 8), 128_256, true),
            Self::Llama160m => sizes("llama", 12, 768, 3072, (12, 12), 32_000, false),
            Self::Mixtral145m => {
                let mut config = sizes("mixtral", 8, 512, 1024, (8, 4), 32_000, false);
                config["num_local_experts"] = json!(8);
                config["num_experts_per_tok"] = json!(2);
                config
            }
            Self::Tiny => sizes("llama", 2, 256, 768, (4, 2), 4096, false),
        }
    }

    pub(crate) fn spec(self) -> Result<DecoderSpec, Failure> {
        let Value::Object(config) = self.config() else { return Err("a config is an object".into()) };
        Ok(read_spec(&config)?)
    }

    /// Write config.json and model.safetensors into `dir`.
    pub(crate) fn write(self, dir: &Path) -> Result<(), Failure> {
        std::fs::write(dir.join("config.json"), self.config().to_string())?;
        Ok(safetensors::serialize_to_file(self.tensors()?, None, &dir.join("model.safetensors"))?)
    }

    /// All tensors, by name.
    pub(crate) fn tensors(self) -> Result<Vec<(String, Lazy)>, Failure> {
        let spec = self.spec()?;
        let mut tensors = Vec::new();
        for (seed, module) in base_layout(&spec).modules().enumerate() {
            use polydelta::delta::ModuleKind::{Embedding, Linear, Norm};
            let shape = match module.kind {
                Linear => vec![module.output, module.input],
                Embedding => vec![module.input, module.output],
                Norm => vec![module.output],
            };
            let ones = module.kind == Norm;
            if tensors.iter().all(|(name, _)| *name != module.weight) {
                tensors.push((module.weight.clone(), Lazy { shape, seed: seed as u64, ones }));
            }
            if module.bias {
                let bias = Lazy { shape: vec![module.output], seed: 1 << 32 | seed as u64, ones: false };
                tensors.push((format!("{}.bias", module.path), bias));
            }
        }
        tensors.extend(experts(&spec));
        Ok(tensors)
    }
}

/// Router and experts of every layer, as Mixtral names them.
fn experts(spec: &DecoderSpec) -> impl Iterator<Item = (String, Lazy)> {
    let (hidden, layers) = (spec.hidden_size, spec.layers.len());
    let of_layer = move |(layer, experts): (usize, ExpertsSpec)| {
        let (count, width) = (experts.experts, experts.intermediate_size);
        let block = format!("model.layers.{layer}.block_sparse_moe");
        let matrices = [("w1", [width, hidden]), ("w2", [hidden, width]), ("w3", [width, hidden])];
        let of_experts =
            (0..count).flat_map(|expert| matrices.map(|(name, shape)| (format!("experts.{expert}.{name}"), shape)));
        let all = of_experts.chain([("gate".to_owned(), [count, hidden])]).enumerate();
        let tensor = |(index, (name, shape)): (usize, (String, [usize; 2]))| {
            let seed = 2 << 32 | (layer as u64) << 16 | index as u64;
            (format!("{block}.{name}.weight"), Lazy { shape: shape.to_vec(), seed, ones: false })
        };
        all.map(tensor).collect::<Vec<_>>()
    };
    spec.experts()
        .into_iter()
        .flat_map(move |experts| (0..layers).map(move |layer| (layer, experts)))
        .flat_map(of_layer)
}

/// A tensor whose numbers are made when they are written.
pub(crate) struct Lazy {
    pub(crate) shape: Vec<usize>,
    seed: u64,
    pub(crate) ones: bool,
}

impl View for Lazy {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let len = self.shape.iter().product();
        // As initialisation does it: a standard deviation of 0.02.
        let numbers = if self.ones { vec![bf16::ONE; len] } else { weights(self.seed, len, 0.035) };
        Cow::Owned(numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * 2
    }
}
