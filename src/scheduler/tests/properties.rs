//! Random workloads in a cache that is too small, over a vocabulary so small that prompts collide.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::*;
use crate::scheduler::testing::NON_FINITE_SEED;
use crate::types::{PoolRows, PoolSpec};

#[derive(Clone, Debug)]
struct Wish {
    adapter: u8,
    /// Leading tokens of a prompt everybody shares.
    shared: usize,
    own: Vec<u32>,
    max_tokens: u32,
    min_tokens: u32,
    stops: bool,
    choices: u32,
    priority: i32,
    tenant: u8,
    client: u8,
    seed: u64,
    history: bool,
    scores: Scores,
    deadline_ms: Option<u64>,
}

/// What is wanted of the prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scores {
    No,
    Yes,
    /// And no output.
    Alone,
    /// Its hidden states, and no output.
    Pooled(PoolRows),
}

#[derive(Clone, Debug)]
enum Op {
    Add(Wish),
    Abort(prop::sample::Index),
    /// Abort between schedule and update.
    AbortInFlight(prop::sample::Index),
    Step,
    Park(prop::sample::Index),
    Unpark(prop::sample::Index),
    /// The step itself fails.
    FailStep,
}

fn wishes() -> impl Strategy<Value = Wish> {
    let prompt = (0u8..13, 0usize..12, prop::collection::vec(0u32..2, 1..6));
    let stopping = (1u32..9, 0u32..4, any::<bool>());
    let identity = (1u32..4, -1i32..2, 0u8..2, 0u8..3);
    let seed = prop_oneof![9 => 0u64..3, 1 => Just(NON_FINITE_SEED)];
    let deadline = prop_oneof![5 => Just(None), 1 => (0u64..20).prop_map(Some)];
    let rows = prop::sample::select(vec![PoolRows::Last, PoolRows::First, PoolRows::Sum, PoolRows::Each]);
    let pooled = rows.prop_map(Scores::Pooled);
    let scores = prop_oneof![3 => Just(Scores::No), 1 => Just(Scores::Yes), 1 => Just(Scores::Alone), 2 => pooled];
    (prompt, stopping, identity, seed, any::<bool>(), scores, deadline).prop_map(
        |(
            (adapter, shared, own),
            (max_tokens, min_tokens, stops),
            (choices, priority, tenant, client),
            seed,
            history,
            scores,
            deadline,
        )| {
            let deadline_ms = deadline;
            Wish {
                adapter,
                shared,
                own,
                max_tokens,
                min_tokens,
                stops,
                choices,
                priority,
                tenant,
                client,
                seed,
                history,
                scores,
                deadline_ms,
            }
        },
    )
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => wishes().prop_map(Op::Add),
        1 => any::<prop::sample::Index>().prop_map(Op::Abort),
        1 => any::<prop::sample::Index>().prop_map(Op::AbortInFlight),
        12 => Just(Op::Step),
        1 => any::<prop::sample::Index>().prop_map(Op::Park),
        1 => any::<prop::sample::Index>().prop_map(Op::Unpark),
        1 => Just(Op::FailStep),
    ];
    prop::collection::vec(op, 1..60)
}

fn configs() -> impl Strategy<Value = SchedulerConfig> {
    let chunk = prop::option::of(1usize..6);
    let layers = prop::option::of(Just(2u32));
    let cache = (1u32..6, 5u32..24, any::<bool>(), layers);
    (cache, 1usize..6, 0usize..10, chunk, 1usize..8).prop_map(
        |(cache, max_num_seqs, extra, max_prefill_chunk, step_tokens)| {
            let (block_size, num_blocks, prefix_cache, shared_layers) = cache;
            SchedulerConfig {
                block_size,
                num_blocks,
                max_num_seqs,
                max_num_batched_tokens: max_num_seqs + extra,
                max_prefill_chunk,
                max_model_len: 28,
                prefix_cache,
                shared_layers,
                base_digest: [3; 32],
                long_rope: None,
                share: ShareConfig { step_tokens, ..ShareConfig::default() },
            }
        },
    )
}

/// Version whose prompt embeddings turn non-finite in some runs.
const POISONED: AdapterVersion = AdapterVersion([5; 32]);

