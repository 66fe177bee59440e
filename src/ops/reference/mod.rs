//! The definition of every op, slow and obvious.
//!
//! Each op here is the formula of its `Semantics:` line written as loops over f32, in ascending order, with no
//! blocking and no threads. Fast backends are tested against it. It rounds where the trait says numbers are
//! rounded, so that it defines every choice of numerics too. It must never be tuned.

mod attention;
mod memory;
mod rows;

use std::ops::Range;

pub use memory::{Matrix, PagedKv, StackedMatrix, Step};

use super::{
    Activation, AttentionSpec, Backend, BackendInfo, DeltaMemory, HeadColumns, HostMatrix, KvShape, Norm, Numerics,
    OpsError, RopeTable, Rows, SampleOutcome, SiteTable, SlotDelta, SlotTable, StepPlan,
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
}

impl ReferenceBackend {
    fn dot(&self, w: &[f32], x: &[f32]) -> f32 {
        debug_assert_eq!(w.len(), x.len());
        w.iter().zip(x).fold(0.0, |sum, (w, x)| sum + w * self.numerics.compute.round(*x))
    }
}

impl DeltaMemory for ReferenceBackend {
    type Weight = StackedMatrix;
    type Vector = Vec<f32>;
    type DeltaTable = SlotTable<Self>;
}

impl Backend for ReferenceBackend {
    type Buffer = Matrix;
    type Rope = RopeTable;
    type KvCache = PagedKv;
    type Step = Step;

    fn info(&self) -> BackendInfo {
        BackendInfo { name: "reference", isa: "portable", threads: 1 }
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

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>, OpsError> {
        Ok(values.to_vec())
    }

    fn buffer_of(&self, cols: usize, values: &[f32]) -> Result<Matrix, OpsError> {
        Ok(Matrix { cols, data: values.to_vec() })
    }

    fn rope(&self, table: &RopeTable) -> Result<RopeTable, OpsError> {
        Ok(table.clone())
    }

    fn kv_cache(&self, shape: KvShape) -> Result<PagedKv, OpsError> {
        let places = vec![0.0; shape.blocks * shape.block_size * shape.kv_dim()];
        Ok(PagedKv { shape, k: vec![places.clone(); shape.layers], v: vec![places; shape.layers] })
    }

    fn step(&self) -> Step {
        Step::default()
    }

    fn upload(&self, plan: &StepPlan, step: &mut Step) -> Result<(), OpsError> {
        *step = Step { plan: plan.clone(), outcomes: Vec::new() };
        Ok(())
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

    fn read_row<'a>(&self, buffer: &'a Matrix, row: usize) -> std::borrow::Cow<'a, [f32]> {
        buffer.row(row).into()
    }

    fn sample(&self, step: &mut Step, group: usize, logits: &Matrix) {
        for (row, output) in step.plan.outputs_of(group).iter().enumerate() {
            let logits = logits.row(row);
            step.outcomes.push(Sampler::new(logits.len()).output(&AnyMachine, logits, output));
        }
    }

    fn finish(&self, step: &mut Step) -> Result<Vec<SampleOutcome>, OpsError> {
        step.plan.release();
        Ok(std::mem::take(&mut step.outcomes))
    }

    fn embed(&self, step: &Step, table: &StackedMatrix, scale: f32, y: &mut Matrix) {
        for (row, id) in step.plan.ids.iter().enumerate() {
            if let Some(id) = id {
                let embedding = table.matrix.row(*id as usize);
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

    fn copy_block(&self, kv: &mut PagedKv, source: usize, target: usize) {
        let len = kv.shape.block_size * kv.shape.kv_dim();
        for plane in kv.k.iter_mut().chain(&mut kv.v) {
            plane.copy_within(source * len..(source + 1) * len, target * len);
        }
    }

    fn write_pages(&self, kv: &mut PagedKv, layer: usize, blocks: &[u32], count: usize, k: &Matrix, v: &Matrix) {
        let (size, dim) = (kv.shape.block_size, kv.shape.kv_dim());
        for index in 0..count {
            let at = (blocks[index / size] as usize * size + index % size) * dim;
            for column in 0..dim {
                kv.k[layer][at + column] = self.numerics.kv.round(k.row(index)[column]);
                kv.v[layer][at + column] = self.numerics.kv.round(v.row(index)[column]);
            }
        }
    }

    fn low_rank(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Matrix, y: &mut Matrix) {
        for (row, slot) in step.slots(rows) {
            for entry in deltas.low_rank(slot) {
                let shrunk: Vec<f32> = (0..entry.rank).map(|r| self.dot(entry.a.matrix.row(r), x.row(row))).collect();
                for (index, column) in entry.columns.clone().enumerate() {
                    y.row_mut(row)[column] += entry.scaling * self.dot(entry.b.matrix.row(index), &shrunk);
                }
            }
        }
    }

    fn embedding_low_rank(&self, step: &Step, deltas: SiteTable<'_, Self>, scale: f32, y: &mut Matrix) {
        for (row, slot) in step.slots(Rows::All) {
            let Some(id) = step.plan.ids[row] else { continue };
            for entry in deltas.low_rank(slot) {
                let shrunk = entry.a.matrix.row(id as usize);
                for (column, y) in y.row_mut(row).iter_mut().enumerate() {
                    *y += scale * entry.scaling * self.dot(entry.b.matrix.row(column), shrunk);
                }
            }
        }
    }

    fn scale_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Matrix) {
        rows::for_entries(step, rows, deltas, y, |y, g| *y *= g);
    }

    fn bias_rows(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, y: &mut Matrix) {
        rows::for_entries(step, rows, deltas, y, |y, b| *y += b);
    }

    fn scale_input(&self, step: &Step, rows: Rows, deltas: SiteTable<'_, Self>, x: &Matrix, y: &mut Matrix) {
        for row in 0..step.count(rows) {
            y.row_mut(row).copy_from_slice(x.row(row));
        }
        self.scale_rows(step, rows, deltas, y);
    }

    fn gemm_scaled_segment(
        &self,
        step: &Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &Matrix,
        w: &StackedMatrix,
        segment: usize,
        scaled: &mut Matrix,
        y: &mut Matrix,
    ) {
        for (row, slot) in step.slots(rows) {
            let Some(g) = deltas.vectors(slot).first() else { continue };
            let x = x.row(row).iter().zip(&g.values).map(|(x, g)| g * x);
            scaled.row_mut(row).iter_mut().zip(x).for_each(|(scaled, x)| *scaled = x);
            for out in w.bounds[segment]..w.bounds[segment + 1] {
                y.row_mut(row)[out] = self.dot(w.matrix.row(out), scaled.row(row));
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
