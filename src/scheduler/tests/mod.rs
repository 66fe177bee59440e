//! A scheduler, a fake executor and everything that must hold between two steps.

mod fairness;
mod life;
mod pages;
mod pools;
mod prompts;
mod properties;
mod rules;
mod scores;
mod shared_layers;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::testing::{FakeExecutor, Step, Told, oracle, oracle_of_pool, oracle_of_prompt};
use super::*;
use crate::types::{
    AdapterBinding, AdapterSlot, AdapterVersion, BlockId, ClientKey, ConnectionId, EngineRequest, FinishReason,
    PooledVector, RequestFailure, SamplingParams, StepOutput, StoppingParams, TokenLogprob, VirtualTokens,
};

/// What a request's channel has received.
#[derive(Clone, Debug, Default, PartialEq)]
struct Log {
    cached_tokens: Option<u32>,
    prompt_logprobs: Vec<(u32, TokenLogprob)>,
    pooled: Vec<PooledVector>,
    output: BTreeMap<u32, Vec<u32>>,
    finish: BTreeMap<u32, (FinishReason, Option<u32>)>,
    failure: Option<RequestFailure>,
}

struct Harness {
    scheduler: Scheduler,
    fake: FakeExecutor,
    told: Told,
    now: Instant,
    requests: BTreeMap<RequestId, EngineRequest>,
    logs: BTreeMap<RequestId, Log>,
    steps: usize,
}

fn config() -> SchedulerConfig {
    SchedulerConfig {
        block_size: 4,
        num_blocks: 16,
        max_num_seqs: 8,
        max_num_batched_tokens: 32,
        max_prefill_chunk: None,
        max_model_len: 64,
        prefix_cache: true,
        shared_layers: None,
        base_digest: [3; 32],
        long_rope: None,
        share: ShareConfig::default(),
    }
}

fn request(id: u64, prompt: &[u32], max_tokens: u32) -> EngineRequest {
    EngineRequest {
        id: RequestId(id),
        client: ClientKey::LOCAL,
        connection: ConnectionId::default(),
        prompt: prompt.into(),
        adapter: None,
        sampling: SamplingParams::greedy().into(),
        stopping: StoppingParams { max_tokens, min_tokens: 0, stop_token_ids: Vec::new() }.into(),
        choices: 1,
        priority: 0,
        tenant_salt: [].into(),
        deadline: None,
        arrived: Instant::now(),
    }
}

/// What is to be said of the prompt of a request.
fn prompt_logprobs(request: &EngineRequest) -> Vec<(u32, TokenLogprob)> {
    request.sampling.prompt_logprobs.map(|_| oracle_of_prompt(request)).unwrap_or_default()
}

/// Adapter number `n` with virtual tokens: (how many, saved K and V).
fn adapter(n: u8, virtual_tokens: Option<(u32, bool)>) -> Option<AdapterBinding> {
    let virtual_tokens = virtual_tokens.map(|(count, saved_kv)| VirtualTokens { count, saved_kv });
    let (version, slot) = (AdapterVersion([n; 32]), AdapterSlot(u32::from(n)));
    Some(AdapterBinding { version, slot, virtual_tokens, active_from: 0, kv_from: 0, base_layers: 0 })
}

/// Adapter number `n`, active from a token of the prompt on.
fn active_from(n: u8, token: u32) -> Option<AdapterBinding> {
    adapter(n, None).map(|adapter| AdapterBinding { active_from: token, kv_from: token, ..adapter })
}

/// Adapter number `n`, which leaves so many layers as they are.
fn leaves(n: u8, base_layers: u32) -> Option<AdapterBinding> {
    adapter(n, None).map(|adapter| AdapterBinding { base_layers, ..adapter })
}

/// Adapter number `n`, which leaves KV as it is.
fn behind_kv(n: u8) -> Option<AdapterBinding> {
    adapter(n, None).map(|adapter| AdapterBinding { kv_from: AdapterBinding::NEVER, ..adapter })
}

