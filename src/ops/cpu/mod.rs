//! Fast kernels for the CPU: [`CpuBackend`].
//!
//! Weights are packed once into panels of 16 output columns (`pack`); one GEMM (`gemm`) serves any number of rows,
//! the low-rank deltas (`lowrank`) and attention (`attention`, over a cache in the same layout, `kv`). Threads
//! (`pool`) are handed output columns or rows, never part of a sum. The instruction set (`isa`) is chosen once, at
//! start. Results are the same bit for bit whatever the batch and the number of threads, per binary, path and numerics.
//!
//! AVX2 and the portable path are what the tests exercise on machines without AVX-512; the two AVX-512 paths run the
//! same tests wherever the processor has them, and are skipped elsewhere.
//!
//! All `unsafe` of the CPU path lives here. This room must not know model families, adapters' methods or requests.

mod attending;
mod attention;
mod bottleneck;
mod dense;
mod experts;
mod gemm;
mod isa;
mod kv;
mod lowrank;
mod math;
mod memory;
mod numerics;
mod pack;
mod pairs;
mod peak;
mod pool;
mod pooled;
mod regions;
mod registers;
mod replaced;
mod rotate;
mod routes;
mod rows;
mod sample;
mod scratch;
mod sparse;
mod sparse_matrix;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use isa::Isa;
pub use kv::{KvCache, TILE as KV_TILE};
pub use memory::{Buffer, limit_arenas};
pub use pack::PackedWeight;
pub use peak::Reading;
pub use routes::ExpertsWork;
pub use sparse_matrix::SparseMatrix;

use gemm::{Chunks, InputForm, Outputs};
use isa::DetectedIsa;
use memory::filled;
use numerics::ComputeDtype;
use pool::Pool;
use scratch::Scratch;

use super::outcomes::collect;
use super::{
    Activation, AttentionSpec, Backend, BackendInfo, DeltaMemory, EntriesBySite, Expert, ExpertDeltas, ExpertsSpec,
    HeadColumns, HostMatrix, HostSparse, KvShape, Norm, Numerics, OpsError, OwnVocabularies, RopeTable, RowPlan, Rows,
    SiteTable, SlotDelta, SlotTable, StepOutcomes, StepPlan,
};
use crate::types::AdapterSlot;

/// How to set up a [`CpuBackend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included; at least 1.
    pub threads: usize,
    /// How numbers are kept.
    pub numerics: Numerics,
    /// Instruction set path; the fastest this machine has if absent, of those with bf16 products and without as measured.
    pub isa: Option<Isa>,
}

/// Packed weights, paged KV and kernels on the CPU. Ops are called from one thread at a time; calls from several
/// threads at once are correct, but share its scratch memory one after the other.
pub struct CpuBackend {
    isa: DetectedIsa,
    numerics: numerics::Numerics,
    pool: Pool,
    /// Packs what comes while steps run, on the thread that brings it: `pool` is the steps'.
    alone: Pool,
    scratch: Mutex<Scratch>,
}

