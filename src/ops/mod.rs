//! The few operations a decoder with deltas needs, as one trait: [`Backend`].
//!
//! `reference` is the definition: slow, obvious, f32. `cpu` is fast and must agree with it. The decoder is written
//! once against the trait and monomorphised. Ops are coarse, write into preallocated [`Backend::Buffer`]s, and take
//! what varies by row (adapter slots, positions, block tables, which rows are sampled) from a [`StepPlan`] uploaded once
//! per step: between the first launch of a step and [`Backend::finish`] nothing more goes to the device or comes from it.
//!
//! Numbers. Activations are f32. [`Numerics`] says how matrices lie on the device, what the inputs of every GEMM (base and
//! low-rank alike) are rounded to, and what the KV cache keeps; accumulation is f32. **Batch invariance**: an output element is one fixed sequence of
//! operations over its inputs, whatever the number of rows, the row's index, the other rows, the thread count, or
//! whether columns are computed stacked or alone. A row without an op of a class is not touched by that class.
//!
//! Choosing a token is a backend's work too, so that no logits leave the device; which token that is, is `sampler`'s.
//!
//! This room knows no model family, no adapter method and no request: only matrices, rows and slots.

pub mod cpu;
mod error;
mod host;
mod numerics;
mod plan;
pub mod reference;
mod stored;
mod table;

pub use error::OpsError;
pub use host::{HostData, HostMatrix, HostTensor, TensorData};
pub use numerics::{ComputeDtype, KvDtype, Numerics, WeightFormat};
pub use plan::{RowPlan, Rows, SampledRows, Segment, SequencePlan, StepPlan};
pub use stored::{TensorDtype, TensorReader};
pub use table::{ColumnVector, DeltaMemory, LowRankPair, SiteId, SiteTable, SlotDelta, SlotEntries, SlotTable};

use std::ops::Range;

use crate::types::{AdapterSlot, SampledToken, SequenceFailure};

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

/// The activation between gate and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU, tanh approximation (`gelu_pytorch_tanh`).
    GeluTanh,
    /// GELU, exact (erf).
    Gelu,
}

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

/// A norm of the base, and the gains that adapters have instead.
pub struct Norm<'a, B: Backend> {
    /// `[width]`.
    pub weight: &'a B::Vector,
    /// By slot; absent where no row of the step has one.
    pub gains: Option<SiteTable<'a, B>>,
    /// Added to the mean square.
    pub eps: f32,
}

/// How a kernel set presents itself in logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// `reference` or `cpu`.
    pub name: &'static str,
    /// Instruction set path chosen at start, e.g. `avx512bf16`, `avx2`, `portable`.
    pub isa: &'static str,
    /// Compute threads.
    pub threads: usize,
}

/// Memory and kernels of one device. Shapes are checked with debug assertions: the decoder builds all buffers from
/// one spec, so a mismatch is a bug of ours and never a client's doing.
pub trait Backend: DeltaMemory {
    /// f32 activations, row-major `[rows, cols]`; the rows in use vary from step to step, the columns never.
    type Buffer: Send;
    /// Cos/sin tables.
    type Rope: Send + Sync;
    /// All layers of the paged KV cache.
    type KvCache: Send;
    /// A [`StepPlan`] on the device.
    type Step: Send;

    /// What this is.
    fn info(&self) -> BackendInfo;

    /// How it keeps numbers.
    fn numerics(&self) -> Numerics;

    // --- memory -------------------------------------------------------------------------------------------------

    /// Allocate `[rows, cols]`, zeroed.
    fn buffer(&self, rows: usize, cols: usize) -> Result<Self::Buffer, OpsError>;

