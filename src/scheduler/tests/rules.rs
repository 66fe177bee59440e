//! Who gets how many tokens, who waits, who yields, and what the prefix cache gives.

use super::*;
use crate::scheduler::testing::NON_FINITE_SEED;
use crate::scheduler::testing::Rows;

/// (sequence, rows) of a batch in order.
pub(super) fn rows(batch: &Step) -> Vec<(SequenceId, usize)> {
    batch.sequences.iter().map(|sequence| (sequence.id, sequence.rows.len())).collect()
}

pub(super) fn prompt(len: u32, salt: u32) -> Vec<u32> {
    (0..len).map(|i| i * 7 + salt).collect()
}

#[test]
fn running_decodes_come_first_and_prefill_takes_what_is_left() {
    let mut harness = Harness::new(SchedulerConfig { max_num_batched_tokens: 8, ..config() });
    let a = harness.add(request(1, &prompt(4, 0), 6))[0];
    harness.step();
    let b = harness.add(EngineRequest { priority: 5, ..request(2, &prompt(10, 100), 6) })[0];
    assert_eq!(rows(&harness.step()), [(a, 1), (b, 7)]);
    assert_eq!(rows(&harness.step()), [(a, 1), (b, 3)]);
    let decodes = harness.step();
    assert_eq!(rows(&decodes), [(b, 1), (a, 1)], "by rank among decodes");
    harness.run();
    harness.assert_complete(1);
    harness.assert_complete(2);
}

#[test]
fn a_long_prefill_takes_no_more_than_its_chunk_so_others_move_too() {
    let mut harness = Harness::new(SchedulerConfig { max_prefill_chunk: Some(3), ..config() });
    let a = harness.add(request(1, &prompt(7, 0), 2))[0];
    let b = harness.add(request(2, &prompt(2, 100), 2))[0];
    assert_eq!(rows(&harness.step()), [(a, 3), (b, 2)]);
    assert_eq!(rows(&harness.step()), [(b, 1), (a, 3)]);
}

#[test]
fn only_the_chunk_that_ends_the_known_tokens_is_sampled() {
    let mut harness = Harness::new(SchedulerConfig { max_prefill_chunk: Some(3), ..config() });
    harness.add(request(1, &prompt(7, 0), 2));
    let sampled: Vec<_> = (0..4).map(|_| harness.step().sequences[0].sample.is_some()).collect();
    assert_eq!(sampled, [false, false, true, true]);
}

#[test]
fn a_larger_priority_starts_first_and_arrival_decides_within() {
    let mut harness = Harness::new(SchedulerConfig { max_num_seqs: 1, ..config() });
    for (id, priority) in [(1, 0), (2, 1), (3, 0), (4, 1)] {
        harness.add(EngineRequest { priority, ..request(id, &[1], 1) });
    }
    let mut order = Vec::new();
    while !harness.scheduler.is_idle() {
        let before: Vec<_> = harness.logs.iter().filter(|(_, log)| log.finish.is_empty()).map(|(id, _)| *id).collect();
        harness.step();
        order.extend(before.into_iter().filter(|id| !harness.logs[id].finish.is_empty()).map(|id| id.0));
    }
    assert_eq!(order, [2, 4, 1, 3]);
}

#[test]
fn what_does_not_fit_waits_and_nobody_passes_it() {
    let mut harness = Harness::new(SchedulerConfig { num_blocks: 5, ..config() });
    let a = harness.add(request(1, &prompt(8, 0), 2))[0];
    let large = harness.add(request(2, &prompt(14, 100), 2))[0];
    let small = harness.add(request(3, &prompt(2, 200), 2))[0];
    assert_eq!(rows(&harness.step()), [(a, 8)]);
    assert_eq!(harness.scheduler.state(large), Some(SequenceState::Waiting));
    assert_eq!(harness.scheduler.state(small), Some(SequenceState::Waiting));
    harness.run();
    for id in 1..=3 {
        harness.assert_complete(id);
    }
}

