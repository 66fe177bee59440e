//! An engine that follows a script and a device that takes everything: for what no real model does on demand.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Instant;

use polydelta::adapters::{Acquire, AdapterError, ResidentLease, Staged, UploadHead, Want};
use polydelta::admission::GenerationDefaults;
use polydelta::engine::{
    AcquireFuture, AdapterInstaller, EngineStats, EventReceiver, GenerationEngine, InstallError, Lease, StatsFuture,
    SubmitError,
};
use polydelta::text::{Tokenizer, TokenizerSettings};
use polydelta::types::{
    AdapterFacts, AdapterTask, DeltaGroup, EngineRequest, FinishReason, OpClass, RequestFailure, RequestId,
    SequenceEvent, TokenLogprob,
};
use tokio::sync::{mpsc, watch};

use super::harness::{Model, Options, Server, registry, tokenizer};

/// How every choice of a request goes.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    tokens: Vec<u32>,
    end: End,
}

#[derive(Clone, Debug)]
pub(crate) enum End {
    /// With this reason and stop id.
    Finish(FinishReason, Option<u32>),
    /// Runs on, saying nothing, until it is aborted or released.
    Hang,
    Fail(RequestFailure),
    /// The engine's thread dies.
    Vanish,
    /// The queue is full.
    Refuse,
    /// A defect.
    Panic,
}

impl Plan {
    /// One token per byte.
    pub(crate) fn text(text: &str) -> Self {
        Self { tokens: text.bytes().map(u32::from).collect(), end: End::Finish(FinishReason::Length, None) }
    }

    /// These tokens.
    pub(crate) fn ids(ids: &[u32]) -> Self {
        Self { tokens: ids.to_vec(), end: End::Finish(FinishReason::Length, None) }
    }

    pub(crate) fn then(self, end: End) -> Self {
        Self { end, ..self }
    }
}

type Script = Box<dyn Fn(&EngineRequest) -> Plan + Send + Sync>;

pub(crate) struct FakeEngine {
    script: Mutex<Script>,
    log: Mutex<Log>,
    hanging: watch::Sender<usize>,
}

#[derive(Default)]
struct Log {
    submitted: Vec<EngineRequest>,
    finished_choices: Vec<(RequestId, u32)>,
    aborted: Vec<RequestId>,
    open: HashMap<RequestId, (mpsc::Sender<SequenceEvent>, Option<Lease>)>,
}

impl FakeEngine {
    fn new() -> Self {
        let script: Script = Box::new(|_| Plan::text("ok"));
        Self { script: Mutex::new(script), log: Mutex::default(), hanging: watch::Sender::new(0) }
    }

    pub(crate) fn plan(&self, script: impl Fn(&EngineRequest) -> Plan + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    pub(crate) fn submitted(&self) -> Vec<EngineRequest> {
        self.log.lock().unwrap().submitted.clone()
    }

    pub(crate) fn finished_choices(&self) -> Vec<u32> {
        self.log.lock().unwrap().finished_choices.iter().map(|(_, choice)| *choice).collect()
    }

    pub(crate) fn aborted(&self) -> usize {
        self.log.lock().unwrap().aborted.len()
    }

    /// Wait until that many requests hang in the engine.
    pub(crate) async fn hanging(&self, count: usize) {
        self.hanging.subscribe().wait_for(|hanging| *hanging == count).await.unwrap();
    }

    /// Let every hanging request end well.
    pub(crate) fn release(&self) {
        let open: Vec<_> = self.log.lock().unwrap().open.drain().collect();
        for (_, (events, _lease)) in open {
            let finish = Some((FinishReason::Length, None));
            let end = SequenceEvent::Token { choice: 0, token: None, logprob: None, finish, at: Instant::now() };
            events.try_send(end).unwrap();
        }
        self.hanging.send_replace(0);
    }
}

fn logprob(request: &EngineRequest) -> Option<TokenLogprob> {
    request.sampling.logprobs.map(|top| TokenLogprob { logprob: -0.5, top: (0..top).map(|id| (id, -1.0)).collect() })
}

/// What is said of a request before it ends or hangs.
fn events(request: &EngineRequest, plan: &Plan) -> Vec<SequenceEvent> {
    let mut events = vec![SequenceEvent::Started { at: Instant::now(), cached_tokens: 3 }];
    let token = |choice, token, finish| SequenceEvent::Token {
        choice,
        token,
        logprob: token.and(logprob(request)),
        finish,
        at: Instant::now(),
    };
    for (position, id) in plan.tokens.iter().enumerate() {
        let last = position + 1 == plan.tokens.len();
        let finish = match plan.end {
            End::Finish(reason, None) if last => Some((reason, None)),
            _ => None,
        };
        events.extend((0..request.choices).map(|choice| token(choice, Some(*id), finish)));
    }
    match plan.end {
        End::Finish(reason, stop @ Some(_)) => {
            events.extend((0..request.choices).map(|choice| token(choice, None, Some((reason, stop)))));
        }
        End::Fail(failure) => events.push(SequenceEvent::Failed(failure)),
        End::Finish(_, None) | End::Hang | End::Vanish | End::Refuse | End::Panic => {}
    }
    events
}

impl GenerationEngine for FakeEngine {
    fn submit(&self, request: EngineRequest, lease: Option<Lease>) -> Result<EventReceiver, SubmitError> {
        let plan = (self.script.lock().unwrap())(&request);
        match plan.end {
            End::Refuse => return Err(SubmitError::QueueFull { queued: 7, limit: 7 }),
            End::Panic => panic!("a defect of the engine"),
            _ => {}
        }
        let events = events(&request, &plan);
        // One more for the end of a request that hangs.
        let (sender, receiver) = mpsc::channel(events.len() + 1);
        for event in events {
            sender.try_send(event).unwrap();
        }
        let mut log = self.log.lock().unwrap();
        if matches!(plan.end, End::Hang) {
            log.open.insert(request.id, (sender, lease));
            self.hanging.send_replace(log.open.len());
        }
        log.submitted.push(request);
        Ok(receiver.into())
    }