impl Harness {
    fn new(config: SchedulerConfig) -> Self {
        Self {
            fake: FakeExecutor::new(&config),
            told: Told::default(),
            scheduler: Scheduler::new(config).unwrap(),
            now: Instant::now(),
            requests: BTreeMap::new(),
            logs: BTreeMap::new(),
            steps: 0,
        }
    }

    fn try_add(&mut self, request: EngineRequest) -> Result<Vec<SequenceId>, SchedulerError> {
        let ids = self.scheduler.add(request.clone())?;
        self.fake.introduce(&request, &ids);
        self.logs.insert(request.id, Log::default());
        self.requests.insert(request.id, request);
        Ok(ids)
    }

    fn add(&mut self, request: EngineRequest) -> Vec<SequenceId> {
        self.try_add(request).unwrap()
    }

    fn log(&self, id: u64) -> &Log {
        &self.logs[&RequestId(id)]
    }

    fn schedule(&mut self) -> Step {
        let Scheduled { batch, events } = self.scheduler.schedule(self.now);
        self.record(events);
        let step = self.told.apply(batch);
        self.check_batch(&step);
        step
    }

    /// Take in the result of a step.
    fn update(&mut self, step: &Step, output: &StepOutput) {
        self.told.advance(step, output);
        let events = self.scheduler.update(step, output, self.now);
        self.record(events);
    }

    fn finish(&mut self, step: &Step) {
        let output = self.fake.execute(step);
        self.update(step, &output);
        self.check_blocks();
        self.now += Duration::from_millis(1);
        self.steps += 1;
    }

    fn step(&mut self) -> Step {
        let batch = self.schedule();
        self.finish(&batch);
        batch
    }

    fn run(&mut self) {
        for _ in 0..10_000 {
            if self.scheduler.is_idle() {
                return;
            }
            self.step();
        }
        panic!("no end after 10,000 steps: {:?}", self.scheduler.stats());
    }

