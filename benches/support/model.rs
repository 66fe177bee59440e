//! Model folders with random bf16 weights: what a checkpoint of those sizes costs to run depends on no number in it.

use std::borrow::Cow;
use std::path::Path;

use half::bf16;
use polydelta::model::{DecoderSpec, base_layout, read_spec};
use safetensors::tensor::{Dtype, View};
use serde_json::{Value, json};

use super::Failure;
use super::numbers::weights;

/// A model the benches can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shape {
    /// The sizes of Qwen2.5-0.5B: 24 layers, hidden 896, 14 heads over 2 KV heads, a tied head of 151 936.
    Qwen05b,
    /// A Llama of 160 M parameters: 12 layers, hidden 768, 12 heads, a head of 32 000.
    Llama160m,
    /// Two layers of hidden 256, for a quick look.
    Tiny,
}

impl Shape {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Qwen05b => "qwen05b",
            Self::Llama160m => "llama160m",
            Self::Tiny => "tiny",
        }
    }

    fn config(self) -> Value {
        let sizes = |model: &str, layers: u32, hidden: u32, inner: u32, heads: (u32, u32), vocab: u32, tied: bool| {
            json!({
                "model_type": model, "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner,
                "num_attention_heads": heads.0, "num_key_value_heads": heads.1, "vocab_size": vocab,
                "tie_word_embeddings": tied, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
                "rope_theta": 10000.0, "hidden_act": "silu", "torch_dtype": "bfloat16", "use_sliding_window": false,
            })
        };
        match self {
            Self::Qwen05b => sizes("qwen2", 24, 896, 4864, (14, 2), 151_936, true),
            Self::Llama160m => sizes("llama", 12, 768, 3072, (12, 12), 32_000, false),
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
        Ok(safetensors::serialize_to_file(tensors, None, &dir.join("model.safetensors"))?)
    }
}

/// A tensor whose numbers are made when they are written.
struct Lazy {
    shape: Vec<usize>,
    seed: u64,
    ones: bool,
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
