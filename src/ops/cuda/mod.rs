//! Kernels for NVIDIA GPUs: [`CudaBackend`]. It stands on the driver alone (`driver`, through `cudarc`, loaded when it is
//! there); the kernels are PTX out of `kernels/*.cu`, which travels in the binary.
//!
//! A step is put on one stream: what varies by row goes there in one copy
//! (`step`), ops become launches (`launches`), and what came of the sampled rows comes back in one copy. Weights and
//! adapters come on a stream of their own, through pinned memory (`uploader`), while steps go on. Results are the same bit
//! for bit whatever the batch.
//!
//! All `unsafe` of the CUDA path lives here. This room must not know model families, adapters' methods or requests.
#![allow(unsafe_code)]

mod abi;
mod abi_experts;
mod activations;
mod backend;
mod check;
mod driver;
mod expert_deltas;
mod experts;
pub mod folders;
mod graphs;
mod image;
mod kernel_cache;
mod kernels;
mod launches;
pub mod library;
mod library_gemm;
mod memory;
mod outputs;
mod plain;
mod pooled;
pub mod probe;
pub mod ptx;
mod sizes;
mod sparse;
mod step;
mod table;
mod uploader;

use std::borrow::Cow;
use std::ops::Range;

pub use backend::{CudaBackend, CudaOptions};
pub use driver::CublasLt;
pub use experts::{Experts, ExpertsWork};
pub use kernel_cache::{KernelCacheSize, kernel_cache_size};
pub use library_gemm::LibraryGemm;
pub use memory::{Buffer, KvCache, Rope, Vector, Weight};
pub use probe::{CudaDevice, CudaProbe, CudaUnusable};
pub use sparse::SparseMatrix;
pub use step::Step;
pub use table::{DeltaTable, Entries};

use abi::{Address, CopyBlockArgs, CopyRowsArgs, WritePagesArgs};
use driver::{Grid, Pinned};
use launches::By;

use super::{
    Activation, AttentionSpec, Backend, BackendInfo, DeltaMemory, EntriesBySite, Expert, ExpertDeltas, ExpertsSpec,
    HeadColumns, HostMatrix, HostSparse, KvDtype, KvShape, Launches, Norm, Numerics, OpsError, OwnVocabularies,
    RopeTable, Rows, SiteSet, SiteTable, SlotDelta, StepOutcomes, StepPlan,
};
use crate::types::AdapterSlot;

impl DeltaMemory for CudaBackend {
    type Weight = Weight;
    type Vector = Vector;
    type Sparse = SparseMatrix;
    type Entries = Entries;
    type DeltaTable = DeltaTable<Self>;

    fn entries(&self, by_site: &EntriesBySite<Self>) -> Result<Entries, OpsError> {
        Entries::new(&self.uploader, by_site)
    }
}

impl Backend for CudaBackend {
    type Buffer = Buffer;
    type Rope = Rope;
    type KvCache = KvCache;
    type Step = Step;
    type Experts = Experts;
    type ExpertsWork = ExpertsWork;

    fn info(&self) -> BackendInfo {
        let library = if self.library_gemms.is_some() { " cublaslt" } else { "" };
        BackendInfo { name: "cuda", isa: "ptx", variant: format!("{}{library}", self.compute), threads: 1 }
    }

