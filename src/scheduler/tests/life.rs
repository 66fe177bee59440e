//! How requests begin and end: refusals, stop ids, limits, deadlines, aborts, failures, draining.

use super::*;
use crate::scheduler::testing::NON_FINITE_SEED;
use crate::types::{LongRope, SampledToken, SequenceFailure};

fn sampled(batch: &Step, token: u32) -> StepOutput {
    let sampled = batch.sequences.iter().filter(|sequence| sequence.sample.is_some());
    let sampled = sampled.map(|s| (s.id, Ok(SampledToken { token, logprob: None }))).collect();
    StepOutput { sampled, ..StepOutput::default() }
}

/// Steps in which every sampled id is `token`.
fn steps_of(harness: &mut Harness, token: u32, steps: usize) {
    for _ in 0..steps {
        let batch = harness.schedule();
        harness.update(&batch, &sampled(&batch, token));
    }
}

fn stopping(max_tokens: u32, min_tokens: u32, stop: u32) -> std::sync::Arc<StoppingParams> {
    StoppingParams { max_tokens, min_tokens, stop_token_ids: vec![stop] }.into()
}

#[test]
fn a_configuration_that_cannot_work_is_refused_with_its_numbers() {
    let refused = |config| Scheduler::new(config).map(drop).unwrap_err();
    let zero = |setting| SchedulerError::ZeroSetting { setting };
    assert_eq!(refused(SchedulerConfig { block_size: 0, ..config() }), zero("block_size"));
    assert_eq!(refused(SchedulerConfig { num_blocks: 0, ..config() }), zero("num_blocks"));
    assert_eq!(refused(SchedulerConfig { max_num_seqs: 0, ..config() }), zero("max_num_seqs"));
    assert_eq!(refused(SchedulerConfig { max_prefill_chunk: Some(0), ..config() }), zero("max_prefill_chunk"));
    assert_eq!(refused(SchedulerConfig { max_model_len: 0, ..config() }), zero("max_model_len"));
    let small = SchedulerConfig { max_num_batched_tokens: 7, max_num_seqs: 8, ..config() };
    let expected = SchedulerError::BudgetBelowSequences { max_num_batched_tokens: 7, max_num_seqs: 8 };
    assert_eq!(refused(small), expected);
}

#[test]
fn an_empty_field_is_refused_by_name() {
    let mut harness = Harness::new(config());
    let empty = |field| Some(SchedulerError::EmptyField { id: RequestId(1), field });
    let virtual_tokens = EngineRequest { adapter: adapter(1, Some((0, true))), ..request(1, &[1], 1) };
    assert_eq!(harness.try_add(request(1, &[], 1)).err(), empty("prompt"));
    assert_eq!(harness.try_add(request(1, &[1], 0)).err(), empty("max_tokens"));
    assert_eq!(harness.try_add(EngineRequest { choices: 0, ..request(1, &[1], 1) }).err(), empty("choices"));
    assert_eq!(harness.try_add(virtual_tokens).err(), empty("virtual_tokens"));
    assert!(harness.scheduler.is_idle());
}

#[test]
fn a_request_id_is_taken_once() {
    let mut harness = Harness::new(config());
    harness.add(request(1, &[1], 1));
    let refused = harness.scheduler.add(request(1, &[2], 1));
    assert_eq!(refused, Err(SchedulerError::DuplicateRequest { id: RequestId(1) }));
}

#[test]
fn a_sequence_that_cannot_fit_the_pool_alone_is_refused_with_its_numbers() {
    // 5 virtual tokens: one block shared whole, one shared in part and copied. 5 + 3 + 8 - 1 = 15 places.
    let mut harness = Harness::new(SchedulerConfig { num_blocks: 4, ..config() });
    let with_pages = EngineRequest { adapter: adapter(1, Some((5, true))), ..request(1, &[1; 3], 8) };
    let expected = SchedulerError::PoolTooSmall {
        virtual_tokens: 5,
        prompt_tokens: 3,
        max_tokens: 8,
        needed_blocks: 5,
        num_blocks: 4,
        block_size: 4,
    };
    assert_eq!(harness.try_add(with_pages).err(), Some(expected));
    harness.add(request(2, &[1; 8], 9));
    harness.run();
    harness.assert_complete(2);
}

