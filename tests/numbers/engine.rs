//! The whole hall on golden requests: scheduler, paged cache, virtual pages, executor and sampler give PEFT's ids and
//! log-probabilities, with room for everything and with so few KV blocks that requests are preempted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use polydelta::delta::{DeltaProgram, PreparedDelta};
use polydelta::engine::{
    DeltaLoader, EngineHandle, EngineStats, EventReceiver, GenerationEngine, ModelExecutor, ModelLoader, StartedEngine,
    StepExecutor, start,
};
use polydelta::model::{BaseModel, Decoder, DecoderLimits, base_layout};
use polydelta::ops::{Backend, Numerics, WeightFormat, reference::ReferenceBackend};
use polydelta::scheduler::{SchedulerConfig, ShareConfig};
use polydelta::types::{
    AdapterBinding, AdapterFacts, AdapterSlot, AdapterVersion, ClientKey, ConnectionId, EngineRequest, RequestId,
    SamplingParams, SequenceEvent, StoppingParams,
};

use crate::fixture::{Case, Family, LIMITS};

pub(crate) struct Hall {
    handle: EngineHandle,
    adapters: BTreeMap<String, (AdapterVersion, AdapterSlot, AdapterFacts)>,
    next: u64,
    /// Of requests from now on: those with another share no KV with them.
    pub(crate) salt: u64,
}

pub(crate) fn hall(family: &Family, adapters: &[String], config: SchedulerConfig) -> Hall {
    hall_of(family, adapters, config, Arc::new(ReferenceBackend::new(Numerics::F32)), |executor| executor)
}

/// With the executor inside of another.
pub(crate) fn hall_of<B: Backend, E: StepExecutor<Prepared = PreparedDelta<B>>>(
    family: &Family,
    adapters: &[String],
    config: SchedulerConfig,
    backend: Arc<B>,
    wrap: impl FnOnce(ModelExecutor<B>) -> E,
) -> Hall {
    let compiled = |adapter: &String| (adapter.clone(), family.compile(adapter).unwrap());
    hall_with(family, adapters.iter().map(compiled).collect(), config, backend, wrap)
}

/// With programs by name.
pub(crate) fn hall_with<B: Backend, E: StepExecutor<Prepared = PreparedDelta<B>>>(
    family: &Family,
    programs: Vec<(String, DeltaProgram)>,
    config: SchedulerConfig,
    backend: Arc<B>,
    wrap: impl FnOnce(ModelExecutor<B>) -> E,
) -> Hall {
    let context = config.max_model_len as usize;
    let base = BaseModel::load(backend.as_ref(), &family.spec, &family.checkpoint, context, &|_, _| {}).unwrap();
    let limits = DecoderLimits {
        max_rows: config.max_num_batched_tokens,
        kv_blocks: config.num_blocks as usize,
        block_size: config.block_size as usize,
        adapter_slots: 256,
        shared_layers: config.shared_layers.map(|layers| layers as usize),
    };
    let decoder = Decoder::new(Arc::clone(&backend), family.spec.clone(), base, limits).unwrap();
    let executor = wrap(ModelExecutor::new(decoder, config.block_size));
    let checkpoint = Arc::new(polydelta::model::Checkpoint::open(&family.checkpoint_dir()).unwrap());
    let loader = ModelLoader::new(backend, base_layout(&family.spec), checkpoint, LIMITS);
    let StartedEngine { handle, installs, .. } = start(executor, config, usize::MAX, Box::new(|_| {})).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut installed = BTreeMap::new();
    for (index, (adapter, program)) in programs.into_iter().enumerate() {
        let facts = program.facts(WeightFormat::F32);
        let slot = AdapterSlot(index as u32);
        runtime.block_on(installs.install(slot, loader.prepare(program).unwrap())).unwrap();
        let version = AdapterVersion([index as u8 + 1; 32]);
        installed.insert(adapter, (version, slot, facts));
    }
    Hall { handle, adapters: installed, next: 0, salt: 0 }
}