    fn numerics(&self) -> Numerics {
        self.numerics
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Buffer, OpsError> {
        Buffer::new(&self.device, rows, cols, None)
    }

    fn input_buffer(&self, rows: usize, cols: usize) -> Result<Buffer, OpsError> {
        Buffer::new(&self.device, rows, cols, Some(self.numerics.compute))
    }

    fn weight(&self, segments: &[HostMatrix<'_>]) -> Result<Weight, OpsError> {
        let mut weights = Weight::group(&self.uploader, self.numerics.weights, &[segments])?;
        weights.pop().ok_or(OpsError::Shape { rows: 0, cols: 0, expected: 0 })
    }

    fn weight_group(&self, matrices: &[HostMatrix<'_>]) -> Result<Vec<Weight>, OpsError> {
        let weights: Vec<&[HostMatrix<'_>]> = matrices.iter().map(std::slice::from_ref).collect();
        Weight::group(&self.uploader, self.numerics.weights, &weights)
    }

    fn expert_table(&self, experts: Vec<Expert<Self>>) -> Result<Experts, OpsError> {
        self.table_of_experts(experts)
    }

    fn experts_work(&self, rows: usize, hidden: usize, spec: Option<&ExpertsSpec>) -> Result<ExpertsWork, OpsError> {
        self.work_of_experts(rows, hidden, spec)
    }

    fn vector(&self, values: &[f32]) -> Result<Vector, OpsError> {
        Vector::new(&self.uploader, values)
    }

    fn sparse_matrix(&self, matrix: &HostSparse) -> Result<SparseMatrix, OpsError> {
        SparseMatrix::new(&self.uploader, self.numerics.weights, matrix)
    }

    fn buffer_of(&self, cols: usize, values: &[f32]) -> Result<Buffer, OpsError> {
        Buffer::of(&self.uploader, cols, values)
    }

    fn rope(&self, table: &RopeTable) -> Result<Rope, OpsError> {
        Rope::new(&self.uploader, table)
    }

    fn kv_cache(&self, shape: KvShape) -> Result<KvCache, OpsError> {
        let narrow = self.numerics.kv != KvDtype::F32;
        if narrow && shape.block_size < 8 {
            let (what, expected) = ("the block size of the KV cache", "at least 8");
            return Err(OpsError::Unsupported { what, found: shape.block_size, expected });
        }
        if !shape.head_dim.is_multiple_of(8) || shape.head_dim > 256 {
            let (what, expected) = ("the width of a head", "a multiple of 8 up to 256");
            return Err(OpsError::Unsupported { what, found: shape.head_dim, expected });
        }
        KvCache::new(&self.device, shape, self.numerics.kv.size())
    }

    fn step(&self) -> Step {
        Step::new(&self.device)
    }

    fn upload(&self, plan: &StepPlan, step: &mut Step) -> Result<(), OpsError> {
        step.upload(plan)
    }

    fn begin(&self, step: &mut Step, held: Option<&SiteSet>) -> Launches {
        let Some(key) = held.and_then(|held| step.round_up(held)) else { return Launches::Wanted };
        let begun = self.graphs().begin(&self.device, key);
        let launches = self.device.note(begun);
        if launches == Some(Launches::Done) {
            step.results.replayed();
        }
        launches.unwrap_or(Launches::Done)
    }

    fn end(&self, _step: &mut Step) -> Launches {
        let ended = self.graphs().end(&self.device);
        self.device.note(ended).unwrap_or(Launches::Done)
    }

    fn delta_table(&self, slots: usize) -> Result<DeltaTable<Self>, OpsError> {
        DeltaTable::new(&self.device, slots)
    }

    fn set_slot(&self, table: &mut DeltaTable<Self>, slot: AdapterSlot, delta: SlotDelta<Self>) {
        table.set(slot, delta);
    }

    fn clear_slot(&self, table: &mut DeltaTable<Self>, slot: AdapterSlot) -> Option<SlotDelta<Self>> {
        table.clear(slot)
    }

    fn slot<'t>(&self, table: &'t DeltaTable<Self>, slot: AdapterSlot) -> Option<&'t SlotDelta<Self>> {
        table.get(slot)
    }

    fn read_row<'a>(&self, buffer: &'a Buffer, row: usize) -> Cow<'a, [f32]> {
        let bytes = buffer.cols() * size_of::<f32>();
        let read = Pinned::new(&self.device, bytes).and_then(|mut pinned| {
            buffer.values.send(row * bytes, &mut pinned, bytes, &self.device.compute)?;
            self.device.wait(&self.device.compute)?;
            Ok(pinned.bytes().as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
        });
        // What cannot be read is no number; the step says why.
        self.device.note(read).unwrap_or_else(|| vec![f32::NAN; buffer.cols()]).into()
    }

    fn sample(
        &self,
        step: &mut Step,
        group: usize,
        logits: &Buffer,
        own: Option<OwnVocabularies<'_, Buffer, <Self as DeltaMemory>::DeltaTable>>,
    ) {
        let launched = self.launch_sample(step, group, logits, own);
        self.device.note(launched);
    }

    fn collect(&self, step: &mut Step, group: usize, hidden: &Buffer, logits: &Buffer) {
        let fetched = step.pooled.fetch(&self.device, group, hidden, logits);
        self.device.note(fetched);
    }

    fn finish(&self, step: &mut Step) -> Result<StepOutcomes, OpsError> {
        step.finish()
    }

    fn embed(&self, step: &Step, table: &Weight, scale: f32, y: &mut Buffer) {
        self.launch_embed(step, table, scale, y);
    }

    fn copy_rows(&self, x: &Buffer, first: usize, rows: Range<usize>, y: &mut Buffer) {
        let (count, start) = (rows.len(), rows.start as u32);
        let (x, first) = (x.view(), first as u32);
        let arguments = CopyRowsArgs { x, y: y.view(), first, start, count: count as u32, pad: 0 };
        self.launch(&self.kernels.copy_rows, self.spread(count * y.cols()), &arguments);
    }

    fn gather_rows(&self, step: &Step, rows: Rows, x: &Buffer, y: &mut Buffer) {
        self.launch_rows(&self.kernels.gather_rows, step.set(rows), x.view(), y, 0);
    }

    fn pool_rows(&self, step: &Step, group: usize, x: &Buffer, y: &mut Buffer) {
        self.launch_pool_rows(step, group, x, y);
    }

    fn add(&self, step: &Step, rows: Rows, x: &mut Buffer, y: &Buffer) {
        self.launch_rows(&self.kernels.add, step.set(rows), y.view(), x, 0);
    }

    fn rms_norm(&self, step: &Step, rows: Rows, norm: Norm<'_, Self>, x: &Buffer, y: &mut Buffer) {
        self.launch_norm(step.set(rows), &norm, x, y);
    }

    fn rms_norm_heads(&self, step: &Step, rows: Rows, norm: Norm<'_, Self>, columns: HeadColumns, x: &mut Buffer) {
        self.launch_head_norm(step.set(rows), &norm, columns, x);
    }

    fn gemm(&self, step: &Step, rows: Rows, x: &Buffer, w: &Weight, y: &mut Buffer) {
        self.launch_gemm(step, rows, x, w, y);
    }

    fn gemm_segment(&self, step: &Step, rows: Rows, x: &Buffer, w: &Weight, segment: usize, y: &mut Buffer) {
        self.launch_gemm_segment(step.set(rows), x, w, segment, y);
    }

    fn add_bias(&self, step: &Step, rows: Rows, bias: &Vector, y: &mut Buffer) {
        self.launch_vector(&self.kernels.add_bias, step.set(rows), y, By::Vector(bias.address()));
    }

    fn softcap(&self, step: &Step, rows: Rows, cap: f32, y: &mut Buffer) {
        self.launch_vector(&self.kernels.softcap, step.set(rows), y, By::Number(cap));
    }

    fn gated_activation(&self, step: &Step, rows: Rows, activation: Activation, x: &Buffer, y: &mut Buffer) {
        self.launch_gated(step.set(rows), activation, x, y);
    }

    fn experts(
        &self,
        step: &Step,
        rows: Rows,
        spec: &ExpertsSpec,
        logits: &Buffer,
        experts: &Experts,
        deltas: ExpertDeltas<'_, Self>,
        x: &Buffer,
        work: &mut ExpertsWork,
        y: &mut Buffer,
    ) {
        self.launch_experts(step.set(rows), spec, logits, experts, deltas, x, work, y);
    }

    fn rope_and_cache(
        &self,
        step: &Step,
        spec: &AttentionSpec,
        rope: &Rope,
        layer: usize,
        qkv: &mut Buffer,
        kv: &mut KvCache,
    ) {
        self.launch_rope(step, spec, rope, qkv, (kv, layer));
    }

    fn attention(&self, step: &Step, spec: &AttentionSpec, layer: usize, qkv: &Buffer, kv: &KvCache, y: &mut Buffer) {
        self.launch_attention(step, spec, qkv, (kv, layer), y);
    }

    fn keep_rows(&self, step: &Step, x: &Buffer, kv: &mut KvCache) {
        if let Some(kept) = &kv.kept {
            self.launch_kept_rows(&self.kernels.keep_rows, step, x, kept);
        }
    }

    fn recall_rows(&self, step: &Step, kv: &KvCache, y: &mut Buffer) {
        if let Some(kept) = &kv.kept {
            self.launch_kept_rows(&self.kernels.recall_rows, step, kept, y);
        }
    }

    fn copy_block(&self, kv: &mut KvCache, source: usize, target: usize) {
        let (k, v, layer_bytes) = kv.planes();
        let (block_bytes, source, target) = (kv.block_bytes(), source as u32, target as u32);
        let arguments = CopyBlockArgs { k, v, layer_bytes, block_bytes, source, target };
        let blocks = (block_bytes as usize).div_ceil(16 * 256).min(64);
        self.launch(&self.kernels.copy_block, Grid::plane(blocks, kv.shape.layers), &arguments);
        self.launch_copy_kept(kv, source, target);
    }

    fn write_pages(&self, kv: &mut KvCache, blocks: &[u32], count: usize, layers: &[(Buffer, Buffer)]) {
        let Some(memory) = self.device.note(self.block_list(blocks)) else { return };
        let blocks = Address::new(memory.address());
        for (layer, (k, v)) in layers.iter().enumerate() {
            let (kv, count, grid) = (kv.layer(layer), count as u32, self.spread(count * k.cols()));
            let arguments = WritePagesArgs { kv, k: k.view(), v: v.view(), blocks, count, pad: 0 };
            self.launch(&self.kernels.write_pages, grid, &arguments);
        }
    }

    fn low_rank(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        self.launch_low_rank(step.set(rows), deltas, x, y);
    }

    fn gemm_low_rank(
        &self,
        step: &Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &Buffer,
        w: &Weight,
        y: &mut Buffer,
    ) {
        self.launch_gemm_low_rank(step, rows, deltas, x, w, y);
    }

    fn embedding_low_rank(&self, step: &Step, deltas: SiteTable<'_, Self>, scale: f32, y: &mut Buffer) {
        self.launch_embed_deltas(&self.kernels.embedding_low_rank, step, deltas, scale, y);
    }

    fn replace_embeddings(&self, step: &Step, deltas: SiteTable<'_, Self>, scale: f32, y: &mut Buffer) {
        self.launch_embed_deltas(&self.kernels.replace_embeddings, step, deltas, scale, y);
    }

    fn replace_columns(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        self.launch_replace_columns(step.set(rows), deltas, x, y);
    }

    fn sparse(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        self.launch_sparse(step.set(rows), deltas, x, y);
    }

    fn scale_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Buffer) {
        self.launch_vector(&self.kernels.scale_rows, step.set(rows), y, By::Deltas(self.site(deltas)));
    }