#[test]
fn a_prompt_that_leaves_no_room_in_the_context_is_refused() {
    let mut harness = Harness::new(SchedulerConfig { max_model_len: 8, ..config() });
    let expected = SchedulerError::ContextTooLong { virtual_tokens: 2, prompt_tokens: 6, max_model_len: 8 };
    let full = EngineRequest { adapter: adapter(1, Some((2, true))), ..request(1, &[1; 6], 1) };
    assert_eq!(harness.try_add(full).err(), Some(expected));
}

#[test]
fn the_context_ends_a_sequence_before_max_tokens_does_and_virtual_tokens_count() {
    let mut harness = Harness::new(SchedulerConfig { max_model_len: 8, ..config() });
    harness.add(EngineRequest { adapter: adapter(1, Some((2, true))), ..request(1, &[1; 3], 100) });
    harness.run();
    assert_eq!(harness.log(1).output[&0].len(), 3);
    assert_eq!(harness.log(1).finish[&0], (FinishReason::Length, None));
}

#[test]
fn a_stop_id_ends_a_choice_without_being_output() {
    let mut harness = Harness::new(config());
    harness.add(EngineRequest { stopping: stopping(5, 0, 9), ..request(1, &[1, 2], 1) });
    steps_of(&mut harness, 3, 2);
    steps_of(&mut harness, 9, 1);
    assert_eq!(harness.log(1).output[&0], [3, 3]);
    assert_eq!(harness.log(1).finish[&0], (FinishReason::Stop, Some(9)));
    assert!(harness.scheduler.is_idle());
}

#[test]
fn stop_ids_are_banned_until_min_tokens_and_not_after() {
    let mut harness = Harness::new(config());
    harness.add(EngineRequest { stopping: stopping(5, 2, 9), ..request(1, &[1, 2], 1) });
    let mut banned = Vec::new();
    for _ in 0..3 {
        let batch = harness.schedule();
        banned.push(batch.sequences[0].sample.as_ref().unwrap().banned.clone());
        harness.update(&batch, &sampled(&batch, 3));
    }
    assert_eq!(banned, [vec![9], vec![9], vec![]]);
}

#[test]
fn a_deadline_ends_a_request_in_every_phase_and_frees_its_blocks_in_that_step() {
    // After 0 steps it waits, after 1 and 2 it is in prefill, after 3 and more it decodes.
    for steps in 0..6 {
        let mut harness = Harness::new(SchedulerConfig { max_prefill_chunk: Some(4), ..config() });
        let deadline = harness.now + Duration::from_millis(steps);
        harness.add(EngineRequest { deadline: Some(deadline), choices: 2, ..request(1, &[1; 10], 9) });
        assert_eq!(harness.scheduler.next_deadline(), Some(deadline));
        for _ in 0..steps {
            harness.step();
        }
        assert_eq!(harness.log(1).failure, None, "it fails at its deadline, not before");
        let batch = harness.schedule();
        assert!(batch.is_empty());
        assert_eq!(harness.log(1).failure, Some(RequestFailure::DeadlineExceeded));
        assert_eq!(harness.scheduler.stats().kv_blocks_used, 0);
        assert_eq!(harness.scheduler.next_deadline(), None);
    }
}

#[test]
fn an_abort_frees_the_blocks_at_once_and_the_step_in_flight_is_ignored() {
    let mut harness = Harness::new(config());
    harness.add(request(1, &[1; 10], 9));
    harness.add(request(2, &[2; 10], 9));
    harness.step();
    let batch = harness.schedule();
    let used = harness.scheduler.stats().kv_blocks_used;
    assert!(harness.scheduler.abort(RequestId(1)));
    assert!(!harness.scheduler.abort(RequestId(1)));
    assert_eq!(harness.scheduler.stats().kv_blocks_used, used / 2);
    harness.finish(&batch);
    assert_eq!(harness.log(1).output[&0].len(), 1, "only the token from before the abort");
    harness.run();
    harness.assert_complete(2);
}

#[test]
fn a_non_finite_row_ends_its_request_with_all_choices_and_nobody_else() {
    let mut harness = Harness::new(config());
    let sampling = SamplingParams { seed: NON_FINITE_SEED, ..SamplingParams::greedy() };
    harness.add(EngineRequest { adapter: adapter(1, None), ..request(1, &[1; 10], 4) });
    let bad =
        EngineRequest { adapter: adapter(2, None), sampling: sampling.into(), choices: 3, ..request(2, &[1; 10], 4) };
    harness.add(bad);
    harness.step();
    assert_eq!(harness.log(2).failure, Some(RequestFailure::NonFinite));
    assert!(!harness.scheduler.contains(RequestId(2)));
    harness.run();
    harness.assert_complete(1);
}

