//! Who makes a step fail ends, and nobody else notices: random scripts against a cache that checks every row it reads.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::*;
use crate::engine::input_batch::SequenceInput;
use crate::scheduler::testing::{
    FakeExecutor, NON_FINITE_SEED, Rows, Share, Step, oracle, oracle_of_pool, oracle_of_prompt,
};
use crate::types::{
    AdapterBinding, AdapterVersion, BlockId, OpClasses, Output, PoolRows, PoolSpec, PooledVector, SequenceId,
    TokenLogprob, VirtualTokens,
};

/// Breaks every step that a prompt with this id is in.
const POISON: u32 = 1000;
const MAX_MODEL_LEN: u32 = 28;
/// Adapters: plain, saved K and V, prompt embeddings, and one of each of the last two whose every row breaks the step.
const ADAPTERS: [(u32, Option<(u32, bool)>); 5] =
    [(1, None), (2, Some((6, true))), (3, Some((5, false))), (4, Some((3, false))), (5, None)];
const BROKEN: [u32; 2] = [4, 5];
const POOLS: [PoolRows; 4] = [PoolRows::Last, PoolRows::First, PoolRows::Sum, PoolRows::Each];

fn binding(slot: u32) -> Option<AdapterBinding> {
    let (_, virtual_tokens) = ADAPTERS.into_iter().find(|(number, _)| *number == slot)?;
    let virtual_tokens = virtual_tokens.map(|(count, saved_kv)| VirtualTokens { count, saved_kv });
    let (version, slot) = (AdapterVersion([slot as u8; 32]), AdapterSlot(slot));
    Some(AdapterBinding { version, slot, virtual_tokens, active_from: 0, kv_from: 0, base_layers: 0 })
}

fn share(sequence: SequenceInput<'_>) -> Share {
    let embeds = Rows::PromptEmbeds { first: sequence.start, count: sequence.count };
    let scored: Vec<(u32, Output)> = sequence.scored().collect();
    let first = scored.first().map_or(0, |(row, _)| *row);
    let target = |(_, output): &(u32, Output)| match output {
        Output::PromptLogprobs { target, .. } => *target,
        Output::Sample(_) => panic!("a row of a prompt is not sampled"),
    };
    Share {
        scored: first..first + scored.len() as u32,
        targets: scored.iter().map(target).collect(),
        pooled: sequence.pooled(),
        sum: sequence.sum().cloned(),
        id: sequence.id,
        slot: sequence.slot,
        active_from: sequence.active_from,
        start: sequence.start,
        rows: sequence.ids().map_or(embeds, |ids| Rows::Ids(ids.collect())),
        blocks: sequence.blocks.iter().copied().map(BlockId).collect(),
        long_from: sequence.long_from,
        from_shared: sequence.from_shared,
        sample: sequence.sample(),
    }
}

/// A cache that checks what it reads, under kernels that break on some rows when part of the step is written already.
struct Brittle {
    fake: FakeExecutor,
    /// Attempts that fail for no reason, counted from the first.
    glitches: BTreeSet<u64>,
    attempts: u64,
    /// What sequences ran on, to know a row that is tried without its adapter.
    slots: HashMap<SequenceId, Option<AdapterSlot>>,
}

impl Brittle {
    fn new(config: &SchedulerConfig, glitches: BTreeSet<u64>) -> Self {
        let mut fake = FakeExecutor::new(config);
        for (slot, _) in ADAPTERS {
            fake.introduce(&EngineRequest { adapter: binding(slot), ..request(0, 1) }, &[]);
        }
        Self { fake, glitches, attempts: 0, slots: HashMap::new() }
    }

    /// Write what comes before sequence `at`, and no more.
    fn write_until(&mut self, step: &Step, at: usize) {
        self.fake.execute(&Step { sequences: step.sequences[..at].to_vec(), ..step.clone() });
    }
}

impl StepExecutor for Brittle {
    type Prepared = ();

    fn execute(&mut self, step: &StepInput<'_>) -> Result<StepOutput, StepError> {
        self.attempts += 1;
        let step = Step { batch: step.batch().clone(), sequences: step.sequences().map(share).collect() };
        let poisoned = |share: &Share| matches!(&share.rows, Rows::Ids(ids) if ids.contains(&POISON));
        if let [only] = step.sequences.as_slice()
            && only.slot.is_none()
            && self.slots.get(&only.id).is_some_and(Option::is_some)
        {
            // Tried without its adapter, on what was computed with it: only its ids matter.
            assert!(!poisoned(only), "a kernel broke");
            return Ok(StepOutput::default());
        }
        self.slots.extend(step.sequences.iter().map(|sequence| (sequence.id, sequence.slot)));
        let breaks = step
            .sequences
            .iter()
            .position(|sequence| poisoned(sequence) || sequence.slot.is_some_and(|slot| BROKEN.contains(&slot.0)));
        if let Some(at) = breaks {
            self.write_until(&step, at);
            panic!("a kernel broke");
        }
        if self.glitches.contains(&self.attempts) {
            self.write_until(&step, step.sequences.len() / 2);
            return Err(StepError::NoPrefix { slot: 0 });
        }
        Ok(self.fake.execute(&step))
    }

