//! The largest, the k largest, and the nucleus of a row, without sorting it.

use std::ops::Range;

use super::pass::{FirstBetween, LANES, MaxAndFinite, PLACES, Simd, SumsFrom};

/// A token and its score (or weight), which is not NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) score: f32,
    pub(super) id: u32,
}

impl Candidate {
    /// Better first: the larger score, at equal scores the lower id. One number, so that comparing costs no branch.
    fn rank(&self) -> u64 {
        // −0 and +0 tie.
        let bits = (self.score + 0.0).to_bits();
        // Ascending with the score: the bits of negative numbers descend.
        let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        u64::from(!ascending) << 32 | u64::from(self.id)
    }
}

/// Scores that are looked at in one go for the largest.
const CHUNK: usize = 256 * LANES;

/// The largest logit, the lower id where several are equal; `None` where the row is empty or any logit is not finite.
pub(super) fn argmax(simd: &impl Simd, logits: &[f32]) -> Option<Candidate> {
    let (best, finite) = largest(simd, logits);
    best.filter(|_| finite)
}

/// The largest of scores some of which may be −Inf (banned); `None` where all of them are.
pub(super) fn argmax_of_scores(simd: &impl Simd, scores: &[f32]) -> Option<Candidate> {
    largest(simd, scores).0
}

/// The largest score, the lower id where several are equal, `None` where none is above −Inf; and whether all are finite.
fn largest(simd: &impl Simd, scores: &[f32]) -> (Option<Candidate>, bool) {
    let (mut best, mut home, mut all_finite) = (f32::NEG_INFINITY, None, true);
    for (index, chunk) in scores.chunks(CHUNK).enumerate() {
        let (max, finite) = simd.run(MaxAndFinite(chunk));
        all_finite &= finite;
        if max > best {
            (best, home) = (max, Some((index, chunk)));
        }
    }
    let found = home.and_then(|(index, chunk)| {
        let offset = chunk.iter().position(|score| *score == best)?;
        Some(Candidate { score: best, id: (index * CHUNK + offset) as u32 })
    });
    (found, all_finite)
}

/// The `k` best of `scores` into `best`, best first; fewer where fewer are above −Inf. One pass over the row with a
/// buffer of 2k: whatever does not beat the k-th best so far is skipped.
pub(super) fn top_k(simd: &impl Simd, scores: &[f32], k: usize, best: &mut Vec<Candidate>) {
    best.clear();
    if k == 0 {
        return;
    }
    let k = k.min(scores.len());
    let capacity = 2 * k.max(LANES);
    best.reserve(capacity);
    // Ids ascend, so a later score equal to the k-th best loses its tie: strictly greater is what enters.
    let mut floor = f32::NEG_INFINITY;
    let mut first = 0;
    while first < scores.len() {
        first += simd.run(FirstBetween { scores: &scores[first..], above: floor, below: f32::INFINITY });
        let end = scores.len().min(first + LANES);
        for id in first..end {
            if scores[id] > floor {
                best.push(Candidate { score: scores[id], id: id as u32 });
            }
        }
        if best.len() + LANES > capacity {
            best.select_nth_unstable_by_key(k - 1, Candidate::rank);
            best.truncate(k);
            floor = best[k - 1].score;
        }
        first = end;
    }
    best.sort_unstable_by_key(Candidate::rank);
    best.truncate(k);
}

/// Candidates that are sorted without looking for fewer.
const FEW: usize = 1024;

/// The smallest set of the most likely tokens that holds a given share of the total weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Nucleus {
    /// The first so many of the candidates, which are sorted by rank.
    Few(usize),
    /// All weights from `least` on, without the last `left_out` of those equal to it.
    Many { least: f32, left_out: usize },
}

/// One end of the range that holds the border of a nucleus.
#[derive(Clone, Copy)]
struct End {
    /// Of the weight it stands for. The bits of floats ≥ 0 ascend as they do.
    bits: u32,
    /// Weights from there on, and their sum.
    count: usize,
    sum: f64,
}

/// The nucleus that holds `top_p` (below 1) of `total`, the sum of `weights` in [0, 1], to within the rounding of
/// [`SumsFrom`]. The `candidates` are scratch, or the answer.
///
/// A few are sorted. Of many the border is enclosed, each pass over the row looking at several places, and only what
/// lies near it is sorted.
pub(super) fn nucleus(
    simd: &impl Simd,
    weights: &[f32],
    total: f64,
    top_p: f32,
    candidates: &mut Vec<Candidate>,
) -> Nucleus {
    let goal = f64::from(top_p) * total;
    // What is lighter weighs, all together, a little less than what the nucleus leaves out: it does without it.
    let floor = (0.999 * (total - goal) / weights.len() as f64) as f32;
    if collect(simd, weights, floor..f32::INFINITY, FEW, candidates) {
        candidates.sort_unstable_by_key(Candidate::rank);
        return Nucleus::Few(reach(candidates, 0.0, goal).unwrap_or(candidates.len()));
    }
    let mut low = End { bits: floor.to_bits(), count: weights.len(), sum: total };
    let mut high = End { bits: 1.0_f32.to_bits() + 1, count: 0, sum: 0.0 };
    while high.bits - low.bits > 1 && low.count - high.count > FEW {
        let step = ((high.bits - low.bits) / (PLACES as u32 + 1)).max(1);
        let bits: [u32; PLACES] =
            std::array::from_fn(|place| (low.bits + (place as u32 + 1) * step).min(high.bits - 1));
        let (sums, counts) = simd.run(SumsFrom { weights, floors: bits.map(f32::from_bits) });
        for place in 0..PLACES {
            let end = End { bits: bits[place], count: counts[place], sum: sums[place] };
            if end.sum >= goal {
                low = end;
            } else {
                high = end;
                break;
            }
        }
    }
    let border = f32::from_bits(low.bits)..f32::from_bits(high.bits);
    collect(simd, weights, border, usize::MAX, candidates);
    candidates.sort_unstable_by_key(Candidate::rank);
    let kept = reach(candidates, high.sum, goal).unwrap_or(candidates.len());
    let least = candidates[..kept].last().map_or(f32::from_bits(high.bits), |last| last.score);
    Nucleus::Many { least, left_out: candidates[kept..].iter().take_while(|left| left.score == least).count() }
}

