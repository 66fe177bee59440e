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
//! Log-probabilities are those of the model: log-softmax of the logits before step 1. Those of a prompt's tokens are the
//! same function of a row as those of chosen ones, so that scoring a text gives the bits that generating it gave.
//!
//! This room must not know of sequences, adapters, text or batches.

mod exp;
mod pass;
mod philox;
mod scores;
mod select;
mod softmax;
#[cfg(test)]
mod tests;

use crate::types::{Output, SampleSpec, SampledToken, SequenceFailure, TokenLogprob};

pub(crate) use pass::{AnyMachine, Pass, Simd};

use scores::Scores;
use select::{Candidate, Nucleus};
use softmax::Weights;

/// The draw of one token, in [0, 1): a pure function of where the token stands.
#[must_use]
pub(crate) fn uniform(spec: &SampleSpec) -> f64 {
    philox::uniform(spec.params.seed, spec.choice, spec.output_position)
}

/// Chooses tokens. Holds scratch memory for one vocabulary and is reused for every row; it carries nothing over from
/// one call to the next.
#[derive(Debug)]
pub(crate) struct Sampler {
    scores: Scores,
    weights: Weights,
    candidates: Vec<Candidate>,
    alternatives: Vec<Candidate>,
}

impl Sampler {
    /// Scratch for rows of `vocab_size` logits. Longer rows work too: the scratch grows once.
    #[must_use]
    pub(crate) fn new(vocab_size: usize) -> Self {
        Self {
            scores: Scores::new(vocab_size),
            weights: Weights::new(vocab_size),
            candidates: Vec::new(),
            alternatives: Vec::new(),
        }
    }

    /// What is wanted of `logits` `[vocab_size]`: [`Self::sample`] or [`Self::score`].
    ///
    /// # Errors
    /// Theirs.
    pub(crate) fn output(
        &mut self,
        simd: &impl Simd,
        logits: &[f32],
        output: &Output,
    ) -> Result<SampledToken, SequenceFailure> {
        match output {
            Output::Sample(spec) => self.sample(simd, logits, spec),
            Output::PromptLogprobs { target, top } => {
                let logprob = self.score(simd, logits, *target, *top)?;
                Ok(SampledToken { token: *target, logprob: Some(logprob) })
            }
        }
    }

    /// The log-probability of `target`, a known token, and of the `top` most likely ones, from `logits` `[vocab_size]`: to
    /// the bit what [`Self::sample`] reports where it chooses that token.
    ///
    /// # Errors
    /// [`SequenceFailure::NonFinite`] where any logit is NaN or infinite.
    pub(crate) fn score(
        &mut self,
        simd: &impl Simd,
        logits: &[f32],
        target: u32,
        top: u32,
    ) -> Result<TokenLogprob, SequenceFailure> {
        let raw = select::argmax(simd, logits).ok_or(SequenceFailure::NonFinite)?;
        Ok(self.logprob(simd, logits, raw.score, target, top))
    }

    /// Choose the next token of one sequence from `logits` `[vocab_size]`, the model's raw output for its last row.
    /// `simd` runs the passes over the row; the result does not depend on it.
    ///
    /// # Errors
    /// [`SequenceFailure::NonFinite`] where any logit is NaN or infinite. Minus infinity counts: the decoder masks
    /// no logit, so it can only be an overflow. The same error is given where `logits` is empty or every id is
    /// banned, since no finite score is left then.
    pub(crate) fn sample(
        &mut self,
        simd: &impl Simd,
        logits: &[f32],
        spec: &SampleSpec,
    ) -> Result<SampledToken, SequenceFailure> {
        let raw = select::argmax(simd, logits).ok_or(SequenceFailure::NonFinite)?;
        let token = if scores::is_untouched(spec) {
            self.choose(simd, logits, raw, spec)
        } else {
            let mut adjusted = std::mem::take(&mut self.scores);
            let scores = adjusted.apply(logits, spec);
            let chosen = select::argmax_of_scores(simd, scores).map(|best| self.choose(simd, scores, best, spec));
            self.scores = adjusted;
            chosen.ok_or(SequenceFailure::NonFinite)?
        };
        let logprob = spec.params.logprobs.map(|top| self.logprob(simd, logits, raw.score, token, top));
        Ok(SampledToken { token, logprob })
    }

    /// Steps 4 to 6 over adjusted scores; `best` is their argmax, its score finite, the others finite or −Inf.
    fn choose(&mut self, simd: &impl Simd, scores: &[f32], best: Candidate, spec: &SampleSpec) -> u32 {
        let params = &*spec.params;
        if params.temperature == 0.0 || params.top_k == 1 {
            return best.id;
        }
        let uniform = uniform(spec);
        let limit = usize::try_from(params.top_k).unwrap_or(usize::MAX);
        if limit > 0 && limit < scores.len() {
            select::top_k(simd, scores, limit, &mut self.candidates);
            softmax::weights_of(&mut self.candidates, best.score, params.temperature);
            return self.draw_from_candidates(self.reach_top_p(params.top_p), params.min_p, uniform);
        }
        let mut total = self.weights.weigh(simd, scores, best.score, params.temperature);
        if params.top_p < 1.0 {
            let weights = &self.weights.values;
            match select::nucleus(simd, weights, total, params.top_p, &mut self.candidates) {
                Nucleus::Few(kept) => return self.draw_from_candidates(kept, params.min_p, uniform),
                Nucleus::Many { least, .. } if least < params.min_p => {
                    total = self.weights.restrict(simd, params.min_p, 0);
                }
                Nucleus::Many { least, left_out } => total = self.weights.restrict(simd, least, left_out),
            }
        } else if params.min_p > 0.0 {
            total = self.weights.restrict(simd, params.min_p, 0);
        }
        self.weights.draw(total, uniform).unwrap_or(best.id)
    }

    /// How many of the candidates, whose scores are weights, top-p keeps.
    fn reach_top_p(&self, top_p: f32) -> usize {
        let total: f64 = self.candidates.iter().map(|candidate| f64::from(candidate.score)).sum();
        let goal = if top_p < 1.0 { f64::from(top_p) * total } else { f64::INFINITY };
        select::reach(&self.candidates, 0.0, goal).unwrap_or(self.candidates.len())
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
    fn logprob(&mut self, simd: &impl Simd, logits: &[f32], max: f32, token: u32, top: u32) -> TokenLogprob {
        let log_sum = softmax::log_sum_exp(simd, logits, max);
        let of = |logit: f32| (f64::from(logit) - log_sum) as f32;
        let top = usize::try_from(top).unwrap_or(usize::MAX).min(logits.len());
        select::top_k(simd, logits, top, &mut self.alternatives);
        TokenLogprob {
            logprob: logits.get(token as usize).copied().map_or(f32::NEG_INFINITY, of),
            top: self.alternatives.iter().map(|candidate| (candidate.id, of(candidate.score))).collect(),
        }
    }
}
