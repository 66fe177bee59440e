//! An engine that follows a script and a device that takes everything.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use polydelta::adapters::{Acquire, AdapterError, AdapterObserver, AdapterRegistry, LoadFailure, ResidentLease, Want};
use polydelta::admission::{AdapterHall, GenerationEngine, ResidentFuture, StatsFuture};
use polydelta::delta::DeltaError;
use polydelta::engine::{EngineStats, SubmitError};
use polydelta::types::{
    AdapterFacts, EngineRequest, FinishReason, OpClass, RequestFailure, RequestId, SequenceEvent, TokenLogprob,
};
use tokio::sync::{Notify, mpsc, watch};

/// How every choice of a request goes.
#[derive(Clone, Debug)]
pub struct Plan {
    pub tokens: Vec<u32>,
    pub end: End,
}

#[derive(Clone, Debug)]
pub enum End {
    /// With this reason and stop id.
    Finish(FinishReason, Option<u32>),
    /// Runs on, saying nothing, until it is aborted.
    Hang,
    Fail(RequestFailure),
    /// The engine's thread dies.
    Vanish,
    /// The queue is full.
    Refuse,
}

impl Plan {
    pub fn text(text: &str) -> Self {
        Self { tokens: text.bytes().map(u32::from).collect(), end: End::Finish(FinishReason::Length, None) }
    }

    pub fn then(self, end: End) -> Self {
        Self { end, ..self }
    }
}

type Script = Box<dyn Fn(&EngineRequest) -> Plan + Send + Sync>;

pub struct FakeEngine {
    script: Mutex<Script>,
    log: Mutex<Log>,
    running: watch::Sender<usize>,
}

#[derive(Default)]
struct Log {
    submitted: Vec<EngineRequest>,
    finished_choices: Vec<(RequestId, u32)>,
    aborted: Vec<RequestId>,
    open: HashMap<RequestId, mpsc::Sender<SequenceEvent>>,
}

impl FakeEngine {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            script: Mutex::new(Box::new(|_| Plan::text("ok"))),
            log: Mutex::default(),
            running: watch::Sender::new(0),
        })
    }

    pub fn plan(&self, script: impl Fn(&EngineRequest) -> Plan + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    pub fn submitted(&self) -> Vec<EngineRequest> {
        self.log.lock().unwrap().submitted.clone()
    }

    pub fn finished_choices(&self) -> Vec<u32> {
        self.log.lock().unwrap().finished_choices.iter().map(|(_, choice)| *choice).collect()
    }

    pub fn aborted(&self) -> usize {
        self.log.lock().unwrap().aborted.len()
    }

    /// Wait until that many requests hang in the engine.
    pub async fn hanging(&self, count: usize) {
        self.running.subscribe().wait_for(|running| *running == count).await.unwrap();
    }

    /// Let a hanging request end well.
    pub fn release(&self) {
        let open: Vec<_> = self.log.lock().unwrap().open.drain().collect();
        for (_, events) in open {
            let finish = Some((FinishReason::Length, None));
            events
                .try_send(SequenceEvent::Token { choice: 0, token: None, logprob: None, finish, at: Instant::now() })
                .unwrap();
        }
        self.running.send_replace(0);
    }
}

fn logprob(request: &EngineRequest) -> Option<TokenLogprob> {
    request.sampling.logprobs.map(|top| TokenLogprob { logprob: -0.5, top: (0..top).map(|id| (id, -1.0)).collect() })
}

impl GenerationEngine for FakeEngine {
    fn submit(&self, request: EngineRequest) -> Result<mpsc::Receiver<SequenceEvent>, SubmitError> {
        let Plan { tokens, end } = (self.script.lock().unwrap())(&request);
        if matches!(end, End::Refuse) {
            return Err(SubmitError::QueueFull { queued: 7, limit: 7 });
        }
        let capacity = tokens.len() * request.choices as usize + request.choices as usize + 2;
        let (events, receiver) = mpsc::channel(capacity);
        let send = |event| events.try_send(event).unwrap();
        send(SequenceEvent::Started { at: Instant::now(), cached_tokens: 3 });
        let last = tokens.len().saturating_sub(1);
        for (position, token) in tokens.iter().enumerate() {
            for choice in 0..request.choices {
                let finish = match &end {
                    End::Finish(reason, None) if position == last => Some((*reason, None)),
                    _ => None,
                };
                let (token, at) = (Some(*token), Instant::now());
                send(SequenceEvent::Token { choice, token, logprob: logprob(&request), finish, at });
            }
        }
        let mut log = self.log.lock().unwrap();
        match end {
            End::Finish(reason, Some(stop)) => {
                for choice in 0..request.choices {
                    let (finish, at) = (Some((reason, Some(stop))), Instant::now());
                    send(SequenceEvent::Token { choice, token: None, logprob: None, finish, at });
                }
            }
            End::Finish(_, None) | End::Vanish | End::Refuse => {}
            End::Hang => {
                log.open.insert(request.id, events);
                self.running.send_replace(log.open.len());
            }
            End::Fail(failure) => send(SequenceEvent::Failed(failure)),
        }
        log.submitted.push(request);
        Ok(receiver)
    }

    fn abort(&self, id: RequestId) {
        let mut log = self.log.lock().unwrap();
        log.aborted.push(id);
        log.open.remove(&id);
        self.running.send_replace(log.open.len());
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

/// Installs at once; refuses an adapter whose config says so.
pub struct FakeHall {
    capacity: Arc<Capacity>,
}

#[derive(Default)]
struct Capacity {
    changed: Notify,
}

impl AdapterObserver for Capacity {
    fn on_capacity(&self) {
        self.changed.notify_waiters();
    }
}

impl FakeHall {
    pub fn new(registry: &AdapterRegistry) -> Arc<Self> {
        let capacity = Arc::new(Capacity::default());
        registry.events().observe(Arc::clone(&capacity) as Arc<dyn AdapterObserver>);
        Arc::new(Self { capacity })
    }

    async fn drive(&self, want: Want) -> Result<ResidentLease, AdapterError> {
        loop {
            let changed = self.capacity.changed.notified();
            match want.poll()? {
                Acquire::Ready(lease) => return Ok(lease),
                Acquire::Load(ticket) => {
                    let mut install = ticket.begin_install(Arc::new(facts()))?;
                    install.evicted();
                    install.complete();
                }
                Acquire::Pending => changed.await,
            }
        }
    }
}

pub fn facts() -> AdapterFacts {
    AdapterFacts {
        kind: "LoRA".to_owned(),
        max_rank: 8,
        ops: BTreeMap::from([(OpClass::LowRank, 14)]),
        device_bytes: 4096,
        parameters: 1024,
        virtual_tokens: None,
    }
}

impl AdapterHall for FakeHall {
    fn check(&self, dir: &Path) -> Result<AdapterFacts, LoadFailure> {
        let config = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
        match config.as_str() {
            "refuse" => Err(Arc::new(DeltaError::NothingMatched)),
            "panic" => panic!("a defect of the compiler"),
            _ => Ok(facts()),
        }
    }

    fn resident(&self, want: Want) -> ResidentFuture<'_> {
        Box::pin(self.drive(want))
    }
}
