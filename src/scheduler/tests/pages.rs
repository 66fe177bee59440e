//! Virtual tokens: made once, shared, copied at the seam, given up, made again.

use super::*;
use crate::scheduler::testing::Rows;
use crate::types::BlockCopy;

fn with_pages(id: u64, n: u8, count: u32, saved_kv: bool, prompt: &[u32], max_tokens: u32) -> EngineRequest {
    EngineRequest { adapter: adapter(n, Some((count, saved_kv))), ..request(id, prompt, max_tokens) }
}

#[test]
fn saved_kv_is_written_in_the_step_that_first_needs_it_and_only_then() {
    let mut harness = Harness::new(config());
    harness.add(with_pages(1, 1, 6, true, &[1, 2, 3], 3));
    harness.add(with_pages(2, 1, 6, true, &[2, 2, 3], 3));
    let batch = harness.step();
    assert_eq!(batch.prefix_writes.len(), 1);
    let pages = &batch.prefix_writes[0].blocks;
    assert_eq!(pages.len(), 2);
    for (sequence, copy) in batch.sequences.iter().zip(&batch.block_copies) {
        assert_eq!(sequence.start, 6, "real tokens start behind the virtual ones");
        assert_eq!(sequence.blocks[0], pages[0], "the whole block is shared");
        assert_eq!(*copy, BlockCopy { source: pages[1], target: sequence.blocks[1] });
    }
    harness.run();
    harness.add(with_pages(3, 1, 6, true, &[3, 2, 3], 3));
    let batch = harness.step();
    assert_eq!((batch.prefix_writes.len(), batch.block_copies.len()), (0, 1));
    harness.run();
    (1..=3).for_each(|id| harness.assert_complete(id));
}

#[test]
fn virtual_tokens_that_fill_their_blocks_need_no_copy() {
    let mut harness = Harness::new(config());
    harness.add(with_pages(1, 1, 8, true, &[1, 2, 3], 3));
    assert!(harness.step().block_copies.is_empty());
    harness.run();
    harness.assert_complete(1);
}

#[test]
fn prompt_embeddings_are_prefilled_in_chunks_once_while_their_requests_wait_and_others_pass() {
    let mut harness = Harness::new(SchedulerConfig { max_prefill_chunk: Some(4), ..config() });
    let a = harness.add(with_pages(1, 1, 6, false, &[1, 2, 3], 3))[0];
    let b = harness.add(with_pages(2, 1, 6, false, &[2, 2, 3], 3))[0];
    let other = harness.add(request(3, &[1, 2, 3], 3))[0];
    let first = harness.step();
    assert_eq!(first.sequences[0].rows, Rows::PromptEmbeds { first: 0, count: 4 });
    assert_eq!(first.sequences[0].sample, None);
    assert_eq!(first.sequences[1].id, other);
    assert_eq!(harness.log(1).cached_tokens, None, "not started yet");
    let second = harness.step();
    assert_eq!(second.sequences[1].rows, Rows::PromptEmbeds { first: 4, count: 2 });
    assert_eq!(second.sequences[1].start, 4);
    let third = harness.step();
    assert_eq!(third.sequences.iter().map(|sequence| sequence.id).collect::<Vec<_>>(), [other, a, b]);
    assert_eq!(third.block_copies.len(), 2);
    harness.run();
    (1..=3).for_each(|id| harness.assert_complete(id));
    assert!(harness.scheduler.pages.num_prefilling() == 0);
}

#[test]
fn a_prefill_nobody_wants_any_more_is_dropped_at_once() {
    let mut harness = Harness::new(SchedulerConfig { max_prefill_chunk: Some(4), ..config() });
    harness.add(with_pages(1, 1, 6, false, &[1, 2, 3], 3));
    harness.add(with_pages(2, 1, 6, false, &[1, 2, 3], 3));
    let batch = harness.schedule();
    assert!(harness.scheduler.abort(RequestId(1)));
    assert_eq!(harness.scheduler.stats().kv_blocks_used, 2, "the second still wants it");
    assert!(harness.scheduler.abort(RequestId(2)));
    assert_eq!(harness.scheduler.stats().kv_blocks_used, 0);
    assert!(harness.scheduler.is_idle());
    harness.finish(&batch);
}