#[test]
fn the_newest_yields_when_blocks_run_out_and_gives_the_same_output_later() {
    let mut harness = Harness::new(SchedulerConfig { num_blocks: 6, prefix_cache: false, ..config() });
    let a = harness.add(request(1, &prompt(8, 0), 9))[0];
    let b = harness.add(request(2, &prompt(7, 50), 9))[0];
    let c = harness.add(request(3, &prompt(2, 90), 2))[0];
    harness.step();
    while harness.scheduler.stats().preemptions == 0 {
        harness.step();
    }
    assert_eq!(harness.scheduler.state(a), Some(SequenceState::Running));
    assert_eq!(harness.scheduler.state(b), Some(SequenceState::Preempted));
    assert_eq!(harness.scheduler.state(c), None, "it ended before the pool was full");
    let output_before = harness.log(2).output[&0].len();
    assert!(output_before > 0, "the preemption is in the middle of its output");
    let resumed = loop {
        let batch = harness.step();
        if let Some(sequence) = batch.sequences.iter().find(|sequence| sequence.id == b) {
            break sequence.clone();
        }
    };
    assert_eq!((resumed.start, resumed.rows.len()), (0, 7 + output_before), "output is recomputed with the prompt");
    assert_eq!(resumed.sample.unwrap().output_position as usize, output_before);
    harness.run();
    for id in 1..=3 {
        harness.assert_complete(id);
    }
}

#[test]
fn a_preempted_sequence_is_ahead_of_everything_that_came_later() {
    let mut harness = Harness::new(SchedulerConfig { num_blocks: 6, prefix_cache: false, ..config() });
    harness.add(request(1, &prompt(8, 0), 9));
    let b = harness.add(request(2, &prompt(8, 50), 9))[0];
    harness.step();
    let c = harness.add(request(3, &prompt(8, 90), 2))[0];
    harness.run_until(|harness| harness.scheduler.state(b) == Some(SequenceState::Preempted));
    harness.run_until(|harness| harness.scheduler.state(b) == Some(SequenceState::Running));
    assert_eq!(harness.scheduler.state(c), Some(SequenceState::Waiting));
    harness.run();
    harness.assert_complete(3);
}

#[test]
fn the_oldest_of_many_is_never_preempted() {
    let mut harness =
        Harness::new(SchedulerConfig { num_blocks: 8, max_num_seqs: 64, max_num_batched_tokens: 64, ..config() });
    let ids: Vec<_> = (0..64).flat_map(|id| harness.add(request(id, &prompt(3, id as u32), 20))).collect();
    while !harness.scheduler.is_idle() {
        let oldest = ids.iter().copied().find(|id| harness.scheduler.state(*id).is_some()).unwrap();
        let was_running = harness.scheduler.state(oldest) == Some(SequenceState::Running);
        let batch = harness.schedule();
        assert!(!was_running || harness.scheduler.state(oldest) == Some(SequenceState::Running));
        harness.finish(&batch);
    }
    assert!(harness.scheduler.stats().preemptions > 0);
    (0..64).for_each(|id| harness.assert_complete(id));
}

#[test]
fn a_known_prefix_is_reused_but_for_the_last_token() {
    let mut harness = Harness::new(config());
    harness.add(request(1, &prompt(8, 0), 1));
    harness.run();
    let batch = {
        harness.add(request(2, &prompt(8, 0), 1));
        harness.step()
    };
    assert_eq!((batch.sequences[0].start, batch.sequences[0].rows.len()), (4, 4));
    assert_eq!(harness.log(2).cached_tokens, Some(4));
    harness.add(request(3, &prompt(9, 0), 1));
    let batch = harness.step();
    assert_eq!((batch.sequences[0].start, batch.sequences[0].rows.len()), (8, 1));
    assert_eq!(harness.log(3).cached_tokens, Some(8));
    let stats = harness.scheduler.stats();
    assert_eq!((stats.prefix_queries, stats.prefix_hits), (8 + 8 + 9, 4 + 8));
    (1..=3).for_each(|id| harness.assert_complete(id));
}

#[test]
fn generated_tokens_are_reused_by_the_next_turn() {
    let mut harness = Harness::new(config());
    harness.add(request(1, &prompt(6, 0), 7));
    harness.run();
    let turn = [&prompt(6, 0)[..], &harness.log(1).output[&0], &[9]].concat();
    harness.add(request(2, &turn, 1));
    harness.run();
    assert_eq!(harness.log(2).cached_tokens, Some(12));
    harness.assert_complete(2);
}

