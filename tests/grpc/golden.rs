//! The real engine on the golden llama, with steps that a test can hold.

use std::collections::BTreeSet;
use std::fs;
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use polydelta::admission::GenerationDefaults;
use polydelta::delta::CompileLimits;
use polydelta::engine::{
    EngineHandle, EngineInstaller, EventReceiver, GenerationEngine, HostMemory, Lease, Leftover, Loaders,
    ModelExecutor, ModelLoader, StartedEngine, StatsFuture, StepError, StepExecutor, StepInput, SubmitError, start,
};
use polydelta::grpc::pb;
use polydelta::model::{BaseModel, Checkpoint, Decoder, DecoderLimits, base_layout};
use polydelta::ops::Numerics;
use polydelta::ops::cpu::{CpuBackend, CpuOptions};
use polydelta::scheduler::{SchedulerConfig, ShareConfig};
use polydelta::telemetry::Metrics;
use polydelta::text::{Tokenizer, TokenizerSettings};
use polydelta::types::{AdapterSlot, EngineRequest, OpClasses, RequestId, StepOutput};
use serde::Deserialize;
use tokio::sync::watch;

use super::files::golden_dir;
use super::harness::{Model, Options, Server, registry, tokenizer, within};

pub(crate) const EOS: u32 = 2;
pub(crate) const CONTEXT: u32 = 256;

/// Adapters of all golden runs, mixes left out.
pub(crate) fn golden_adapters() -> Vec<String> {
    let names = golden_cases().into_iter().filter(|case| case.mix.is_empty()).filter_map(|case| case.adapter);
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

/// One greedy run of transformers + peft.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Case {
    name: String,
    pub(crate) adapter: Option<String>,
    /// What the adapter is the mix of, where it is one.
    #[serde(default)]
    mix: Vec<(String, f32)>,
    pub(crate) prompt: Vec<u32>,
    pub(crate) ids: Vec<u32>,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) top: Vec<Vec<(u32, f32)>>,
}

/// The case `ADAPTER/PROMPT` or `base/PROMPT`.
pub(crate) fn case(name: &str) -> Case {
    case_in(&golden_dir(), name)
}

/// The same of another folder of fixtures.
pub(crate) fn case_in(folder: &Path, name: &str) -> Case {
    cases_in(folder).into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}"))
}

fn golden_cases() -> Vec<Case> {
    cases_in(&golden_dir())
}

fn cases_in(folder: &Path) -> Vec<Case> {
    #[derive(Deserialize)]
    struct Cases {
        cases: Vec<Case>,
    }
    let cases: Cases = serde_json::from_slice(&fs::read(folder.join("cases.json")).unwrap()).unwrap();
    cases.cases
}

impl Case {
    /// The request that must give this case's ids, from an adapter of this case's name or from adapters of its parts'.
    pub(crate) fn request(&self) -> pb::GenerateRequest {
        let max_tokens = Some(self.ids.len() as u32);
        let part = |(adapter, weight): &(String, f32)| pb::MixPart {
            adapter: adapter.clone(),
            weight: *weight,
            adapter_version: String::new(),
        };
        pb::GenerateRequest {
            adapter: self.adapter.clone().filter(|_| self.mix.is_empty()).unwrap_or_default(),
            mix: self.mix.iter().map(part).collect(),
            input: Some(pb::generate_request::Input::TokenIds(pb::TokenIds { ids: self.prompt.clone() })),
            stopping: Some(pb::StoppingParams { max_tokens, ignore_eos: Some(true), ..Default::default() }),
            options: Some(pb::OutputOptions { token_ids: true, logprobs: Some(5), ..Default::default() }),
            ..Default::default()
        }
    }
}

/// Whether steps run: all, none, or a number of them.
#[derive(Default)]
pub(crate) struct Steps {
    hold: Mutex<Hold>,
    changed: Condvar,
    begun: watch::Sender<u64>,
}

#[derive(Default)]
struct Hold {
    held: bool,
    allowed: u64,
}

