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

mod activation;
mod bottleneck;
pub mod cpu;
pub mod cuda;
mod error;
mod host;
mod host_sparse;
mod info;
mod numerics;
mod outcomes;
mod plan;
pub mod reference;
mod specs;
mod stored;
mod table;
mod vocabulary;

pub use activation::{Activation, NonLinearity};
pub use bottleneck::{Blend, Wiring};
pub use error::OpsError;
pub use host::{HostData, HostMatrix, HostTensor, TensorData};
pub use host_sparse::{HostSparse, SparseEntry};
pub use info::BackendInfo;
pub use numerics::{ComputeDtype, KvDtype, Numerics, WeightFormat, nearest_f16};
pub use outcomes::{PoolOutcome, SampleOutcome, StepOutcomes};
pub use plan::{PooledRows, PooledSpan, RowPlan, Rows, SampledRows, Segment, SequencePlan, StepPlan};
pub use specs::{AttentionSpec, Expert, ExpertDeltas, ExpertsSpec, HeadColumns, KvShape, RopeTable};
pub use stored::{TensorDtype, TensorReader};
pub use table::{
    Bottleneck, ColumnRotation, ColumnVector, DeltaMemory, DenseMatrix, EntriesBySite, ExpertPair, LowRankPair,
    ReplacedRows, Rotation, SiteId, SiteSet, SiteTable, SlotDelta, SlotEntries, SlotTable, SparseColumns,
};
pub use vocabulary::{OwnVocabularies, of_vocabulary};

use std::ops::Range;

use crate::types::AdapterSlot;

