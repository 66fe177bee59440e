//! How many rows of prompts a step has room for, and how the prompts share them.
//!
//! - Whoever streams is not slowed down to less than half: what a row costs follows from what past steps have cost
//!   ([`StepCosts`]), which the engine tells as plain numbers, and a step takes no more rows of prompts beside its decodes
//!   than that allows. Where nobody streams yet, prompts have the whole step.
//! - A prompt never waits for a whole other prompt ([`PromptRows`]): in the order of their turns, each has at most half of
//!   the rows that are left while others come after it, so that a short one is soon done. What is dealt to prompts that
//!   wait is their party's: which of them starts is not known yet.
//!
//! Counts and divides; knows ids of sequences and parties and nothing else of them. Every answer follows from the calls
//! before it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fair_share::PartyId;
use crate::types::SequenceId;

/// How many times a decode step's time a step with prompts is planned to take, in percent: half as fast is promised,
/// and not every step takes what it should.
const LONGEST_PERCENT: f64 = 175.0;
/// Steps over which costs are averaged.
const MEMORY: f64 = 8.0;

/// What steps of a kind have taken of late.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mean {
    rows: f64,
    micros: f64,
}

impl Mean {
    fn add(mean: Option<Self>, rows: f64, micros: f64) -> Self {
        let Self { rows: old_rows, micros: old_micros } = mean.unwrap_or(Self { rows, micros });
        let towards = |old: f64, new: f64| old + (new - old) / MEMORY;
        Self { rows: towards(old_rows, rows), micros: towards(old_micros, micros) }
    }
}

/// What steps have cost: a fixed part and one for each row, the line through the means of the steps without and with
/// rows of prompts. Two means, as either kind may be all there is for a long time.
#[derive(Debug, Default)]
pub(super) struct StepCosts {
    decodes: Option<Mean>,
    prompts: Option<Mean>,
}

impl StepCosts {
    /// A step of so many rows took so long; `prompts` says whether rows of prompts were among them.
    pub(super) fn learn(&mut self, rows: usize, prompts: bool, took: Duration) {
        let mean = if prompts { &mut self.prompts } else { &mut self.decodes };
        *mean = Some(Mean::add(*mean, rows as f64, took.as_secs_f64() * 1e6));
    }

    /// Rows of prompts that a step may have beside `decodes` rows, at least 1. `None` where the cost of a row is not
    /// known: before there was a step of each kind, and while larger steps seem to take no longer.
    pub(super) fn rows_beside(&self, decodes: usize) -> Option<usize> {
        let (small, large) = (self.decodes?, self.prompts?);
        let each = (large.micros - small.micros) / (large.rows - small.rows);
        // Not finite where both means are of the same number of rows.
        if !each.is_finite() || each <= 0.0 {
            return None;
        }
        let fixed = (small.micros - each * small.rows).max(0.0);
        let rows = (fixed / each + decodes as f64) * (LONGEST_PERCENT / 100.0 - 1.0);
        Some((rows as usize).max(1))
    }
}

/// To whom rows are dealt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Taker {
    /// A prompt that runs, or the pages of an adapter.
    Running(SequenceId),
    /// What waits of a party.
    Waiting(PartyId),
}

/// Rows of prompts in a step that is being put together.
#[derive(Debug, Default)]
pub(super) struct PromptRows {
    dealt: BTreeMap<Taker, usize>,
    /// For whoever was dealt none, or wants more: nobody else wants them.
    spare: usize,
}

impl PromptRows {
    /// Deal `rows` to those who want so many each, in the order of their turns. A party that has several turns has all that
    /// was dealt to it.
    pub(super) fn deal(rows: usize, wanted: &[(Taker, usize)]) -> Self {
        let mut spare = rows;
        let mut parts = Vec::with_capacity(wanted.len());
        for (index, (_, want)) in wanted.iter().enumerate() {
            let most = if index + 1 < wanted.len() { spare.div_ceil(2) } else { spare };
            parts.push(most.min(*want));
            spare -= parts[index];
        }
        let mut dealt = BTreeMap::new();
        for ((taker, want), part) in wanted.iter().zip(parts) {
            // What those who came later did not want.
            let more = spare.min(want - part);
            spare -= more;
            *dealt.entry(*taker).or_default() += part + more;
        }
        Self { dealt, spare }
    }