impl Steps {
    /// From now on, no step goes further than its beginning.
    pub(crate) fn hold(&self) {
        *self.hold.lock().unwrap() = Hold { held: true, allowed: 0 };
    }

    /// Let so many steps run.
    pub(crate) fn allow(&self, steps: u64) {
        self.hold.lock().unwrap().allowed += steps;
        self.changed.notify_all();
    }

    pub(crate) fn release(&self) {
        *self.hold.lock().unwrap() = Hold::default();
        self.changed.notify_all();
    }

    /// Steps that have begun.
    pub(crate) fn begun(&self) -> u64 {
        *self.begun.borrow()
    }

    /// Wait until so many have.
    pub(crate) async fn reach(&self, steps: u64) {
        within(self.begun.subscribe().wait_for(|begun| *begun >= steps)).await.unwrap();
    }

    fn pass(&self) {
        self.begun.send_modify(|begun| *begun += 1);
        let blocked = |hold: &mut Hold| hold.held && hold.allowed == 0;
        let mut hold = self.changed.wait_while(self.hold.lock().unwrap(), blocked).unwrap();
        hold.allowed = hold.allowed.saturating_sub(1);
    }
}

struct Held<E> {
    inner: E,
    steps: Arc<Steps>,
}

impl<E: StepExecutor> StepExecutor for Held<E> {
    type Prepared = E::Prepared;

    fn execute(&mut self, step: &StepInput<'_>) -> Result<StepOutput, StepError> {
        self.steps.pass();
        self.inner.execute(step)
    }

    fn install(&mut self, slot: AdapterSlot, prepared: Self::Prepared) {
        self.inner.install(slot, prepared);
    }

    fn remove(&mut self, slot: AdapterSlot) -> Leftover {
        self.inner.remove(slot)
    }

    fn classes(&self, slot: AdapterSlot) -> OpClasses {
        self.inner.classes(slot)
    }
}

/// The engine, and how often it was told to end a request.
pub(crate) struct WatchedEngine {
    handle: EngineHandle,
    submits: watch::Sender<usize>,
    aborts: watch::Sender<usize>,
    stats: watch::Sender<bool>,
}

impl WatchedEngine {
    fn new(handle: EngineHandle) -> Self {
        let (submits, aborts) = (watch::Sender::new(0), watch::Sender::new(0));
        Self { handle, submits, aborts, stats: watch::Sender::new(false) }
    }

    /// Wait until so many requests were queued.
    pub(crate) async fn submitted(&self, count: usize) {
        within(self.submits.subscribe().wait_for(|submits| *submits == count)).await.unwrap();
    }

    /// Requests queued so far.
    pub(crate) fn submits(&self) -> usize {
        *self.submits.borrow()
    }

    /// End the engine's thread.
    pub(crate) fn stop(&self) {
        self.handle.stop();
    }

    /// Wait until the engine has been asked for its counters; it answers after its current step.
    pub(crate) async fn asked_for_stats(&self) {
        within(self.stats.subscribe().wait_for(|asked| *asked)).await.unwrap();
    }

    /// Wait until so many requests were aborted.
    pub(crate) async fn aborted(&self, count: usize) {
        within(self.aborts.subscribe().wait_for(|aborts| *aborts >= count)).await.unwrap();
    }
}

impl GenerationEngine for WatchedEngine {
    fn submit(&self, request: EngineRequest, lease: Option<Lease>) -> Result<EventReceiver, SubmitError> {
        let events = self.handle.submit(request, lease)?;
        self.submits.send_modify(|submits| *submits += 1);
        Ok(events)
    }

    fn abort(&self, id: RequestId) {
        self.handle.abort(id);
        self.aborts.send_modify(|aborts| *aborts += 1);
    }

    fn finish_choice(&self, id: RequestId, choice: u32) {
        self.handle.finish_choice(id, choice);
    }

    fn stats(&self) -> StatsFuture<'_> {
        let mut answer = Box::pin(self.handle.stats());
        Box::pin(poll_fn(move |cx| {
            let polled = answer.as_mut().poll(cx);
            // Polled once, the question is in the engine's queue.
            self.stats.send_replace(true);
            polled
        }))
    }
}

