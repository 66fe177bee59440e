//! Seconds of calls that take turns, and medians.

use std::time::Instant;

use crate::support::Failure;

/// Calls before any is timed: what allocates, what is recorded, and what is the first to be replayed.
const WARM_UP: usize = 3;

/// Median seconds of each of `count` calls, which are made in turn, `rounds` times.
pub(super) fn medians(
    count: usize,
    rounds: usize,
    mut call: impl FnMut(usize) -> Result<(), Failure>,
) -> Result<Vec<f64>, Failure> {
    let mut times = vec![Vec::with_capacity(rounds); count];
    for round in 0..WARM_UP + rounds {
        for (index, times) in times.iter_mut().enumerate() {
            let began = Instant::now();
            call(index)?;
            if round >= WARM_UP {
                times.push(began.elapsed().as_secs_f64());
            }
        }
    }
    Ok(times.into_iter().map(median).collect())
}

/// The middle one.
pub(super) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
