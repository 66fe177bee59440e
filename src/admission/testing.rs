//! A gate with an engine and an installer that tests hold in their hands: nothing happens until a test says so.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use super::validate::Limits;
use super::{AdapterTexts, AdmissionRequest, DeltaChoice, Gate, GateParts, GenerationDefaults, Intake, PrefixSalting};
use crate::adapters::testing::{contents, facts, header};
use crate::adapters::{
    Acquire, AdapterError, AdapterRegistry, Begin, FolderStore, RegistryLimits, ResidencyLimits, Staged, StoreLimits,
    UploadHead, Want,
};
use crate::engine::{
    AcquireFuture, AdapterInstaller, EngineStats, EventReceiver, GenerationEngine, InstallError, Lease, StatsFuture,
    StepError, SubmitError,
};
use crate::receipt::{NumericsClass, Origin};
use crate::telemetry::Metrics;
use crate::text::TokenizerSettings;
use crate::text::fixtures::byte_level;
use crate::types::generate::{GenerateInput, OutputOptions, PromptInput, SamplingInput, StoppingInput};
use crate::types::{
    AdapterFacts, AdapterVersion, BaseDigest, EngineRequest, FinishReason, OpClass, RequestFailure, RequestId,
    SequenceEvent, Sha256Digest, VirtualTokens,
};

/// An engine that takes requests and makes what a test tells it to make.
#[derive(Default)]
pub(crate) struct FakeEngine {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    submitted: Vec<Submitted>,
    aborted: Vec<RequestId>,
    ended_choices: Vec<(RequestId, u32)>,
    refusal: Option<SubmitError>,
}

/// A request in the engine.
pub(crate) struct Submitted {
    pub(crate) request: EngineRequest,
    pub(crate) lease: Option<Lease>,
    pub(crate) events: mpsc::Sender<SequenceEvent>,
}

impl FakeEngine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The oldest request not yet taken out.
    pub(crate) fn take(&self) -> Submitted {
        self.state().submitted.remove(0)
    }

    pub(crate) fn submitted(&self) -> usize {
        self.state().submitted.len()
    }

    pub(crate) fn aborted(&self) -> Vec<RequestId> {
        self.state().aborted.clone()
    }

    /// Choices that the gate ended.
    pub(crate) fn ended_choices(&self) -> Vec<(RequestId, u32)> {
        self.state().ended_choices.clone()
    }

    /// Refuse the next request.
    pub(crate) fn refuse(&self, refusal: SubmitError) {
        self.state().refusal = Some(refusal);
    }
}

impl GenerationEngine for FakeEngine {
    fn submit(&self, request: EngineRequest, lease: Option<Lease>) -> Result<EventReceiver, SubmitError> {
        let mut state = self.state();
        if let Some(refusal) = state.refusal.take() {
            return Err(refusal);
        }
        let (events, receiver) = events_of(request.stopping.max_tokens, request.choices);
        state.submitted.push(Submitted { request, lease, events });
        Ok(receiver.into())
    }

    fn abort(&self, id: RequestId) {
        self.state().aborted.push(id);
    }

    fn finish_choice(&self, id: RequestId, choice: u32) {
        self.state().ended_choices.push((id, choice));
    }

    fn stats(&self) -> StatsFuture<'_> {
        Box::pin(async {
            Ok(EngineStats { running: 3, steps_by_distinct_adapters: vec![1, 0, 2], ..EngineStats::default() })
        })
    }
}

/// A channel as the engine makes it for a request.
pub(crate) fn events_of(max_tokens: u32, choices: u32) -> (mpsc::Sender<SequenceEvent>, mpsc::Receiver<SequenceEvent>) {
    mpsc::channel(max_tokens as usize * choices as usize + 2)
}

/// What an engine says of a request; `start` is when the request came, times are milliseconds after it.
pub(crate) struct Events {
    pub(crate) start: Instant,
    pub(crate) sender: mpsc::Sender<SequenceEvent>,
}

impl Events {
    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn send(&self, event: SequenceEvent) {
        self.sender.try_send(event).unwrap();
    }

    pub(crate) fn started(&self, ms: u64, cached_tokens: u32) {
        self.send(SequenceEvent::Started { at: self.at(ms), cached_tokens });
    }

    pub(crate) fn token(&self, ms: u64, choice: u32, id: u32) {
        self.send(SequenceEvent::Token { choice, token: Some(id), logprob: None, finish: None, at: self.at(ms) });
    }

    /// The last token of a choice that reached its length.
    pub(crate) fn last(&self, ms: u64, choice: u32, id: u32) {
        let finish = Some((FinishReason::Length, None));
        self.send(SequenceEvent::Token { choice, token: Some(id), logprob: None, finish, at: self.at(ms) });
    }