#[test]
fn the_kv_of_a_non_finite_request_is_not_reused() {
    for version in [None, adapter(2, None)] {
        let mut harness = Harness::new(SchedulerConfig { max_prefill_chunk: Some(4), ..config() });
        let sampling = SamplingParams { seed: NON_FINITE_SEED, ..SamplingParams::greedy() };
        harness.add(EngineRequest { adapter: version, sampling: sampling.into(), ..request(1, &[1; 10], 4) });
        harness.run();
        assert_eq!(harness.log(1).failure, Some(RequestFailure::NonFinite));
        harness.add(EngineRequest { adapter: version, ..request(2, &[1; 10], 4) });
        harness.run();
        assert_eq!(harness.log(2).cached_tokens, Some(0));
        harness.assert_complete(2);
    }
}

#[test]
fn a_sequence_without_its_result_ends_as_a_failure_of_the_engine() {
    let mut harness = Harness::new(config());
    harness.add(request(1, &[1], 4));
    let batch = harness.schedule();
    let events = harness.scheduler.update(&batch, &StepOutput::default(), harness.now);
    assert_eq!(events, [(RequestId(1), SequenceEvent::Failed(RequestFailure::EngineFailed))]);
    assert!(harness.scheduler.is_idle());
}

#[test]
fn a_result_for_an_unknown_sequence_changes_nothing() {
    let mut harness = Harness::new(config());
    harness.add(request(1, &[1], 4));
    let batch = harness.schedule();
    let mut output = harness.fake.execute(&batch);
    output.sampled.push((SequenceId(99), Err(SequenceFailure::NonFinite)));
    harness.update(&batch, &output);
    harness.run();
    harness.assert_complete(1);
}

#[test]
fn a_failed_step_ends_those_in_it_and_the_waiting_go_on() {
    let mut harness = Harness::new(SchedulerConfig { max_num_seqs: 1, ..config() });
    harness.add(request(1, &[1; 5], 4));
    harness.add(request(2, &[1; 5], 4));
    let batch = harness.schedule();
    let events = harness.scheduler.fail_step(&batch, RequestFailure::EngineFailed);
    assert_eq!(events, [(RequestId(1), SequenceEvent::Failed(RequestFailure::EngineFailed))]);
    harness.run();
    harness.assert_complete(2);
}

#[test]
fn failing_all_ends_every_request_and_forgets_all_kv() {
    let mut harness = Harness::new(config());
    harness.add(EngineRequest { adapter: adapter(1, Some((5, true))), ..request(1, &[1; 9], 4) });
    harness.step();
    harness.add(request(2, &[1; 9], 4));
    let events = harness.scheduler.fail_all(RequestFailure::EngineFailed);
    let failed = |id| (RequestId(id), SequenceEvent::Failed(RequestFailure::EngineFailed));
    assert_eq!(events, [failed(1), failed(2)]);
    assert!(harness.scheduler.is_idle());
    assert_eq!(harness.scheduler.stats().kv_blocks_used, 0);
    harness.add(EngineRequest { adapter: adapter(1, Some((5, true))), ..request(3, &[1; 9], 4) });
    harness.run();
    assert_eq!(harness.log(3).cached_tokens, Some(0));
    harness.assert_complete(3);
}

#[test]
fn draining_ends_what_has_not_started_refuses_the_new_and_finishes_the_rest() {
    let mut harness = Harness::new(SchedulerConfig { max_num_seqs: 1, ..config() });
    harness.add(request(1, &[1; 5], 4));
    harness.add(request(2, &[1; 5], 4));
    harness.step();
    let events = harness.scheduler.drain();
    assert_eq!(events, [(RequestId(2), SequenceEvent::Failed(RequestFailure::Draining))]);
    assert_eq!(harness.scheduler.add(request(3, &[1], 1)), Err(SchedulerError::Draining));
    harness.run();
    harness.assert_complete(1);
}

/// Shares of a request's sequence in the steps until all is done: (first place, rows, first long place).
fn shares(harness: &mut Harness) -> Vec<(u32, usize, u32)> {
    let mut shares = Vec::new();
    while !harness.scheduler.is_idle() {
        let batch = harness.step();
        shares.extend(batch.sequences.iter().map(|share| (share.start, share.rows.len(), share.long_from)));
    }
    shares
}