/// How many candidates, best first, it takes for the sum from `sum` on to reach `goal`; `None` where it does not.
pub(super) fn reach(candidates: &[Candidate], mut sum: f64, goal: f64) -> Option<usize> {
    candidates
        .iter()
        .position(|candidate| {
            sum += f64::from(candidate.score);
            sum >= goal
        })
        .map(|index| index + 1)
}

/// All of `weights` within `range`, ascending ids; false, and only some of them, where there are more than `most`.
fn collect(simd: &impl Simd, weights: &[f32], range: Range<f32>, most: usize, candidates: &mut Vec<Candidate>) -> bool {
    candidates.clear();
    let (above, below) = (range.start.next_down(), range.end);
    let mut first = 0;
    while first < weights.len() {
        first += simd.run(FirstBetween { scores: &weights[first..], above, below });
        let end = weights.len().min(first + LANES);
        for id in first..end {
            if range.contains(&weights[id]) {
                candidates.push(Candidate { score: weights[id], id: id as u32 });
            }
        }
        if candidates.len() > most {
            return false;
        }
        first = end;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::AnyMachine;

    /// A name, and the weight at a place from it and a number that is even over many places.
    type Shape = (&'static str, fn(usize, f32) -> f32);

    /// Which weights the definition keeps: sorted by rank, the fewest that reach the goal.
    fn kept(weights: &[f32], goal: f64) -> Vec<bool> {
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
        let (mut kept, mut sum) = (vec![false; weights.len()], 0.0);
        for id in order {
            if sum < goal {
                kept[id] = true;
            }
            sum += f64::from(weights[id]);
        }
        kept
    }

    fn found(weights: &[f32], nucleus: Nucleus, candidates: &[Candidate]) -> Vec<bool> {
        let mut found = vec![false; weights.len()];
        match nucleus {
            Nucleus::Few(count) => candidates[..count].iter().for_each(|kept| found[kept.id as usize] = true),
            Nucleus::Many { least, left_out } => {
                found.iter_mut().zip(weights).for_each(|(found, weight)| *found = *weight >= least);
                let equal = (0..weights.len()).rev().filter(|id| weights[*id] == least).take(left_out);
                equal.for_each(|id| found[id] = false);
            }
        }
        found
    }

    #[test]
    fn a_nucleus_is_the_definition_whatever_the_weights_look_like() {
        // Multiples of 2^-10, so that no sum is rounded.
        let even = |i: usize| ((i * 7919) % 1024 + 1) as f32 / 1024.0;
        let shapes: [Shape; 5] = [
            ("even", |_, even| even),
            ("equal", |_, _| 0.5),
            ("peaked", |i, _| if i % 1000 == 7 { 1.0 } else { 1.0 / 1024.0 }),
            ("heaps", |i, _| [1.0, 0.25, 0.25 + 1.0 / 1024.0][i % 3]),
            ("few", |i, even| if i % 50 == 0 { even } else { 0.0 }),
        ];
        for (name, shape) in shapes {
            for len in [5, 1500, 9001] {
                let weights: Vec<f32> = (0..len).map(|i| shape(i, even(i))).collect();
                let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
                let mut candidates = Vec::new();
                for top_p in [1e-6, 0.1, 0.5, 0.9, 0.999] {
                    let nucleus = nucleus(&AnyMachine, &weights, total, top_p, &mut candidates);
                    let want = kept(&weights, f64::from(top_p) * total);
                    assert!(found(&weights, nucleus, &candidates) == want, "{name}, {len}, {top_p}: {nucleus:?}");
                }
            }
        }
    }

    #[test]
    fn ranks_order_scores_of_both_signs_and_break_ties_by_id() {
        let scores = [f32::MAX, 3.5, 1e-40, 0.0, -0.0, -1e-40, -2.0, f32::MIN];
        let ranks: Vec<u64> =
            scores.iter().enumerate().map(|(id, score)| Candidate { score: *score, id: id as u32 }.rank()).collect();
        assert!(ranks.is_sorted_by(|a, b| a < b));
    }
}