    /// A stop id, which is not output.
    pub(crate) fn stop(&self, ms: u64, choice: u32, stop_id: u32) {
        let finish = Some((FinishReason::Stop, Some(stop_id)));
        self.send(SequenceEvent::Token { choice, token: None, logprob: None, finish, at: self.at(ms) });
    }

    pub(crate) fn fail(&self, failure: RequestFailure) {
        self.send(SequenceEvent::Failed(failure));
    }
}

impl Submitted {
    /// What follows is said of this request.
    pub(crate) fn events(&self) -> Events {
        Events { start: self.request.arrived, sender: self.events.clone() }
    }
}

/// A installer that brings adapters at once, never, or not at all.
#[derive(Default)]
pub(crate) struct FakeInstaller {
    /// Never answers.
    pub(crate) stuck: AtomicBool,
    /// Refuses every adapter.
    pub(crate) broken: AtomicBool,
    /// Takes adapters in and cannot bring them to the device.
    pub(crate) unloadable: AtomicBool,
    pub(crate) virtual_tokens: AtomicUsize,
    /// Finds scales in adapters.
    pub(crate) scales: AtomicBool,
    pub(crate) asked: AtomicUsize,
    /// Checks that have begun.
    pub(crate) checks: AtomicUsize,
    /// The next check waits for word from it.
    pub(crate) hold: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
    /// Pieces of work in the background.
    pub(crate) background: AtomicUsize,
    /// The next of them waits for word from it.
    pub(crate) hold_background: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

/// Why a broken installer refuses.
pub(crate) fn broken() -> InstallError {
    InstallError::Step(StepError::Panicked { message: "the installer is broken".to_owned() })
}

impl FakeInstaller {
    fn fails_loads(&self) -> bool {
        self.broken.load(Ordering::SeqCst) || self.unloadable.load(Ordering::SeqCst)
    }

    fn facts(&self) -> AdapterFacts {
        let count = u32::try_from(self.virtual_tokens.load(Ordering::SeqCst)).unwrap();
        let virtual_tokens = (count > 0).then_some(VirtualTokens { count, saved_kv: true });
        let ops = if self.scales.load(Ordering::SeqCst) { [(OpClass::OutputScale, 1)].into() } else { BTreeMap::new() };
        AdapterFacts { virtual_tokens, ops, ..facts(100) }
    }
}

impl AdapterInstaller for FakeInstaller {
    fn check_config(&self, _: &[u8]) -> Result<(), InstallError> {
        if self.broken.load(Ordering::SeqCst) { Err(broken()) } else { Ok(()) }
    }

    fn check(&self, _: &Staged) -> Result<AdapterFacts, InstallError> {
        self.checks.fetch_add(1, Ordering::SeqCst);
        let hold = self.hold.lock().unwrap().take();
        if let Some(hold) = hold {
            hold.recv().unwrap();
        }
        if self.broken.load(Ordering::SeqCst) { Err(broken()) } else { Ok(self.facts()) }
    }

    fn check_head(&self, _: &UploadHead) -> Result<(), InstallError> {
        Ok(())
    }

    fn in_background(&self, work: Box<dyn FnOnce() + Send>) {
        self.background.fetch_add(1, Ordering::SeqCst);
        let hold = self.hold_background.lock().unwrap().take();
        // The runtime of the test waits for it.
        drop(tokio::task::spawn_blocking(move || {
            if let Some(hold) = hold {
                hold.recv().unwrap();
            }
            work();
        }));
    }

    fn acquire(&self, want: Want) -> AcquireFuture<'_> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if self.stuck.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            loop {
                match want.poll(Waker::noop())? {
                    Acquire::Ready(lease) => return Ok(lease),
                    Acquire::Load(ticket) if self.fails_loads() => ticket.fail(Arc::new(broken())),
                    Acquire::Load(ticket) => ticket.begin_install(Arc::new(self.facts()))?.complete(),
                    Acquire::Pending => return Err(AdapterError::LoadAbandoned { version: want.version() }),
                }
            }
        })
    }
}

/// What receipts say of a server here.
pub(crate) fn origin() -> Origin {
    Origin {
        program: "0.0.0".into(),
        base_sha256: BaseDigest([1; 32]),
        config_sha256: Sha256Digest([2; 32]),
        numerics: NumericsClass::default(),
    }
}

/// Everything behind the porch.
pub(crate) struct House {
    pub(crate) gate: Arc<Gate>,
    pub(crate) engine: Arc<FakeEngine>,
    pub(crate) installer: Arc<FakeInstaller>,
    pub(crate) registry: Arc<AdapterRegistry>,
    pub(crate) texts: Arc<AdapterTexts>,
    root: tempfile::TempDir,
}