#[test]
fn a_sequence_that_outgrows_the_short_rope_computes_all_anew_and_neither_reads_the_kv_of_the_other() {
    const NEVER: u32 = LongRope::NEVER;
    let long_rope = Some(LongRope { original_context: 6, recompute: true });
    let mut harness = Harness::new(SchedulerConfig { long_rope, ..config() });
    harness.add(request(1, &[1; 5], 6));
    let grown = [(0, 5, NEVER), (5, 1, NEVER), (0, 7, 0), (7, 1, 0), (8, 1, 0), (9, 1, 0)];
    assert_eq!(shares(&mut harness), grown);
    // Both kinds of the same tokens are in the prefix cache now, and each finds its own.
    harness.add(request(2, &[1; 5], 1));
    assert_eq!(shares(&mut harness), [(4, 1, NEVER)]);
    harness.add(request(3, &[1; 7], 1));
    assert_eq!(shares(&mut harness), [(4, 3, 0)]);
}

#[test]
fn a_sequence_that_keeps_its_kv_turns_at_the_place_where_it_outgrows_the_short_rope() {
    let long_rope = Some(LongRope { original_context: 6, recompute: false });
    let mut harness = Harness::new(SchedulerConfig { long_rope, ..config() });
    harness.add(request(1, &[1; 5], 4));
    assert_eq!(shares(&mut harness), [(0, 5, 6), (5, 1, 6), (6, 1, 6), (7, 1, 6)]);
    harness.add(request(2, &[1; 7], 1));
    assert_eq!(shares(&mut harness), [(0, 7, 0)], "a prompt that is long is so from its first place on");
}

#[test]
fn a_parked_request_leaves_its_place_and_its_kv_to_others_and_goes_on_where_it_was() {
    let mut harness = Harness::new(SchedulerConfig { max_num_seqs: 2, ..config() });
    harness.add(EngineRequest { choices: 2, ..request(1, &[1, 2, 3, 4, 5], 12) });
    harness.run_until(|harness| harness.log(1).output.get(&1).is_some_and(|output| output.len() > 3));
    harness.add(request(2, &[9, 9], 4));
    assert_eq!(harness.step().sequences.len(), 2, "both places are taken");
    harness.scheduler.park(RequestId(1));
    harness.check_blocks();
    let stats = harness.scheduler.stats();
    assert_eq!((stats.running, stats.waiting, stats.parked, stats.kv_blocks_used), (0, 1, 2, 0));
    harness.run_until(|harness| harness.log(2).finish.len() == 1);
    assert!(!harness.scheduler.has_work() && !harness.scheduler.is_idle());
    assert!(harness.schedule().is_empty());
    harness.scheduler.unpark(RequestId(1));
    let rows = harness.fake.rows;
    let batch = harness.step();
    assert!(batch.sequences.iter().all(|sequence| sequence.start > 0), "what is in the index is not computed again");
    assert!(harness.fake.rows - rows <= 8, "less than a block of each choice");
    harness.run();
    (1..=2).for_each(|id| harness.assert_complete(id));
    assert_eq!(harness.scheduler.stats().preemptions, 0);
}

#[test]
fn a_parked_request_ends_at_its_deadline_or_when_it_is_aborted() {
    let mut harness = Harness::new(config());
    harness.add(EngineRequest { deadline: Some(harness.now + Duration::from_millis(5)), ..request(1, &[1, 2], 9) });
    harness.add(request(2, &[1, 2], 9));
    harness.step();
    for id in [1, 2] {
        harness.scheduler.park(RequestId(id));
        harness.scheduler.park(RequestId(id));
    }
    assert_eq!(harness.scheduler.next_deadline(), Some(harness.requests[&RequestId(1)].deadline.unwrap()));
    harness.now += Duration::from_millis(5);
    assert!(harness.schedule().is_empty());
    assert_eq!(harness.log(1).failure, Some(RequestFailure::DeadlineExceeded));
    assert!(harness.scheduler.abort(RequestId(2)));
    assert_eq!((harness.scheduler.stats().parked, harness.scheduler.is_idle()), (0, true));
    harness.scheduler.unpark(RequestId(2));
    harness.check_blocks();
}
