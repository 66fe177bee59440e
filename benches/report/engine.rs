//! The engine as the server runs it, scheduler and executor and all, without the network: requests in, tokens out.

use std::sync::Arc;
use std::time::Instant;

use polydelta::delta::{CompileLimits, DeltaProgram, PreparedDelta};
use polydelta::engine::{EngineHandle, GenerationEngine, ModelExecutor, StartedEngine, start};
use polydelta::model::{Decoder, DecoderLimits, base_layout};
use polydelta::scheduler::{SchedulerConfig, ShareConfig};
use polydelta::types::{
    AdapterBinding, AdapterSlot, AdapterVersion, ClientKey, ConnectionId, EngineRequest, RequestId, SamplingParams,
    SequenceEvent, StoppingParams,
};

use super::support::Failure;
use super::support::adapters::lora;
use super::support::model::Shape;
use super::support::step::{BLOCK_SIZE, backend, load};
use super::timing::{median, ratio, take_turns};

/// Requests at once.
const BATCH: usize = 8;
/// Tokens of a prompt.
const PROMPT: u32 = 64;
/// Greedy tokens of an answer.
const ANSWER: u32 = 64;
/// Places of the cache for each request.
const CONTEXT: usize = 1024;

/// Tokens per second with one request, with eight of the base, and with eight of different adapters.
pub(crate) fn report(shape: Shape, threads: usize, rank: usize, rounds: usize) -> Result<(), Failure> {
    let layout = base_layout(&shape.spec()?);
    let mut programs: Vec<_> = (1..=BATCH as u64).map(|seed| lora(&layout, rank, seed)).collect();
    let limits = CompileLimits { max_rank: 2 * rank, max_virtual_tokens: 0, allow_unknown_fields: false };
    for first in 0..BATCH {
        let parts = [(first, 0.7), ((first + 1) % BATCH, 0.3)];
        let parts = parts.map(|(part, weight)| programs[part].clone().weighted(weight));
        programs.push(DeltaProgram::sum(parts.into_iter().collect::<Result<_, _>>()?, limits)?);
    }
    let engine = Engine::new(shape, threads, config(), programs)?;
    let mut next = 0;
    let mut requests = |count: usize, first_slot: Option<u32>| {
        let request = |index: u32| {
            next += 1;
            request(next, first_slot.map(|first| first + index))
        };
        engine.answer((0..count as u32).map(request).collect())
    };
    let [one, base, mixed, mixes] = take_turns(rounds, |index| match index {
        0 => requests(1, None),
        1 => requests(BATCH, None),
        2 => requests(BATCH, Some(0)),
        _ => requests(BATCH, Some(BATCH as u32)),
    })?;
    engine.stop();
    let rate = |requests: usize, times: &[f64]| (requests * ANSWER as usize) as f64 / median(times.to_vec());
    println!("\n{}, bf16, {threads} threads, the engine: {PROMPT} prompt and {ANSWER} greedy tokens", shape.name());
    println!("  tokens/s, 1 request                {:.0}", rate(1, &one));
    println!("  tokens/s, 8 requests of the base   {:.0}", rate(BATCH, &base));
    println!("  tokens/s, 8 requests, 8 adapters   {:.0}", rate(BATCH, &mixed));
    println!("  8 adapters : base                  {:.3}", ratio(&base, &mixed));
    println!("  8 mixes of two adapters : base     {:.3}", ratio(&base, &mixes));
    Ok(())
}

pub(crate) struct Engine(EngineHandle);

impl Engine {
    /// An engine with a program in each of its first slots.
    pub(crate) fn new(
        shape: Shape,
        threads: usize,
        config: SchedulerConfig,
        programs: Vec<DeltaProgram>,
    ) -> Result<Self, Failure> {
        let backend = backend(threads)?;
        let spec = shape.spec()?;
        let limits = DecoderLimits {
            max_rows: config.max_num_batched_tokens,
            kv_blocks: config.num_blocks as usize,
            block_size: BLOCK_SIZE,
            adapter_slots: 256,
            shared_layers: config.shared_layers.map(|layers| layers as usize),
        };
        let base = load(shape, &backend, &spec)?;
        let decoder = Decoder::new(Arc::clone(&backend), spec.clone(), base, limits)?;
        let executor = ModelExecutor::new(decoder, config.block_size);
        let StartedEngine { handle, installs, .. } = start(executor, config, BATCH * 2, Box::new(|_| {}))?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let layout = base_layout(&spec);
        for (slot, program) in (0..).map(AdapterSlot).zip(programs) {
            let prepared = PreparedDelta::new(backend.as_ref(), &layout, program)?;
            runtime.block_on(installs.install(slot, prepared))?;
        }
        Ok(Self(handle))
    }

    pub(crate) fn stop(&self) {
        self.0.stop();
    }

    /// Submit requests at once and read every token of theirs.
    pub(crate) fn answer(&self, requests: Vec<EngineRequest>) -> Result<(), Failure> {
        let submit = |request: EngineRequest| {
            let wanted = request.stopping.max_tokens;
            Ok((wanted, self.0.submit(request, None)?))
        };
        let receivers = requests.into_iter().map(submit).collect::<Result<Vec<_>, Failure>>()?;
        for (wanted, mut events) in receivers {
            let mut tokens = 0;
            while let Some(event) = events.blocking_recv() {
                match event {
                    SequenceEvent::Token { token, .. } => tokens += u32::from(token.is_some()),
                    SequenceEvent::Started { .. } | SequenceEvent::PromptLogprob { .. } | SequenceEvent::Pooled(_) => {}
                    SequenceEvent::Failed(failure) => return Err(failure.into()),
                }
            }
            if tokens != wanted {
                return Err(format!("{tokens} tokens instead of {wanted}").into());
            }
        }
        Ok(())
    }
}

pub(crate) fn config() -> SchedulerConfig {
    SchedulerConfig {
        block_size: BLOCK_SIZE as u32,
        num_blocks: (BATCH * CONTEXT / BLOCK_SIZE) as u32,
        max_num_seqs: BATCH,
        max_num_batched_tokens: 512,
        max_prefill_chunk: None,
        max_model_len: CONTEXT as u32,
        // Every prompt is computed in full.
        prefix_cache: false,
        shared_layers: None,
        base_digest: [0; 32],
        long_rope: None,
        share: ShareConfig::default(),
    }
}

pub(crate) fn request(id: u64, adapter: Option<u32>) -> EngineRequest {
    let binding = |index: u32| AdapterBinding {
        version: AdapterVersion([index as u8 + 1; 32]),
        slot: AdapterSlot(index),
        virtual_tokens: None,
        active_from: 0,
        kv_from: 0,
        base_layers: 0,
    };
    EngineRequest {
        id: RequestId(id),
        client: ClientKey::LOCAL,
        connection: ConnectionId::default(),
        prompt: (0..PROMPT).map(|at| (id as u32 * 37 + at * 11) % 4096).collect(),
        adapter: adapter.map(binding),
        sampling: SamplingParams::greedy().into(),
        stopping: StoppingParams { max_tokens: ANSWER, min_tokens: 0, stop_token_ids: Vec::new() }.into(),
        choices: 1,
        priority: 0,
        tenant_salt: [].into(),
        deadline: None,
        arrived: Instant::now(),
    }
}
