//! What one party can take from another, and what it cannot.

use proptest::prelude::*;

use super::*;

fn client(n: u8) -> ClientKey {
    ClientKey([n; 32])
}

/// Request `id` of client `who` for adapter `what`; 0 is the base.
fn of(who: u8, what: u8, request: EngineRequest) -> EngineRequest {
    let adapter = if what == 0 { None } else { adapter(what, None) };
    EngineRequest { client: client(who), adapter, ..request }
}

fn roomy() -> SchedulerConfig {
    SchedulerConfig {
        num_blocks: 4096,
        max_model_len: 512,
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        share: ShareConfig { step_tokens: 4, ..ShareConfig::default() },
        ..config()
    }
}

/// Rows of a batch by request.
fn rows_of(harness: &Harness, batch: &Step) -> BTreeMap<u64, usize> {
    let mut rows = BTreeMap::new();
    for sequence in &batch.sequences {
        let request = harness.scheduler.sequences[sequence.id].request;
        *rows.entry(request.0).or_default() += sequence.rows.len();
    }
    rows
}

/// A request that has its first token has a row in every step after it.
#[track_caller]
fn ends_in_two_steps(harness: &mut Harness, id: u64) {
    for _ in 0..2 {
        let batch = harness.schedule();
        assert_eq!(rows_of(harness, &batch).get(&id), Some(&1), "request {id}: every step after it");
        harness.finish(&batch);
    }
    assert!(!harness.scheduler.contains(RequestId(id)));
}

#[test]
fn beside_a_flood_of_one_adapter_a_request_of_another_has_its_first_row_in_the_next_step() {
    let mut harness = Harness::new(roomy());
    for id in 0..100 {
        harness.add(of(1, 1, request(id, &[1, 2, 3], 200)));
    }
    for round in 0..20 {
        (0..7).for_each(|_| drop(harness.step()));
        let id = 1000 + round;
        harness.add(of(1, 2, request(id, &[1, 2, 3], 3)));
        let batch = harness.schedule();
        assert_eq!(rows_of(&harness, &batch).get(&id), Some(&3), "round {round}");
        harness.finish(&batch);
        ends_in_two_steps(&mut harness, id);
    }
    assert_eq!(harness.scheduler.stats().preemptions, 0, "a seat is given up, its KV is not");
    assert!(harness.scheduler.stats().held_back > 0);
}

#[test]
fn the_rows_of_who_has_had_most_are_bounded_while_others_are_active_and_only_then() {
    let mut harness = Harness::new(roomy());
    for id in 0..20 {
        harness.add(of(1, 1, request(id, &[1, 2, 3], 300)));
    }
    (0..40).for_each(|_| drop(harness.step()));
    assert_eq!(harness.step().num_tokens(), 8, "alone it has every seat");
    harness.add(of(2, 2, request(100, &[1, 2, 3], 60)));
    for _ in 0..60 {
        let batch = harness.schedule();
        let rows = rows_of(&harness, &batch);
        let flood: usize = rows.iter().filter(|(id, _)| **id < 100).map(|(_, rows)| rows).sum();
        assert!((1..=4).contains(&flood) && rows.contains_key(&100), "{rows:?}");
        harness.finish(&batch);
    }
    (0..48).for_each(|_| drop(harness.step()));
    assert_eq!(harness.step().num_tokens(), 8, "alone again");
}

#[test]
fn a_flood_of_long_prompts_is_bounded_too() {
    let mut harness = Harness::new(roomy());
    for id in 0..20 {
        harness.add(of(1, 1, request(id, &vec![id as u32 + 1; 300], 2)));
    }
    assert_eq!(harness.step().num_tokens(), 64, "alone it has the whole step");
    harness.add(of(1, 2, request(100, &[1, 2, 3], 50)));
    for _ in 0..30 {
        let batch = harness.schedule();
        let rows = rows_of(&harness, &batch);
        assert!(rows.contains_key(&100) && batch.num_tokens() <= 4 + 3, "{rows:?}");
        harness.finish(&batch);
    }
}

