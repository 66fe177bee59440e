//! The experts of a sparse layer.

use super::ReferenceBackend;
use super::memory::{Matrix, Step};
use super::rows::activate;
use crate::ops::{Expert, ExpertDeltas, ExpertsSpec, LowRankPair, Rows, SiteTable};
use crate::types::AdapterSlot;

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

/// What an expert adds for, by its number and the row's slot.
type Of = (u32, Option<AdapterSlot>);

impl ReferenceBackend {
    /// y += scaling * B(A x), in the columns of a pair.
    pub(super) fn add_pair(&self, pair: &LowRankPair<Self>, x: &[f32], y: &mut [f32]) {
        let shrunk: Vec<f32> = (0..pair.rank).map(|rank| self.dot(pair.a.matrix.row(rank), x)).collect();
        for (index, column) in pair.columns.clone().enumerate() {
            y[column] += pair.scaling * self.dot(pair.b.matrix.row(index), &shrunk);
        }
    }

    fn add_pairs(&self, deltas: Option<SiteTable<'_, Self>>, (expert, slot): Of, x: &[f32], y: &mut [f32]) {
        let Some(deltas) = deltas else { return };
        let pairs = &deltas.expert_pairs(slot)[deltas.pairs_of_expert(slot, expert)];
        pairs.iter().for_each(|of_expert| self.add_pair(&of_expert.pair, x, y));
    }

    #[allow(clippy::too_many_arguments)] // As the op's own.
    pub(super) fn run_experts(
        &self,
        (step, rows): (&Step, Rows),
        spec: &ExpertsSpec,
        logits: &Matrix,
        experts: &[Expert<Self>],
        deltas: ExpertDeltas<'_, Self>,
        x: &Matrix,
        y: &mut Matrix,
    ) {
        for (row, slot) in step.slots(rows) {
            y.row_mut(row).fill(0.0);
            for (expert, weight) in choose(spec, logits.row(row)) {
                let Expert { gate_up, down } = &experts[expert];
                let of = (expert as u32, slot);
                let product = |weight: &Matrix, x: &[f32], outputs: usize| -> Vec<f32> {
                    (0..outputs).map(|output| self.dot(weight.row(output), x)).collect()
                };
                let mut inner = product(&gate_up.matrix, x.row(row), 2 * spec.intermediate_size);
                self.add_pairs(deltas.gate_up, of, x.row(row), &mut inner);
                let (gate, up) = inner.split_at(spec.intermediate_size);
                let activated: Vec<f32> =
                    gate.iter().zip(up).map(|(gate, up)| activate(spec.activation, *gate) * up).collect();
                let mut given = product(&down.matrix, &activated, y.cols);
                self.add_pairs(deltas.down, of, &activated, &mut given);
                y.row_mut(row).iter_mut().zip(given).for_each(|(y, given)| *y += weight * given);
            }
        }
    }
}
