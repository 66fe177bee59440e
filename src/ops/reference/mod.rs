//! The definition of every op, slow and obvious.
//!
//! Each op here is the formula of its `Semantics:` line written as loops over f32, in ascending order, with no
//! blocking and no threads. Fast backends are tested against it. It rounds where the trait says numbers are
//! rounded, so that it defines every choice of numerics too. It must never be tuned.

mod attention;
mod experts;
mod memory;
mod rows;

use std::ops::Range;

pub use memory::{Matrix, PagedKv, StackedMatrix, Step};

use super::outcomes::collect;
use super::{
    Activation, AttentionSpec, Backend, BackendInfo, DeltaMemory, EntriesBySite, Expert, ExpertDeltas, ExpertsSpec,
    HeadColumns, HostMatrix, HostSparse, KvShape, Norm, Numerics, OpsError, OwnVocabularies, RopeTable, Rows,
    SiteTable, SlotDelta, SlotTable, SparseEntry, StepOutcomes, StepPlan, Wiring,
};
use crate::sampler::{AnyMachine, Sampler};
use crate::types::AdapterSlot;

/// Plain loops on the host.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceBackend {
    numerics: Numerics,
}

impl ReferenceBackend {
    /// A reference backend that keeps numbers so.
    #[must_use]
    pub fn new(numerics: Numerics) -> Self {
        Self { numerics }
    }

    fn dot(&self, w: &[f32], x: &[f32]) -> f32 {
        debug_assert_eq!(w.len(), x.len());
        w.iter().zip(x).fold(0.0, |sum, (w, x)| sum + w * self.numerics.compute.round(*x))
    }
}

impl DeltaMemory for ReferenceBackend {
    type Weight = StackedMatrix;
    type Vector = Vec<f32>;
    type Sparse = HostSparse;
    type Entries = ();
    type DeltaTable = SlotTable<Self>;

    fn entries(&self, _by_site: &EntriesBySite<Self>) -> Result<(), OpsError> {
        Ok(())
    }
}

impl Backend for ReferenceBackend {
    type Buffer = Matrix;
    type Rope = RopeTable;
    type KvCache = PagedKv;
    type Step = Step;
    type Experts = Vec<Expert<Self>>;
    type ExpertsWork = ();

    fn info(&self) -> BackendInfo {
        BackendInfo { name: "reference", isa: "portable", variant: String::new(), threads: 1 }
    }