    fn rotate_outputs(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Buffer) {
        self.launch_vector(&self.kernels.rotate_outputs, step.set(rows), y, By::Deltas(self.site(deltas)));
    }

    fn bias_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Buffer) {
        self.launch_vector(&self.kernels.bias_rows, step.set(rows), y, By::Deltas(self.site(deltas)));
    }

    fn head_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        self.launch_head_rows(step.set(rows), deltas, x, y);
    }

    fn scale_input(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        self.launch_vector(&self.kernels.scale_input, step.set(rows), y, By::DeltasOf(x, self.site(deltas)));
    }

    fn blend_rows(
        &self,
        step: &Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &mut Buffer,
        h: &mut Buffer,
        v: &mut Buffer,
    ) {
        self.launch_blend(step.set(rows), deltas, [x, h, v]);
    }

    fn bottleneck(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, v: &Buffer, h: &mut Buffer) {
        self.launch_bottleneck(step.set(rows), deltas, v, h);
    }

    fn layer_norm_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, eps: f32, y: &mut Buffer) {
        self.launch_layer_norm(step.set(rows), deltas, eps, y);
    }

    fn rotate_input(
        &self,
        step: &Step,
        rows: Rows,
        scales: Option<SiteTable<'_, Self>>,
        rotations: SiteTable<'_, Self>,
        x: &Buffer,
        y: &mut Buffer,
    ) {
        self.launch_rotations(step.set(rows), scales, rotations, x, y);
    }

    fn dense(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        self.launch_dense(step.set(rows), deltas, x, y);
    }
}