    fn run_until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            assert!(!self.scheduler.is_idle(), "all requests ended before");
            self.step();
        }
    }

    fn pages_key(&self, id: u64) -> virtual_pages::PagesKey {
        virtual_pages::PagesKey::of(&self.requests[&RequestId(id)].adapter.unwrap()).unwrap()
    }

    fn record(&mut self, events: Events) {
        for (id, event) in events {
            let log = self.logs.get_mut(&id).unwrap();
            assert_eq!(log.failure, None, "{id:?} has failed and gets {event:?}");
            match event {
                SequenceEvent::Started { cached_tokens, .. } => {
                    assert_eq!(log.cached_tokens.replace(cached_tokens), None, "{id:?} starts twice");
                }
                SequenceEvent::PromptLogprob { token, logprob } => {
                    assert!(log.cached_tokens.is_some(), "{id:?} is scored before it starts");
                    assert!(log.output.is_empty(), "{id:?} is scored after its first token");
                    log.prompt_logprobs.push((token, logprob));
                }
                SequenceEvent::Pooled(vectors) => {
                    assert!(log.cached_tokens.is_some(), "{id:?} is pooled before it starts");
                    assert!(!log.finish.contains_key(&0), "{id:?} is pooled after its end");
                    log.pooled.extend(vectors);
                }
                SequenceEvent::Token { choice, token, finish, .. } => {
                    assert!(log.cached_tokens.is_some(), "{id:?} has a token before it starts");
                    assert!(!log.finish.contains_key(&choice), "choice {choice} of {id:?} goes on after its end");
                    log.output.entry(choice).or_default().extend(token);
                    log.finish.extend(finish.map(|finish| (choice, finish)));
                }
                SequenceEvent::Failed(failure) => {
                    log.failure = Some(failure);
                }
            }
            let ended = log.failure.is_some() || log.finish.len() == self.requests[&id].choices as usize;
            if ended {
                assert!(!self.scheduler.contains(id), "{id:?} has ended and is still here");
            }
        }
    }

    fn check_batch(&self, batch: &Step) {
        let config = &self.scheduler.config;
        assert!(batch.num_tokens() <= config.max_num_batched_tokens);
        assert!(batch.sequences.len() <= config.max_num_seqs);
        let mut ids: Vec<_> = batch.sequences.iter().map(|sequence| sequence.id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), batch.sequences.len(), "a sequence is twice in a batch");
        for sequence in &batch.sequences {
            assert!(sequence.rows.len() > 0);
            assert!(sequence.rows.len() <= config.max_prefill_chunk.unwrap_or(usize::MAX));
            assert!(sequence.scored.len() <= crate::types::MAX_SCORED_ROWS);
        }
        assert_eq!(batch.sequences.is_empty(), !self.scheduler.has_work(), "a step is empty only without requests");
    }

    /// Every reference has one owner, and what is neither owned nor findable is worth nothing: poison it.
    fn check_blocks(&mut self) {
        let scheduler = &self.scheduler;
        let mut owners = vec![0; scheduler.config.num_blocks as usize];
        for rank in scheduler.running.iter() {
            for block in scheduler.sequences[rank.id()].table.blocks() {
                owners[block.index()] += 1;
            }
        }
        for rank in scheduler.waiting.iter() {
            assert!(scheduler.sequences[rank.id()].table.len() == 0, "a waiting sequence holds blocks");
        }
        let parked: usize = scheduler.requests.values().filter(|request| request.parked).map(|r| r.live.len()).sum();
        assert_eq!(scheduler.num_parked, parked);
        let queued = scheduler.running.len() + scheduler.waiting.len();
        assert_eq!(queued + parked, scheduler.sequences.len(), "a sequence runs, waits or is parked");
        for block in scheduler.pages.blocks().chain(scheduler.copied.iter().copied()) {
            owners[block.index()] += 1;
        }
        for (index, owners) in owners.into_iter().enumerate() {
            let block = BlockId(index as u32);
            assert_eq!(scheduler.cache.refs(block), owners, "references to {block:?}");
            if owners == 0 && !scheduler.cache.is_indexed(block) {
                self.fake.poison(block);
            }
        }
        let stats = scheduler.stats();
        assert_eq!(stats.kv_blocks_used + scheduler.cache.num_free(), stats.kv_blocks_total);
    }

    /// Every choice of this request ended exactly as it does alone.
    fn assert_complete(&self, id: u64) {
        let (request, log) = (&self.requests[&RequestId(id)], self.log(id));
        assert_eq!(log.failure, None);
        assert_eq!(log.prompt_logprobs, prompt_logprobs(request), "of request {id}");
        assert_eq!(log.pooled, oracle_of_pool(request), "of request {id}");
        for choice in 0..request.choices {
            let (output, reason, stop) = oracle(request, choice, self.scheduler.config.max_model_len);
            assert_eq!(log.output.get(&choice), Some(&output), "choice {choice} of request {id}");
            assert_eq!(log.finish.get(&choice), Some(&(reason, stop)), "choice {choice} of request {id}");
        }
    }

    /// What came of this request so far is the beginning of what it gives alone.
    fn assert_prefix(&self, id: u64) {
        let request = &self.requests[&RequestId(id)];
        let (scored, expected) = (&self.log(id).prompt_logprobs, prompt_logprobs(request));
        assert!(expected.starts_with(scored), "of request {id}: {scored:?} of {expected:?}");
        assert!(oracle_of_pool(request).starts_with(&self.log(id).pooled), "of request {id}");
        for (choice, output) in &self.log(id).output {
            let (expected, ..) = oracle(request, *choice, self.scheduler.config.max_model_len);
            assert!(expected.starts_with(output), "choice {choice} of request {id}: {output:?} of {expected:?}");
        }
    }
}
