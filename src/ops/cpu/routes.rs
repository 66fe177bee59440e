//! Which rows of a step chose which experts, and the memory of what is computed for them.
//!
//! A row and an expert that it chose are a *pair*. Pairs lie by expert, so that each expert's weights are read once for
//! all rows that chose it. The memory is for the most rows of a step and never grows.

use std::ops::Range;

use super::gemm::InputForm;
use super::isa::{Arithmetic, dispatched};
use super::math;
use super::memory::filled;
use crate::ops::{ExpertsSpec, OpsError};

/// Pairs that are computed at a time, unless one expert has more: what lies in between stays within a few caches, and
/// experts of few rows come together in one parallel region.
const PAIRS_AT_ONCE: usize = 1024;

/// An expert that a row chose.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Choice {
    pub(super) expert: u32,
    /// Of its output in the row's sum; its logit until all are chosen.
    pub(super) weight: f32,
    /// Which pair it is.
    pub(super) pair: u32,
}

/// Panels of one expert's weight.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) expert: usize,
    pub(super) panels: Range<usize>,
}

/// What the op keeps between its parallel regions.
#[derive(Debug, Default)]
pub struct ExpertsWork {
    /// `experts_per_token` of each row, ascending.
    pub(super) choices: Vec<Choice>,
    /// Row of each pair; rows of an expert ascend.
    pub(super) pairs: Vec<u32>,
    /// First pair of each expert, and how many pairs there are.
    pub(super) firsts: Vec<u32>,
    pub(super) tasks: Vec<Task>,
    /// gate x and up x of the pairs at hand.
    pub(super) inner: Vec<f32>,
    /// Inputs of down.
    pub(super) words: Vec<u32>,
    /// What experts give, not weighted yet.
    pub(super) outputs: Vec<f32>,
    at_once: usize,
}

impl ExpertsWork {
    pub(super) fn new(rows: usize, hidden: usize, spec: &ExpertsSpec, form: InputForm) -> Result<Self, OpsError> {
        const WHAT: &str = "room for experts";
        let pairs = rows.saturating_mul(spec.experts_per_token);
        let at_once = pairs.min(PAIRS_AT_ONCE).max(rows);
        Ok(Self {
            choices: filled(WHAT, pairs, Choice::default())?,
            pairs: filled(WHAT, pairs, 0)?,
            firsts: filled(WHAT, spec.experts + 2, 0)?,
            tasks: Vec::new(),
            inner: filled(WHAT, at_once.saturating_mul(2 * spec.intermediate_size), 0.0)?,
            words: filled(WHAT, at_once.saturating_mul(form.stride(spec.intermediate_size)), 0)?,
            outputs: filled(WHAT, at_once.saturating_mul(hidden), 0.0)?,
            at_once,
        })
    }

    /// Put the pairs of `choices` in order.
    pub(super) fn group(&mut self, rows: usize, spec: &ExpertsSpec) {
        let Self { choices, pairs, firsts, .. } = self;
        let choices = &mut choices[..rows * spec.experts_per_token];
        firsts.fill(0);
        // Counted two places on: once summed, each expert's own place is where its next pair goes, and ends as the first
        // of the next expert.
        choices.iter().for_each(|choice| firsts[choice.expert as usize + 2] += 1);
        let mut sum = 0;
        for first in firsts.iter_mut() {
            sum += *first;
            *first = sum;
        }
        for (row, choices) in choices.chunks_exact_mut(spec.experts_per_token).enumerate() {
            for choice in choices {
                let next = &mut firsts[choice.expert as usize + 1];
                choice.pair = *next;
                pairs[*next as usize] = row as u32;
                *next += 1;
            }
        }
    }

    /// Pairs of some experts.
    pub(super) fn pairs_of(&self, experts: Range<usize>) -> Range<usize> {
        self.firsts[experts.start] as usize..self.firsts[experts.end] as usize
    }

    /// Experts from `first` on whose pairs fit into the memory together; at least one.
    pub(super) fn fitting(&self, first: usize, spec: &ExpertsSpec) -> Range<usize> {
        let fits = |end: &usize| self.pairs_of(first..*end).len() <= self.at_once;
        first..(first + 1..=spec.experts).take_while(fits).last().unwrap_or(first + 1)
    }
}