#[test]
fn pages_stay_when_unused_give_way_when_blocks_run_out_and_come_back() {
    let mut harness = Harness::new(SchedulerConfig { num_blocks: 6, ..config() });
    harness.add(with_pages(1, 1, 6, false, &[1, 2, 3], 2));
    harness.run();
    harness.add(with_pages(2, 2, 4, true, &[1, 2, 3], 2));
    harness.run();
    assert_eq!(harness.scheduler.stats().kv_blocks_used, 3, "two versions' pages");
    // 16 places need 4 blocks; the pages of version 1, unused the longest, give way and those of 2 stay.
    harness.add(request(3, &[7; 13], 4));
    harness.run();
    assert_eq!(harness.scheduler.stats().kv_blocks_used, 1);
    harness.add(with_pages(4, 1, 6, false, &[1, 2, 3], 2));
    assert!(matches!(harness.step().sequences[0].rows, Rows::PromptEmbeds { first: 0, count: 6 }));
    harness.run();
    (1..=4).for_each(|id| harness.assert_complete(id));
}

#[test]
fn pages_under_a_running_sequence_are_not_reclaimed() {
    let mut harness = Harness::new(SchedulerConfig { num_blocks: 5, ..config() });
    harness.add(with_pages(1, 1, 6, true, &[1, 2], 5));
    let waits = harness.add(request(2, &[7; 9], 2))[0];
    harness.step();
    assert_eq!(harness.scheduler.state(waits), Some(SequenceState::Waiting));
    harness.run();
    (1..=2).for_each(|id| harness.assert_complete(id));
}

#[test]
fn a_prefix_hit_over_the_seam_needs_no_copy_and_counts_real_tokens_only() {
    let mut harness = Harness::new(config());
    harness.add(with_pages(1, 1, 6, true, &[1, 2, 3, 4, 5], 1));
    harness.run();
    harness.add(with_pages(2, 1, 6, true, &[1, 2, 3, 4, 5], 1));
    let batch = harness.step();
    assert!(batch.block_copies.is_empty());
    assert_eq!(batch.sequences[0].start, 8);
    assert_eq!(harness.log(2).cached_tokens, Some(2));
    harness.assert_complete(2);
}

#[test]
fn a_block_that_is_about_to_be_reused_is_not_given_to_the_pages() {
    // The pages of version 1 are gone but its blocks are still in the index when it comes back.
    let mut harness = Harness::new(SchedulerConfig { num_blocks: 4, ..config() });
    harness.add(with_pages(1, 1, 6, true, &[1, 2, 3], 1));
    harness.run();
    let reclaimed = harness.scheduler.pages.remove(harness.pages_key(1));
    harness.scheduler.release_pages(reclaimed);
    // Make all but one of the other blocks findable too, so that the wanted one is the second to be handed out.
    harness.add(request(2, &[9; 9], 1));
    harness.run();
    harness.add(with_pages(3, 1, 6, true, &[1, 2, 3], 1));
    harness.run();
    assert_eq!(harness.log(3).cached_tokens, Some(2));
    (1..=3).for_each(|id| harness.assert_complete(id));
}

#[test]
fn a_resumed_sequence_copies_its_seam_again() {
    let config = SchedulerConfig { num_blocks: 7, prefix_cache: false, ..config() };
    let mut harness = Harness::new(config);
    harness.add(request(1, &[1; 8], 9));
    let b = harness.add(with_pages(2, 1, 2, true, &[2; 6], 9))[0];
    harness.run_until(|harness| harness.scheduler.state(b) == Some(SequenceState::Preempted));
    let resumed = loop {
        let batch = harness.step();
        if batch.sequences.iter().any(|sequence| sequence.id == b) {
            break batch;
        }
    };
    assert_eq!(resumed.block_copies.len(), 1);
    harness.run();
    (1..=2).for_each(|id| harness.assert_complete(id));
}