    fn numerics(&self) -> Numerics {
        self.numerics
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Matrix, OpsError> {
        Ok(Matrix { cols, data: vec![0.0; rows * cols] })
    }

    fn weight(&self, segments: &[HostMatrix<'_>]) -> Result<StackedMatrix, OpsError> {
        let expected = segments.first().map_or(0, |first| first.cols);
        let mut bounds = vec![0];
        let mut data = Vec::new();
        for segment in segments {
            if segment.cols != expected || segment.rows == 0 || segment.cols == 0 {
                return Err(OpsError::Shape { rows: segment.rows, cols: segment.cols, expected });
            }
            for row in 0..segment.rows {
                data.extend((0..segment.cols).map(|col| self.numerics.weights.round(segment.get(row, col))));
            }
            bounds.push(bounds[bounds.len() - 1] + segment.rows);
        }
        Ok(StackedMatrix { matrix: Matrix { cols: expected, data }, bounds })
    }

    fn expert_table(&self, experts: Vec<Expert<Self>>) -> Result<Vec<Expert<Self>>, OpsError> {
        Ok(experts)
    }

    fn experts_work(&self, _: usize, _: usize, _: Option<&ExpertsSpec>) -> Result<(), OpsError> {
        Ok(())
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>, OpsError> {
        Ok(values.to_vec())
    }

    fn sparse_matrix(&self, matrix: &HostSparse) -> Result<HostSparse, OpsError> {
        let mut matrix = matrix.clone();
        matrix.entries.iter_mut().for_each(|entry| entry.value = self.numerics.weights.round(entry.value));
        Ok(matrix)
    }

    fn buffer_of(&self, cols: usize, values: &[f32]) -> Result<Matrix, OpsError> {
        Ok(Matrix { cols, data: values.to_vec() })
    }

    fn rope(&self, table: &RopeTable) -> Result<RopeTable, OpsError> {
        Ok(table.clone())
    }

    fn kv_cache(&self, shape: KvShape) -> Result<PagedKv, OpsError> {
        let places = vec![0.0; shape.blocks * shape.block_size * shape.kv_dim()];
        let kept = Matrix { cols: shape.kept, data: vec![0.0; shape.blocks * shape.block_size * shape.kept] };
        Ok(PagedKv { shape, k: vec![places.clone(); shape.layers], v: vec![places; shape.layers], kept })
    }

    fn step(&self) -> Step {
        Step::default()
    }

    fn upload(&self, plan: &StepPlan, step: &mut Step) -> Result<(), OpsError> {
        *step = Step { plan: plan.clone(), outcomes: StepOutcomes::default() };
        Ok(())
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

    fn read_row<'a>(&self, buffer: &'a Matrix, row: usize) -> std::borrow::Cow<'a, [f32]> {
        buffer.row(row).into()
    }

    fn sample(
        &self,
        step: &mut Step,
        group: usize,
        logits: &Matrix,
        own: Option<OwnVocabularies<'_, Matrix, <Self as DeltaMemory>::DeltaTable>>,
    ) {
        for (row, output) in step.plan.outputs_of(group).iter().enumerate() {
            let mut whole = Vec::new();
            let logits = rows::logits(logits, own, row, &mut whole);
            step.outcomes.sampled.push(Sampler::new(logits.len()).output(&AnyMachine, logits, output));
        }
    }

    fn collect(&self, step: &mut Step, group: usize, hidden: &Matrix, logits: &Matrix) {
        let group = &step.plan.pooled[group];
        collect(group, |row| hidden.row(row), |row| logits.row(row), &mut step.outcomes.pooled);
    }

    fn finish(&self, step: &mut Step) -> Result<StepOutcomes, OpsError> {
        step.plan.release();
        Ok(std::mem::take(&mut step.outcomes))
    }

    fn embed(&self, step: &Step, table: &StackedMatrix, scale: f32, y: &mut Matrix) {
        for (row, id) in step.plan.ids.iter().enumerate() {
            if let Some(id) = id.filter(|id| (*id as usize) < table.rows()) {
                let embedding = table.matrix.row(id as usize);
                y.row_mut(row).iter_mut().zip(embedding).for_each(|(y, e)| *y = scale * e);
            }
        }
    }

    fn copy_rows(&self, x: &Matrix, first: usize, rows: Range<usize>, y: &mut Matrix) {
        for (index, row) in rows.enumerate() {
            y.row_mut(row).copy_from_slice(x.row(first + index));
        }
    }

    fn gather_rows(&self, step: &Step, rows: Rows, x: &Matrix, y: &mut Matrix) {
        for row in 0..step.count(rows) {
            y.row_mut(row).copy_from_slice(x.row(step.plan.source(rows, row)));
        }
    }

    fn pool_rows(&self, step: &Step, group: usize, x: &Matrix, y: &mut Matrix) {
        for (index, span) in step.plan.pooled[group].spans.iter().enumerate() {
            let mut rows = span.rows.clone().map(|row| x.row(row as usize));
            let first = span.onto.as_deref().or_else(|| rows.next()).unwrap_or_default();
            y.row_mut(index).copy_from_slice(first);
            for row in rows {
                y.row_mut(index).iter_mut().zip(row).for_each(|(y, x)| *y += x);
            }
        }
    }

    fn add(&self, step: &Step, rows: Rows, x: &mut Matrix, y: &Matrix) {
        for row in 0..step.count(rows) {
            x.row_mut(row).iter_mut().zip(y.row(row)).for_each(|(x, y)| *x += y);
        }
    }

    fn rms_norm(&self, step: &Step, rows: Rows, norm: Norm<'_, Self>, x: &Matrix, y: &mut Matrix) {
        for (row, slot) in step.slots(rows) {
            rows::rms_norm(x.row(row), norm_weight(&norm, slot), norm.eps, y.row_mut(row));
        }
    }

    fn rms_norm_heads(&self, step: &Step, rows: Rows, norm: Norm<'_, Self>, columns: HeadColumns, x: &mut Matrix) {
        for (row, slot) in step.slots(rows) {
            let heads = &mut x.row_mut(row)[columns.first..][..columns.heads * columns.head_dim];
            for head in heads.chunks_exact_mut(columns.head_dim) {
                let input = head.to_vec();
                rows::rms_norm(&input, norm_weight(&norm, slot), norm.eps, head);
            }
        }
    }

    fn gemm(&self, step: &Step, rows: Rows, x: &Matrix, w: &StackedMatrix, y: &mut Matrix) {
        for row in 0..step.count(rows) {
            for out in 0..y.cols {
                y.data[row * y.cols + out] = self.dot(w.matrix.row(out), x.row(row));
            }
        }
    }

    fn gemm_segment(&self, step: &Step, rows: Rows, x: &Matrix, w: &StackedMatrix, segment: usize, y: &mut Matrix) {
        for row in 0..step.count(rows) {
            for out in w.bounds[segment]..w.bounds[segment + 1] {
                y.data[row * y.cols + out] = self.dot(w.matrix.row(out), x.row(row));
            }
        }
    }

    fn add_bias(&self, step: &Step, rows: Rows, bias: &Vec<f32>, y: &mut Matrix) {
        for row in 0..step.count(rows) {
            y.row_mut(row).iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }

    fn softcap(&self, step: &Step, rows: Rows, cap: f32, y: &mut Matrix) {
        for row in 0..step.count(rows) {
            y.row_mut(row).iter_mut().for_each(|y| *y = (*y / cap).tanh() * cap);
        }
    }

    fn gated_activation(&self, step: &Step, rows: Rows, activation: Activation, x: &Matrix, y: &mut Matrix) {
        for row in 0..step.count(rows) {
            let (gate, up) = x.row(row).split_at(y.cols);
            for (y, (gate, up)) in y.row_mut(row).iter_mut().zip(gate.iter().zip(up)) {
                *y = rows::activate(activation, *gate) * up;
            }
        }
    }

    fn experts(
        &self,
        step: &Step,
        rows: Rows,
        spec: &ExpertsSpec,
        logits: &Matrix,
        experts: &Vec<Expert<Self>>,
        deltas: ExpertDeltas<'_, Self>,
        x: &Matrix,
        (): &mut (),
        y: &mut Matrix,
    ) {
        self.run_experts((step, rows), spec, logits, experts, deltas, x, y);
    }

    fn rope_and_cache(
        &self,
        step: &Step,
        spec: &AttentionSpec,
        rope: &RopeTable,
        layer: usize,
        qkv: &mut Matrix,
        kv: &mut PagedKv,
    ) {
        attention::rope_and_cache(self.numerics.kv, &step.plan, spec, rope, layer, qkv, kv);
    }

    fn attention(&self, step: &Step, spec: &AttentionSpec, layer: usize, qkv: &Matrix, kv: &PagedKv, y: &mut Matrix) {
        attention::attention(&step.plan, spec, layer, qkv, kv, y);
    }

    fn keep_rows(&self, step: &Step, x: &Matrix, kv: &mut PagedKv) {
        kv.keep(&step.plan.kv_slots, x);
    }

    fn recall_rows(&self, step: &Step, kv: &PagedKv, y: &mut Matrix) {
        kv.recall(&step.plan.kv_slots, y);
    }

    fn copy_block(&self, kv: &mut PagedKv, source: usize, target: usize) {
        kv.copy_block(source, target);
    }

    fn write_pages(&self, kv: &mut PagedKv, blocks: &[u32], count: usize, layers: &[(Matrix, Matrix)]) {
        kv.write_pages(self.numerics.kv, blocks, count, layers);
    }

    fn low_rank(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Matrix, y: &mut Matrix) {
        for (row, slot) in step.slots(rows) {
            deltas.low_rank(slot).iter().for_each(|pair| self.add_pair(pair, x.row(row), y.row_mut(row)));
        }
    }

    fn embedding_low_rank(&self, step: &Step, deltas: SiteTable<'_, Self>, scale: f32, y: &mut Matrix) {
        for (row, slot) in step.slots(Rows::All) {
            let Some(id) = step.plan.ids[row] else { continue };
            for entry in deltas.low_rank(slot).iter().filter(|entry| (id as usize) < entry.a.rows()) {
                let shrunk = entry.a.matrix.row(id as usize);
                for (column, y) in y.row_mut(row).iter_mut().enumerate() {
                    *y += scale * entry.scaling * self.dot(entry.b.matrix.row(column), shrunk);
                }
            }
        }
    }

    fn sparse(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Matrix, y: &mut Matrix) {
        let round = |x: f32| self.numerics.compute.round(x);
        for (row, slot) in step.slots(rows) {
            for entry in deltas.sparse(slot) {
                for (index, column) in entry.columns.clone().enumerate() {
                    let held = entry.matrix.row(index);
                    if !held.is_empty() {
                        let term = |sum, of: &SparseEntry| sum + of.value * round(x.row(row)[of.column as usize]);
                        y.row_mut(row)[column] += held.iter().fold(0.0, term);
                    }
                }
            }
        }
    }

    fn replace_embeddings(&self, step: &Step, deltas: SiteTable<'_, Self>, scale: f32, y: &mut Matrix) {
        for (row, slot) in step.slots(Rows::All) {
            let (Some(id), Some(entry)) = (step.plan.ids[row], deltas.replaced(slot).first()) else { continue };
            if let Ok(index) = entry.ids.binary_search(&id) {
                let embedding = entry.rows.matrix.row(index);
                y.row_mut(row).iter_mut().zip(embedding).for_each(|(y, e)| *y = scale * e);
            }
        }
    }

    fn replace_columns(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Matrix, y: &mut Matrix) {
        for (row, slot) in step.slots(rows) {
            let Some(entry) = deltas.replaced(slot).first() else { continue };
            for (index, column) in entry.ids.iter().enumerate() {
                y.row_mut(row)[*column as usize] = self.dot(entry.rows.matrix.row(index), x.row(row));
            }
        }
    }

    fn scale_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Matrix) {
        rows::for_entries(step, rows, deltas, y, |y, g| *y *= g);
    }

    fn rotate_outputs(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Matrix) {
        for (row, slot) in step.slots(rows) {
            for entry in deltas.column_rotations(slot) {
                let (c1, c2) = entry.c.split_at(entry.columns.len());
                let before = y.row(row)[entry.columns.clone()].to_vec();
                let half = entry.group / 2;
                for (at, y) in y.row_mut(row)[entry.columns.clone()].iter_mut().enumerate() {
                    let turned = if at % entry.group < half { -before[at + half] } else { before[at - half] };
                    *y = c1[at] * before[at] + c2[at] * turned;
                }
            }
        }
    }

    fn bias_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Matrix) {
        rows::for_entries(step, rows, deltas, y, |y, b| *y += b);
    }

    fn head_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Matrix, y: &mut Matrix) {
        for (row, slot) in step.slots(rows) {
            let Some(head) = deltas.vectors(slot).first() else { continue };
            for (column, w) in head.values.chunks_exact(x.cols).enumerate() {
                y.row_mut(row)[column] = w.iter().zip(x.row(row)).fold(0.0, |sum, (w, x)| sum + w * x);
            }
        }
    }

