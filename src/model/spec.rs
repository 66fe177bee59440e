//! A decoder described by data. A new family is a new mapping onto these fields, not a new network.

use crate::ops::{Activation, AttentionSpec, ExpertsSpec};
use crate::types::LongRope;

/// Model families whose `config.json` is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3.
    Llama,
    /// Mistral, with its sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3 (dense).
    Qwen3,
    /// Phi-3, with fused projections.
    Phi3,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, text.
    Gemma3,
    /// Mixtral: Mistral with experts.
    Mixtral,
    /// Qwen3 with experts in some layers or all.
    Qwen3Moe,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 9] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Phi3,
        Self::Gemma2,
        Self::Gemma3,
        Self::Mixtral,
        Self::Qwen3Moe,
    ];

    /// The `model_type` of its `config.json`.
    #[must_use]
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi3 => "phi3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::Mixtral => "mixtral",
            Self::Qwen3Moe => "qwen3_moe",
        }
    }
}

/// One layer, where layers differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSpec {
    /// Sliding window in tokens; `None` sees everything.
    pub window: Option<u32>,
    /// Index into [`DecoderSpec::ropes`].
    pub rope: usize,
    /// Behind attention. All that are dense have one shape, and all that are sparse.
    pub mlp: Mlp,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As in the RoPE paper.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are short.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_context: f64,
    },
    /// YaRN (Peng et al. 2023): long wavelengths divided by `factor`, short ones kept, a ramp over the columns between.
    Yarn {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Turns within the original context from which on a frequency is kept.
        beta_fast: f64,
        /// Turns up to which it is divided.
        beta_slow: f64,
        /// Whether the ends of the ramp are rounded outwards to whole columns.
        truncate: bool,
        /// Multiplies cos and sin.
        attention_factor: f64,
        /// Context length of pre-training.
        original_context: usize,
    },
    /// The first `rotated` pairs of columns turn at frequencies of the whole head, divided by `factor`; the others stand.
    Proportional {
        /// Divisor.
        factor: f64,
        /// Pairs of columns that turn.
        rotated: usize,
    },
    /// One divisor per frequency, as a GGUF file has them in `rope_freqs.weight` (Llama 3.1's ramp, worked out).
    Divided {
        /// `rotary_dim / 2` of them.
        divisors: Vec<f32>,
    },
    /// Phi-3: one divisor per frequency, short or long, chosen by the length of the sequence ([`LongRope`]).
    LongRope {
        /// Divisors within the original context, `rotary_dim / 2` of them.
        short_factor: Vec<f64>,
        /// Divisors beyond it.
        long_factor: Vec<f64>,
        /// Multiplies cos and sin.
        attention_factor: f64,
        /// Context length of pre-training.
        original_context: usize,
    },
}

/// One kind of rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// Numbers of a head that rotate; even.
    pub rotary_dim: usize,
    /// Stretching.
    pub scaling: RopeScaling,
}

/// What a layer computes between its second norm and the residual stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mlp {
    /// `down(act(gate x) ∘ up x)` with the same matrices for every row (Shazeer 2020).
    Dense(DenseMlp),
    /// Several of these, of which each row chooses a few by a router `[experts, hidden]`: a sparse layer.
    Experts(ExpertsSpec),
}

/// One gated MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseMlp {
    /// Width between gate/up and down.
    pub intermediate_size: usize,
    /// Between gate and up.
    pub activation: Activation,
    /// gate, up and down have biases.
    pub bias: bool,
}

/// Everything that distinguishes one decoder from another. Sizes are counts of numbers or heads.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// Which mapping made it; decides tensor names.
    pub family: Family,
    /// Rows of the embedding, and logits per position.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Numbers per head; `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// One entry per layer.
    pub layers: Vec<LayerSpec>,
    /// Kinds of rotary embedding the layers refer to.
    pub ropes: Vec<RopeSpec>,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// Added to every stored norm weight (Gemma: 1).
    pub norm_offset: f32,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// o has a bias.
    pub o_bias: bool,
    /// q and k are normalised per head before rotation.
    pub qk_norm: bool,
    /// Outputs of attention and MLP are normalised before they join the residual stream (Gemma).
    pub sandwich_norms: bool,
    /// The checkpoint stores q, k, v as `qkv_proj` and gate, up as `gate_up_proj` (Phi-3).
    pub fused_projections: bool,
    /// Multiplies token embeddings (Gemma: sqrt(hidden)).
    pub embed_scale: f32,
    /// Multiplies q·k.
    pub attention_scale: f32,
    /// Soft cap of attention scores.
    pub attention_softcap: Option<f32>,
    /// Soft cap of logits.
    pub final_softcap: Option<f32>,
    /// The head is the embedding. config.json says what is meant, the checkpoint what is there: see
    /// [`Checkpoint::spec`](super::Checkpoint::spec).
    pub tied: bool,
    /// Longest context the model was made for.
    pub context_length: usize,
}

impl DecoderSpec {
    /// The MLP of dense layers, where there are any.
    #[must_use]
    pub fn dense(&self) -> Option<DenseMlp> {
        self.layers.iter().find_map(|layer| match layer.mlp {
            Mlp::Dense(mlp) => Some(mlp),
            Mlp::Experts(_) => None,
        })
    }

    /// The experts of sparse layers, where there are any.
    #[must_use]
    pub fn experts(&self) -> Option<ExpertsSpec> {
        self.layers.iter().find_map(|layer| match layer.mlp {
            Mlp::Experts(experts) => Some(experts),
            Mlp::Dense(_) => None,
        })
    }

    /// Columns of gate, and of up, of dense layers; 0 where there is none.
    #[must_use]
    pub fn dense_size(&self) -> usize {
        self.dense().map_or(0, |mlp| mlp.intermediate_size)
    }

    /// Columns of q.
    #[must_use]
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of k (and of v).
    #[must_use]
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Set where a rotary embedding has two sets of frequencies. [`read_spec`](super::read_spec) sees to it that all
    /// such of one model turn at one length.
    #[must_use]
    pub fn long_rope(&self) -> Option<LongRope> {
        self.ropes.iter().find_map(|rope| match rope.scaling {
            RopeScaling::LongRope { original_context, .. } => Some(LongRope {
                original_context: u32::try_from(original_context).unwrap_or(LongRope::NEVER),
                recompute: self.family == Family::Phi3,
            }),
            _ => None,
        })
    }

    /// Attention of one layer.
    #[must_use]
    pub fn attention(&self, layer: usize) -> AttentionSpec {
        AttentionSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.attention_scale,
            softcap: self.attention_softcap,
            window: self.layers[layer].window,
        }
    }
}
