//! Prompts whose tokens are scored: chunks, the prefix index, preemption, parking, several choices, failures.

use super::*;
use crate::types::{MAX_SCORED_ROWS, SequenceFailure};

/// A request that wants its prompt scored.
fn scored(id: u64, prompt: &[u32], max_tokens: u32) -> EngineRequest {
    let sampling = SamplingParams { prompt_logprobs: Some(0), ..SamplingParams::greedy() };
    EngineRequest { sampling: sampling.into(), ..request(id, prompt, max_tokens) }
}

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|index| index * 7 % 11).collect()
}

fn large() -> SchedulerConfig {
    SchedulerConfig { num_blocks: 128, max_num_batched_tokens: 300, max_model_len: 400, ..config() }
}

#[test]
fn a_prompt_may_be_scored_and_nothing_more_up_to_the_last_place_of_the_context() {
    let mut harness = Harness::new(SchedulerConfig { max_model_len: 8, ..config() });
    for (id, length) in [(1, 1), (2, 2), (3, 8)] {
        harness.add(scored(id, &prompt(length), 0));
        harness.run();
        harness.assert_complete(id);
        assert_eq!(harness.log(id).prompt_logprobs.len(), length as usize - 1);
    }
    harness.add(EngineRequest { adapter: adapter(1, Some((2, true))), ..scored(4, &prompt(6), 0) });
    harness.run();
    harness.assert_complete(4);
    let full = EngineRequest { adapter: adapter(1, Some((2, true))), ..scored(5, &prompt(7), 0) };
    let expected = SchedulerError::ContextTooLong { virtual_tokens: 2, prompt_tokens: 7, max_model_len: 8 };
    assert_eq!(harness.try_add(full).err(), Some(expected));
    assert!(harness.try_add(scored(6, &prompt(8), 1)).is_err(), "one more has no room");
}

#[test]
fn a_step_scores_so_many_rows_of_a_request_and_no_more() {
    let mut harness = Harness::new(large());
    harness.add(scored(1, &prompt(150), 2));
    let rows = |harness: &mut Harness| harness.step().sequences[0].rows.len();
    assert_eq!([(); 4].map(|()| rows(&mut harness)), [MAX_SCORED_ROWS, MAX_SCORED_ROWS, 22, 1]);
    harness.assert_complete(1);
}

#[test]
fn a_scored_prompt_takes_nothing_from_the_prefix_index_and_leaves_its_blocks_there() {
    let mut harness = Harness::new(large());
    for id in [1, 2] {
        harness.add(scored(id, &prompt(40), 1));
        harness.run();
        harness.assert_complete(id);
        assert_eq!(harness.log(id).cached_tokens, Some(0));
    }
    harness.add(request(3, &prompt(40), 1));
    harness.run();
    assert_eq!(harness.log(3).cached_tokens, Some(36));
}

#[test]
fn what_has_been_scored_is_not_scored_again_after_a_pause() {
    let mut harness = Harness::new(large());
    harness.add(scored(1, &prompt(150), 3));
    harness.step();
    harness.scheduler.park(RequestId(1));
    harness.scheduler.unpark(RequestId(1));
    // All of its blocks are found again, and the next row is the first that has not been scored.
    let batch = harness.step();
    assert_eq!((batch.sequences[0].start, batch.sequences[0].rows.len()), (64, 64));
    harness.scheduler.park(RequestId(1));
    harness.scheduler.cache.forget_all();
    harness.scheduler.unpark(RequestId(1));
    // Nothing is found: rows are computed anew, and only those are scored that were not before.
    let batch = harness.step();
    assert_eq!((batch.sequences[0].rows.len(), &batch.sequences[0].scored), (150, &(128..149)));
    harness.run();
    harness.assert_complete(1);
}

#[test]
fn the_first_choice_scores_for_all_and_the_others_wait_for_it() {
    for prefix_cache in [true, false] {
        let mut harness = Harness::new(SchedulerConfig { prefix_cache, ..large() });
        harness.add(EngineRequest { choices: 3, ..scored(1, &prompt(100), 2) });
        harness.add(EngineRequest { choices: 2, ..scored(2, &prompt(30), 0) });
        harness.run();
        harness.assert_complete(1);
        harness.assert_complete(2);
    }
}

#[test]
fn a_scored_row_that_is_not_finite_or_has_no_result_ends_its_request() {
    for (broken, failure) in [(true, RequestFailure::NonFinite), (false, RequestFailure::EngineFailed)] {
        let mut harness = Harness::new(large());
        harness.add(scored(1, &prompt(10), 2));
        harness.add(request(2, &prompt(10), 2));
        let batch = harness.schedule();
        let mut output = harness.fake.execute(&batch);
        let scores = &mut output.prompt_logprobs[0].1;
        if broken {
            *scores = Err(SequenceFailure::NonFinite);
        } else {
            scores.as_mut().unwrap().pop();
        }
        harness.update(&batch, &output);
        assert_eq!(harness.log(1).failure, Some(failure));
        assert!(harness.log(1).prompt_logprobs.is_empty());
        harness.run();
        harness.assert_complete(2);
    }
}