/// Rotary tables.
#[derive(Debug)]
pub struct Rope {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// A [`StepPlan`], checked for what the kernels rely on, and what has been chosen and collected so far.
#[derive(Debug, Default)]
pub struct Step {
    plan: StepPlan,
    outcomes: StepOutcomes,
}

impl CpuBackend {
    /// Start the threads and choose the instruction set.
    ///
    /// # Errors
    /// [`OpsError::Dtype`] for f16, [`OpsError::Isa`] for a path that this machine lacks, [`OpsError::Thread`] for no threads or more than the
    /// system starts.
    pub fn new(options: CpuOptions) -> Result<Self, OpsError> {
        let numerics = numerics::Numerics::try_from(options.numerics)?;
        let fastest = || match (Isa::best(), numerics.compute) {
            (Isa::Avx512Bf16, ComputeDtype::F32) => Isa::Avx512,
            (Isa::Avx512Bf16, ComputeDtype::Bf16) if !pairs::pay() => Isa::Avx512,
            (best, _) => best,
        };
        let isa = DetectedIsa::new(options.isa.unwrap_or_else(fastest))?;
        let (pool, alone) = (Pool::new(options.threads)?, Pool::new(1)?);
        Ok(Self { isa, numerics, pool, alone, scratch: Mutex::default() })
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        // A kernel that panicked leaves only unspecified numbers behind, as every op does.
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeltaMemory for CpuBackend {
    type Weight = PackedWeight;
    type Vector = Vec<f32>;
    type Sparse = SparseMatrix;
    type Entries = ();
    type DeltaTable = SlotTable<Self>;

    fn entries(&self, _by_site: &EntriesBySite<Self>) -> Result<(), OpsError> {
        Ok(())
    }
}

impl Backend for CpuBackend {
    type Buffer = Buffer;
    type Rope = Rope;
    type KvCache = KvCache;
    type Step = Step;
    type Experts = Vec<Expert<Self>>;
    type ExpertsWork = ExpertsWork;

    fn info(&self) -> BackendInfo {
        BackendInfo { name: "cpu", isa: self.isa.get().as_str(), variant: String::new(), threads: self.pool.threads() }
    }

    fn numerics(&self) -> Numerics {
        self.numerics.into()
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Buffer, OpsError> {
        Buffer::new(rows, cols)
    }

    fn weight(&self, segments: &[HostMatrix<'_>]) -> Result<PackedWeight, OpsError> {
        PackedWeight::new(self.numerics.weights, segments, &self.pool)
    }

    fn weight_group(&self, matrices: &[HostMatrix<'_>]) -> Result<Vec<PackedWeight>, OpsError> {
        let weights: Vec<&[HostMatrix<'_>]> = matrices.iter().map(std::slice::from_ref).collect();
        PackedWeight::group(self.numerics.weights, &weights, &self.alone)
    }

    fn expert_table(&self, experts: Vec<Expert<Self>>) -> Result<Vec<Expert<Self>>, OpsError> {
        Ok(experts)
    }

    fn experts_work(&self, rows: usize, hidden: usize, spec: Option<&ExpertsSpec>) -> Result<ExpertsWork, OpsError> {
        let form = InputForm::of(self.isa, self.numerics);
        spec.map_or_else(|| Ok(ExpertsWork::default()), |spec| ExpertsWork::new(rows, hidden, spec, form))
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>, OpsError> {
        copied("a vector", values)
    }

    fn sparse_matrix(&self, matrix: &HostSparse) -> Result<SparseMatrix, OpsError> {
        SparseMatrix::new(self.numerics.weights, matrix)
    }

    fn buffer_of(&self, cols: usize, values: &[f32]) -> Result<Buffer, OpsError> {
        Ok(Buffer { cols, data: copied("rows", values)? })
    }

    fn rope(&self, table: &RopeTable) -> Result<Rope, OpsError> {
        let (cos, sin) = (copied("rotary tables", &table.cos)?, copied("rotary tables", &table.sin)?);
        Ok(Rope { half: table.rotary_dim / 2, cos, sin })
    }

    fn kv_cache(&self, shape: KvShape) -> Result<KvCache, OpsError> {
        KvCache::new(shape, self.numerics.kv)
    }

    fn step(&self) -> Step {
        Step::default()
    }

    fn upload(&self, plan: &StepPlan, step: &mut Step) -> Result<(), OpsError> {
        attention::assert_consistent(plan);
        step.plan.clone_from(plan);
        step.outcomes = StepOutcomes::default();
        Ok(())
    }

    fn sample(
        &self,
        step: &mut Step,
        group: usize,
        logits: &Buffer,
        own: Option<OwnVocabularies<'_, Buffer, <Self as DeltaMemory>::DeltaTable>>,
    ) {
        self.sample_rows(step.plan.outputs_of(group), logits, own, &mut step.outcomes.sampled);
    }

    fn collect(&self, step: &mut Step, group: usize, hidden: &Buffer, logits: &Buffer) {
        let group = &step.plan.pooled[group];
        collect(group, |row| hidden.row(row), |row| logits.row(row), &mut step.outcomes.pooled);
    }

    fn finish(&self, step: &mut Step) -> Result<StepOutcomes, OpsError> {
        step.plan.release();
        Ok(std::mem::take(&mut step.outcomes))
    }

    fn delta_table(&self, _slots: usize) -> Result<SlotTable<Self>, OpsError> {
        Ok(SlotTable::default())
    }

    fn set_slot(&self, table: &mut SlotTable<Self>, slot: AdapterSlot, delta: SlotDelta<Self>) {
        table.set(slot, delta);
    }

    fn clear_slot(&self, table: &mut SlotTable<Self>, slot: AdapterSlot) -> Option<SlotDelta<Self>> {
        table.clear(slot)
    }

    fn slot<'t>(&self, table: &'t SlotTable<Self>, slot: AdapterSlot) -> Option<&'t SlotDelta<Self>> {
        table.get(slot)
    }

    fn read_row<'a>(&self, buffer: &'a Buffer, row: usize) -> Cow<'a, [f32]> {
        Cow::Borrowed(buffer.row(row))
    }

    fn embed(&self, step: &Step, table: &PackedWeight, scale: f32, y: &mut Buffer) {
        debug_assert_eq!(table.depth(), y.cols);
        let ids = &step.plan.ids;
        self.for_rows(ids.len(), 8, y, |row, y| {
            if let Some(id) = ids[row].filter(|id| (*id as usize) < table.columns()) {
                table.widen_row(id as usize, scale, y);
            }
        });
    }

    fn copy_rows(&self, x: &Buffer, first: usize, rows: Range<usize>, y: &mut Buffer) {
        for (index, row) in rows.enumerate() {
            y.row_mut(row).copy_from_slice(x.row(first + index));
        }
    }

    fn gather_rows(&self, step: &Step, rows: Rows, x: &Buffer, y: &mut Buffer) {
        self.for_rows(step.rows(rows).len(), 1, y, |row, y| y.copy_from_slice(x.row(step.plan.source(rows, row))));
    }

    fn pool_rows(&self, step: &Step, group: usize, x: &Buffer, y: &mut Buffer) {
        self.pool_spans(&step.plan.pooled[group].spans, x, y);
    }

    fn add(&self, step: &Step, rows: Rows, x: &mut Buffer, y: &Buffer) {
        let rows = step.rows(rows).len();
        self.for_rows(rows, 1, x, |row, x| x.iter_mut().zip(y.row(row)).for_each(|(x, y)| *x += y));
    }

    fn rms_norm(&self, step: &Step, rows: Rows, norm: Norm<'_, Self>, x: &Buffer, y: &mut Buffer) {
        let rows = step.rows(rows);
        self.for_rows(rows.len(), 1, y, |row, y| {
            rows::rms_norm(self.isa, x.row(row), norm_weight(&norm, rows.slots[row]), norm.eps, y);
        });
    }

    fn rms_norm_heads(&self, step: &Step, rows: Rows, norm: Norm<'_, Self>, columns: HeadColumns, x: &mut Buffer) {
        let rows = step.rows(rows);
        self.for_rows(rows.len(), 1, x, |row, x| {
            let weight = norm_weight(&norm, rows.slots[row]);
            for head in x[columns.first..][..columns.heads * columns.head_dim].chunks_exact_mut(columns.head_dim) {
                rows::rms_norm_in_place(self.isa, head, weight, norm.eps);
            }
        });
    }

    fn gemm(&self, step: &Step, rows: Rows, x: &Buffer, w: &PackedWeight, y: &mut Buffer) {
        self.multiply_panels(step.rows(rows).len(), x, w, 0..w.panels(), y);
    }

    fn gemm_segment(&self, step: &Step, rows: Rows, x: &Buffer, w: &PackedWeight, segment: usize, y: &mut Buffer) {
        self.multiply_panels(step.rows(rows).len(), x, w, w.segment(segment).panels.clone(), y);
    }

    fn add_bias(&self, step: &Step, rows: Rows, bias: &Vec<f32>, y: &mut Buffer) {
        self.for_rows(step.rows(rows).len(), 1, y, |_, y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
    }

    fn softcap(&self, step: &Step, rows: Rows, cap: f32, y: &mut Buffer) {
        self.for_rows(step.rows(rows).len(), 8, y, |_, y| rows::softcap(self.isa, cap, y));
    }

    fn gated_activation(&self, step: &Step, rows: Rows, activation: Activation, x: &Buffer, y: &mut Buffer) {
        debug_assert_eq!(x.cols, 2 * y.cols);
        self.for_rows(step.rows(rows).len(), 8, y, |row, y| {
            let (gate, up) = x.row(row).split_at(y.len());
            rows::gated(self.isa, activation, gate, up, y);
        });
    }

    fn experts(
        &self,
        step: &Step,
        rows: Rows,
        spec: &ExpertsSpec,
        logits: &Buffer,
        experts: &Vec<Expert<Self>>,
        deltas: ExpertDeltas<'_, Self>,
        x: &Buffer,
        work: &mut ExpertsWork,
        y: &mut Buffer,
    ) {
        self.run_experts(step.rows(rows), spec, logits, experts, deltas, x, work, y);
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
        self.rotate_and_store(&step.plan, spec, rope, layer, qkv, kv);
    }

    fn attention(&self, step: &Step, spec: &AttentionSpec, layer: usize, qkv: &Buffer, kv: &KvCache, y: &mut Buffer) {
        self.attend_rows(&step.plan, spec, layer, qkv, kv, y);
    }

    fn keep_rows(&self, step: &Step, x: &Buffer, kv: &mut KvCache) {
        step.plan.kv_slots.iter().enumerate().for_each(|(row, place)| kv.keep(*place, x.row(row)));
    }

    fn recall_rows(&self, step: &Step, kv: &KvCache, y: &mut Buffer) {
        self.for_rows(step.plan.kv_slots.len(), 1, y, |row, y| kv.recall(step.plan.kv_slots[row], y));
    }

    fn copy_block(&self, kv: &mut KvCache, source: usize, target: usize) {
        kv.copy_block(source, target);
    }

    fn write_pages(&self, kv: &mut KvCache, blocks: &[u32], count: usize, layers: &[(Buffer, Buffer)]) {
        let size = kv.layout().shape.block_size;
        for (layer, (k, v)) in layers.iter().enumerate() {
            for index in 0..count {
                let place = blocks[index / size] as usize * size + index % size;
                kv.store(layer, place, k.row(index), v.row(index));
            }
        }
    }

    fn low_rank(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        self.add_low_rank(step.rows(rows), deltas, x, None, y);
    }

    fn gemm_low_rank(
        &self,
        step: &Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &Buffer,
        w: &PackedWeight,
        y: &mut Buffer,
    ) {
        debug_assert_eq!((x.cols, y.cols), (w.depth(), w.columns()));
        self.add_low_rank(step.rows(rows), deltas, x, Some(w), y);
    }

    fn embedding_low_rank(&self, step: &Step, deltas: SiteTable<'_, Self>, scale: f32, y: &mut Buffer) {
        self.add_embedding_low_rank(&step.plan.ids, &step.plan.rows, deltas, scale, y);
    }

    fn sparse(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        self.add_sparse(step.rows(rows), deltas, x, y);
    }

    fn replace_embeddings(&self, step: &Step, deltas: SiteTable<'_, Self>, scale: f32, y: &mut Buffer) {
        self.embed_replaced(&step.plan.ids, &step.plan.rows, deltas, scale, y);
    }

    fn replace_columns(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        self.multiply_replaced(step.rows(rows), deltas, x, y);
    }

    fn scale_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Buffer) {
        self.for_entries(step.rows(rows), deltas, y, |y, g| *y *= g);
    }

    fn rotate_outputs(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Buffer) {
        self.turn_outputs(step.rows(rows), deltas, y);
    }

    fn bias_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Buffer) {
        self.for_entries(step.rows(rows), deltas, y, |y, b| *y += b);
    }

    fn head_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        self.multiply_heads(step.rows(rows), deltas, x, y);
    }

    fn scale_input(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        let rows = step.rows(rows);
        self.for_rows(rows.len(), 1, y, |row, y| {
            y.copy_from_slice(x.row(row));
            for entry in deltas.vectors(rows.slots[row]) {
                y[entry.columns.clone()].iter_mut().zip(&entry.values).for_each(|(y, g)| *y *= g);
            }
        });
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
        self.blend(step.rows(rows), deltas, [x, h, v]);
    }

    fn bottleneck(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, v: &Buffer, h: &mut Buffer) {
        self.add_bottleneck(step.rows(rows), deltas, v, h);
    }

    fn layer_norm_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, eps: f32, y: &mut Buffer) {
        self.layer_norm(step.rows(rows), deltas, eps, y);
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
        self.rotate_rows(step.rows(rows), scales, rotations, x, y);
    }

