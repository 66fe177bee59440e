//! Ops on single rows.

use candle_core::cpu::erf::erf_f32;

use super::memory::{Matrix, Step};
use crate::ops::{
    Activation, DeltaMemory, NonLinearity, OwnVocabularies, Rotation, Rows, SiteTable, SlotTable, of_vocabulary,
};

/// All logits of a row. `whole` is where they lie where some are of tokens that the base does not have.
pub(super) fn logits<'a, Table>(
    logits: &'a Matrix,
    own: Option<OwnVocabularies<'_, Matrix, Table>>,
    row: usize,
    whole: &'a mut Vec<f32>,
) -> &'a [f32] {
    match own {
        Some(own) => of_vocabulary(logits.row(row), own.added.row(row), own.sizes[row], whole),
        None => logits.row(row),
    }
}

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

pub(super) fn layer_norm(y: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let count = y.len() as f32;
    let mean = y.iter().sum::<f32>() / count;
    let variance = y.iter().fold(0.0, |sum, y| sum + (y - mean) * (y - mean)) / count;
    let scale = 1.0 / (variance + eps).sqrt();
    for (y, (w, b)) in y.iter_mut().zip(weight.iter().zip(bias)) {
        *y = (*y - mean) * scale * w + b;
    }
}

/// Not `max`, which makes a number of NaN.
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

pub(super) fn bend(non_linearity: NonLinearity, x: f32) -> f32 {
    match non_linearity {
        NonLinearity::Gate(activation) => activate(activation, x),
        NonLinearity::Identity => x,
        NonLinearity::Relu => relu(x),
        NonLinearity::Relu6 => x.clamp(0.0, 6.0),
        NonLinearity::SquaredRelu => relu(x) * relu(x),
        NonLinearity::LeakyRelu { slope } if x <= 0.0 => slope * x,
        NonLinearity::LeakyRelu { .. } => x,
        NonLinearity::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        NonLinearity::Tanh => x.tanh(),
        NonLinearity::Mish if x > NonLinearity::MISH_LINEAR => x,
        NonLinearity::Mish => x * x.exp().ln_1p().tanh(),
        NonLinearity::QuickGelu => x / (1.0 + (-NonLinearity::QUICK * x).exp()),
        NonLinearity::ClippedGelu => activate(Activation::Gelu, x).clamp(-NonLinearity::CLIP, NonLinearity::CLIP),
        NonLinearity::Laplace => 0.5 * (1.0 + erf_f32((x - NonLinearity::LAPLACE_MEAN) / NonLinearity::LAPLACE_WIDTH)),
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

/// x = x R.
pub(super) fn rotate<B: DeltaMemory<Vector = Vec<f32>>>(rotation: &Rotation<B>, x: &mut [f32]) {
    let (before, size) = (x.to_vec(), rotation.size);
    for block in 0..x.len() / size {
        let numbers = &rotation.blocks[rotation.first_number(block)..][..size * size];
        for out in 0..size {
            let product = |i: usize| before[rotation.input(block, i)] * numbers[i * size + out];
            x[rotation.input(block, out)] = (0..size).fold(0.0, |sum, i| sum + product(i));
        }
    }
}
