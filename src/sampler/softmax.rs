//! Exponentials, sums in a fixed order, and the draw.

use super::select::Candidate;

/// Weights per partial sum: a draw first walks the partial sums, then one block.
pub(super) const BLOCK: usize = 512;

const LANES: usize = 8;

/// e^x for x ≤ 0 (0 below −87): Cody–Waite reduction and a polynomial of degree 7, relative error below 3e-7.
///
/// Written out rather than taken from the platform's libm for two reasons: it vectorizes over a vocabulary, and it is
/// the same sequence of IEEE operations on every machine.
fn exp_nonpositive(x: f32) -> f32 {
    /// Adding 1.5·2^23 rounds to an integer and leaves it in the low mantissa bits.
    const ROUNDER: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let reachable = x > -87.0;
    let x = if reachable { x } else { -87.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(127);
    let value = p * f32::from_bits(exponent << 23);
    if reachable { value } else { 0.0 }
}

/// Sum in f64 over eight interleaved lanes: one fixed order for a given length.
fn sum(values: impl Iterator<Item = f32>) -> f64 {
    let mut lanes = [0.0f64; LANES];
    for (index, value) in values.enumerate() {
        lanes[index % LANES] += f64::from(value);
    }
    lanes.into_iter().sum()
}

/// `weights[i] = e^((scores[i] − max) / temperature)`, their block sums, and the total. Subtracting before dividing
/// keeps every exponent ≤ 0, so no temperature overflows. The best token weighs 1.
pub(super) fn weights(
    scores: &[f32],
    max: f32,
    temperature: f32,
    weights: &mut Vec<f32>,
    block_sums: &mut Vec<f64>,
) -> f64 {
    weights.clear();
    weights.extend(scores.iter().map(|&score| exp_nonpositive((score - max) / temperature)));
    sum_blocks(weights, block_sums)
}

/// Replace each candidate's score by its weight, as [`weights`] does for a whole row.
pub(super) fn weights_of(candidates: &mut [Candidate], max: f32, temperature: f32) {
    for candidate in candidates {
        candidate.score = exp_nonpositive((candidate.score - max) / temperature);
    }
}

/// Zero the weights below `min_p` times the best one (which is 1) and return the new total.
pub(super) fn drop_below(weights: &mut [f32], block_sums: &mut Vec<f64>, min_p: f32) -> f64 {
    for weight in weights.iter_mut() {
        *weight = if *weight >= min_p { *weight } else { 0.0 };
    }
    sum_blocks(weights, block_sums)
}

fn sum_blocks(weights: &[f32], block_sums: &mut Vec<f64>) -> f64 {
    block_sums.clear();
    block_sums.extend(weights.chunks(BLOCK).map(|block| sum(block.iter().copied())));
    block_sums.iter().sum()
}

/// Inverse CDF in ascending id order: the first id at which the running sum exceeds `uniform · total`.
/// `None` only where every weight is zero.
pub(super) fn draw(weights: &[f32], block_sums: &[f64], total: f64, uniform: f64) -> Option<u32> {
    let target = uniform * total;
    let mut chosen = None;
    let mut sum = 0.0;
    for (index, &block_sum) in block_sums.iter().enumerate().filter(|(_, block_sum)| **block_sum > 0.0) {
        chosen = Some((index * BLOCK, target - sum));
        sum += block_sum;
        if target < sum {
            break;
        }
    }
    let (first, mut left) = chosen?;
    let block = weights.get(first..weights.len().min(first + BLOCK))?;
    let mut positive = None;
    for (offset, &weight) in block.iter().enumerate() {
        if weight > 0.0 {
            positive = Some((first + offset) as u32);
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
    }
    positive
}

/// ln Σ e^logit, the exponentials taken relative to `max` (the largest logit) and summed in f64.
pub(super) fn log_sum_exp(logits: &[f32], max: f32) -> f64 {
    let total = sum(logits.iter().map(|&logit| exp_nonpositive(logit - max)));
    f64::from(max) + total.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_accurate_over_its_whole_range() {
        let mut worst = 0.0f64;
        for step in 0..870_000 {
            let x = -(step as f32) * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp_nonpositive(x)) - exact).abs() / exact);
        }
        assert!(worst < 3e-7, "relative error {worst:e}");
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-100.0), 0.0);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn log_sum_exp_agrees_with_f64() {
        let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 1000) as f32 * 0.03 - 20.0).collect();
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        let exact = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        assert!((log_sum_exp(&logits, max) - exact).abs() < 1e-6);
    }

    #[test]
    fn a_draw_finds_the_id_whose_interval_holds_the_number() {
        let weights: Vec<f32> = (0..1500).map(|i| if i % 3 == 0 { 0.0 } else { 1.0 }).collect();
        let mut sums = Vec::new();
        let total = sum_blocks(&weights, &mut sums);
        assert_eq!(total, 1000.0);
        for wanted in 0..1000u32 {
            let id = draw(&weights, &sums, total, (f64::from(wanted) + 0.5) / 1000.0);
            assert_eq!(id, Some(wanted / 2 * 3 + wanted % 2 + 1));
        }
        assert_eq!(draw(&weights, &sums, total, 1.0), Some(1499));
        assert_eq!(draw(&[0.0; 4], &[0.0], 0.0, 0.5), None);
    }
}