    /// Rows for a prompt that wants `want` of them.
    pub(super) fn of(&self, taker: Taker, want: usize) -> usize {
        want.min(self.dealt.get(&taker).copied().unwrap_or(0) + self.spare)
    }

    /// Hand over what [`Self::of`] says.
    pub(super) fn take(&mut self, taker: Taker, want: usize) -> usize {
        let rows = self.of(taker, want);
        let mut spared = rows;
        if let Some(dealt) = self.dealt.get_mut(&taker) {
            spared -= rows.min(*dealt);
            *dealt -= rows.min(*dealt);
        }
        self.spare -= spared;
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const fn running(id: u64) -> Taker {
        Taker::Running(SequenceId(id))
    }

    #[test]
    fn rows_of_prompts_are_what_stretches_a_step_by_three_quarters() {
        let mut costs = StepCosts::default();
        assert_eq!(costs.rows_beside(1), None);
        costs.learn(1, false, millis(12));
        assert_eq!(costs.rows_beside(1), None, "no step with a prompt yet");
        // 10 ms, and 2 ms for each row.
        costs.learn(101, true, millis(212));
        assert_eq!(costs.rows_beside(1), Some(4), "three quarters of 12 ms are four rows");
        assert_eq!(costs.rows_beside(15), Some(15), "three quarters of 40 ms are fifteen");
    }

    #[test]
    fn costs_follow_the_steps_of_their_kind() {
        let mut costs = StepCosts::default();
        costs.learn(1, false, millis(12));
        for _ in 0..200 {
            costs.learn(101, true, millis(212));
            costs.learn(1, false, millis(113));
        }
        assert_eq!(costs.rows_beside(1), Some(85), "a step takes 112 ms, and a row hardly one");
        costs.learn(101, true, millis(1000));
        assert_eq!(costs.rows_beside(1), Some(42), "a step counts for an eighth");
    }

    #[test]
    fn costs_that_make_no_line_say_nothing() {
        let mut costs = StepCosts::default();
        costs.learn(8, false, millis(20));
        costs.learn(8, true, millis(30));
        assert_eq!(costs.rows_beside(8), None, "as many rows");
        let mut costs = StepCosts::default();
        costs.learn(8, false, millis(20));
        costs.learn(20, true, millis(20));
        assert_eq!(costs.rows_beside(8), None, "no row costs anything");
        let mut costs = StepCosts::default();
        costs.learn(8, false, millis(8));
        costs.learn(9, true, millis(18));
        assert_eq!(costs.rows_beside(1), Some(1), "the fixed part is not below 0, and a prompt moves");
    }

    #[test]
    fn rows_are_dealt_by_halves_and_what_is_left_goes_round() {
        let deal = |rows: usize, wanted: &[usize]| {
            let wanted: Vec<_> = wanted.iter().enumerate().map(|(id, want)| (running(id as u64), *want)).collect();
            let dealt = PromptRows::deal(rows, &wanted);
            wanted.iter().map(|(id, want)| dealt.of(*id, *want)).collect::<Vec<_>>()
        };
        assert_eq!(deal(8, &[30]), [8], "nobody else");
        assert_eq!(deal(8, &[30, 4]), [4, 4]);
        assert_eq!(deal(48, &[12, 12, 12, 500]), [12, 12, 12, 12], "short ones whole");
        assert_eq!(deal(48, &[500, 12, 12, 12]), [24, 12, 6, 6]);
        assert_eq!(deal(16, &[500, 2, 1]), [13, 2, 1], "what nobody wants");
        assert_eq!(deal(512, &[64; 8]), [64; 8]);
        assert_eq!(deal(1, &[9, 9]), [1, 0]);
    }

    #[test]
    fn what_is_spare_goes_to_whoever_asks_first() {
        let mut rows = PromptRows::deal(10, &[(running(1), 4)]);
        assert_eq!(rows.take(running(2), 5), 5);
        assert_eq!(rows.take(running(1), 3), 3, "its prefix was found");
        assert_eq!((rows.of(running(3), 9), rows.take(running(3), 9)), (1, 1));
        assert_eq!(rows.take(running(4), 9), 0);
        assert_eq!(PromptRows::default().of(running(1), 1), 0);
    }
}
