//! The engine as the server runs it, scheduler and executor and all, without the network: requests in, tokens out.

use std::sync::Arc;
use std::time::Instant;

use polydelta::delta::PreparedDelta;
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
    let mut engine = Engine::new(shape, threads, rank)?;
    let [one, base, mixed] = take_turns(rounds, |index| match index {
        0 => engine.answer(1, false),
        1 => engine.answer(BATCH, false),
        _ => engine.answer(BATCH, true),
    })?;
    engine.handle.stop();
    let rate = |requests: usize, times: &[f64]| (requests * ANSWER as usize) as f64 / median(times.to_vec());
    println!("\n{}, bf16, {threads} threads, the engine: {PROMPT} prompt and {ANSWER} greedy tokens", shape.name());
    println!("  tokens/s, 1 request                {:.0}", rate(1, &one));
    println!("  tokens/s, 8 requests of the base   {:.0}", rate(BATCH, &base));
    println!("  tokens/s, 8 requests, 8 adapters   {:.0}", rate(BATCH, &mixed));
    println!("  8 adapters : base                  {:.3}", ratio(&base, &mixed));
    Ok(())
}

struct Engine {
    handle: EngineHandle,
    next: u64,
}

impl Engine {
    fn new(shape: Shape, threads: usize, rank: usize) -> Result<Self, Failure> {
        let backend = backend(threads)?;
        let spec = shape.spec()?;
        let config = config();
        let limits = DecoderLimits {
            max_rows: config.max_num_batched_tokens,
            kv_blocks: config.num_blocks as usize,
            block_size: BLOCK_SIZE,
            adapter_slots: 256,
            shared_layers: None,
        };
        let base = load(shape, &backend, &spec)?;
        let decoder = Decoder::new(Arc::clone(&backend), spec.clone(), base, limits)?;
        let executor = ModelExecutor::new(decoder, config.block_size);
        let StartedEngine { handle, installs, .. } = start(executor, config, BATCH * 2, Box::new(|_| {}))?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let layout = base_layout(&spec);
        for slot in 0..BATCH as u32 {
            let program = lora(&layout, rank, u64::from(slot) + 1);
            let prepared = PreparedDelta::new(backend.as_ref(), &layout, program)?;
            runtime.block_on(installs.install(AdapterSlot(slot), prepared))?;
        }
        Ok(Self { handle, next: 0 })
    }

    /// Submit requests at once and read every token of theirs.
    fn answer(&mut self, requests: usize, adapters: bool) -> Result<(), Failure> {
        let receivers = (0..requests as u32)
            .map(|index| {
                self.next += 1;
                Ok(self.handle.submit(request(self.next, adapters.then_some(index)), None)?)
            })
            .collect::<Result<Vec<_>, Failure>>()?;
        for mut events in receivers {
            let mut tokens = 0;
            while let Some(event) = events.blocking_recv() {
                match event {
                    SequenceEvent::Token { token, .. } => tokens += u32::from(token.is_some()),
                    SequenceEvent::Started { .. } | SequenceEvent::PromptLogprob { .. } | SequenceEvent::Pooled(_) => {}
                    SequenceEvent::Failed(failure) => return Err(failure.into()),
                }
            }
            if tokens != ANSWER {
                return Err(format!("{tokens} tokens instead of {ANSWER}").into());
            }
        }
        Ok(())
    }
}

fn config() -> SchedulerConfig {
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

fn request(id: u64, adapter: Option<u32>) -> EngineRequest {
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
