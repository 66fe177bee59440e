//! Texts that are being read as whoever asked sees them: vectors of the engine in, logits or embeddings out.

use std::time::Duration;

use super::generation::{Generation, GenerationError, GenerationEvent, GenerationInfo, Timings};
use crate::types::pool::{EmbedOptions, PoolWanted, Pooling};
use crate::types::{PooledVector, Usage};

/// One text in the engine. Dropped before its end, it ends the request.
pub(super) struct Reader {
    generation: Generation,
    tokens: usize,
}

impl Reader {
    pub(super) fn new(generation: Generation, tokens: usize) -> Self {
        Self { generation, tokens }
    }
}

/// Admitted texts. Dropping it aborts those that are still read.
pub struct Reading {
    info: GenerationInfo,
    readers: Vec<Reader>,
    wanted: PoolWanted,
}

/// What became of texts.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolAnswer {
    /// In the order of the texts.
    pub texts: Vec<PooledText>,
    /// Token counts of all.
    pub usage: Usage,
    /// From the arrival of the request to the last text's end; each part of the text that took longest in it.
    pub timings: Timings,
}

/// What became of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct PooledText {
    /// One vector of the text, or one of each of its tokens.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of the text.
    pub tokens: u32,
}

impl Reading {
    pub(super) fn new(info: GenerationInfo, readers: Vec<Reader>, wanted: PoolWanted) -> Self {
        Self { info, readers, wanted }
    }

    /// What is known of them.
    #[must_use]
    pub fn info(&self) -> &GenerationInfo {
        &self.info
    }

    /// Wait for all texts.
    ///
    /// # Errors
    /// One of them failed; the others are ended.
    pub async fn finish(self) -> Result<PoolAnswer, GenerationError> {
        let Self { info: _, readers, wanted } = self;
        let mut answer = PoolAnswer { texts: Vec::new(), usage: Usage::default(), timings: Timings::default() };
        // The engine reads them side by side, whichever is waited for.
        for Reader { mut generation, tokens } in readers {
            let mut vectors: Vec<PooledVector> = Vec::new();
            while let Some(event) = generation.next().await {
                match event? {
                    GenerationEvent::Pooled(more) => vectors.extend(more),
                    GenerationEvent::Finished { usage, timings, receipt: _ } => answer.count(usage, timings),
                    GenerationEvent::PromptLogprob(_) | GenerationEvent::Delta(_) => {}
                }
            }
            let vectors = vectors.iter().map(|vector| finished(vector, &wanted, tokens)).collect();
            answer.texts.push(PooledText { vectors, tokens: u32::try_from(tokens).unwrap_or(u32::MAX) });
        }
        Ok(answer)
    }
}

impl PoolAnswer {
    fn count(&mut self, usage: Usage, timings: Timings) {
        self.usage.prompt_tokens = self.usage.prompt_tokens.saturating_add(usage.prompt_tokens);
        self.usage.cached_tokens = self.usage.cached_tokens.saturating_add(usage.cached_tokens);
        let later = |a: &mut Duration, b: Duration| *a = (*a).max(b);
        later(&mut self.timings.queue, timings.queue);
        later(&mut self.timings.prefill, timings.prefill);
        later(&mut self.timings.total, timings.total);
    }
}

/// What is answered of a vector as it came from the engine.
fn finished(vector: &[f32], wanted: &PoolWanted, tokens: usize) -> Vec<f32> {
    match wanted {
        PoolWanted::Scores => vector.to_vec(),
        PoolWanted::Embeddings(options) => embedding(vector, options, tokens),
    }
}

/// The mean where a sum came, then the first `dimensions` numbers, then divided by their length: as sentence-transformers has
/// it, which normalises what is left of an embedding that was cut.
fn embedding(vector: &[f32], options: &EmbedOptions, tokens: usize) -> Vec<f32> {
    let EmbedOptions { pooling, normalize, dimensions } = *options;
    let mut numbers = vector[..dimensions.map_or(vector.len(), |dimensions| dimensions as usize)].to_vec();
    if pooling == Pooling::Mean {
        numbers.iter_mut().for_each(|number| *number /= tokens as f32);
    }
    if normalize {
        let squares: f64 = numbers.iter().map(|number| f64::from(*number).powi(2)).sum();
        // As torch's `normalize`: a vector of zeros stays one.
        let length = squares.sqrt().max(1e-12);
        numbers.iter_mut().for_each(|number| *number = (f64::from(*number) / length) as f32);
    }
    numbers
}

/// The probabilities of labels by their logits: softmax. Of one label, of which softmax says nothing, the logistic function.
#[must_use]
pub fn probabilities(logits: &[f32]) -> Vec<f32> {
    if let [logit] = *logits {
        return vec![(1.0 / (1.0 + (-f64::from(logit)).exp())) as f32];
    }
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|logit| (f64::from(*logit) - f64::from(most)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| (weight / sum) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pooling: Pooling, normalize: bool, dimensions: Option<u32>) -> EmbedOptions {
        EmbedOptions { pooling, normalize, dimensions }
    }

    #[test]
    fn a_sum_becomes_the_mean_and_an_embedding_is_cut_before_it_is_normalised() {
        let vector = [6.0, 8.0, 100.0];
        assert_eq!(embedding(&vector, &options(Pooling::Last, false, None), 2), vector);
        assert_eq!(embedding(&vector, &options(Pooling::Mean, false, None), 2), [3.0, 4.0, 50.0]);
        assert_eq!(embedding(&vector, &options(Pooling::Mean, true, Some(2)), 2), [0.6, 0.8]);
        assert_eq!(embedding(&[0.0; 3], &options(Pooling::First, true, None), 1), [0.0; 3]);
    }

    #[test]
    fn probabilities_are_softmax_and_of_one_label_the_logistic_function() {
        assert_eq!(probabilities(&[0.0, 0.0]), [0.5, 0.5]);
        assert_eq!(probabilities(&[0.0]), [0.5]);
        assert_eq!(probabilities(&[1e30, 0.0, -1e30]), [1.0, 0.0, 0.0]);
        let found = probabilities(&[1.0, 2.0, 3.0]);
        assert!((found.iter().sum::<f32>() - 1.0).abs() < 1e-6 && (found[2] - 0.665_240_9).abs() < 1e-6, "{found:?}");
    }
}
