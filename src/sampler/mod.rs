//! Logits to tokens: bias, penalties, filters, counter-based draws, log-probabilities.
//!
//! A choice is a function of one row of logits and its [`SampleSpec`] and of nothing else: no state survives a call
//! (the [`Sampler`] holds scratch memory only), the random number is f(seed, choice, output position), sums run in one
//! fixed order, and every tie goes to the lower id. So the same request gets the same tokens alone, in any batch,
//! after a preemption and after a restart.
//!
//! Order of application, as vLLM and transformers have it:
//!
//! 1. logit bias (added);
//! 2. penalties: repetition over prompt and output (transformers), then frequency and presence over the output (OpenAI);
//! 3. banned ids (`min_tokens` not reached yet);
//! 4. temperature; 0 means: take the largest, and stop here;
//! 5. top-k, then top-p over what top-k left (renormalized), then min-p relative to the most likely token;
//! 6. one draw by inverse CDF over the kept tokens in ascending id order.
//!
//! Log-probabilities are those of the model: log-softmax of the logits before step 1.
//!
//! This room must not know of sequences, adapters, text or batches.

mod philox;
mod scores;
mod select;
mod softmax;
#[cfg(test)]
mod tests;

use crate::types::{SampleSpec, SampledToken, SamplingParams, SequenceFailure, TokenLogprob};

use scores::Scores;
use select::Candidate;

/// Chooses tokens. Holds scratch memory for one vocabulary and is reused for every row; it carries nothing over from
/// one call to the next.
#[derive(Debug)]
pub struct Sampler {
    scores: Scores,
    weights: Vec<f32>,
    block_sums: Vec<f64>,
    candidates: Vec<Candidate>,
    alternatives: Vec<Candidate>,
}

impl Sampler {
    /// Scratch for rows of `vocab_size` logits. Longer rows work too: the scratch grows once.
    #[must_use]
    pub fn new(vocab_size: usize) -> Self {
        Self {
            scores: Scores::new(vocab_size),
            weights: Vec::with_capacity(vocab_size),
            block_sums: Vec::with_capacity(vocab_size.div_ceil(softmax::BLOCK)),
            candidates: Vec::new(),
            alternatives: Vec::new(),
        }
    }

    /// Choose the next token of one sequence from `logits` `[vocab_size]`, the model's raw output for its last row.
    ///
    /// # Errors
    /// [`SequenceFailure::NonFinite`] where any logit is NaN or infinite. Minus infinity counts: the decoder masks
    /// no logit, so it can only be an overflow. The same error is given where `logits` is empty or every id is
    /// banned, since no finite score is left then.
    pub fn sample(&mut self, logits: &[f32], spec: &SampleSpec) -> Result<SampledToken, SequenceFailure> {
        let raw = select::argmax(logits).ok_or(SequenceFailure::NonFinite)?;
        let token = if scores::is_untouched(spec) {
            self.choose(logits, raw, spec)
        } else {
            let mut adjusted = std::mem::take(&mut self.scores);
            let scores = adjusted.apply(logits, spec);
            let chosen = select::argmax_of_scores(scores).map(|best| self.choose(scores, best, spec));
            self.scores = adjusted;
            chosen.ok_or(SequenceFailure::NonFinite)?
        };
        let logprob = spec.params.logprobs.map(|top| self.logprob(logits, raw.score, token, top));
        Ok(SampledToken { token, logprob })
    }