#[test]
fn another_tenant_adapter_or_base_never_hits() {
    let first = EngineRequest { adapter: adapter(1, None), ..request(1, &prompt(9, 0), 1) };
    let others = [
        (EngineRequest { adapter: adapter(2, None), ..request(2, &prompt(9, 0), 1) }, 0),
        (request(2, &prompt(9, 0), 1), 0),
        (EngineRequest { tenant_salt: [1].into(), id: RequestId(2), ..first.clone() }, 0),
        (EngineRequest { adapter: adapter(1, Some((4, true))), id: RequestId(2), ..first.clone() }, 0),
        (EngineRequest { id: RequestId(2), ..first.clone() }, 8),
    ];
    for (other, cached) in others {
        let mut harness = Harness::new(config());
        harness.add(first.clone());
        harness.run();
        harness.add(other);
        harness.run();
        assert_eq!(harness.log(2).cached_tokens, Some(cached));
        harness.assert_complete(2);
    }
}

/// Blocks of 4: what a second request finds of what a first one left.
#[test]
fn kv_before_an_adapter_is_active_is_the_bases_in_both_directions() {
    const NEVER: u32 = AdapterBinding::NEVER;
    let cases = [
        // The base and an adapter, either first: the blocks that end before it is active.
        (None, active_from(1, 9), 8),
        (active_from(1, 9), None, 8),
        (None, active_from(1, 8), 8),
        (None, active_from(1, 7), 4),
        (None, active_from(1, 3), 0),
        // Two adapters: the same. One adapter twice: its own blocks, too.
        (active_from(1, 9), active_from(2, 5), 4),
        (active_from(1, 5), active_from(1, 5), 16),
        // Active from another token on, the same adapter computes other KV behind it.
        (active_from(1, 5), active_from(1, 6), 4),
        (active_from(1, 9), active_from(1, 5), 4),
        // It is never active, or touches no KV: it is as good as the base.
        (active_from(1, NEVER), None, 16),
        (None, active_from(1, NEVER), 16),
        (behind_kv(1), behind_kv(2), 16),
        (behind_kv(1), active_from(2, 9), 8),
        (adapter(1, None), behind_kv(1), 0),
    ];
    for (first, second, cached) in cases {
        let mut harness = Harness::new(config());
        harness.add(EngineRequest { adapter: first, ..request(1, &prompt(17, 0), 4) });
        harness.run();
        harness.add(EngineRequest { adapter: second, ..request(2, &prompt(17, 0), 4) });
        harness.run();
        assert_eq!(harness.log(2).cached_tokens, Some(cached), "{first:?}, then {second:?}");
        harness.assert_complete(1);
        harness.assert_complete(2);
    }
}

#[test]
fn a_failure_of_an_adapter_takes_the_bases_blocks_that_it_ran_on_out_of_the_index_and_no_others() {
    for failing in [active_from(1, 9), behind_kv(1)] {
        let mut harness = Harness::new(config());
        for (id, tokens) in [(1, prompt(9, 0)), (2, prompt(9, 100))] {
            harness.add(request(id, &tokens, 1));
        }
        harness.run();
        let sampling = SamplingParams { seed: NON_FINITE_SEED, ..SamplingParams::greedy() };
        harness.add(EngineRequest { adapter: failing, sampling: sampling.into(), ..request(3, &prompt(11, 0), 4) });
        harness.run();
        assert_eq!(harness.log(3).failure, Some(RequestFailure::NonFinite));
        for (id, tokens, cached) in [(4, prompt(9, 0), 0), (5, prompt(9, 100), 8)] {
            harness.add(request(id, &tokens, 1));
            harness.run();
            assert_eq!(harness.log(id).cached_tokens, Some(cached), "{failing:?}");
        }
    }
}

