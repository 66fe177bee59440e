//! Logits adjusted by bias, penalties and bans.

use crate::types::{SampleSpec, SamplingParams, TokenCounts};

/// Scratch for one row of adjusted scores.
#[derive(Debug, Default)]
pub(super) struct Scores {
    values: Vec<f32>,
}

/// True where the scores of a row are its logits as they are.
pub(super) fn is_untouched(spec: &SampleSpec) -> bool {
    spec.params.logit_bias.is_empty()
        && spec.banned.is_empty()
        && (spec.counts.is_none() || !spec.params.needs_counts())
}

impl Scores {
    pub(super) fn new(vocab_size: usize) -> Self {
        Self { values: Vec::with_capacity(vocab_size) }
    }

    /// The logits with bias, penalties and bans applied. A banned id scores −Inf, every other score is finite.
    pub(super) fn apply(&mut self, logits: &[f32], spec: &SampleSpec) -> &[f32] {
        self.values.clear();
        self.values.extend_from_slice(logits);
        for (&id, bias) in &spec.params.logit_bias {
            if let Some(score) = self.values.get_mut(id as usize) {
                *score = finite(*score + bias);
            }
        }
        if let Some(counts) = spec.counts.as_ref().filter(|_| spec.params.needs_counts()) {
            self.penalize(counts, &spec.params);
        }
        for &id in &spec.banned {
            if let Some(score) = self.values.get_mut(id as usize) {
                *score = f32::NEG_INFINITY;
            }
        }
        &self.values
    }

    fn penalize(&mut self, counts: &TokenCounts, params: &SamplingParams) {
        for (id, occurrences) in counts.iter() {
            if let Some(score) = self.values.get_mut(id as usize) {
                *score = penalized(*score, occurrences, params);
            }
        }
    }
}

/// One seen token's score. Repetition as transformers' `RepetitionPenaltyLogitsProcessor` (CTRL, arXiv:1909.05858),
/// frequency and presence as in OpenAI's API reference.
fn penalized(score: f32, occurrences: u32, params: &SamplingParams) -> f32 {
    let repeated = if score < 0.0 { score * params.repetition_penalty } else { score / params.repetition_penalty };
    let presence = if occurrences > 0 { params.presence_penalty } else { 0.0 };
    finite(finite(repeated) - occurrences as f32 * params.frequency_penalty - presence)
}

/// Extreme parameters may overflow; such a score stays comparable. (0/0 cannot occur: penalties are > 0.)
fn finite(score: f32) -> f32 {
    if score.is_nan() { f32::MIN } else { score.clamp(f32::MIN, f32::MAX) }
}
