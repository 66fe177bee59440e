//! Passes over a whole row of logits: a vocabulary is long, so these few loops are all that sampling costs.
//!
//! Each is written once, in plain Rust without intrinsics. Who has wide registers compiles the same loop for them
//! ([`Simd`]): Rust never reassociates or contracts floats, so the bits are those of the scalar loop on every machine.

use super::exp::exp_nonpositive;

/// A loop over a row.
///
/// Implementations of [`Pass::run`] are `#[inline(always)]` and hold plain loops instead of closures: a closure may be
/// compiled apart, without the instructions of its caller.
pub(crate) trait Pass {
    /// What it finds out.
    type Output;

    /// Run it.
    fn run(self) -> Self::Output;
}

/// Runs passes, compiled for the instructions that the machine has.
pub(crate) trait Simd {
    /// The result of the pass, the same bits whatever the instructions.
    fn run<P: Pass>(&self, pass: P) -> P::Output;
}

/// Passes as they come out for any machine of the target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnyMachine;

impl Simd for AnyMachine {
    fn run<P: Pass>(&self, pass: P) -> P::Output {
        pass.run()
    }
}

/// Weights per partial sum: a draw first walks the partial sums, then one block.
pub(super) const BLOCK: usize = 512;

/// Lanes of a maximum or a comparison.
pub(super) const LANES: usize = 16;

/// Lanes of a sum in f64.
const SUM_LANES: usize = 8;

const EXPONENT: u32 = 0x7f80_0000;

/// The largest number (−Inf where there is none or all are NaN), and whether all are finite.
pub(super) struct MaxAndFinite<'a>(pub(super) &'a [f32]);

impl Pass for MaxAndFinite<'_> {
    type Output = (f32, bool);

    #[inline(always)]
    fn run(self) -> (f32, bool) {
        let mut max = [f32::NEG_INFINITY; LANES];
        let mut exponent = [0; LANES];
        let (rows, rest) = self.0.as_chunks::<LANES>();
        for row in rows {
            for lane in 0..LANES {
                max[lane] = if row[lane] > max[lane] { row[lane] } else { max[lane] };
                let bits = row[lane].to_bits() & EXPONENT;
                exponent[lane] = if bits > exponent[lane] { bits } else { exponent[lane] };
            }
        }
        for lane in 0..rest.len() {
            max[lane] = if rest[lane] > max[lane] { rest[lane] } else { max[lane] };
            exponent[lane] = exponent[lane].max(rest[lane].to_bits() & EXPONENT);
        }
        let (mut largest, mut finite) = (f32::NEG_INFINITY, true);
        for lane in 0..LANES {
            largest = if max[lane] > largest { max[lane] } else { largest };
            finite &= exponent[lane] != EXPONENT;
        }
        (largest, finite)
    }
}

/// `weights[i] = e^((scores[i] − max) / temperature)` with the sums of their blocks; the total. Subtracting before
/// dividing keeps every exponent ≤ 0, so no temperature overflows. The best token weighs 1.
pub(super) struct Weigh<'a> {
    pub(super) scores: &'a [f32],
    pub(super) max: f32,
    pub(super) temperature: f32,
    /// As many as there are scores.
    pub(super) weights: &'a mut [f32],
    /// One for every [`BLOCK`] of them.
    pub(super) block_sums: &'a mut [f64],
}

impl Pass for Weigh<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let blocks = self.scores.chunks(BLOCK).zip(self.weights.chunks_mut(BLOCK)).zip(self.block_sums);
        let mut total = 0.0;
        for ((scores, weights), block_sum) in blocks {
            for (weight, score) in weights.iter_mut().zip(scores) {
                *weight = exp_nonpositive((*score - self.max) / self.temperature);
            }
            *block_sum = fold(add(weights, [0.0; SUM_LANES]));
            total += *block_sum;
        }
        total
    }
}

/// The sums of the weights from `floor` on, block by block; the total.
pub(super) struct SumBlocksFrom<'a> {
    pub(super) weights: &'a [f32],
    pub(super) floor: f32,
    /// One for every [`BLOCK`] of them.
    pub(super) block_sums: &'a mut [f64],
}

impl Pass for SumBlocksFrom<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut total = 0.0;
        let mut held = [0.0; BLOCK];
        for (weights, block_sum) in self.weights.chunks(BLOCK).zip(self.block_sums) {
            for (held, weight) in held.iter_mut().zip(weights) {
                *held = if *weight >= self.floor { *weight } else { 0.0 };
            }
            *block_sum = fold(add(&held[..weights.len()], [0.0; SUM_LANES]));
            total += *block_sum;
        }
        total
    }
}

/// Places that [`SumsFrom`] looks at in one pass.
pub(super) const PLACES: usize = 4;

/// For each of some floors the sum of the weights from it on, and how many they are. Sums are in f32 within a lane of a
/// few blocks and in f64 beyond: at most 8e-6 off.
pub(super) struct SumsFrom<'a> {
    pub(super) weights: &'a [f32],
    pub(super) floors: [f32; PLACES],
}