/// Ids 5 to 99 are the printable characters of ASCII.
pub(crate) fn ascii() -> Arc<Tokenizer> {
    let ids = |byte| match byte {
        b'\n' => Some(3),
        b'\t' => Some(4),
        b' '..=b'~' => Some(u32::from(byte - b' ') + 5),
        _ => None,
    };
    tokenizer(ids, &[(0, "<pad>"), (1, "<s>"), (EOS, "</s>")])
}

fn scheduler() -> SchedulerConfig {
    SchedulerConfig {
        block_size: 4,
        num_blocks: 512,
        max_num_seqs: 16,
        max_num_batched_tokens: 256,
        max_prefill_chunk: None,
        max_model_len: CONTEXT,
        prefix_cache: true,
        shared_layers: None,
        base_digest: [0; 32],
        long_rope: None,
        share: ShareConfig::default(),
    }
}

/// A server with the real engine on the golden llama.
pub(crate) struct GoldenServer {
    pub(crate) server: Server,
    pub(crate) steps: Arc<Steps>,
    pub(crate) engine: Arc<WatchedEngine>,
    pub(crate) tokenizer: Arc<Tokenizer>,
}

impl GoldenServer {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let checkpoint = Arc::new(Checkpoint::open(&golden_dir().join("base")).unwrap());
        let spec = checkpoint.spec().unwrap();
        let cpu = CpuOptions { threads: 1, numerics: Numerics::F32, isa: None };
        let backend = Arc::new(CpuBackend::new(cpu).unwrap());
        let base = BaseModel::load(backend.as_ref(), &spec, &checkpoint, CONTEXT as usize, &|_, _| {}).unwrap();
        let config = scheduler();
        let limits = DecoderLimits {
            max_rows: config.max_num_batched_tokens,
            kv_blocks: config.num_blocks as usize,
            block_size: config.block_size as usize,
            adapter_slots: 64,
            shared_layers: None,
        };
        let decoder = Decoder::new(Arc::clone(&backend), spec.clone(), base, limits).unwrap();
        let executor = ModelExecutor::new(decoder, config.block_size);
        let steps = Arc::new(Steps::default());
        let held = Held { inner: executor, steps: Arc::clone(&steps) };
        let StartedEngine { handle, installs, .. } = start(held, config, options.max_queued, Box::new(|_| {})).unwrap();

        let registry = registry(&options);
        let allow_unknown_fields = options.allow_unknown_fields;
        let limits = CompileLimits { max_rank: 256, max_virtual_tokens: 64, allow_unknown_fields };
        let loader = ModelLoader::new(backend, base_layout(&spec), checkpoint, limits);
        let (engine, memory) = (handle.clone(), HostMemory::new(64 << 20));
        let loaders = Loaders::start(move || engine.is_busy()).unwrap();
        let installer =
            EngineInstaller::start(loader, Arc::clone(&registry), installs, loaders, memory, Metrics::disabled());
        let engine = Arc::new(WatchedEngine::new(handle));
        let tokenizer = ascii();
        let (vocab_size, hidden_size) = (spec.vocab_size as u32, spec.hidden_size as u32);
        let read = |file| fs::read(golden_dir().join("base").join(file)).unwrap();
        let generation_config = read("generation_config.json");
        let config = serde_json::from_slice(&read("config.json")).unwrap();
        let defaults = GenerationDefaults::read(Some(&generation_config), &config, vocab_size).unwrap();
        assert_eq!(defaults.eos_token_ids, [EOS]);
        let settings = TokenizerSettings::default();
        let (context, settings) = (CONTEXT, settings);
        let model = Model { tokenizer: Arc::clone(&tokenizer), settings, vocab_size, hidden_size, context, defaults };
        let server = Server::start(options, model, registry, Arc::clone(&engine) as _, Arc::new(installer)).await;
        Self { server, steps, engine, tokenizer }
    }
}

impl Drop for GoldenServer {
    fn drop(&mut self) {
        self.steps.release();
        self.engine.stop();
    }
}

impl Deref for GoldenServer {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