/// Adapters 2 to 5 have virtual tokens: 2 and 3 saved, 4 and 5 to be prefilled. 6 and 7 are activated by the last of these in
/// the prompt, 8 leaves KV alone. 10 to 12 leave the shared layers as they are, 9 does not.
fn bind(n: u8, counts: [u32; 4], prompt: &[u32]) -> Option<AdapterBinding> {
    let last = |tokens: &[u32]| prompt.windows(tokens.len()).rposition(|window| window == tokens);
    let activated = |tokens| last(tokens).map_or(AdapterBinding::NEVER, |at| at as u32);
    match n {
        0 => None,
        1 => adapter(1, None),
        6 => active_from(6, activated(&[1, 0, 1])),
        7 => active_from(7, activated(&[0])),
        8 => behind_kv(8),
        9 => leaves(9, 1),
        10 => leaves(10, 2),
        11 => leaves(11, 5),
        12 => active_from(12, activated(&[1, 0])).map(|adapter| AdapterBinding { base_layers: 2, ..adapter }),
        n => adapter(n, Some((counts[n as usize - 2], n < 4))),
    }
}

fn wish_to_request(id: u64, wish: &Wish, counts: [u32; 4], now: Instant) -> EngineRequest {
    let common = [0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1];
    let prompt = [&common[..wish.shared], &wish.own].concat();
    let mut sampling = SamplingParams { seed: wish.seed, ..SamplingParams::greedy() };
    if wish.history {
        sampling.presence_penalty = 0.5;
    }
    match wish.scores {
        Scores::No => {}
        Scores::Yes | Scores::Alone => sampling.prompt_logprobs = Some(0),
        Scores::Pooled(rows) => sampling.pool = Some(PoolSpec { rows, labels: None }),
    }
    let (mut max_tokens, mut min_tokens) = (wish.max_tokens, wish.min_tokens);
    if !matches!(wish.scores, Scores::No | Scores::Yes) {
        (max_tokens, min_tokens) = (0, 0);
        // Only sampled rows are made to be broken.
        sampling.seed %= NON_FINITE_SEED;
    }
    let stop_token_ids = if wish.stops { vec![0] } else { Vec::new() };
    EngineRequest {
        client: ClientKey([wish.client; 32]),
        connection: ConnectionId(wish.seed % 3),
        adapter: bind(wish.adapter, counts, &prompt),
        sampling: sampling.into(),
        stopping: StoppingParams { max_tokens, min_tokens, stop_token_ids }.into(),
        choices: wish.choices,
        priority: wish.priority,
        tenant_salt: vec![7; wish.tenant as usize].into(),
        deadline: wish.deadline_ms.map(|ms| now + Duration::from_millis(ms)),
        ..request(id, &prompt, 1)
    }
}

struct Run {
    harness: Harness,
    aborted: Vec<RequestId>,
    batches: Vec<Step>,
}

fn execute(config: SchedulerConfig, counts: [u32; 4], poisoned: bool, ops: &[Op]) -> Run {
    let mut run = Run { harness: Harness::new(config), aborted: Vec::new(), batches: Vec::new() };
    let harness = &mut run.harness;
    if poisoned {
        harness.fake.poisoned_embeds.insert(POISONED);
    }
    let pick = |harness: &Harness, index: &prop::sample::Index| {
        let ids: Vec<_> = harness.requests.keys().copied().collect();
        (!ids.is_empty()).then(|| *index.get(&ids))
    };
    for (id, op) in ops.iter().enumerate() {
        match op {
            Op::Add(wish) => {
                let request = wish_to_request(id as u64, wish, counts, harness.now);
                let refused = harness.try_add(request).err();
                let expected = matches!(
                    refused,
                    None | Some(SchedulerError::PoolTooSmall { .. } | SchedulerError::ContextTooLong { .. })
                );
                assert!(expected, "{refused:?}");
            }
            Op::Abort(index) => {
                if let Some(id) = pick(harness, index)
                    && harness.scheduler.abort(id)
                {
                    run.aborted.push(id);
                    harness.check_blocks();
                }
            }
            Op::AbortInFlight(index) => {
                let batch = harness.schedule();
                if let Some(id) = pick(harness, index)
                    && harness.scheduler.abort(id)
                {
                    run.aborted.push(id);
                }
                harness.finish(&batch);
                run.batches.push(batch);
            }
            Op::Step => {
                let batch = harness.step();
                let took = Duration::from_millis(10 + 2 * batch.num_tokens() as u64);
                harness.scheduler.learn(&batch, took);
                run.batches.push(batch);
            }
            Op::Park(index) | Op::Unpark(index) => {
                if let Some(id) = pick(harness, index) {
                    match op {
                        Op::Park(_) => harness.scheduler.park(id),
                        _ => harness.scheduler.unpark(id),
                    }
                    harness.check_blocks();
                }
            }
            Op::FailStep => {
                let batch = harness.schedule();
                let events = harness.scheduler.fail_step(&batch, RequestFailure::EngineFailed);
                harness.record(events);
                harness.check_blocks();
            }
        }
    }
    for id in harness.requests.keys() {
        harness.scheduler.unpark(*id);
    }
    harness.run();
    run
}

