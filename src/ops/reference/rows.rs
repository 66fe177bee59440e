//! Ops on single rows.

use candle_core::cpu::erf::erf_f32;

use super::memory::{Matrix, Step};
use crate::ops::{Activation, DeltaMemory, Rows, SiteTable, SlotTable};

pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let mean = x.iter().fold(0.0, |sum, x| sum + x * x) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for (y, (x, w)) in y.iter_mut().zip(x.iter().zip(weight)) {
        *y = x * scale * w;
    }
}

pub(super) fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Gelu => 0.5 * x * (1.0 + erf_f32(x * std::f32::consts::FRAC_1_SQRT_2)),
    }
}

pub(super) fn for_entries<B: DeltaMemory<Vector = Vec<f32>, DeltaTable = SlotTable<B>>>(
    step: &Step,
    rows: Rows,
    deltas: SiteTable<'_, B>,
    y: &mut Matrix,
    op: impl Fn(&mut f32, f32),
) {
    for (row, slot) in step.slots(rows) {
        for entry in deltas.vectors(slot) {
            let columns = &mut y.row_mut(row)[entry.columns.clone()];
            columns.iter_mut().zip(&entry.values).for_each(|(y, value)| op(y, *value));
        }
    }
}
