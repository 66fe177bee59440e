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

mod attention;
mod gemm;
mod isa;
mod kv;
mod lowrank;
mod math;
mod memory;
mod pack;
mod peak;
mod pool;
mod rows;
mod sample;
mod scratch;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use isa::Isa;
pub use kv::KvCache;
pub use memory::{Buffer, limit_arenas};
pub use pack::PackedWeight;

use attention::{Pass, attend};
use gemm::{Chunks, InputForm, Inputs, Outputs, prepare_row};
use isa::DetectedIsa;
use memory::{at_least, filled};
use pool::Pool;
use scratch::Scratch;

use super::{
    Activation, AttentionSpec, Backend, BackendInfo, ComputeDtype, DeltaMemory, HeadColumns, HostMatrix, KvShape, Norm,
    Numerics, OpsError, RopeTable, RowPlan, Rows, SampleOutcome, SiteTable, SlotDelta, SlotTable, StepPlan,
};
use crate::types::AdapterSlot;

/// How to set up a [`CpuBackend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included; at least 1.
    pub threads: usize,
    /// How numbers are kept.
    pub numerics: Numerics,
    /// Instruction set path; the fastest this machine has if absent.
    pub isa: Option<Isa>,
}

/// Packed weights, paged KV and kernels on the CPU. Ops are called from one thread at a time; calls from several
/// threads at once are correct, but share its scratch memory one after the other.
pub struct CpuBackend {
    isa: DetectedIsa,
    numerics: Numerics,
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

/// A [`StepPlan`], checked for what the kernels rely on, and what has been chosen so far.
#[derive(Debug, Default)]
pub struct Step {
    plan: StepPlan,
    outcomes: Vec<SampleOutcome>,
}

impl CpuBackend {
    /// Start the threads and choose the instruction set.
    ///
    /// # Errors
    /// [`OpsError::Isa`] for a path that this machine lacks, [`OpsError::Thread`] for no threads or more than the
    /// system starts.
    pub fn new(options: CpuOptions) -> Result<Self, OpsError> {
        let best = match (Isa::best(), options.numerics.compute) {
            (Isa::Avx512Bf16, ComputeDtype::F32) => Isa::Avx512,
            (best, _) => best,
        };
        let isa = DetectedIsa::new(options.isa.unwrap_or(best))?;
        let (pool, alone) = (Pool::new(options.threads)?, Pool::new(1)?);
        Ok(Self { isa, numerics: options.numerics, pool, alone, scratch: Mutex::default() })
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        // A kernel that panicked leaves only unspecified numbers behind, as every op does.
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first `count` rows of x in the form the GEMM reads.
    fn prepare<'a>(&self, words: &'a mut Vec<u32>, x: &Buffer, count: usize) -> Inputs<'a> {
        let form = InputForm::of(self.isa, self.numerics);
        let stride = form.stride(x.cols);
        let words = at_least(words, count * stride);
        let rows_each = count.div_ceil(self.pool.threads() * 4).max(1);
        self.pool.for_blocks(count * x.cols, words, rows_each * stride, |block, words| {
            for (index, words) in words.chunks_exact_mut(stride).enumerate() {
                prepare_row(self.isa, form, x.row(block * rows_each + index), words);
            }
        });
        Inputs::new(words, form, x.cols)
    }

    /// Run all chunks of a GEMM, threads taking chunks.
    fn multiply_chunks(&self, chunks: &Chunks<'_>) {
        self.pool.run(chunks.work(), chunks.len(), |chunk| {
            #[allow(unsafe_code)]
            // SAFETY: `run` calls with each chunk once; the caller of this op holds y.
            unsafe {
                chunks.compute(self.isa, chunk);
            }
        });
    }

