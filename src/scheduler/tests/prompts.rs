//! What prompts take of a step from each other and from those who stream.

use super::rules::{prompt, rows};
use super::*;

/// Tell the scheduler of a prompt's and a decode's step that cost 10 ms, and 2 ms for each row; who asked for them
/// streams.
fn teach(harness: &mut Harness, id: u64) -> SequenceId {
    let streaming = harness.add(request(id, &prompt(4, 0), 20))[0];
    for rows in [4, 1] {
        let batch = harness.schedule();
        assert_eq!(batch.num_tokens(), rows);
        harness.scheduler.learn(&batch, Duration::from_millis(10 + 2 * rows as u64));
        harness.finish(&batch);
    }
    streaming
}

#[test]
fn a_fresh_prompt_does_not_wait_for_a_whole_other_one() {
    let mut harness = Harness::new(SchedulerConfig { max_num_batched_tokens: 8, ..config() });
    let long = harness.add(request(1, &prompt(30, 0), 2))[0];
    assert_eq!(rows(&harness.step()), [(long, 8)]);
    let fresh = harness.add(request(2, &prompt(4, 100), 2))[0];
    assert_eq!(rows(&harness.step()), [(long, 4), (fresh, 4)]);
    let other = harness.add(request(3, &prompt(20, 200), 2))[0];
    assert_eq!(rows(&harness.step()), [(fresh, 1), (long, 4), (other, 3)], "half of the rows beside the decode");
    harness.run();
    (1..=3).for_each(|id| harness.assert_complete(id));
}

#[test]
fn prompts_take_the_rows_beside_a_stream_that_its_pace_allows() {
    let mut harness = Harness::new(config());
    let streaming = teach(&mut harness, 1);
    let fresh = harness.add(request(2, &prompt(20, 100), 4))[0];
    // Three quarters of 12 ms are four rows, and of 14 ms five.
    assert_eq!(rows(&harness.step()), [(streaming, 1), (fresh, 4)]);
    let other = harness.add(request(3, &prompt(3, 200), 4))[0];
    assert_eq!(rows(&harness.step()), [(streaming, 1), (fresh, 2), (other, 2)], "each has a part of them");
    assert_eq!(rows(&harness.step()), [(streaming, 1), (other, 1), (fresh, 5)]);
    harness.run();
    (1..=3).for_each(|id| harness.assert_complete(id));
}

#[test]
fn who_has_only_begun_to_answer_does_not_hold_up_those_who_came_along() {
    let mut harness = Harness::new(SchedulerConfig { num_blocks: 32, ..config() });
    teach(&mut harness, 1);
    harness.run();
    let first = harness.add(request(2, &prompt(8, 100), 4))[0];
    assert_eq!(rows(&harness.step()), [(first, 8)]);
    let others: Vec<_> = (3..6).map(|id| harness.add(request(id, &prompt(8, id as u32 * 100), 4))[0]).collect();
    assert_eq!(rows(&harness.step()), [(first, 1), (others[0], 8), (others[1], 8), (others[2], 8)]);
    let late = harness.add(request(6, &prompt(15, 900), 4))[0];
    let batch = harness.step();
    assert_eq!(rows(&batch).last(), Some(&(late, 6)), "three quarters of 18 ms");
    harness.run();
    (1..=6).for_each(|id| harness.assert_complete(id));
}
