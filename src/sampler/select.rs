//! The largest and the k largest of a row, without sorting it.

use std::cmp::Ordering;

/// A token and its score (or weight).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) score: f32,
    pub(super) id: u32,
}

/// Better first: the larger score, at equal scores the lower id.
fn by_rank(left: &Candidate, right: &Candidate) -> Ordering {
    // IEEE comparison first, so that −0 and +0 tie; no score here is NaN.
    right.score.partial_cmp(&left.score).unwrap_or(Ordering::Equal).then(left.id.cmp(&right.id))
}

const LANES: usize = 16;
const CHUNK: usize = 64 * LANES;
const EXPONENT: u32 = 0x7f80_0000;

/// The largest logit, the lower id where several are equal; `None` where the row is empty or any logit is not finite.
/// One pass: lane-wise maximum and finiteness of a chunk, which is looked at again only where it holds a new best.
pub(super) fn argmax(logits: &[f32]) -> Option<Candidate> {
    let mut best: Option<Candidate> = None;
    for (index, chunk) in logits.chunks(CHUNK).enumerate() {
        let (max, finite) = max_and_finite(chunk);
        if !finite {
            return None;
        }
        if best.is_none_or(|best| max > best.score) {
            let offset = chunk.iter().position(|&logit| logit == max)?;
            best = Some(Candidate { score: max, id: (index * CHUNK + offset) as u32 });
        }
    }
    best
}

fn max_and_finite(chunk: &[f32]) -> (f32, bool) {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut finite = [true; LANES];
    let (rows, rest) = chunk.as_chunks::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            max[lane] = if row[lane] > max[lane] { row[lane] } else { max[lane] };
            finite[lane] &= row[lane].to_bits() & EXPONENT != EXPONENT;
        }
    }
    for (lane, &logit) in rest.iter().enumerate() {
        max[lane] = if logit > max[lane] { logit } else { max[lane] };
        finite[lane] &= logit.to_bits() & EXPONENT != EXPONENT;
    }
    let max = max.into_iter().fold(f32::NEG_INFINITY, |max, lane| if lane > max { lane } else { max });
    (max, finite.into_iter().all(|finite| finite))
}

/// The largest of scores some of which may be −Inf (banned); `None` where all of them are.
pub(super) fn argmax_of_scores(scores: &[f32]) -> Option<Candidate> {
    let mut best = Candidate { score: f32::NEG_INFINITY, id: 0 };
    for (id, &score) in scores.iter().enumerate() {
        if score > best.score {
            best = Candidate { score, id: id as u32 };
        }
    }
    (best.score > f32::NEG_INFINITY).then_some(best)
}

/// The `k` best of `scores` into `best`, best first; fewer where fewer are above −Inf. One pass over the row with a
/// buffer of 2k: whatever does not beat the k-th best so far is skipped.
pub(super) fn top_k(scores: &[f32], k: usize, best: &mut Vec<Candidate>) {
    best.clear();
    if k == 0 {
        return;
    }
    let k = k.min(scores.len());
    let capacity = 2 * k.max(LANES);
    best.reserve(capacity);
    // Ids ascend, so a later score equal to the k-th best loses its tie: strictly greater is what enters.
    let mut floor = f32::NEG_INFINITY;
    for (index, chunk) in scores.chunks(LANES).enumerate() {
        if !chunk.iter().fold(false, |any, &score| any | (score > floor)) {
            continue;
        }
        for (offset, &score) in chunk.iter().enumerate() {
            if score > floor {
                best.push(Candidate { score, id: (index * LANES + offset) as u32 });
            }
        }
        if best.len() + LANES > capacity {
            best.select_nth_unstable_by(k - 1, by_rank);
            best.truncate(k);
            floor = best[k - 1].score;
        }
    }
    best.sort_unstable_by(by_rank);
    best.truncate(k);
}