#[test]
fn non_finite_prompt_embeddings_end_all_who_want_them_and_are_not_kept() {
    let mut harness = Harness::new(config());
    harness.fake.poisoned_embeds.insert(AdapterVersion([1; 32]));
    harness.add(with_pages(1, 1, 6, false, &[1, 2, 3], 2));
    harness.add(with_pages(2, 1, 6, false, &[1, 2, 3], 2));
    harness.add(request(3, &[1, 2, 3], 2));
    harness.run();
    for id in 1..=2 {
        assert_eq!(harness.log(id).failure, Some(RequestFailure::NonFinite));
    }
    harness.assert_complete(3);
    assert_eq!(harness.scheduler.stats().kv_blocks_used, 0);
}

#[test]
fn a_failed_step_forgets_the_pages_it_was_to_write() {
    let mut harness = Harness::new(config());
    harness.add(with_pages(1, 1, 6, true, &[1, 2, 3], 2));
    let batch = harness.schedule();
    let events = harness.scheduler.fail_step(&batch, RequestFailure::EngineFailed);
    harness.record(events);
    assert_eq!(harness.scheduler.stats().kv_blocks_used, 0);
    harness.add(with_pages(2, 1, 6, true, &[1, 2, 3], 2));
    assert_eq!(harness.step().prefix_writes.len(), 1);
}

#[test]
fn pages_survive_a_move_of_their_adapter_to_another_slot() {
    let mut harness = Harness::new(config());
    harness.add(with_pages(1, 1, 6, false, &[1, 2, 3], 2));
    harness.run();
    let mut moved = with_pages(2, 1, 6, false, &[1, 2, 3], 2);
    moved.adapter.as_mut().unwrap().slot = AdapterSlot(77);
    harness.add(moved);
    let batch = harness.step();
    assert_eq!(batch.sequences[0].slot, Some(AdapterSlot(77)));
    assert!(matches!(batch.sequences[0].rows, Rows::Ids(_)), "nothing is prefilled again");
    harness.run();
    harness.assert_complete(2);
}

#[test]
fn pages_of_versions_that_are_gone_are_free_unless_someone_runs_on_them() {
    let mut harness = Harness::new(config());
    for (n, saved_kv) in [(1, true), (2, false), (3, true)] {
        harness.add(with_pages(u64::from(n), n, 6, saved_kv, &[1, 2, 3, 4, 5], 2));
        harness.run();
    }
    harness.add(request(4, &[1, 2, 3, 4, 5], 2));
    harness.run();
    assert_eq!(harness.scheduler.stats().kv_blocks_used, 6);
    let versions = |numbers: &[u8]| numbers.iter().map(|n| AdapterVersion([*n; 32])).collect();
    harness.scheduler.forget(&versions(&[1, 2, 9]));
    harness.check_blocks();
    assert_eq!(harness.scheduler.stats().kv_blocks_used, 2, "of the third");

    // Whoever runs on a version that is gone all the same goes on.
    harness.add(with_pages(5, 3, 6, true, &[1, 2, 3, 4, 5], 9));
    harness.step();
    harness.scheduler.forget(&versions(&[3]));
    harness.check_blocks();
    harness.run();
    (1..=5).for_each(|id| harness.assert_complete(id));
    harness.scheduler.forget(&versions(&[3]));
    assert_eq!(harness.scheduler.stats().kv_blocks_used, 0);

    // What was computed with them is not found again; the base's is.
    for (id, n) in [(6, 1), (7, 2), (8, 3)] {
        harness.add(with_pages(id, n, 6, n != 2, &[1, 2, 3, 4, 5], 2));
        harness.run();
        assert_eq!(harness.log(id).cached_tokens, Some(0), "version {n}");
        harness.assert_complete(id);
    }
    harness.add(request(9, &[1, 2, 3, 4, 5], 2));
    harness.run();
    assert_eq!(harness.log(9).cached_tokens, Some(4));
}