    /// Call `body` with each of the first `rows` rows of y; `cost` is the work per number, in multiply-adds.
    fn for_rows(&self, rows: usize, cost: usize, y: &mut Buffer, body: impl Fn(usize, &mut [f32]) + Sync) {
        let cols = y.cols.max(1);
        let rows_each = rows.div_ceil(self.pool.threads() * 4).max(1);
        self.pool.for_blocks(rows * cols * cost, &mut y.data[..rows * cols], rows_each * cols, |block, part| {
            for (index, row) in part.chunks_exact_mut(cols).enumerate() {
                body(block * rows_each + index, row);
            }
        });
    }
}

impl DeltaMemory for CpuBackend {
    type Weight = PackedWeight;
    type Vector = Vec<f32>;
    type DeltaTable = SlotTable<Self>;
}

impl Backend for CpuBackend {
    type Buffer = Buffer;
    type Rope = Rope;
    type KvCache = KvCache;
    type Step = Step;

    fn info(&self) -> BackendInfo {
        BackendInfo { name: "cpu", isa: self.isa.get().as_str(), threads: self.pool.threads() }
    }

    fn numerics(&self) -> Numerics {
        self.numerics
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

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>, OpsError> {
        copied("a vector", values)
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
        step.outcomes.clear();
        Ok(())
    }

    fn sample(&self, step: &mut Step, group: usize, logits: &Buffer) {
        self.sample_rows(step.plan.outputs_of(group), logits, &mut step.outcomes);
    }

    fn finish(&self, step: &mut Step) -> Result<Vec<SampleOutcome>, OpsError> {
        step.plan.release();
        Ok(std::mem::take(&mut step.outcomes))
    }

    fn delta_table(&self) -> Result<SlotTable<Self>, OpsError> {
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
            if let Some(id) = ids[row] {
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
        debug_assert_eq!((x.cols, y.cols), (w.depth(), w.columns()));
        let rows = step.rows(rows).len();
        assert!(rows <= y.rows());
        let mut scratch = self.scratch();
        let x = self.prepare(&mut scratch.x, x, rows);
        let y = Outputs::new(&mut y.data, y.cols, None);
        self.multiply_chunks(&Chunks::new(x, rows, w, 0..w.panels(), y, self.pool.threads()));
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

    fn rope_and_cache(
        &self,
        step: &Step,
        spec: &AttentionSpec,
        rope: &Rope,
        layer: usize,
        qkv: &mut Buffer,
        kv: &mut KvCache,
    ) {
        let plan = &step.plan;
        let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
        let (first_k, first_v) = (spec.heads * dim, (spec.heads + spec.kv_heads) * dim);
        let cells = Outputs::new(&mut qkv.data, qkv.cols, None);
        let writer = kv.writer(layer);
        // A thread takes a KV head and its queries: places next to each other share words, heads share none.
        self.pool.run(plan.rows.len() * cells.stride() * 8, spec.kv_heads, |kv_head| {
            for (row, place) in plan.kv_slots.iter().enumerate() {
                let at = plan.rope_row(row) * rope.half;
                let (cos, sin) = (&rope.cos[at..][..rope.half], &rope.sin[at..][..rope.half]);
                #[allow(unsafe_code)]
                // SAFETY: `run` calls with each KV head once; its queries, its key and its value are other columns of
                // the row than any other head's, and `Outputs` asserts that they lie within it.
                unsafe {
                    let heads = |column: usize, count: usize| cells.columns(row, column, count * dim);
                    rows::rotate_heads(self.isa, heads(kv_head * group * dim, group), dim, cos, sin);
                    let k = heads(first_k + kv_head * dim, 1);
                    rows::rotate_heads(self.isa, k, dim, cos, sin);
                    writer.store(*place as usize, kv_head, k, heads(first_v + kv_head * dim, 1));
                }
            }
        });
    }

    fn attention(&self, step: &Step, spec: &AttentionSpec, layer: usize, qkv: &Buffer, kv: &KvCache, y: &mut Buffer) {
        let plan = &step.plan;
        let mut scratch = self.scratch();
        let Scratch { items, attention: lines, .. } = &mut *scratch;
        attention::items(plan, spec, self.pool.threads(), items);
        let lines_each = attention::workspace_lines(spec.head_dim);
        let lines = at_least(lines, self.pool.threads() * lines_each);
        let seen: usize = plan.positions.iter().map(|position| *position as usize + 1).sum();
        let y = Outputs::new(&mut y.data, y.cols, None);
        let (layout, words) = (kv.layout(), kv.layer(layer));
        let pass = Pass { plan, spec: *spec, layout, kv: words, qkv: &qkv.data, stride: qkv.cols, y };
        let next = std::sync::atomic::AtomicUsize::new(0);
        self.pool.for_blocks(2 * seen * spec.heads * spec.head_dim, lines, lines_each, |_, lines| {
            while let Some(item) = items.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                #[allow(unsafe_code)]
                // SAFETY: each item is taken once. `assert_consistent` made sequences hold other rows each; items of one
                // hold other rows or heads.
                unsafe {
                    attend(self.isa, &pass, item, lines);
                }
            }
        });
    }

    fn copy_block(&self, kv: &mut KvCache, source: usize, target: usize) {
        kv.copy_block(source, target);
    }

    fn write_pages(&self, kv: &mut KvCache, layer: usize, blocks: &[u32], count: usize, k: &Buffer, v: &Buffer) {
        let size = kv.layout().shape.block_size;
        for index in 0..count {
            let place = blocks[index / size] as usize * size + index % size;
            kv.store(layer, place, k.row(index), v.row(index));
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

    fn scale_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Buffer) {
        self.for_entries(step.rows(rows), deltas, y, |y, g| *y *= g);
    }

    fn bias_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Buffer) {
        self.for_entries(step.rows(rows), deltas, y, |y, b| *y += b);
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

    fn gemm_scaled_segment(
        &self,
        step: &Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &Buffer,
        w: &PackedWeight,
        segment: usize,
        scaled: &mut Buffer,
        y: &mut Buffer,
    ) {
        debug_assert_eq!((x.cols, y.cols), (w.depth(), w.columns()));
        let plan = step.rows(rows);
        let with_scale = |row: &usize| !deltas.vectors(plan.slots[*row]).is_empty();
        let targets: Vec<u32> = (0..plan.len()).filter(with_scale).map(|row| row as u32).collect();
        self.for_rows(targets.len(), 1, scaled, |index, scaled| {
            let row = targets[index] as usize;
            if let Some(g) = deltas.vectors(plan.slots[row]).first() {
                let products = x.row(row).iter().zip(&g.values).map(|(x, g)| g * x);
                scaled.iter_mut().zip(products).for_each(|(scaled, product)| *scaled = product);
            }
        });
        self.gemm_segment(scaled, w, segment, &targets, y);
    }
}

impl CpuBackend {
    /// As [`Backend::gemm`] on the columns of one segment: row `i` of x gives those of row `targets[i]` of y.
    fn gemm_segment(&self, x: &Buffer, w: &PackedWeight, segment: usize, targets: &[u32], y: &mut Buffer) {
        let mut scratch = self.scratch();
        let x = self.prepare(&mut scratch.x, x, targets.len());
        let y = Outputs::new(&mut y.data, y.cols, Some(targets));
        let panels = w.segment(segment).panels.clone();
        self.multiply_chunks(&Chunks::new(x, targets.len(), w, panels, y, self.pool.threads()));
    }

    /// Apply `op` to each number of y that an entry of the row's slot covers.
    fn for_entries(
        &self,
        rows: &RowPlan,
        deltas: SiteTable<'_, Self>,
        y: &mut Buffer,
        op: impl Fn(&mut f32, f32) + Sync,
    ) {
        self.for_rows(rows.len(), 1, y, |row, y| {
            for entry in deltas.vectors(rows.slots[row]) {
                y[entry.columns.clone()].iter_mut().zip(&entry.values).for_each(|(y, value)| op(y, *value));
            }
        });
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