#[test]
fn a_block_is_findable_only_once_the_step_that_fills_it_is_complete() {
    let mut harness = Harness::new(config());
    harness.add(request(1, &prompt(9, 0), 3));
    harness.add(request(2, &prompt(9, 0), 3));
    let batch = harness.step();
    assert_eq!(batch.sequences.iter().map(|sequence| sequence.start).collect::<Vec<_>>(), [0, 0]);
    harness.add(request(3, &prompt(9, 0), 3));
    let batch = harness.step();
    assert_eq!(batch.sequences.last().unwrap().start, 8);
    harness.run();
    (1..=3).for_each(|id| harness.assert_complete(id));
}

#[test]
fn what_waits_for_room_keeps_what_it_found_and_starts_on_what_is_there_then() {
    // Two blocks of the prompt are findable; a long decode holds most of the others and takes one of the two.
    let mut harness = Harness::new(SchedulerConfig { num_blocks: 8, ..config() });
    harness.add(request(1, &prompt(9, 0), 1));
    harness.run();
    harness.add(request(2, &prompt(18, 50), 9));
    harness.step();
    let blocked = harness.add(request(3, &prompt(21, 0), 1))[0];
    let mut kept = Vec::new();
    loop {
        harness.step();
        if harness.scheduler.state(blocked) != Some(SequenceState::Waiting) {
            break;
        }
        let sequence = &mut harness.scheduler.sequences[blocked];
        kept.push(sequence.reusable.len());
        let mut looked_up = 0;
        sequence.walk_reusable(sequence.reusable.len(), |_| {
            looked_up += 1;
            false
        });
        assert_eq!(looked_up, 1, "only the next one is looked up again");
    }
    // The tail of the chain goes first.
    kept.dedup();
    assert_eq!(kept, [2, 1]);
    harness.run();
    assert_eq!(harness.log(3).cached_tokens, Some(4));
    (1..=3).for_each(|id| harness.assert_complete(id));
}

#[test]
fn without_the_prefix_cache_nothing_is_reused_or_counted() {
    let mut harness = Harness::new(SchedulerConfig { prefix_cache: false, ..config() });
    for id in 1..=2 {
        harness.add(EngineRequest { choices: 2, ..request(id, &prompt(9, 0), 1) });
        harness.run();
        assert_eq!(harness.log(id).cached_tokens, Some(0));
        harness.assert_complete(id);
    }
    let stats = harness.scheduler.stats();
    assert_eq!((stats.prefix_queries, stats.prefix_hits), (0, 0));
}

#[test]
fn later_choices_wait_for_the_first_ones_prompt_and_reuse_it() {
    let mut harness = Harness::new(SchedulerConfig { max_prefill_chunk: Some(5), ..config() });
    let ids = harness.add(EngineRequest { choices: 3, ..request(1, &prompt(10, 0), 3) });
    assert_eq!(rows(&harness.step()), [(ids[0], 5)]);
    assert_eq!(rows(&harness.step()), [(ids[0], 5)]);
    assert_eq!(rows(&harness.step()), [(ids[0], 1), (ids[1], 2), (ids[2], 2)]);
    assert_eq!(harness.log(1).cached_tokens, Some(0), "the first choice's count");
    harness.run();
    harness.assert_complete(1);
}

#[test]
fn choices_that_wait_for_their_sibling_let_others_pass() {
    let mut harness = Harness::new(SchedulerConfig { max_prefill_chunk: Some(5), ..config() });
    let a = harness.add(EngineRequest { choices: 2, ..request(1, &prompt(10, 0), 3) });
    let b = harness.add(request(2, &prompt(3, 90), 3));
    assert_eq!(rows(&harness.step()), [(a[0], 5), (b[0], 3)]);
}

#[test]
fn kv_indices_are_rope_positions_and_ids_are_the_rows() {
    let mut harness = Harness::new(SchedulerConfig { max_prefill_chunk: Some(3), ..config() });
    harness.add(request(1, &[5, 6, 7, 8], 2));
    let first = harness.step();
    assert_eq!((first.sequences[0].start, &first.sequences[0].rows), (0, &Rows::Ids(vec![5, 6, 7])));
    let second = harness.step();
    assert_eq!((second.sequences[0].start, &second.sequences[0].rows), (3, &Rows::Ids(vec![8])));
}