    fn dense(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        self.multiply_dense(step.rows(rows), deltas, x, y);
    }
}

impl CpuBackend {
    /// As [`Backend::gemm`] on the columns of some panels.
    fn multiply_panels(&self, rows: usize, x: &Buffer, w: &PackedWeight, panels: Range<usize>, y: &mut Buffer) {
        debug_assert_eq!((x.cols, y.cols), (w.depth(), w.columns()));
        assert!(rows <= y.rows());
        let mut scratch = self.scratch();
        let x = self.prepare(&mut scratch.x, x, rows);
        let y = Outputs::new(&mut y.data, y.cols, None);
        self.multiply_chunks(&Chunks::new(x, rows, w, panels, y, self.pool.threads()));
    }
}

impl Step {
    fn rows(&self, rows: Rows) -> &RowPlan {
        self.plan.of(rows)
    }
}

fn copied(what: &'static str, values: &[f32]) -> Result<Vec<f32>, OpsError> {
    let mut copy = filled(what, values.len(), 0.0)?;
    copy.copy_from_slice(values);
    Ok(copy)
}

/// The norm weight of a row: its adapter's gain, else the base's.
fn norm_weight<'a>(norm: &Norm<'a, CpuBackend>, slot: Option<AdapterSlot>) -> &'a [f32] {
    let gain = norm.gains.and_then(|gains| gains.vectors(slot).first());
    gain.map_or(norm.weight, |gain| &gain.values)
}

#[cfg(test)]
mod tests;