fn check_outcomes(run: &Run) -> TestCaseResult {
    let harness = &run.harness;
    for (id, request) in &harness.requests {
        let log = harness.log(id.0);
        let poisoned = request.adapter.is_some_and(|adapter| harness.fake.poisoned_embeds.contains(&adapter.version));
        let non_finite = poisoned || request.sampling.seed == NON_FINITE_SEED;
        harness.assert_prefix(id.0);
        match log.failure {
            _ if run.aborted.contains(id) => prop_assert_eq!(log.failure, None),
            None => {
                prop_assert!(!non_finite);
                harness.assert_complete(id.0);
            }
            Some(RequestFailure::NonFinite) => prop_assert!(non_finite),
            Some(RequestFailure::DeadlineExceeded) => prop_assert!(request.deadline.is_some()),
            Some(RequestFailure::EngineFailed) => {}
            Some(RequestFailure::Draining) => prop_assert!(false, "nothing drains here"),
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_request_gives_what_it_gives_alone_and_no_block_is_lost(
        config in configs(),
        counts in prop::array::uniform4(1u32..8),
        poisoned in prop::bool::weighted(0.2),
        ops in ops(),
    ) {
        let mut run = execute(config, counts, poisoned, &ops);
        check_outcomes(&run)?;
        let scheduler = &mut run.harness.scheduler;
        prop_assert_eq!(scheduler.next_deadline(), None);
        let stats = scheduler.stats();
        prop_assert_eq!((stats.waiting, stats.running, stats.parked), (0, 0, 0));
        prop_assert_eq!(scheduler.stats().kv_blocks_used, scheduler.pages.blocks().count());
        prop_assert!(scheduler.fail_all(RequestFailure::Draining).is_empty());
        prop_assert_eq!(scheduler.stats().kv_blocks_used, 0);
    }

    #[test]
    fn the_same_workload_is_scheduled_the_same_way_twice(
        config in configs(),
        counts in prop::array::uniform4(1u32..8),
        poisoned in prop::bool::weighted(0.2),
        ops in ops(),
    ) {
        let [a, b] = [(); 2].map(|()| execute(config.clone(), counts, poisoned, &ops));
        prop_assert_eq!(a.batches, b.batches);
        prop_assert_eq!(a.harness.logs, b.harness.logs);
    }
}

/// All that take part in a step have to yield, so that those may start again at once who were passed over in it.
#[test]
fn whoever_yields_and_comes_back_in_a_step_has_one_share_of_it() {
    let wish = |shared, own: &[u32], max_tokens, choices, (priority, tenant, client)| {
        Op::Add(Wish {
            adapter: 0,
            shared,
            own: own.to_vec(),
            max_tokens,
            min_tokens: 0,
            stops: false,
            scores: Scores::No,
            choices,
            priority,
            tenant,
            client,
            seed: 0,
            history: false,
            deadline_ms: None,
        })
    };
    let ops = [
        wish(9, &[0, 0, 0], 2, 3, (0, 0, 1)),
        Op::Step,
        Op::Step,
        wish(2, &[0, 0, 0], 1, 2, (1, 1, 2)),
        Op::Step,
        Op::Step,
        wish(7, &[0, 0, 0, 0], 5, 1, (0, 1, 0)),
        Op::Step,
        wish(1, &[1], 5, 2, (1, 1, 2)),
    ];
    let share = ShareConfig { step_tokens: 3, ..ShareConfig::default() };
    let limits = SchedulerConfig { max_num_seqs: 2, max_num_batched_tokens: 7, max_model_len: 28, ..config() };
    let run = execute(SchedulerConfig { block_size: 1, num_blocks: 17, share, ..limits }, [1; 4], false, &ops);
    check_outcomes(&run).unwrap();
}