    /// Steps 4 to 6 over adjusted scores; `best` is their argmax, its score finite, the others finite or −Inf.
    fn choose(&mut self, scores: &[f32], best: Candidate, spec: &SampleSpec) -> u32 {
        let params = &*spec.params;
        if params.temperature == 0.0 || params.top_k == 1 {
            return best.id;
        }
        let uniform = philox::uniform(params.seed, spec.choice, spec.output_position);
        let limit = usize::try_from(params.top_k).unwrap_or(usize::MAX);
        if limit > 0 && limit < scores.len() {
            select::top_k(scores, limit, &mut self.candidates);
            softmax::weights_of(&mut self.candidates, best.score, params.temperature);
            let total = self.candidates.iter().map(|candidate| f64::from(candidate.score)).sum();
            let kept = nucleus(&self.candidates, total, params.top_p).unwrap_or(self.candidates.len());
            return self.draw_from_candidates(kept, params.min_p, uniform);
        }
        let total = softmax::weights(scores, best.score, params.temperature, &mut self.weights, &mut self.block_sums);
        if params.top_p < 1.0 {
            let kept = self.grow_nucleus(total, params);
            return self.draw_from_candidates(kept, params.min_p, uniform);
        }
        if params.min_p > 0.0 {
            let kept = softmax::drop_below(&mut self.weights, &mut self.block_sums, params.min_p);
            return softmax::draw(&self.weights, &self.block_sums, kept, uniform).unwrap_or(best.id);
        }
        softmax::draw(&self.weights, &self.block_sums, total, uniform).unwrap_or(best.id)
    }

    /// Fill `candidates` with the most likely tokens, as many as top-p may need, and return how many it keeps. The
    /// nucleus is small for nearly every row, so a few candidates are tried before many.
    fn grow_nucleus(&mut self, total: f64, params: &SamplingParams) -> usize {
        let mut count = 256;
        loop {
            select::top_k(&self.weights, count, &mut self.candidates);
            if let Some(kept) = nucleus(&self.candidates, total, params.top_p) {
                return kept;
            }
            if count >= self.weights.len() {
                return self.candidates.len();
            }
            count = count.saturating_mul(16);
        }
    }

    /// Draw from the first `kept` candidates, whose scores are weights relative to the best one, best first.
    fn draw_from_candidates(&mut self, kept: usize, min_p: f32, uniform: f64) -> u32 {
        self.candidates.truncate(kept.max(1));
        let likely = self.candidates.iter().take_while(|candidate| candidate.score >= min_p).count();
        self.candidates.truncate(likely.max(1));
        self.candidates.sort_unstable_by_key(|candidate| candidate.id);
        let total: f64 = self.candidates.iter().map(|candidate| f64::from(candidate.score)).sum();
        let mut left = uniform * total;
        for candidate in &self.candidates {
            left -= f64::from(candidate.score);
            if left < 0.0 {
                return candidate.id;
            }
        }
        // Rounding may leave a hair of the total uncovered: it belongs to the last token that can be drawn at all.
        let last = self.candidates.iter().rev().find(|candidate| candidate.score > 0.0);
        last.or(self.candidates.first()).map_or(0, |candidate| candidate.id)
    }

    /// The model's own log-probability of `token` and of its `top` best alternatives.
    fn logprob(&mut self, logits: &[f32], max: f32, token: u32, top: u32) -> TokenLogprob {
        let log_sum = softmax::log_sum_exp(logits, max);
        let of = |logit: f32| (f64::from(logit) - log_sum) as f32;
        let top = usize::try_from(top).unwrap_or(usize::MAX).min(logits.len());
        select::top_k(logits, top, &mut self.alternatives);
        TokenLogprob {
            logprob: logits.get(token as usize).copied().map_or(f32::NEG_INFINITY, of),
            top: self.alternatives.iter().map(|candidate| (candidate.id, of(candidate.score))).collect(),
        }
    }
}

/// How many of the candidates (weights, best first) make the smallest set that holds `top_p` of `total`; `None` where
/// all of them together hold less or `top_p` is 1.
fn nucleus(candidates: &[Candidate], total: f64, top_p: f32) -> Option<usize> {
    if top_p >= 1.0 {
        return None;
    }
    let goal = f64::from(top_p) * total;
    let mut sum = 0.0;
    candidates
        .iter()
        .position(|candidate| {
            sum += f64::from(candidate.score);
            sum >= goal
        })
        .map(|index| index + 1)
}