    /// Pack `segments`, each `[out_i, in]`, stacked along `out` in order. Column range `i` of a GEMM's output is
    /// segment `i`. The numbers are rounded to the backend's [`WeightFormat`].
    fn weight(&self, segments: &[HostMatrix<'_>]) -> Result<Self::Weight, OpsError>;

    /// Pack each matrix as a weight of its own. Those of one adapter come and go together, so a backend may give them
    /// one allocation, which is freed with the last of them.
    fn weight_group(&self, matrices: &[HostMatrix<'_>]) -> Result<Vec<Self::Weight>, OpsError> {
        matrices.iter().map(|matrix| self.weight(&[*matrix])).collect()
    }

    /// Copy a vector to the device.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector, OpsError>;

    /// Copy rows to a buffer of their own, `values.len() / cols` of them.
    fn buffer_of(&self, cols: usize, values: &[f32]) -> Result<Self::Buffer, OpsError>;

    /// Copy rotary tables to the device.
    fn rope(&self, table: &RopeTable) -> Result<Self::Rope, OpsError>;

    /// Reserve the KV cache; pages are touched only when written.
    fn kv_cache(&self, shape: KvShape) -> Result<Self::KvCache, OpsError>;

    /// An empty step to upload into.
    fn step(&self) -> Self::Step;

    /// Copy a plan to the device.
    fn upload(&self, plan: &StepPlan, step: &mut Self::Step) -> Result<(), OpsError>;

    /// An empty delta table.
    fn delta_table(&self) -> Result<Self::DeltaTable, OpsError>;

    /// Put an adapter's entries into an empty slot. Steps launched before do not see them, those launched after do.
    fn set_slot(&self, table: &mut Self::DeltaTable, slot: AdapterSlot, delta: SlotDelta<Self>);

    /// Empty a slot: what it held, whole. It may be dropped at once and on any thread: memory that a launched step may
    /// still read is given back behind that step.
    fn clear_slot(&self, table: &mut Self::DeltaTable, slot: AdapterSlot) -> Option<SlotDelta<Self>>;

    /// What a slot holds, as the host knows it: which op classes a step runs is decided by it, before the first launch.
    fn slot<'t>(&self, table: &'t Self::DeltaTable, slot: AdapterSlot) -> Option<&'t SlotDelta<Self>>;

    /// Row `row` of a buffer, on the host. Waits for the device: for looking on, not for the way of a step.
    fn read_row<'a>(&self, buffer: &'a Self::Buffer, row: usize) -> std::borrow::Cow<'a, [f32]>;

    // --- the end of a step --------------------------------------------------------------------------------------

    /// Semantics: for each row i of a group of sampled rows ([`StepPlan::sampled`]): what
    /// `sampler::Sampler` makes of row `i` of `logits` by its output ([`StepPlan::outputs_of`]), a token
    /// chosen or one scored, kept with the step. Groups come in ascending order.
    fn sample(&self, step: &mut Self::Step, group: usize, logits: &Self::Buffer);

    /// Wait for the step and take out what was chosen and scored, in the order of the plan's sampled rows: a token, or why
    /// its sequence has none.
    ///
    /// # Errors
    /// Whatever went wrong on the device since the upload: kernels are launched without waiting for them, and this is
    /// where their errors surface. Nothing that the step wrote may be trusted then.
    fn finish(&self, step: &mut Self::Step) -> Result<Vec<SampleOutcome>, OpsError>;

    // --- rows in, rows out: for each row r of `rows` --------------------------------------------------------------

    /// Semantics: for each row r of the step with a token id: `y[r, :] = scale * table[id, :]`, where `table` is
    /// `[vocab, hidden]` as stored (bf16 or f32, widened). Rows whose id is absent ([`StepPlan::ids`]) are left as they are.
    fn embed(&self, step: &Self::Step, table: &Self::Weight, scale: f32, y: &mut Self::Buffer);

    /// Semantics: `y[rows.start + i, :] = x[first + i, :]` for each i below `rows.len()`. Used for prompt embeddings.
    fn copy_rows(&self, x: &Self::Buffer, first: usize, rows: Range<usize>, y: &mut Self::Buffer);

    /// Semantics: `y[r, :] = x[source of r, :]`, where x holds all rows of the step: the source of a sampled row is
    /// [`SampledRows::sources`], that of any other the row itself.
    fn gather_rows(&self, step: &Self::Step, rows: Rows, x: &Self::Buffer, y: &mut Self::Buffer);

    /// Semantics: `x[r, :] += y[r, :]`.
    fn add(&self, step: &Self::Step, rows: Rows, x: &mut Self::Buffer, y: &Self::Buffer);

    /// RMSNorm (Zhang & Sennrich 2019). Semantics: `y[r, c] = x[r, c] * rsqrt(mean_c x[r, c]^2 + eps) * w[c]`, where w is
    /// the gain of the row's slot if `gains` has one, else `norm.weight`. Sum in f32.
    fn rms_norm(&self, step: &Self::Step, rows: Rows, norm: Norm<'_, Self>, x: &Self::Buffer, y: &mut Self::Buffer);

    /// RMSNorm over each head in place (Qwen3, Gemma 3): as [`Backend::rms_norm`] on every `head_dim` columns.
    fn rms_norm_heads(
        &self,
        step: &Self::Step,
        rows: Rows,
        norm: Norm<'_, Self>,
        columns: HeadColumns,
        x: &mut Self::Buffer,
    );

    /// The base GEMM. Semantics: `y[r, c] = Σ_k x[r, k] * w[c, k]` for every column c of `w`; no bias, ever. `x` is
    /// `[rows, in]`, `y` `[rows, out]`.
    fn gemm(&self, step: &Self::Step, rows: Rows, x: &Self::Buffer, w: &Self::Weight, y: &mut Self::Buffer);

    /// Semantics: `y[r, c] += bias[c]`; `bias` has as many numbers as y has columns.
    fn add_bias(&self, step: &Self::Step, rows: Rows, bias: &Self::Vector, y: &mut Self::Buffer);

    /// Semantics: `y[r, c] = tanh(y[r, c] / cap) * cap` (Gemma 2's final soft cap).
    fn softcap(&self, step: &Self::Step, rows: Rows, cap: f32, y: &mut Self::Buffer);

    /// Semantics: `y[r, c] = act(x[r, c]) * x[r, n + c]`, x is `[rows, 2n]` (gate then up), y `[rows, n]`.
    fn gated_activation(
        &self,
        step: &Self::Step,
        rows: Rows,
        activation: Activation,
        x: &Self::Buffer,
        y: &mut Self::Buffer,
    );

    // --- attention ----------------------------------------------------------------------------------------------

    /// Rotate q and k of `qkv` `[rows, (heads + 2 kv_heads) * head_dim]` in place at each row's position (GPT-NeoX
    /// halves, Su et al. 2021), then store k and v at each row's place of layer `layer`, in KV dtype.
    fn rope_and_cache(
        &self,
        step: &Self::Step,
        spec: &AttentionSpec,
        rope: &Self::Rope,
        layer: usize,
        qkv: &mut Self::Buffer,
        kv: &mut Self::KvCache,
    );

    /// Paged attention of one layer, prefill and decode alike. Semantics, per row at KV index p and query head h:
    /// `y[r, h, :] = Σ_j softmax_j(cap(scale * q·k_j)) v_j` over the visible j (causal, window), K and V read back
    /// from the cache in KV dtype. One algorithm per (row, head): KV tiles at absolute boundaries from 0, ascending,
    /// online softmax.
    fn attention(
        &self,
        step: &Self::Step,
        spec: &AttentionSpec,
        layer: usize,
        qkv: &Self::Buffer,
        kv: &Self::KvCache,
        y: &mut Self::Buffer,
    );

    /// Copy one block, all layers.
    fn copy_block(&self, kv: &mut Self::KvCache, source: usize, target: usize);

    /// Store saved K and V of one layer as they are (no rope, no norm): row i of `k` and `v`, for each i below `count`, at
    /// KV index i of a sequence whose block table begins with `blocks`.
    fn write_pages(
        &self,
        kv: &mut Self::KvCache,
        layer: usize,
        blocks: &[u32],
        count: usize,
        k: &Self::Buffer,
        v: &Self::Buffer,
    );

    // --- deltas, one op class at a time, all rows at once ---------------------------------------------------------

    /// Semantics, for each row of a slot with entries: `y[r, c0..c1] += scaling * B(A x[r])` for each entry `{a: [rank,
    /// in], b: [c1 - c0, rank], scaling, columns: c0..c1}`. True ranks, no padding in the result. x and A x are
    /// rounded to the [`ComputeDtype`] before their GEMMs.
    fn low_rank(
        &self,
        step: &Self::Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &Self::Buffer,
        y: &mut Self::Buffer,
    );

    /// Semantics: [`Backend::gemm`], then [`Backend::low_rank`] of the same x onto the same y, to the bit. One call, so
    /// that a backend may prepare x once and read A beside the base's weights.
    fn gemm_low_rank(
        &self,
        step: &Self::Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &Self::Buffer,
        w: &Self::Weight,
        y: &mut Self::Buffer,
    ) {
        self.gemm(step, rows, x, w, y);
        self.low_rank(step, rows, deltas, x, y);
    }

    /// Semantics, for each row of the step with a token id of a slot with entries: `y[r, :] += scale * scaling * Σ_j
    /// B[:, j] * A[j, id]`, A given transposed as `a: [vocab, rank]`, `b: [hidden, rank]`. `scale` is the embedding scale
    /// of the base (Gemma), 1 elsewhere.
    fn embedding_low_rank(&self, step: &Self::Step, deltas: SiteTable<'_, Self>, scale: f32, y: &mut Self::Buffer);

    /// Semantics: `y[r, columns] *= g` for each entry of the row's slot.
    fn scale_rows(&self, step: &Self::Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Self::Buffer);

    /// Semantics: `y[r, columns] += b` for each entry of the row's slot.
    fn bias_rows(&self, step: &Self::Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Self::Buffer);

    /// Semantics: `y[r, :] = g ∘ x[r, :]` where the row's slot has an entry g, else `x[r, :]`.
    fn scale_input(
        &self,
        step: &Self::Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &Self::Buffer,
        y: &mut Self::Buffer,
    );

    /// For rows whose input to one of several stacked projections is scaled. Semantics, for each row of a slot with an
    /// entry g: `y[r, columns of segment] = W_segment (g ∘ x[r])`, the columns as [`Backend::gemm`] computes them. `scaled` is
    /// scratch as wide as x.
    #[allow(clippy::too_many_arguments)] // All of a GEMM's, and which rows and columns of it.
    fn gemm_scaled_segment(
        &self,
        step: &Self::Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &Self::Buffer,
        w: &Self::Weight,
        segment: usize,
        scaled: &mut Self::Buffer,
        y: &mut Self::Buffer,
    );
}

/// What became of a sampled row.
pub type SampleOutcome = Result<SampledToken, SequenceFailure>;