#[test]
fn sequences_of_a_flood_take_turns_where_seats_are_given_up() {
    let mut harness = Harness::new(roomy());
    let flood: Vec<_> = (0..8).flat_map(|id| harness.add(of(1, 1, request(id, &[1, 2, 3], 100)))).collect();
    (0..20).for_each(|_| drop(harness.step()));
    harness.add(of(2, 2, request(100, &[1, 2, 3], 200)));
    let mut rows: BTreeMap<SequenceId, usize> = flood.iter().map(|id| (*id, 0)).collect();
    for _ in 0..16 {
        for sequence in &harness.step().sequences {
            if let Some(count) = rows.get_mut(&sequence.id) {
                *count += 1;
            }
        }
    }
    let (least, most) = (rows.values().min().unwrap(), rows.values().max().unwrap());
    assert!(most - least <= 1, "{rows:?}");
}

/// A request over connection `n` of the one party there is.
fn over(n: u64, request: EngineRequest) -> EngineRequest {
    EngineRequest { connection: ConnectionId(n), ..of(1, 1, request) }
}

#[test]
fn beside_a_flood_of_its_own_party_a_request_of_another_connection_has_its_first_row_in_the_next_step() {
    let mut harness = Harness::new(roomy());
    for id in 0..100 {
        harness.add(EngineRequest { choices: 16, ..over(1, request(id, &[1, 2, 3], 200)) });
    }
    for round in 0..20 {
        (0..7).for_each(|_| drop(harness.step()));
        let id = 1000 + round;
        harness.add(over(2 + round, request(id, &[1, 2, 3], 3)));
        let batch = harness.schedule();
        assert!(rows_of(&harness, &batch).contains_key(&id), "round {round}");
        harness.finish(&batch);
        ends_in_two_steps(&mut harness, id);
    }
    assert_eq!(harness.scheduler.stats().preemptions, 0, "a seat is given up, its KV is not");
}

#[test]
fn connections_of_a_party_get_seats_by_turns_and_those_of_one_connection_in_order_of_arrival() {
    let mut harness = Harness::new(SchedulerConfig { max_num_seqs: 1, prefix_cache: false, ..roomy() });
    let mut order = Vec::new();
    for (id, connection) in [1, 1, 1, 1, 2, 2, 3].into_iter().enumerate() {
        harness.add(over(connection, request(id as u64, &[1, 2, 3], 1)));
    }
    while !harness.scheduler.is_idle() {
        let batch = harness.schedule();
        order.extend(rows_of(&harness, &batch).into_keys());
        harness.finish(&batch);
    }
    assert_eq!(order, (0..7).collect::<Vec<_>>(), "nothing runs when a seat is free: the most senior goes first");

    let mut harness = Harness::new(SchedulerConfig { max_num_seqs: 4, prefix_cache: false, ..roomy() });
    for (id, connection) in [1, 1, 1, 1, 1, 1, 2, 2, 2, 3].into_iter().enumerate() {
        harness.add(over(connection, request(id as u64, &[1, 2, 3], 20)));
    }
    let batch = harness.schedule();
    assert_eq!(rows_of(&harness, &batch).into_keys().collect::<Vec<_>>(), [0, 1, 6, 9]);
    harness.finish(&batch);
}

#[test]
fn connections_that_keep_coming_do_not_starve_one_of_the_same_party() {
    let mut harness = Harness::new(SchedulerConfig { max_num_seqs: 2, prefix_cache: false, ..roomy() });
    for id in 0..6 {
        harness.add(over(0, request(id, &[1, 2, 3], 4)));
    }
    for step in 0..200 {
        for new in 0..3 {
            let id = 100 + 3 * step + new;
            harness.add(over(id, request(id, &[1, 2, 3], 4)));
        }
        harness.step();
        if (0..6).all(|id| !harness.scheduler.contains(RequestId(id))) {
            return;
        }
    }
    panic!("starved");
}

#[test]
fn many_adapters_are_no_way_around_the_share_of_a_client() {
    let mut harness = Harness::new(roomy());
    for id in 0..100 {
        harness.add(of(1, 1 + id as u8, request(id, &[1, 2, 3], 200)));
    }
    (0..10).for_each(|_| drop(harness.step()));
    harness.add(of(2, 0, request(1000, &[1, 2, 3], 20)));
    for _ in 0..20 {
        let batch = harness.schedule();
        assert!(rows_of(&harness, &batch).contains_key(&1000));
        harness.finish(&batch);
    }
}