dispatched! {
    /// A row's experts and their weights: see [`Backend::experts`](crate::ops::Backend::experts).
    fn choose(logits: &[f32], renormalise: bool, choices: &mut [Choice]) = choose_row
}

#[inline(always)]
fn choose_row<A: Arithmetic>(logits: &[f32], renormalise: bool, choices: &mut [Choice]) {
    let mut count = 0;
    for (expert, logit) in logits.iter().enumerate() {
        // No number is higher than none and none is higher than a number, so every place is filled whatever they are.
        let place = choices[..count].iter().position(|choice| *logit > choice.weight).unwrap_or(count);
        if place < choices.len() {
            count = choices.len().min(count + 1);
            choices[place..count].rotate_right(1);
            choices[place] = Choice { expert: expert as u32, weight: *logit, pair: 0 };
        }
    }
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|logit| math::exp::<A>(logit - max)).sum();
    choices.iter_mut().for_each(|choice| choice.weight = math::exp::<A>(choice.weight - max) / sum);
    if renormalise {
        let total: f32 = choices.iter().map(|choice| choice.weight).sum();
        choices.iter_mut().for_each(|choice| choice.weight /= total);
    }
    choices.sort_unstable_by_key(|choice| choice.expert);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Activation;

    fn spec(experts: usize, experts_per_token: usize) -> ExpertsSpec {
        let activation = Activation::Silu;
        ExpertsSpec { experts, experts_per_token, intermediate_size: 3, activation, renormalise: true }
    }

    fn chosen(logits: &[f32], count: usize) -> Vec<u32> {
        let mut choices = vec![Choice::default(); count];
        choose_row::<crate::ops::cpu::isa::Plain>(logits, true, &mut choices);
        choices.iter().map(|choice| choice.expert).collect()
    }

    #[test]
    fn of_equal_logits_the_lower_index_is_chosen_first() {
        assert_eq!(chosen(&[1.0, 2.0, 2.0, 2.0], 2), [1, 2]);
        assert_eq!(chosen(&[0.0, -0.0, 0.0], 2), [0, 1]);
        assert_eq!(chosen(&[3.0, 1.0, 4.0, 1.0, 5.0], 3), [0, 2, 4]);
        assert_eq!(chosen(&[1.0, 0.0, 1.0], 3), [0, 1, 2]);
    }

    #[test]
    fn rows_of_no_numbers_choose_as_many_other_experts_as_any() {
        for logits in [[f32::NAN; 4], [f32::INFINITY; 4], [1.0, f32::NAN, 7.0, f32::NEG_INFINITY]] {
            let found = chosen(&logits, 3);
            assert!(found.is_sorted_by(|a, b| a < b) && found.len() == 3, "{found:?}");
        }
    }

    #[test]
    fn pairs_lie_by_expert_and_every_choice_knows_its_own() {
        let spec = spec(5, 2);
        let mut work = ExpertsWork::new(4, 7, &spec, InputForm::Exact).unwrap();
        for (choice, expert) in work.choices.iter_mut().zip([1, 4, 0, 1, 1, 3]) {
            choice.expert = expert;
        }
        work.group(3, &spec);
        assert_eq!(work.pairs[..6], [1, 0, 1, 2, 2, 0]);
        assert_eq!(work.choices[..6].iter().map(|choice| choice.pair).collect::<Vec<_>>(), [1, 5, 0, 2, 3, 4]);
        let of_each: Vec<_> = (0..5).map(|expert| work.pairs_of(expert..expert + 1)).collect();
        assert_eq!(of_each, [0..1, 1..4, 4..4, 4..5, 5..6]);
        assert_eq!(work.fitting(0, &spec), 0..5);
        work.at_once = 3;
        assert_eq!((work.fitting(0, &spec), work.fitting(1, &spec), work.fitting(3, &spec)), (0..1, 1..3, 3..5));
        work.at_once = 1;
        assert_eq!(work.fitting(1, &spec), 1..2);
    }
}