    fn abort(&self, id: RequestId) {
        let mut log = self.log.lock().unwrap();
        log.aborted.push(id);
        log.open.remove(&id);
        self.hanging.send_replace(log.open.len());
    }

    fn finish_choice(&self, id: RequestId, choice: u32) {
        self.log.lock().unwrap().finished_choices.push((id, choice));
    }

    fn stats(&self) -> StatsFuture<'_> {
        Box::pin(async {
            Ok(EngineStats { steps: 5, steps_by_distinct_adapters: vec![1, 4], ..EngineStats::default() })
        })
    }
}

/// Checks nothing and installs at once.
struct FakeInstaller;

impl FakeInstaller {
    async fn drive(want: Want) -> Result<ResidentLease, AdapterError> {
        poll_fn(|context| {
            loop {
                match want.poll(context.waker())? {
                    Acquire::Ready(lease) => return Poll::Ready(Ok(lease)),
                    Acquire::Load(ticket) => {
                        let mut install = ticket.begin_install(Arc::new(facts()))?;
                        install.evicted();
                        install.complete();
                    }
                    Acquire::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }
}

fn facts() -> AdapterFacts {
    AdapterFacts {
        kind: "LoRA".to_owned(),
        group: Some(DeltaGroup::Reparameterization),
        task: AdapterTask::Generation,
        min_rank: 8,
        max_rank: 8,
        ops: BTreeMap::from([(OpClass::LowRank, 14)]),
        targets: vec!["q".to_owned()],
        device_bytes: 4096,
        parameters: 1024,
        virtual_tokens: None,
        invocation_tokens: Vec::new(),
        keeps_base_kv: false,
        base_layers: 0,
        vocab_size: None,
        unknown_fields: Vec::new(),
    }
}

impl AdapterInstaller for FakeInstaller {
    fn check_config(&self, _: &[u8]) -> Result<(), InstallError> {
        Ok(())
    }

    fn check(&self, staged: &Staged) -> Result<AdapterFacts, InstallError> {
        let config = staged.read().unwrap().config;
        assert_ne!(config, b"panic", "a defect of the compiler");
        Ok(facts())
    }

    fn check_head(&self, _: &UploadHead) -> Result<(), InstallError> {
        Ok(())
    }

    fn in_background(&self, work: Box<dyn FnOnce() + Send>) {
        // The runtime of the test waits for it.
        drop(tokio::task::spawn_blocking(work));
    }

    fn acquire(&self, want: Want) -> AcquireFuture<'_> {
        Box::pin(Self::drive(want))
    }
}

/// A server whose engine follows a script. A token's id is its byte.
pub(crate) struct FakeServer {
    pub(crate) server: Server,
    pub(crate) engine: Arc<FakeEngine>,
}

impl FakeServer {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        Self::speaking(options, tokenizer(|byte| Some(u32::from(byte)), &[]), TokenizerSettings::default()).await
    }

    /// In the tokens of another tokenizer.
    pub(crate) async fn speaking(options: Options, tokenizer: Arc<Tokenizer>, settings: TokenizerSettings) -> Self {
        let rows = u32::try_from(tokenizer.vocab_size()).unwrap();
        Self::of_rows(options, tokenizer, settings, rows).await
    }

    /// With an embedding of so many rows, which may be more than tokens.
    pub(crate) async fn of_rows(
        options: Options,
        tokenizer: Arc<Tokenizer>,
        settings: TokenizerSettings,
        vocab_size: u32,
    ) -> Self {
        let registry = registry(&options);
        let engine = Arc::new(FakeEngine::new());
        let installer = Arc::new(FakeInstaller);
        let (hidden_size, context, defaults) = (8, 4096, GenerationDefaults::default());
        let model = Model { tokenizer, settings, vocab_size, hidden_size, context, defaults };
        let server = Server::start(options, model, registry, Arc::clone(&engine) as _, installer).await;
        Self { server, engine }
    }
}

impl Deref for FakeServer {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
