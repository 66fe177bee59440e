//! The experts of a sparse layer.

use super::memory::{Matrix, StackedMatrix};
use super::rows::activate;
use crate::ops::{DeltaMemory, Expert, ExpertsSpec};

/// A row's experts, ascending, and the weight of each.
fn choose(spec: &ExpertsSpec, logits: &[f32]) -> Vec<(usize, f32)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|logit| (logit - max).exp()).collect();
    let sum: f32 = powers.iter().sum();
    let mut chosen: Vec<usize> = Vec::new();
    for _ in 0..spec.experts_per_token {
        let mut left = (0..logits.len()).filter(|expert| !chosen.contains(expert));
        // Of equal logits the first stays, and so does one that is compared with no number.
        let higher = |best: usize, expert: usize| if logits[expert] > logits[best] { expert } else { best };
        let best = left.next().map(|first| left.fold(first, higher));
        chosen.extend(best);
    }
    let total: f32 = if spec.renormalise { chosen.iter().map(|expert| powers[*expert] / sum).sum() } else { 1.0 };
    chosen.sort_unstable();
    chosen.into_iter().map(|expert| (expert, powers[expert] / sum / total)).collect()
}

pub(super) fn experts<B: DeltaMemory<Weight = StackedMatrix>>(
    rows: usize,
    spec: &ExpertsSpec,
    logits: &Matrix,
    experts: &[Expert<B>],
    x: &Matrix,
    y: &mut Matrix,
    dot: impl Fn(&[f32], &[f32]) -> f32,
) {
    let inner = spec.intermediate_size;
    for row in 0..rows {
        y.row_mut(row).fill(0.0);
        for (expert, weight) in choose(spec, logits.row(row)) {
            let Expert { gate_up, down } = &experts[expert];
            let project = |column: usize| dot(gate_up.matrix.row(column), x.row(row));
            let activated: Vec<f32> =
                (0..inner).map(|i| activate(spec.activation, project(i)) * project(inner + i)).collect();
            for (column, y) in y.row_mut(row).iter_mut().enumerate() {
                *y += weight * dot(down.matrix.row(column), &activated);
            }
        }
    }
}
