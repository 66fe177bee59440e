//! Weights, their sums in a fixed order, and the draw.

use super::exp::exp_nonpositive;
use super::pass::{BLOCK, Simd, SumBlocksFrom, SumOfExponentials, Weigh};
use super::select::Candidate;

/// Scratch for the weights of a row, of which those from a floor on may be drawn.
#[derive(Debug, Default)]
pub(super) struct Weights {
    pub(super) values: Vec<f32>,
    floor: f32,
    /// Of those from the floor on, one sum for every [`BLOCK`] of them.
    block_sums: Vec<f64>,
}

impl Weights {
    pub(super) fn new(vocab_size: usize) -> Self {
        let block_sums = Vec::with_capacity(vocab_size.div_ceil(BLOCK));
        Self { values: Vec::with_capacity(vocab_size), floor: 0.0, block_sums }
    }

    /// As [`Weigh`] says, all of them to be drawn; the total.
    pub(super) fn weigh(&mut self, simd: &impl Simd, scores: &[f32], max: f32, temperature: f32) -> f64 {
        self.values.resize(scores.len(), 0.0);
        self.block_sums.resize(scores.len().div_ceil(BLOCK), 0.0);
        self.floor = 0.0;
        let Self { values: weights, block_sums, .. } = self;
        simd.run(Weigh { scores, max, temperature, weights, block_sums })
    }

    /// None of the weights below `floor` is to be drawn, nor the last `left_out` of those equal to it; the total of the
    /// others.
    pub(super) fn restrict(&mut self, simd: &impl Simd, floor: f32, left_out: usize) -> f64 {
        self.values.iter_mut().rev().filter(|weight| **weight == floor).take(left_out).for_each(|weight| *weight = 0.0);
        self.floor = floor;
        simd.run(SumBlocksFrom { weights: &self.values, floor, block_sums: &mut self.block_sums })
    }

    /// Inverse CDF in ascending id order: the first id at which the running sum exceeds `uniform · total`.
    /// `None` only where every weight is zero.
    pub(super) fn draw(&self, total: f64, uniform: f64) -> Option<u32> {
        let target = uniform * total;
        let mut chosen = None;
        let mut sum = 0.0;
        for (index, &block_sum) in self.block_sums.iter().enumerate().filter(|(_, block_sum)| **block_sum > 0.0) {
            chosen = Some((index * BLOCK, target - sum));
            sum += block_sum;
            if target < sum {
                break;
            }
        }
        let (first, mut left) = chosen?;
        let block = self.values.get(first..self.values.len().min(first + BLOCK))?;
        let mut drawable = None;
        for (offset, &weight) in block.iter().enumerate() {
            if weight > 0.0 && weight >= self.floor {
                drawable = Some((first + offset) as u32);
                left -= f64::from(weight);
                if left < 0.0 {
                    break;
                }
            }
        }
        drawable
    }
}

/// Replace each candidate's score by its weight, as [`Weigh`] does for a whole row.
pub(super) fn weights_of(candidates: &mut [Candidate], max: f32, temperature: f32) {
    for candidate in candidates {
        candidate.score = exp_nonpositive((candidate.score - max) / temperature);
    }
}

/// ln Σ e^logit, the exponentials taken relative to `max` (the largest logit) and summed in f64.
pub(super) fn log_sum_exp(simd: &impl Simd, logits: &[f32], max: f32) -> f64 {
    f64::from(max) + simd.run(SumOfExponentials { logits, max }).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::AnyMachine;

    #[test]
    fn log_sum_exp_agrees_with_f64() {
        let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 1000) as f32 * 0.03 - 20.0).collect();
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        let exact = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        assert!((log_sum_exp(&AnyMachine, &logits, max) - exact).abs() < 1e-6);
    }

    #[test]
    fn a_draw_finds_the_id_whose_interval_holds_the_number() {
        let scores: Vec<f32> = (0..1500).map(|i| if i % 3 == 0 { -10.0 } else { 0.0 }).collect();
        let mut weights = Weights::new(scores.len());
        weights.weigh(&AnyMachine, &scores, 0.0, 1.0);
        let total = weights.restrict(&AnyMachine, 0.5, 0);
        assert_eq!(total, 1000.0);
        for wanted in 0..1000u32 {
            let id = weights.draw(total, (f64::from(wanted) + 0.5) / 1000.0);
            assert_eq!(id, Some(wanted / 2 * 3 + wanted % 2 + 1));
        }
        assert_eq!(weights.draw(total, 1.0), Some(1499));
        assert_eq!(weights.restrict(&AnyMachine, 1.0, 1), 999.0);
        assert_eq!(weights.draw(999.0, 1.0), Some(1498));
        assert_eq!(weights.restrict(&AnyMachine, 2.0, 0), 0.0);
        assert_eq!(weights.draw(0.0, 0.5), None);
    }
}