impl Pass for SumsFrom<'_> {
    type Output = ([f64; PLACES], [usize; PLACES]);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let (mut sums, mut counts) = ([0.0; PLACES], [0; PLACES]);
        for block in self.weights.chunks(4 * BLOCK) {
            for place in 0..PLACES {
                let (sum, count) = sum_from(block, self.floors[place]);
                sums[place] += sum;
                counts[place] += count;
            }
        }
        (sums, counts)
    }
}

/// The sum of a block's weights from `floor` on, and how many they are.
#[inline(always)]
fn sum_from(block: &[f32], floor: f32) -> (f64, usize) {
    let mut sums = [0.0; LANES];
    let mut counts = [0_u32; LANES];
    let (rows, rest) = block.as_chunks::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            let held = row[lane] >= floor;
            sums[lane] += if held { row[lane] } else { 0.0 };
            counts[lane] += u32::from(held);
        }
    }
    for lane in 0..rest.len() {
        let held = rest[lane] >= floor;
        sums[lane] += if held { rest[lane] } else { 0.0 };
        counts[lane] += u32::from(held);
    }
    let (mut sum, mut count) = (0.0, 0);
    for lane in 0..LANES {
        sum += f64::from(sums[lane]);
        count += counts[lane];
    }
    (sum, count as usize)
}

/// Σ e^(logits\[i\] − max) in f64.
pub(super) struct SumOfExponentials<'a> {
    pub(super) logits: &'a [f32],
    pub(super) max: f32,
}

impl Pass for SumOfExponentials<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut lanes = [0.0; SUM_LANES];
        let mut exponentials = [0.0; BLOCK];
        for logits in self.logits.chunks(BLOCK) {
            for (exponential, logit) in exponentials.iter_mut().zip(logits) {
                *exponential = exp_nonpositive(*logit - self.max);
            }
            lanes = add(&exponentials[..logits.len()], lanes);
        }
        fold(lanes)
    }
}

/// Add numbers to eight interleaved lanes in f64: one fixed order for a given length.
#[inline(always)]
fn add(values: &[f32], mut lanes: [f64; SUM_LANES]) -> [f64; SUM_LANES] {
    let (rows, rest) = values.as_chunks::<SUM_LANES>();
    for row in rows {
        for lane in 0..SUM_LANES {
            lanes[lane] += f64::from(row[lane]);
        }
    }
    for lane in 0..rest.len() {
        lanes[lane] += f64::from(rest[lane]);
    }
    lanes
}

#[inline(always)]
fn fold(lanes: [f64; SUM_LANES]) -> f64 {
    let mut sum = 0.0;
    for lane in lanes {
        sum += lane;
    }
    sum
}

/// Where the first group of [`LANES`] scores begins that has one above `above` and below `below`; the length of the row
/// where none has.
pub(super) struct FirstBetween<'a> {
    pub(super) scores: &'a [f32],
    pub(super) above: f32,
    pub(super) below: f32,
}

impl Pass for FirstBetween<'_> {
    type Output = usize;

    #[inline(always)]
    fn run(self) -> usize {
        let (rows, rest) = self.scores.as_chunks::<LANES>();
        for (index, row) in rows.iter().enumerate() {
            let mut any = 0;
            for lane in 0..LANES {
                any |= u32::from(row[lane] > self.above) & u32::from(row[lane] < self.below);
            }
            if any != 0 {
                return index * LANES;
            }
        }
        let mut any = false;
        for score in rest {
            any |= *score > self.above && *score < self.below;
        }
        if any { self.scores.len() - rest.len() } else { self.scores.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_cover_ragged_lengths_in_blocks_and_whole() {
        for len in [1, 7, 8, 511, 512, 513, 1500] {
            let scores = vec![0.0; len];
            let (mut weights, mut block_sums) = (vec![9.0; len], vec![9.0; len.div_ceil(BLOCK)]);
            let pass = Weigh {
                scores: &scores,
                max: 0.0,
                temperature: 1.0,
                weights: &mut weights,
                block_sums: &mut block_sums,
            };
            assert_eq!(pass.run(), len as f64);
            assert_eq!(block_sums.iter().sum::<f64>(), len as f64);
            assert_eq!(SumOfExponentials { logits: &scores, max: 0.0 }.run(), len as f64);
            weights[len / 2] = 0.25;
            let total = SumBlocksFrom { weights: &weights, floor: 0.5, block_sums: &mut block_sums }.run();
            assert_eq!((total, block_sums.iter().sum()), ((len - 1) as f64, (len - 1) as f64));
            let (sums, counts) = SumsFrom { weights: &weights, floors: [0.1, 0.25, 0.5, 2.0] }.run();
            let all = len as f64;
            assert_eq!(sums, [all - 0.75, all - 0.75, all - 1.0, 0.0]);
            assert_eq!(counts, [len, len, len - 1, 0]);
        }
    }

    #[test]
    fn the_first_group_with_a_score_between_is_found_wherever_it_lies() {
        for len in [1, 15, 16, 17, 100] {
            for place in 0..len {
                let mut scores = vec![1.0; len];
                scores[place] = 2.0;
                let first = |above, below| FirstBetween { scores: &scores, above, below }.run();
                assert_eq!(first(1.0, f32::INFINITY), place / LANES * LANES);
                assert_eq!(first(2.0, f32::INFINITY), len);
                assert_eq!(first(1.0, 2.0), len);
            }
        }
    }
}
