//! Checks of single values whose problems are told all at once.

use std::time::Duration;

use super::problem::{ConfigProblem, ConfigProblems};

/// Collects problems while values pass through.
#[derive(Debug, Default)]
pub(super) struct Checks {
    problems: Vec<ConfigProblem>,
}

impl Checks {
    pub(super) fn report(&mut self, problem: ConfigProblem) {
        self.problems.push(problem);
    }

    pub(super) fn range(&mut self, flag: &'static str, value: u64, min: u64, max: u64) {
        if !(min..=max).contains(&value) {
            self.report(ConfigProblem::OutOfRange { flag, value, min, max });
        }
    }

    pub(super) fn count(&mut self, flag: &'static str, value: u32, min: u32, max: u32) -> u32 {
        self.range(flag, u64::from(value), u64::from(min), u64::from(max));
        value
    }

    /// Milliseconds are what a problem reports.
    pub(super) fn duration(&mut self, flag: &'static str, value: Duration, max: Duration) -> Duration {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.range(flag, millis(value), 1, millis(max));
        value
    }

    pub(super) fn done<T>(self, value: T) -> Result<T, ConfigProblems> {
        if self.problems.is_empty() { Ok(value) } else { Err(ConfigProblems(self.problems)) }
    }
}