impl Hall {
    pub(crate) fn stats(&self) -> EngineStats {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.handle.stats()).unwrap()
    }

    /// What the engine is told of an adapter for a prompt.
    pub(crate) fn binding(&self, adapter: &str, prompt: &[u32]) -> AdapterBinding {
        let (version, slot, facts) = &self.adapters[adapter];
        facts.bind(*version, *slot, prompt)
    }

    pub(crate) fn submit(&mut self, case: &Case) -> EventReceiver {
        let sampling = SamplingParams { logprobs: Some(5), ..SamplingParams::greedy() };
        self.submit_prompt(&case.prompt, case.adapter.as_deref(), sampling, case.ids.len())
    }

    pub(crate) fn submit_prompt(
        &mut self,
        prompt: &[u32],
        adapter: Option<&str>,
        sampling: SamplingParams,
        max_tokens: usize,
    ) -> EventReceiver {
        self.next += 1;
        let request = EngineRequest {
            id: RequestId(self.next),
            client: ClientKey::LOCAL,
            connection: ConnectionId::default(),
            prompt: prompt.into(),
            adapter: adapter.map(|adapter| self.binding(adapter, prompt)),
            sampling: sampling.into(),
            stopping: StoppingParams { max_tokens: max_tokens as u32, min_tokens: 0, stop_token_ids: vec![] }.into(),
            choices: 1,
            priority: 0,
            tenant_salt: self.salt.to_le_bytes().into(),
            deadline: None,
            arrived: Instant::now(),
        };
        self.handle.submit(request, None).unwrap()
    }

    pub(crate) fn check(&mut self, family: &Family, cases: &[&Case]) {
        let receivers: Vec<_> = cases.iter().map(|case| self.submit(case)).collect();
        for (case, mut events) in cases.iter().zip(receivers) {
            let name = format!("{} {}", family.name, case.name);
            let mut ids = Vec::new();
            while let Some(event) = events.blocking_recv() {
                match event {
                    SequenceEvent::Token { token: Some(token), logprob, .. } => {
                        let found = logprob.unwrap();
                        let step = ids.len();
                        assert!((found.logprob - case.logprobs[step]).abs() < 1e-4, "{name}: log-prob {step}");
                        assert_eq!(found.top[0].0, case.top[step][0].0, "{name}: top of {step}");
                        ids.push(token);
                    }
                    SequenceEvent::Started { .. } => {}
                    other => panic!("{name}: {other:?}"),
                }
            }
            assert_eq!(ids, case.ids, "{name}");
        }
    }
}

pub(crate) fn config(family: &Family, num_blocks: u32) -> SchedulerConfig {
    SchedulerConfig {
        block_size: 4,
        num_blocks,
        max_num_seqs: 12,
        max_num_batched_tokens: 48,
        max_prefill_chunk: None,
        max_model_len: family.spec.context_length as u32,
        prefix_cache: true,
        shared_layers: None,
        base_digest: [0; 32],
        long_rope: family.spec.long_rope(),
        share: ShareConfig::default(),
    }
}

#[test]
fn golden_requests_come_out_of_the_engine_with_and_without_room() {
    for name in ["llama", "gemma3", "mistral", "phi3"] {
        let family = Family::open(name);
        let cases: Vec<&Case> = family.cases.iter().collect();
        let mut adapters: Vec<String> = cases.iter().filter_map(|case| case.adapter.clone()).collect();
        adapters.sort();
        adapters.dedup();
        for num_blocks in [1024, 40] {
            let mut hall = hall(&family, &adapters, config(&family, num_blocks));
            hall.check(&family, &cases);
            // Again, with the prompts' blocks in the prefix cache.
            hall.check(&family, &cases);
            let stats = hall.stats();
            assert_eq!(stats.running + stats.waiting, 0, "{name}");
            assert_eq!(stats.preemptions > 0, num_blocks == 40, "{name}: {stats:?}");
            assert!(num_blocks == 40 || stats.prefix_hits > 0, "{name}: {stats:?}");
            assert!(stats.steps_by_distinct_adapters.len() > 4, "{name}: {stats:?}");
        }
    }
}
