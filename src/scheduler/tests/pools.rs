//! Prompts whose hidden states are read: which rows of a step, sums over chunks, the prefix index, pauses, failures.

use super::*;
use crate::types::{MAX_SCORED_ROWS, PoolRows, PoolSpec, SequenceFailure};

const ALL: [PoolRows; 4] = [PoolRows::Last, PoolRows::First, PoolRows::Sum, PoolRows::Each];

/// A request that wants its prompt pooled, and nothing else.
fn pooled(id: u64, rows: PoolRows, prompt: &[u32]) -> EngineRequest {
    let sampling = SamplingParams::pooling(PoolSpec { rows, labels: None });
    EngineRequest { sampling: sampling.into(), ..request(id, prompt, 0) }
}

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|index| index * 7 % 11).collect()
}

fn large() -> SchedulerConfig {
    SchedulerConfig { num_blocks: 128, max_num_batched_tokens: 100, max_model_len: 400, ..config() }
}

#[test]
fn a_prompt_may_be_pooled_up_to_the_last_place_of_the_context() {
    for rows in ALL {
        let mut harness = Harness::new(SchedulerConfig { max_model_len: 8, ..config() });
        for (id, length) in [(1, 1), (2, 2), (3, 8)] {
            harness.add(pooled(id, rows, &prompt(length)));
            harness.run();
            harness.assert_complete(id);
        }
        harness.add(EngineRequest { adapter: adapter(1, Some((2, true))), ..pooled(4, rows, &prompt(6)) });
        harness.run();
        harness.assert_complete(4);
        assert!(harness.try_add(pooled(5, rows, &prompt(9))).is_err());
    }
}

#[test]
fn a_step_pools_the_rows_that_are_wanted_and_no_more() {
    let parts = |rows| {
        let mut harness = Harness::new(large());
        harness.add(pooled(1, rows, &prompt(150)));
        let mut parts = Vec::new();
        while !harness.scheduler.is_idle() {
            let step = harness.step();
            let share = &step.sequences[0];
            parts.push((share.rows.len(), share.pooled.clone().map_or(0..0, |(rows, _)| rows)));
        }
        harness.assert_complete(1);
        parts
    };
    assert_eq!(parts(PoolRows::Last), [(100, 0..0), (50, 49..50)]);
    assert_eq!(parts(PoolRows::First), [(100, 0..1), (50, 0..0)]);
    assert_eq!(parts(PoolRows::Sum), [(100, 0..100), (50, 0..50)]);
    let most = MAX_SCORED_ROWS;
    assert_eq!(parts(PoolRows::Each), [(most, 0..64), (most, 0..64), (22, 0..22)]);
}

#[test]
fn the_last_row_is_read_behind_what_the_prefix_index_has_and_others_take_nothing_from_it() {
    let mut harness = Harness::new(large());
    harness.add(request(1, &prompt(40), 1));
    harness.run();
    for (id, rows) in (2..).zip(ALL) {
        harness.add(pooled(id, rows, &prompt(40)));
        harness.run();
        harness.assert_complete(id);
        assert_eq!(harness.log(id).cached_tokens, Some(if rows == PoolRows::Last { 36 } else { 0 }));
    }
}

#[test]
fn after_a_pause_a_sum_begins_anew_and_what_has_been_said_is_not_said_again() {
    for forget in [true, false] {
        for rows in ALL {
            let mut harness = Harness::new(large());
            harness.add(pooled(1, rows, &prompt(250)));
            for _ in 0..2 {
                harness.step();
                harness.scheduler.park(RequestId(1));
                if forget {
                    harness.scheduler.cache.forget_all();
                }
                harness.scheduler.unpark(RequestId(1));
            }
            harness.run();
            harness.assert_complete(1);
        }
    }
}

#[test]
fn a_pooled_row_that_is_not_finite_or_has_no_result_ends_its_request() {
    for (broken, failure) in [(true, RequestFailure::NonFinite), (false, RequestFailure::EngineFailed)] {
        for rows in [PoolRows::First, PoolRows::Sum, PoolRows::Each] {
            let mut harness = Harness::new(large());
            harness.add(pooled(1, rows, &prompt(10)));
            harness.add(request(2, &prompt(10), 2));
            let batch = harness.schedule();
            let mut output = harness.fake.execute(&batch);
            let vectors = &mut output.pooled[0].1;
            if broken {
                *vectors = Err(SequenceFailure::NonFinite);
            } else {
                vectors.as_mut().unwrap().pop();
            }
            harness.update(&batch, &output);
            assert_eq!(harness.log(1).failure, Some(failure));
            assert!(harness.log(1).pooled.is_empty());
            harness.run();
            harness.assert_complete(2);
        }
    }
}