    fn blend_rows(
        &self,
        step: &Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &mut Matrix,
        h: &mut Matrix,
        v: &mut Matrix,
    ) {
        for (row, slot) in step.slots(rows) {
            let Some((entry, _)) = deltas.bottleneck(slot) else { continue };
            let Wiring { reads, stream, branch } = entry.wiring;
            for column in 0..x.cols {
                let (of_x, of_h) = (x.row(row)[column], h.row(row)[column]);
                v.row_mut(row)[column] = reads.of(of_x, of_h);
                x.row_mut(row)[column] = stream.of(of_x, of_h);
                h.row_mut(row)[column] = branch.of(of_x, of_h) + entry.up_bias[column];
            }
        }
    }

    fn bottleneck(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, v: &Matrix, h: &mut Matrix) {
        for (row, slot) in step.slots(rows) {
            let Some((entry, pair)) = deltas.bottleneck(slot) else { continue };
            let inner = |rank: usize| self.dot(pair.a.matrix.row(rank), v.row(row)) + entry.down_bias[rank];
            let inner: Vec<f32> = (0..pair.rank).map(|rank| rows::bend(entry.non_linearity, inner(rank))).collect();
            for (column, h) in h.row_mut(row).iter_mut().enumerate() {
                *h += pair.scaling * self.dot(pair.b.matrix.row(column), &inner);
            }
        }
    }