#[test]
fn many_clients_are_no_way_around_the_share_of_an_adapter() {
    let mut harness = Harness::new(roomy());
    for id in 0..100 {
        harness.add(of(1 + id as u8, 1, request(id, &[1, 2, 3], 200)));
    }
    (0..10).for_each(|_| drop(harness.step()));
    harness.add(of(200, 2, request(1000, &[1, 2, 3], 20)));
    for _ in 0..20 {
        let batch = harness.schedule();
        assert!(rows_of(&harness, &batch).contains_key(&1000));
        harness.finish(&batch);
    }
}

#[test]
fn a_flood_of_the_largest_priority_delays_others_by_its_head_start_and_no_more() {
    let mut harness = Harness::new(SchedulerConfig { max_num_seqs: 1, ..roomy() });
    for id in 0..200 {
        harness.add(EngineRequest { priority: 10, ..of(1, 1, request(id, &[1, 2, 3], 2)) });
    }
    harness.step();
    harness.add(EngineRequest { priority: -10, ..of(1, 2, request(1000, &[1, 2, 3], 2)) });
    let mut served = 0;
    while harness.log(1000).cached_tokens.is_none() {
        harness.step();
        served += 1;
    }
    // Twenty levels of 32 virtual tokens, each charged to the adapter; a request costs 7 and takes two steps.
    assert!(served <= 2 * (20 * 32 / 7 + 2), "{served} steps");
}

#[test]
fn the_lowest_priority_of_a_party_is_passed_by_a_bounded_number_whatever_keeps_coming() {
    let mut harness = Harness::new(SchedulerConfig { max_num_seqs: 1, prefix_cache: false, ..roomy() });
    harness.add(EngineRequest { priority: -2, ..request(0, &[1], 1) });
    for id in 1..2000 {
        harness.add(EngineRequest { priority: 2, ..request(id, &[1], 1) });
        harness.step();
        if harness.log(0).cached_tokens.is_some() {
            assert!(id <= 4 * 64 + 1, "after {id}");
            return;
        }
    }
    panic!("starved");
}

/// Which accounts two parties share.
#[derive(Clone, Copy, Debug)]
enum Kin {
    Nothing,
    Client,
    Adapter,
}

/// Two parties that always have something waiting, and what bounds the steps they share.
#[derive(Clone, Copy, Debug)]
struct Backlog {
    kin: Kin,
    /// Tokens of the prompts of each, and of the answers they ask for.
    prompts: [usize; 2],
    answers: [u32; 2],
    /// Steps for which the first has been there when the second comes.
    ahead: usize,
    seats: usize,
    step_tokens: usize,
}

