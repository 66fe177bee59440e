//! What ops are told of a model: shapes and constants of its parts, apart from what varies from step to step.

use super::activation::Activation;
use super::table::{DeltaMemory, SiteTable};

/// Shape of the paged KV cache. One block holds `block_size` consecutive places of one sequence in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Places per block; the tile boundaries of attention are multiples of it, counted from KV index 0.
    pub block_size: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
    /// Numbers of a hidden state that are kept of each place beside its K and V, as activations are; 0 keeps none.
    pub kept: usize,
}

impl KvShape {
    /// Numbers of K (or of V) of one token in one layer.
    #[must_use]
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// One layer's attention, apart from its weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads; a multiple of `kv_heads`. Query head `h` reads KV head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
    /// Multiplies q·k.
    pub scale: f32,
    /// `s = cap * tanh(s / cap)` on the scaled scores (Gemma 2).
    pub softcap: Option<f32>,
    /// Sliding window: query at index `p` sees KV indices `j` with `p - window < j <= p`.
    pub window: Option<u32>,
}

/// Rotary tables of one kind of layer: `cos` and `sin` are `[max_positions, rotary_dim / 2]`, attention scaling
/// (longrope, yarn) already multiplied in.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Numbers of a head that rotate: the first `rotary_dim`, in two halves (GPT-NeoX layout). Even.
    pub rotary_dim: usize,
    /// `[max_positions, rotary_dim / 2]`.
    pub cos: Vec<f32>,
    /// `[max_positions, rotary_dim / 2]`.
    pub sin: Vec<f32>,
}

/// One layer's experts, apart from their weights: gated MLPs of which each row chooses a few (Shazeer 2017).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertsSpec {
    /// How many there are.
    pub experts: usize,
    /// How many a row chooses; at least 1, at most all.
    pub experts_per_token: usize,
    /// Width between gate/up and down of each.
    pub intermediate_size: usize,
    /// Between gate and up.
    pub activation: Activation,
    /// The weights of a row's experts are divided by their sum.
    pub renormalise: bool,
}

/// The weights of one expert.
pub struct Expert<B: DeltaMemory> {
    /// Gate and up stacked, `[2 * intermediate_size, hidden]`.
    pub gate_up: B::Weight,
    /// `[hidden, intermediate_size]`.
    pub down: B::Weight,
}

/// What adapters add within the experts of a layer; absent where no row of the step has any.
pub struct ExpertDeltas<'a, B: DeltaMemory> {
    /// To gate and up.
    pub gate_up: Option<SiteTable<'a, B>>,
    /// To down.
    pub down: Option<SiteTable<'a, B>>,
}

impl<B: DeltaMemory> ExpertDeltas<'_, B> {
    /// Nothing.
    pub const NONE: Self = Self { gate_up: None, down: None };
}

impl<B: DeltaMemory> Clone for ExpertDeltas<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: DeltaMemory> Copy for ExpertDeltas<'_, B> {}

/// Which columns of a buffer hold heads to be normalised: `heads` heads of `head_dim` from column `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadColumns {
    /// First column.
    pub first: usize,
    /// Number of heads.
    pub heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
}