impl House {
    /// Two places, a context of 100 tokens, greedy; `change` comes before the gate is built.
    pub(crate) fn with(change: impl FnOnce(&mut GateParts)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (store, _) = FolderStore::open(root.path(), StoreLimits::default()).unwrap();
        let limits = RegistryLimits {
            store: StoreLimits::default(),
            residency: ResidencyLimits { max_resident_adapters: 2, device_bytes: 4000 },
            event_history: 64,
        };
        let registry = Arc::new(AdapterRegistry::new(store, limits));
        let (engine, installer) = (Arc::new(FakeEngine::default()), Arc::new(FakeInstaller::default()));
        let tokenizer = byte_level();
        let mut parts = GateParts {
            engine: Arc::clone(&engine) as Arc<dyn GenerationEngine>,
            registry: Arc::clone(&registry),
            installer: Arc::clone(&installer) as Arc<dyn AdapterInstaller>,
            limits: Limits {
                context_length: 100,
                vocab_size: u32::try_from(tokenizer.vocab_size()).unwrap(),
                hidden_size: 8,
                default_max_tokens: 16,
                max_choices: 4,
                max_prompt_bytes: 1000,
                max_stop_strings: 4,
                max_stop_bytes: 64,
                max_logprobs: 5,
                max_priority: 10,
                max_inline_adapter_bytes: 0,
                defaults: GenerationDefaults::default(),
            },
            adapter_texts: Arc::new(AdapterTexts::new(
                Arc::clone(&tokenizer),
                TokenizerSettings::default(),
                u32::try_from(tokenizer.vocab_size()).unwrap(),
            )),
            tokenizer,
            chat_template: None,
            metrics: Metrics::disabled(),
            max_concurrent: 2,
            tokenize_threads: 1,
            prefix_salting: PrefixSalting::ByClient,
            origin: origin(),
        };
        change(&mut parts);
        let texts = Arc::clone(&parts.adapter_texts);
        Self { gate: Arc::new(Gate::new(parts)), engine, installer, registry, texts, root }
    }

    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    /// The way of adapters in.
    pub(crate) fn intake(&self, metrics: Metrics) -> Arc<Intake> {
        let installer = Arc::clone(&self.installer) as Arc<dyn AdapterInstaller>;
        Arc::new(Intake::new(Arc::clone(&self.registry), installer, Arc::clone(&self.texts), metrics))
    }

    /// Where adapters are kept.
    pub(crate) fn folder(&self) -> &Path {
        self.root.path()
    }

    /// Upload an adapter.
    pub(crate) fn adapter(&self, name: &str, seed: u8) -> AdapterVersion {
        self.adapter_of(name, &contents(seed))
    }

    /// Upload one of these files.
    pub(crate) fn adapter_of(&self, name: &str, files: &[(&str, Vec<u8>)]) -> AdapterVersion {
        let now = Instant::now();
        let Begin::Open(mut session) = self.registry.begin_upload(header(name, files, None), now).unwrap() else {
            panic!("the upload is there already")
        };
        for (index, (_, content)) in files.iter().enumerate() {
            session.write(index, 0, content, now).unwrap();
        }
        let staged = session.finish().unwrap();
        self.registry.publish(staged, self.installer.facts(), SystemTime::now()).unwrap().adapter.version
    }
}

/// A request of a text, everything else unset.
pub(crate) fn request(prompt: &str) -> AdmissionRequest {
    AdmissionRequest {
        request_id: "r".to_owned(),
        delta: DeltaChoice::Base,
        input: GenerateInput {
            prompt: PromptInput::Text(prompt.to_owned()),
            sampling: SamplingInput::default(),
            stopping: StoppingInput::default(),
            options: OutputOptions::default(),
            choices: 0,
            priority: 0,
            cache_salt: String::new(),
        },
        max_answer_bytes: None,
    }
}

/// The id of a text that is one token.
pub(crate) fn id(text: &str) -> u32 {
    let ids = byte_level().encode(text, false).unwrap();
    assert_eq!(ids.len(), 1, "{text:?} is one token");
    ids[0]
}

/// Metrics that a test can read.
pub(crate) fn recorded() -> (Metrics, metrics_exporter_prometheus::PrometheusHandle) {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    (Metrics::new(Box::new(recorder), "tiny"), handle)
}

/// The value of a metric whose line begins with `name` and holds every one of `labels`.
pub(crate) fn metric(
    handle: &metrics_exporter_prometheus::PrometheusHandle,
    name: &str,
    labels: &[&str],
) -> Option<f64> {
    let text = handle.render();
    let line = text.lines().find(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
}