    fn install(&mut self, _: AdapterSlot, (): ()) {}

    fn remove(&mut self, _: AdapterSlot) -> Leftover {
        Box::new(())
    }

    fn classes(&self, _: AdapterSlot) -> OpClasses {
        OpClasses::default()
    }
}

#[derive(Clone, Debug)]
struct Wish {
    adapter: u32,
    /// Leading tokens of a prompt everybody shares.
    shared: usize,
    own: Vec<u32>,
    poisoned: bool,
    /// Its prompt is scored.
    scores: bool,
    pool: Option<PoolRows>,
    max_tokens: u32,
    choices: u32,
    priority: i32,
    seed: u64,
}

impl Wish {
    fn request(&self, id: u64) -> EngineRequest {
        let common = [0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1];
        let mut prompt = [&common[..self.shared], &self.own].concat();
        if self.poisoned {
            prompt.push(POISON);
        }
        EngineRequest {
            prompt: prompt.into(),
            adapter: binding(self.adapter),
            sampling: SamplingParams {
                seed: self.seed,
                prompt_logprobs: self.scores.then_some(0),
                pool: self.pool.map(|rows| PoolSpec { rows, labels: None }),
                ..SamplingParams::greedy()
            }
            .into(),
            choices: self.choices,
            priority: self.priority,
            ..super::request(id, self.max_tokens)
        }
    }

    /// It makes steps fail.
    fn is_culprit(&self) -> bool {
        self.poisoned || BROKEN.contains(&self.adapter)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Submit(Wish),
    /// The client leaves.
    Leave(prop::sample::Index),
    Abort(prop::sample::Index),
    /// A reader takes an event.
    Read(prop::sample::Index),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let wish = (
        (prop_oneof![8 => 0u32..4, 1 => 4u32..6], 0usize..8, prop::collection::vec(0u32..2, 1..4)),
        (prop::bool::weighted(0.1), 0usize..2 + POOLS.len(), 1u32..9, 1u32..4, -1i32..2),
        prop_oneof![9 => 0u64..3, 1 => Just(NON_FINITE_SEED)],
    );
    let wish = wish.prop_map(|((adapter, shared, own), (poisoned, scores, max_tokens, choices, priority), seed)| {
        let (scores, pool) = (scores == 1, (scores > 1).then(|| POOLS[scores - 2]));
        // Only sampled rows are made to be broken.
        let (max_tokens, seed) = if pool.is_some() { (0, seed % NON_FINITE_SEED) } else { (max_tokens, seed) };
        Wish { adapter, shared, own, poisoned, scores, pool, max_tokens, choices, priority, seed }
    });
    let index = any::<prop::sample::Index>;
    let op = prop_oneof![
        8 => wish.prop_map(Op::Submit),
        1 => index().prop_map(Op::Leave),
        1 => index().prop_map(Op::Abort),
        4 => index().prop_map(Op::Read),
    ];
    prop::collection::vec(op, 1..40)
}

/// A request as its client sees it.
struct Client {
    wish: Wish,
    events: Option<EventReceiver>,
    aborted: bool,
    prompt: Vec<(u32, TokenLogprob)>,
    pooled: Vec<PooledVector>,
    output: BTreeMap<u32, Vec<u32>>,
    finished: BTreeMap<u32, (FinishReason, Option<u32>)>,
    failure: Option<RequestFailure>,
}

impl Client {
    /// Take one event; false after the last one.
    fn read(&mut self) -> bool {
        let Some(event) = self.events.as_mut().and_then(|events| events.blocking_recv()) else { return false };
        assert_eq!(self.failure, None, "{:?} has failed and gets {event:?}", self.wish);
        match event {
            SequenceEvent::Started { .. } => {}
            SequenceEvent::PromptLogprob { token, logprob } => self.prompt.push((token, logprob)),
            SequenceEvent::Pooled(vectors) => self.pooled.extend(vectors),
            SequenceEvent::Token { choice, token, finish, .. } => {
                assert!(!self.finished.contains_key(&choice), "choice {choice} goes on after its end");
                self.output.entry(choice).or_default().extend(token);
                self.finished.extend(finish.map(|finish| (choice, finish)));
            }
            SequenceEvent::Failed(failure) => self.failure = Some(failure),
        }
        true
    }

