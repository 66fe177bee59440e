//! The ids of a sequence.

use std::ops::Range;
use std::sync::Arc;

/// Prompt and output of one sequence, counted from 0. Whoever schedules it and whoever computes it have one each and
/// append the same sampled ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    prompt: Arc<[u32]>,
    output: Vec<u32>,
}

impl Tokens {
    /// A prompt without output.
    #[must_use]
    pub fn new(prompt: Arc<[u32]>) -> Self {
        Self { prompt, output: Vec::new() }
    }

    /// The prompt; all choices of a request share it.
    #[must_use]
    pub fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// What has been sampled so far.
    #[must_use]
    pub fn output(&self) -> &[u32] {
        &self.output
    }

    /// Prompt and output together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.prompt.len() + self.output.len()
    }

    /// True without any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Append a sampled id.
    pub fn push(&mut self, token: u32) {
        self.output.push(token);
    }

    /// The ids of a range: those of the prompt, then those of the output.
    ///
    /// # Panics
    /// If it ends beyond the last one.
    #[must_use]
    pub fn slices(&self, range: Range<usize>) -> [&[u32]; 2] {
        let split = self.prompt.len();
        let prompt = &self.prompt[range.start.min(split)..range.end.min(split)];
        let output = &self.output[range.start.saturating_sub(split)..range.end.saturating_sub(split)];
        [prompt, output]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_the_same_wherever_the_prompt_ends() {
        let all = [1, 2, 3, 4];
        for split in 0..=all.len() {
            let mut tokens = Tokens::new(all[..split].into());
            all[split..].iter().for_each(|token| tokens.push(*token));
            assert_eq!(tokens.len(), all.len());
            for start in 0..=all.len() {
                for end in start..=all.len() {
                    assert_eq!(tokens.slices(start..end).concat(), all[start..end]);
                }
            }
        }
    }
}