impl Backlog {
    /// VTC's bound: the two get the same, but for what one step or one prompt can be, however differently they ask.
    fn is_shared_evenly(self, steps: usize) -> Result<(), TestCaseError> {
        let Self { kin, prompts, answers, ahead, seats, step_tokens } = self;
        let share = ShareConfig { step_tokens, ..ShareConfig::default() };
        let mut harness = Harness::new(SchedulerConfig { max_num_seqs: seats, prefix_cache: false, share, ..roomy() });
        let who = match kin {
            Kin::Nothing => [(1, 1), (2, 2)],
            Kin::Client => [(1, 1), (1, 2)],
            Kin::Adapter => [(1, 1), (2, 1)],
        };
        let (mut next, mut waiting) = (0, [0usize; 2]);
        let mut owner = BTreeMap::new();
        let mut served = [0i64; 2];
        let mut from = None;
        for step in 0..steps {
            for party in 0..if step < ahead { 1 } else { 2 } {
                let (client, adapter) = who[party];
                while waiting[party] < seats + 2 {
                    let prompt = vec![next as u32 % 90; prompts[party]];
                    for id in harness.add(of(client, adapter, request(next, &prompt, answers[party]))) {
                        owner.insert(id, party);
                    }
                    (next, waiting[party]) = (next + 1, waiting[party] + 1);
                }
            }
            let batch = harness.schedule();
            for sequence in &batch.sequences {
                let party = owner[&sequence.id];
                waiting[party] -= usize::from(sequence.start == 0);
                let prompt = prompts[party].saturating_sub(sequence.start as usize).min(sequence.rows.len());
                served[party] += prompt as i64 + 2 * i64::from(sequence.sample.is_some());
            }
            harness.finish(&batch);
            if step >= ahead {
                let gap = served[0] - served[1];
                let from = *from.get_or_insert(gap);
                // What a party may get in a step beyond its turn, and what one in each seat may still owe.
                let step_cost = 64 + 2 * seats as i64;
                let owed = 2 * seats as i64 * (prompts.iter().max().unwrap() + 2) as i64;
                let answer = 2 * seats as i64 * i64::from(*answers.iter().max().unwrap());
                prop_assert!((gap - from).abs() <= 2 * (step_cost + owed) + answer, "{gap} from {from} in step {step}");
            }
        }
        prop_assert_eq!(harness.scheduler.stats().preemptions, 0);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn two_backlogged_parties_get_the_same(
        kin in prop::sample::select(vec![Kin::Nothing, Kin::Client, Kin::Adapter]),
        prompts in prop::array::uniform2(1usize..60),
        answers in prop::array::uniform2(1u32..40),
        ahead in 1usize..60,
        seats in 2usize..12,
        step_tokens in 1usize..12,
        steps in 150usize..250,
    ) {
        Backlog { kin, prompts, answers, ahead, seats, step_tokens }.is_shared_evenly(steps)?;
    }
}

/// Rows of a step that are kept for the long prompts of a party that is ahead would have left one with short prompts behind
/// it for ever, where only the first that waits of each is dealt any.
#[test]
fn a_party_of_short_prompts_catches_up_with_one_of_long_prompts() {
    for kin in [Kin::Nothing, Kin::Client, Kin::Adapter] {
        let backlog = Backlog { kin, prompts: [36, 13], answers: [3, 1], ahead: 1, seats: 5, step_tokens: 1 };
        backlog.is_shared_evenly(600).unwrap();
    }
}

/// 16 blocks of 4 tokens, which the sequences of a flood fill for long.
fn crowded() -> SchedulerConfig {
    SchedulerConfig { num_blocks: 16, max_model_len: 64, ..roomy() }
}

/// Four sequences of one adapter that hold nearly all blocks.
fn crowd(max_tokens: u32) -> Harness {
    let mut harness = Harness::new(crowded());
    for id in 0..4 {
        harness.add(of(1, 1, request(id, &[id as u32; 9], max_tokens)));
    }
    harness.run_until(|harness| harness.scheduler.stats().kv_blocks_used >= 13);
    harness
}

#[test]
fn sequences_that_fill_the_cache_make_way_for_a_party_that_holds_less() {
    let mut harness = crowd(50);
    harness.add(of(1, 2, request(100, &[7; 9], 3)));
    let arrived = harness.steps;
    harness.run_until(|harness| harness.log(100).cached_tokens.is_some());
    assert!(harness.steps - arrived <= 2, "others go on for 40 steps");
    harness.run();
    for id in 0..4 {
        assert_eq!(harness.log(id).output[&0].len(), 50, "who made way ends as well");
    }
}

#[test]
fn nobody_makes_way_for_its_own_party_nor_for_one_that_would_hold_more() {
    for (what, prompt) in [(1, 9), (2, 55)] {
        let mut harness = crowd(8);
        let before = harness.scheduler.stats().preemptions;
        harness.add(of(1, what, request(100, &vec![7; prompt], 3)));
        harness.run();
        assert_eq!(harness.scheduler.stats().preemptions, before, "adapter {what}");
    }
}

#[test]
fn two_parties_that_fill_the_cache_do_not_take_blocks_from_each_other_for_ever() {
    let mut harness = Harness::new(crowded());
    for id in 0..12 {
        harness.add(of(1, 1 + (id % 2) as u8, request(id, &[id as u32; 9], 12)));
    }
    harness.run();
    let stats = harness.scheduler.stats();
    assert!(stats.preemptions <= 24, "{stats:?}");
}