/// A norm of the base, and the gains that adapters have instead.
pub struct Norm<'a, B: Backend> {
    /// `[width]`.
    pub weight: &'a B::Vector,
    /// By slot; absent where no row of the step has one.
    pub gains: Option<SiteTable<'a, B>>,
    /// Added to the mean square.
    pub eps: f32,
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
    /// All experts of one layer.
    type Experts: Send + Sync;
    /// What [`Backend::experts`] keeps between its kernels.
    type ExpertsWork: Send;

    /// What this is.
    fn info(&self) -> BackendInfo;

    /// How it keeps numbers.
    fn numerics(&self) -> Numerics;

    // --- memory -------------------------------------------------------------------------------------------------

    /// Allocate `[rows, cols]`, zeroed.
    fn buffer(&self, rows: usize, cols: usize) -> Result<Self::Buffer, OpsError>;

    /// As [`Backend::buffer`], for rows that GEMMs read: a backend may keep beside the numbers the form in which they do,
    /// which norms, activations, attention, input scales and rotations write.
    fn input_buffer(&self, rows: usize, cols: usize) -> Result<Self::Buffer, OpsError> {
        self.buffer(rows, cols)
    }

    /// Pack `segments`, each `[out_i, in]`, stacked along `out` in order. Column range `i` of a GEMM's output is
    /// segment `i`. The numbers are rounded to the backend's [`WeightFormat`].
    fn weight(&self, segments: &[HostMatrix<'_>]) -> Result<Self::Weight, OpsError>;

    /// Pack each matrix as a weight of its own. Those of one adapter come and go together, so a backend may give them
    /// one allocation, which is freed with the last of them.
    fn weight_group(&self, matrices: &[HostMatrix<'_>]) -> Result<Vec<Self::Weight>, OpsError> {
        matrices.iter().map(|matrix| self.weight(&[*matrix])).collect()
    }

    /// The experts of one layer, ascending.
    fn expert_table(&self, experts: Vec<Expert<Self>>) -> Result<Self::Experts, OpsError>;

    /// What experts of `spec` over rows of `hidden` numbers need in between, for at most `rows` rows; without a spec, for
    /// a model that has none, next to nothing.
    fn experts_work(
        &self,
        rows: usize,
        hidden: usize,
        spec: Option<&ExpertsSpec>,
    ) -> Result<Self::ExpertsWork, OpsError>;

    /// Copy a vector to the device.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector, OpsError>;

    /// Copy a sparse matrix to the device. The numbers are rounded to the backend's [`WeightFormat`].
    fn sparse_matrix(&self, matrix: &HostSparse) -> Result<Self::Sparse, OpsError>;

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

    /// An uploaded step begins, in which adapters have entries at the sites `held`: whether its ops are to be called, up to
    /// [`Backend::sample`]. A backend that has recorded the same launches before puts them on the device by itself. `None`
    /// for a step that is not to be recorded.
    fn begin(&self, _step: &mut Self::Step, _held: Option<&SiteSet>) -> Launches {
        Launches::Wanted
    }

    /// All ops of a step have been called that were wanted: whether they are to be called once more, because they could not
    /// be recorded.
    fn end(&self, _step: &mut Self::Step) -> Launches {
        Launches::Done
    }

    /// An empty delta table of so many slots.
    fn delta_table(&self, slots: usize) -> Result<Self::DeltaTable, OpsError>;

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
    /// chosen or one scored, kept with the step. Groups come in ascending order. Where `own` is there, row `i` has as many logits as it
    /// says ([`OwnVocabularies`]).
    fn sample(
        &self,
        step: &mut Self::Step,
        group: usize,
        logits: &Self::Buffer,
        own: Option<OwnVocabularies<'_, Self::Buffer, Self::DeltaTable>>,
    );

    /// Semantics: for each row i of a group of pooled rows ([`StepPlan::pooled`]), what its span wants of it, kept with the
    /// step: `hidden[i, :]`, or the first `labels` numbers of `logits[i, :]`. Groups come in ascending order.
    fn collect(&self, step: &mut Self::Step, group: usize, hidden: &Self::Buffer, logits: &Self::Buffer);

    /// Wait for the step and take out what was chosen, scored and collected, in the order of the plan's rows: a token or a
    /// vector, or why its sequence has none.
    ///
    /// # Errors
    /// Whatever went wrong on the device since the upload: kernels are launched without waiting for them, and this is
    /// where their errors surface. Nothing that the step wrote may be trusted then.
    fn finish(&self, step: &mut Self::Step) -> Result<StepOutcomes, OpsError>;

    // --- rows in, rows out: for each row r of `rows` --------------------------------------------------------------

    /// Semantics: for each row r of the step with a token id: `y[r, :] = scale * table[id, :]`, where `table` is
    /// `[vocab, hidden]` as kept ([`WeightFormat`], widened). Rows whose id is absent ([`StepPlan::ids`]), or one that the table does
    /// not have, are left as they are.
    fn embed(&self, step: &Self::Step, table: &Self::Weight, scale: f32, y: &mut Self::Buffer);

    /// Semantics: `y[rows.start + i, :] = x[first + i, :]` for each i below `rows.len()`. Used for prompt embeddings.
    fn copy_rows(&self, x: &Self::Buffer, first: usize, rows: Range<usize>, y: &mut Self::Buffer);

    /// Semantics: `y[r, :] = x[source of r, :]`, where x holds all rows of the step: the source of a sampled row is
    /// [`SampledRows::sources`], that of any other the row itself.
    fn gather_rows(&self, step: &Self::Step, rows: Rows, x: &Self::Buffer, y: &mut Self::Buffer);

    /// Semantics, for each span i of a group of pooled rows: `y[i, :] = ((s + x[r0, :]) + x[r1, :]) + …` over its rows r of x,
    /// ascending, in f32, where s is the sum that it goes on from; without one it begins with `x[r0, :]`. x holds all rows of
    /// the step.
    fn pool_rows(&self, step: &Self::Step, group: usize, x: &Self::Buffer, y: &mut Self::Buffer);

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

    /// Semantics: [`Backend::gemm`] on the columns of one segment of `w`, to the bit; the others are left as they are. For
    /// rows whose inputs to stacked projections differ: every segment by itself reads each weight once, as the stack does.
    fn gemm_segment(
        &self,
        step: &Self::Step,
        rows: Rows,
        x: &Self::Buffer,
        w: &Self::Weight,
        segment: usize,
        y: &mut Self::Buffer,
    );

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

    /// Routing and MLP of a sparse layer in one op, so that nothing of the choice leaves the device. `logits` is `[rows,
    /// experts]`, x and y `[rows, hidden]`. Semantics, per row: `p = softmax(logits[r, :])` in f32; the row's experts E are
    /// the `experts_per_token` highest logits, of equal ones the lower index first; `w_e = p_e`, with `renormalise`
    /// `p_e / Σ_{E} p`; `y[r, :] = Σ_{e in E, ascending} w_e * down_e(act(gate_e x[r]) ∘ up_e x[r])`, from 0 on. x and
    /// the input of down are rounded to the [`ComputeDtype`], as in [`Backend::gemm`]. `deltas`, for each row of a slot with
    /// pairs of an expert that it chose: what [`Backend::low_rank`] adds, each product once, to `gate_e x[r]` and `up_e x[r]`
    /// stacked before the activation, and to what down_e gives before it is weighted. Only pairs of experts that rows of
    /// the slot chose are read.
    #[allow(clippy::too_many_arguments)] // Two inputs, and memory for what is in between.
    fn experts(
        &self,
        step: &Self::Step,
        rows: Rows,
        spec: &ExpertsSpec,
        logits: &Self::Buffer,
        experts: &Self::Experts,
        deltas: ExpertDeltas<'_, Self>,
        x: &Self::Buffer,
        work: &mut Self::ExpertsWork,
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

    /// Semantics: for each row r of the step: `kept[place of r, :] = x[r, :]`, where kept is what the cache keeps of a place
    /// beside K and V ([`KvShape::kept`] numbers, as many as x has columns).
    fn keep_rows(&self, step: &Self::Step, x: &Self::Buffer, kv: &mut Self::KvCache);

    /// Semantics: for each row r of the step: `y[r, :] = kept[place of r, :]`, to the bit what [`Backend::keep_rows`] was
    /// given.
    fn recall_rows(&self, step: &Self::Step, kv: &Self::KvCache, y: &mut Self::Buffer);

    /// Copy one block: K and V of all layers, and what is kept beside them.
    fn copy_block(&self, kv: &mut Self::KvCache, source: usize, target: usize);

    /// Store saved K and V as they are (no rope, no norm): row i of both, for each i below `count`, at KV index i of a
    /// sequence whose block table begins with `blocks`. `layers` has K and V of each layer, from the first on.
    fn write_pages(
        &self,
        kv: &mut Self::KvCache,
        blocks: &[u32],
        count: usize,
        layers: &[(Self::Buffer, Self::Buffer)],
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
    /// of the base (Gemma), 1 elsewhere. Rows whose id A does not have are left as they are.
    fn embedding_low_rank(&self, step: &Self::Step, deltas: SiteTable<'_, Self>, scale: f32, y: &mut Self::Buffer);

    /// Semantics, for each row of a slot with entries: `y[r, c] += Σ S[c - c0, k] * x[r, k]` over the k that row `c - c0` of S
    /// holds, for each entry `{S: [c1 - c0, in], columns: c0..c1}` and each of its columns c of which S holds any. One element is
    /// summed in an order of the entry's own, and added to y once. x is rounded to the [`ComputeDtype`].
    fn sparse(
        &self,
        step: &Self::Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &Self::Buffer,
        y: &mut Self::Buffer,
    );

    /// Semantics, for each row r of the step with a token id that is `ids[i]` of its slot's entry: `y[r, :] = scale *
    /// rows[i, :]`, as [`Backend::embed`] does with the rows of a table.
    fn replace_embeddings(&self, step: &Self::Step, deltas: SiteTable<'_, Self>, scale: f32, y: &mut Self::Buffer);

    /// Semantics, for each row r of a slot with an entry `{ids, rows: [ids, in]}`: `y[r, ids[i]] = Σ_k x[r, k] * rows[i, k]` for
    /// each i, as [`Backend::gemm`] computes a column.
    fn replace_columns(
        &self,
        step: &Self::Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &Self::Buffer,
        y: &mut Self::Buffer,
    );

    /// Semantics: `y[r, columns] *= g` for each entry of the row's slot.
    fn scale_rows(&self, step: &Self::Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Self::Buffer);

    /// Semantics: `y[r, columns] = c1 ∘ y[r, columns] + c2 ∘ rot(y[r, columns])` for each entry of the row's slot, whose
    /// columns are no other's: of every `group` columns the first half y1 and the second half y2 turn together, `rot(y) =
    /// (−y2, y1)`. Products and their sum are rounded one by one.
    fn rotate_outputs(&self, step: &Self::Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Self::Buffer);

    /// Semantics: `y[r, columns] += b` for each entry of the row's slot.
    fn bias_rows(&self, step: &Self::Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Self::Buffer);

    /// The heads of adapters. Semantics, for each row of a slot with an entry w, the vector `[columns, in]` row by row: `y[r, c] =
    /// Σ_k w[c, k] * x[r, k]` for each of its columns c, which begin at 0. All of it in f32: x is not rounded.
    fn head_rows(
        &self,
        step: &Self::Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &Self::Buffer,
        y: &mut Self::Buffer,
    );

    /// Semantics: `y[r, :] = g ∘ x[r, :]` where the row's slot has an entry g, else `x[r, :]`.
    fn scale_input(
        &self,
        step: &Self::Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &Self::Buffer,
        y: &mut Self::Buffer,
    );

    /// How rows with a bottleneck begin. Semantics, for each row of a slot with an entry, x and h as they were: `v[r, :] =
    /// reads(x, h)`, `x[r, :] = stream(x, h)`, `h[r, :] = branch(x, h) + up_bias`.
    fn blend_rows(
        &self,
        step: &Self::Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &mut Self::Buffer,
        h: &mut Self::Buffer,
        v: &mut Self::Buffer,
    );

    /// Semantics, for each row of a slot with an entry: `h[r, :] += scaling * U f(D v[r] + down_bias)`, D and U as a and b of
    /// [`Backend::low_rank`]. v and f of it are rounded to the [`ComputeDtype`] before their GEMMs.
    fn bottleneck(
        &self,
        step: &Self::Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        v: &Self::Buffer,
        h: &mut Self::Buffer,
    );

    /// LayerNorm (Ba et al. 2016). Semantics, for each row of a slot with two entries w and b: `y[r, c] = (y[r, c] - mean) *
    /// rsqrt(mean_c (y[r, c] - mean)^2 + eps) * w[c] + b[c]`, mean that of the row. Sums in f32.
    fn layer_norm_rows(
        &self,
        step: &Self::Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        eps: f32,
        y: &mut Self::Buffer,
    );

    /// Semantics: `y[r, :] = x' R_1 ⋯ R_n` with `x' = g ∘ x[r, :]` where the row's slot has an entry g in `scales`, else
    /// `x[r, :]`, and the [`Rotation`]s R of the slot, in order; a row that has neither is copied. Each number is
    /// `Σ_i x'[i] * R[i, c]` over the inputs i of its block, ascending, in f32.
    fn rotate_input(
        &self,
        step: &Self::Step,
        rows: Rows,
        scales: Option<SiteTable<'_, Self>>,
        rotations: SiteTable<'_, Self>,
        x: &Self::Buffer,
        y: &mut Self::Buffer,
    );

    /// Semantics, for each row of a slot with entries: for each entry `{weight: [c1 - c0, in], scaling, columns: c0..c1,
    /// replaces}`, with `v = weight x[r]` as [`Backend::gemm`] computes it, `y[r, c0..c1] = v` where it replaces, else
    /// `y[r, c0..c1] += scaling * v`. The entries of a slot cover other columns each.
    fn dense(&self, step: &Self::Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Self::Buffer, y: &mut Self::Buffer);
}

/// Whether the ops of a step are to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launches {
    /// They are.
    Wanted,
    /// The device has them already.
    Done,
}