    fn check(&self, request: &EngineRequest) -> TestCaseResult {
        let all = self.finished.len() as u32 == self.wish.choices;
        let left = self.aborted || self.events.is_none();
        let scores = if self.wish.scores { oracle_of_prompt(request) } else { Vec::new() };
        prop_assert!(scores.starts_with(&self.prompt), "{:?} of {scores:?}: {:?}", self.prompt, self.wish);
        let pooled = oracle_of_pool(request);
        prop_assert!(pooled.starts_with(&self.pooled), "{:?} of {pooled:?}: {:?}", self.pooled, self.wish);
        prop_assert!(!self.finished.contains_key(&0) || pooled == self.pooled, "{:?}", self.wish);
        prop_assert!(self.output.is_empty() || scores.len() == self.prompt.len(), "{:?}", self.wish);
        for choice in 0..self.wish.choices {
            let (expected, reason, stop) = oracle(request, choice, MAX_MODEL_LEN);
            let output = self.output.get(&choice).map_or(&[][..], Vec::as_slice);
            prop_assert!(expected.starts_with(output), "{output:?} of {expected:?}: {:?}", self.wish);
            if self.finished.contains_key(&choice) {
                prop_assert_eq!((output, self.finished[&choice]), (&expected[..], (reason, stop)));
            }
        }
        match self.failure {
            _ if left => {}
            None => {
                prop_assert!(all && !self.wish.is_culprit() && self.wish.seed != NON_FINITE_SEED, "{:?}", self.wish)
            }
            Some(RequestFailure::EngineFailed) => prop_assert!(self.wish.is_culprit() && !all, "{:?}", self.wish),
            Some(RequestFailure::NonFinite) => prop_assert!(self.wish.seed == NON_FINITE_SEED && !all),
            Some(failure) => prop_assert!(false, "{failure}: {:?}", self.wish),
        }
        Ok(())
    }
}

fn run(config: &SchedulerConfig, window: usize, glitches: BTreeSet<u64>, ops: Vec<Op>) -> TestCaseResult {
    let brittle = Brittle::new(config, glitches);
    let engine = start(brittle, config.clone(), EngineLimits { queued: usize::MAX, window }, Box::new(|_| {})).unwrap();
    let mut clients: Vec<Client> = Vec::new();
    for op in ops {
        let pick = |index: prop::sample::Index| (!clients.is_empty()).then(|| index.index(clients.len()));
        match op {
            Op::Submit(wish) => {
                let request = wish.request(clients.len() as u64);
                let events = Some(engine.handle.submit(request, None).unwrap());
                let (output, finished) = (BTreeMap::new(), BTreeMap::new());
                let (prompt, pooled, aborted, failure) = (Vec::new(), Vec::new(), false, None);
                clients.push(Client { wish, events, aborted, prompt, pooled, output, finished, failure });
            }
            Op::Leave(index) => {
                if let Some(at) = pick(index) {
                    clients[at].events = None;
                }
            }
            Op::Abort(index) => {
                if let Some(at) = pick(index) {
                    clients[at].aborted = true;
                    engine.handle.abort(RequestId(at as u64));
                }
            }
            Op::Read(index) => {
                if let Some(at) = pick(index) {
                    clients[at].read();
                }
            }
        }
    }
    for (id, client) in clients.iter_mut().enumerate() {
        while client.read() {}
        client.check(&client.wish.request(id as u64))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    engine.handle.forget(ADAPTERS.iter().filter_map(|(slot, _)| Some(binding(*slot)?.version)));
    let stats = runtime.block_on(engine.handle.stats()).unwrap();
    prop_assert_eq!((stats.running, stats.waiting, stats.parked, stats.kv_blocks_used), (0, 0, 0, 0));
    prop_assert_eq!(&*engine.ended.borrow(), &None, "nothing of this ends the engine");
    engine.handle.stop();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_innocent_request_gives_what_it_gives_alone(
        (max_num_seqs, extra, num_blocks) in (1usize..7, 0usize..12, 20u32..40),
        (prefix_cache, window) in (any::<bool>(), 1usize..6),
        // Apart, so that none meets a sequence twice when it is tried alone.
        glitches in prop::collection::btree_set((1u64..10).prop_map(|number| number * 7), 0..3),
        ops in ops(),
    ) {
        let config = SchedulerConfig {
            num_blocks,
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + extra,
            max_model_len: MAX_MODEL_LEN,
            prefix_cache,
            shared_layers: None,
            ..bench_config()
        };
        run(&config, window, glitches, ops)?;
    }
}

/// Eight requests in one step, one of which breaks it.
#[test]
fn of_eight_requests_in_a_step_only_the_one_that_breaks_it_ends() {
    let wish = |poisoned, seed| Wish {
        adapter: (seed % 4) as u32,
        shared: 3,
        own: vec![1],
        poisoned,
        scores: seed % 2 == 0,
        pool: None,
        max_tokens: 6,
        choices: 1,
        priority: 0,
        seed,
    };
    let config = SchedulerConfig { max_model_len: MAX_MODEL_LEN, ..bench_config() };
    let ops = (0..8).map(|number| Op::Submit(wish(number == 5, number))).collect();
    run(&config, 64, BTreeSet::new(), ops).unwrap();
}
