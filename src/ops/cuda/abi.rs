//! What the host and the kernels agree on: `kernels/abi.cuh` in Rust, struct by struct. The sizes of arguments are compared
//! with those in the PTX when kernels are loaded. Its sizes are in `sizes`.
//!
//! Plain data only: which addresses are alive is their owners' to know.

pub(super) use super::abi_experts::{ExpertDeltasArgs, ExpertGroup, ExpertPairs, ExpertWeights, ExpertsArgs};
use super::plain::plain;
pub(super) use super::plain::{Address, Plain, Untyped};
use crate::ops;

plain! {
    /// Rows of one adapter.
    struct Group {
        first: u32,
        len: u32,
        slot: u32,
        pad: u32,
    }

    /// Rows that an op works on.
    struct RowSet {
        count: u32,
        groups: u32,
        slots: Address<i32>,
        sources: Address<u32>,
        order: Address<u32>,
        group: Address<Group>,
    }

    /// Consecutive rows of one sequence.
    struct AttentionItem {
        row: u32,
        rows: u32,
        position: u32,
        blocks: u32,
    }

    /// An uploaded step.
    struct StepHead {
        rows: u32,
        items: u32,
        ids: Address<i32>,
        positions: Address<u32>,
        rope_rows: Address<u32>,
        kv_places: Address<u32>,
        blocks: Address<u32>,
        item: Address<AttentionItem>,
    }

    /// A low-rank pair of a site.
    struct Pair {
        a: Address<Untyped>,
        b: Address<Untyped>,
        rank: u32,
        first_rank: u32,
        a_stride: u32,
        b_stride: u32,
        column: u32,
        columns: u32,
        scaling: f32,
        a_rows: u32,
    }

    /// A scale, a bias, a gain or the weight of a head for some columns.
    struct ColumnVector {
        values: Address<f32>,
        column: u32,
        columns: u32,
    }

    /// A rotation of pairs of some columns.
    struct ColumnRotation {
        c: Address<f32>,
        column: u32,
        columns: u32,
        group: u32,
        pad: u32,
    }

    /// A sparse matrix for some columns.
    struct Sparse {
        starts: Address<u32>,
        inputs: Address<u32>,
        values: Address<Untyped>,
        column: u32,
        columns: u32,
        count: u32,
        pad: u32,
    }

    /// Rows of a matrix in place of the base's.
    struct ReplacedRows {
        ids: Address<u32>,
        rows: Address<Untyped>,
        count: u32,
        stride: u32,
    }

    /// A rotation of a site's inputs.
    struct Rotation {
        blocks: Address<f32>,
        size: u32,
        interleaved: u32,
        stride: u32,
        pad: u32,
    }

    /// A sum of x and h.
    struct Blend {
        of_x: f32,
        of_h: f32,
    }

    /// A bottleneck apart from its matrices.
    struct Bottleneck {
        down_bias: Address<f32>,
        up_bias: Address<f32>,
        reads: Blend,
        stream: Blend,
        branch: Blend,
        non_linearity: u32,
        slope: f32,
    }

    /// A full matrix for some columns.
    struct DenseMatrix {
        d: Address<Untyped>,
        stride: u32,
        column: u32,
        columns: u32,
        replaces: u32,
        scaling: f32,
        pad: u32,
    }

    /// Where the entries of one site lie among those of a slot.
    struct SiteEntries {
        pair: u32,
        pairs: u32,
        vector: u32,
        vectors: u32,
        column_rotation: u32,
        column_rotations: u32,
        sparse: u32,
        sparses: u32,
        replaced: u32,
        replaces: u32,
        rotation: u32,
        rotations: u32,
        bottleneck: u32,
        bottlenecks: u32,
        matrix: u32,
        matrices: u32,
        expert: u32,
        experts: u32,
    }

    /// All entries of one slot.
    struct SlotHead {
        sites: Address<SiteEntries>,
        pairs: Address<Pair>,
        vectors: Address<ColumnVector>,
        column_rotations: Address<ColumnRotation>,
        sparse: Address<Sparse>,
        replaced: Address<ReplacedRows>,
        rotations: Address<Rotation>,
        bottlenecks: Address<Bottleneck>,
        dense: Address<DenseMatrix>,
        expert_starts: Address<u32>,
        count: u32,
        vocab: u32,
    }

    /// Deltas at one site.
    struct SiteView {
        slots: Address<Address<SlotHead>>,
        site: u32,
        pad: u32,
    }

    /// f32 rows, and the form that GEMMs read.
    struct RowsView {
        values: Address<f32>,
        input: Address<Untyped>,
        cols: u32,
        input_stride: u32,
    }

    /// A matrix, row-major.
    struct MatrixView {
        values: Address<Untyped>,
        rows: u32,
        cols: u32,
        stride: u32,
        pad: u32,
    }

    struct EmbedArgs {
        step: Address<StepHead>,
        table: MatrixView,
        y: RowsView,
        scale: f32,
        pad: u32,
    }

    struct CopyRowsArgs {
        x: RowsView,
        y: RowsView,
        first: u32,
        start: u32,
        count: u32,
        pad: u32,
    }

    struct KeptRowsArgs {
        step: Address<StepHead>,
        x: RowsView,
        y: RowsView,
    }

    struct RowsArgs {
        rows: Address<RowSet>,
        x: RowsView,
        y: RowsView,
        activation: u32,
        pad: u32,
    }

    struct NormArgs {
        rows: Address<RowSet>,
        x: RowsView,
        y: RowsView,
        weight: Address<f32>,
        gains: SiteView,
        eps: f32,
        first: u32,
        heads: u32,
        head_dim: u32,
    }

    struct VectorArgs {
        rows: Address<RowSet>,
        x: RowsView,
        y: RowsView,
        vector: Address<f32>,
        deltas: SiteView,
        number: f32,
        pad: u32,
    }

    struct SparseArgs {
        rows: Address<RowSet>,
        deltas: SiteView,
        x: RowsView,
        y: RowsView,
    }

    struct RotateArgs {
        rows: Address<RowSet>,
        x: RowsView,
        y: RowsView,
        deltas: SiteView,
        turn: u32,
        pad: u32,
    }

    /// Rows that become one.
    struct PoolSpan {
        first: u32,
        rows: u32,
        onto: Address<f32>,
    }

    struct PoolArgs {
        rows: Address<RowSet>,
        x: RowsView,
        y: RowsView,
        spans: Address<PoolSpan>,
    }

    struct BlendArgs {
        rows: Address<RowSet>,
        deltas: SiteView,
        x: RowsView,
        h: RowsView,
        v: RowsView,
    }

    struct EmbedLowRankArgs {
        step: Address<StepHead>,
        rows: Address<RowSet>,
        deltas: SiteView,
        y: RowsView,
        scale: f32,
        pad: u32,
    }

    struct GemmArgs {
        rows: Address<RowSet>,
        x: RowsView,
        w: MatrixView,
        y: RowsView,
        column: u32,
        pad: u32,
    }

    struct ReplaceColumnsArgs {
        rows: Address<RowSet>,
        deltas: SiteView,
        x: RowsView,
        y: RowsView,
    }

    struct DenseArgs {
        rows: Address<RowSet>,
        deltas: SiteView,
        x: RowsView,
        y: RowsView,
    }

    struct LowRankArgs {
        rows: Address<RowSet>,
        deltas: SiteView,
        x: RowsView,
        v: Address<f32>,
        v_stride: u32,
        v_rows: u32,
        y: RowsView,
        shared: u32,
        planes: u32,
    }

    /// Both of the same rows and x.
    struct GemmShrinkArgs {
        gemm: GemmArgs,
        low_rank: LowRankArgs,
        shrinks: u32,
        pad: u32,
    }

    /// K and V of one layer.
    struct KvLayer {
        k: Address<Untyped>,
        v: Address<Untyped>,
        kv_heads: u32,
        head_dim: u32,
        block_size: u32,
        pad: u32,
    }

    struct RopeArgs {
        step: Address<StepHead>,
        qkv: RowsView,
        kv: KvLayer,
        cos: Address<f32>,
        sin: Address<f32>,
        heads: u32,
        half: u32,
    }

    struct AttentionArgs {
        step: Address<StepHead>,
        qkv: RowsView,
        kv: KvLayer,
        y: RowsView,
        heads: u32,
        window: u32,
        scale: f32,
        softcap: f32,
        partial: Address<f32>,
        splits: u32,
        pad: u32,
    }

    struct CopyBlockArgs {
        k: Address<u8>,
        v: Address<u8>,
        layer_bytes: u64,
        block_bytes: u64,
        source: u32,
        target: u32,
    }

    struct WritePagesArgs {
        kv: KvLayer,
        k: RowsView,
        v: RowsView,
        blocks: Address<u32>,
        count: u32,
        pad: u32,
    }

    struct IdNumber {
        id: u32,
        number: f32,
    }

    struct IdCount {
        id: u32,
        count: u32,
    }

    /// What is wanted of one row of logits.
    struct OutputSpec {
        scored: u32,
        target: u32,
        temperature: f32,
        top_k: u32,
        top_p: f32,
        min_p: f32,
        uniform: f64,
        repetition_penalty: f32,
        presence_penalty: f32,
        frequency_penalty: f32,
        top: i32,
        biases: u32,
        biases_end: u32,
        banned: u32,
        banned_end: u32,
        counts: u32,
        counts_end: u32,
    }

    /// What came of it.
    struct Sampled {
        non_finite: u32,
        token: u32,
        logprob: f32,
        alternatives: u32,
    }

    /// What is wanted of all sampled rows of a step.
    struct SampleLists {
        outputs: Address<OutputSpec>,
        biases: Address<IdNumber>,
        banned: Address<u32>,
        counts: Address<IdCount>,
    }

    struct SampleArgs {
        rows: Address<RowSet>,
        logits: RowsView,
        added: RowsView,
        slots: Address<Address<SlotHead>>,
        lists: Address<SampleLists>,
        scratch: Address<f32>,
        sampled: Address<Sampled>,
        alternatives: Address<IdNumber>,
        most: u32,
        vocab: u32,
        widest: u32,
        first: u32,
    }
}

impl RowsView {
    /// No rows.
    pub(super) const NONE: Self = Self { values: Address::NULL, input: Address::NULL, cols: 0, input_stride: 0 };
}

impl SiteView {
    /// No deltas at all.
    pub(super) const NONE: Self = Self { slots: Address::NULL, site: 0, pad: 0 };
}

impl From<ops::Blend> for Blend {
    fn from(ops::Blend { of_x, of_h }: ops::Blend) -> Self {
        Self { of_x, of_h }
    }
}