    fn layer_norm_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, eps: f32, y: &mut Matrix) {
        for (row, slot) in step.slots(rows) {
            if let [weight, bias] = deltas.vectors(slot) {
                rows::layer_norm(y.row_mut(row), &weight.values, &bias.values, eps);
            }
        }
    }

    fn scale_input(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Matrix, y: &mut Matrix) {
        for row in 0..step.count(rows) {
            y.row_mut(row).copy_from_slice(x.row(row));
        }
        self.scale_rows(step, rows, deltas, y);
    }

    fn rotate_input(
        &self,
        step: &Step,
        rows: Rows,
        scales: Option<SiteTable<'_, Self>>,
        rotations: SiteTable<'_, Self>,
        x: &Matrix,
        y: &mut Matrix,
    ) {
        for row in 0..step.count(rows) {
            y.row_mut(row).copy_from_slice(x.row(row));
        }
        if let Some(scales) = scales {
            self.scale_rows(step, rows, scales, y);
        }
        for (row, slot) in step.slots(rows) {
            for rotation in rotations.rotations(slot) {
                rows::rotate(rotation, y.row_mut(row));
            }
        }
    }

    fn dense(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Matrix, y: &mut Matrix) {
        for (row, slot) in step.slots(rows) {
            for entry in deltas.dense(slot) {
                for (index, column) in entry.columns.clone().enumerate() {
                    let product = self.dot(entry.weight.matrix.row(index), x.row(row));
                    let y = &mut y.row_mut(row)[column];
                    *y = if entry.replaces { product } else { *y + entry.scaling * product };
                }
            }
        }
    }
}

impl Step {
    fn count(&self, rows: Rows) -> usize {
        self.plan.of(rows).len()
    }

    /// Rows and their slots.
    fn slots(&self, rows: Rows) -> impl Iterator<Item = (usize, Option<AdapterSlot>)> {
        self.plan.of(rows).slots.iter().copied().enumerate()
    }
}

fn norm_weight<'a>(norm: &Norm<'a, ReferenceBackend>, slot: Option<AdapterSlot>) -> &'a [f32] {
    let gain = norm.gains.and_then(|gains| gains.vectors(slot).first());
    gain.map_or(norm.weight, |gain| &gain.values)
}

#[cfg(test)]
mod tests;
