use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::super::lease::Leftover;
use super::*;
use crate::engine::error::{InstallError, StepError};
use crate::engine::events::EventReceiver;
use crate::engine::handle::{GenerationEngine, SubmitError};
use crate::engine::lease::HeldAdapter;
use crate::engine::watchdog::{Alarm, WatchdogLimits, watch};
use crate::scheduler::{PROBE, ShareConfig};
use crate::types::{
    AdapterBinding, AdapterSlot, AdapterVersion, ClientKey, ConnectionId, EngineRequest, FinishReason, OpClass,
    OpClasses, SampledToken, SamplingParams, ScheduledBatch, ScheduledSequence, SequenceFailure, StepOutput,
    StoppingParams,
};

mod facts;
mod isolation;
mod measure;

/// What the test wants of the next step.
enum Order {
    Tokens,
    NonFinite,
    Fail,
    Panic,
}

/// Runs a step only when told to, so that tests decide what happens between steps.
struct Stepped {
    /// Even a row that depends on nobody fails.
    broken: Arc<AtomicBool>,
    orders: mpsc::Receiver<Order>,
    batches: mpsc::Sender<ScheduledBatch>,
    slots: mpsc::Sender<(AdapterSlot, Option<&'static str>)>,
    freed_on: mpsc::Sender<String>,
}

/// What a slot held: says on which thread it is freed.
struct Freed(mpsc::Sender<String>);

impl Drop for Freed {
    fn drop(&mut self) {
        // The test may be over.
        let _ = self.0.send(std::thread::current().name().unwrap_or_default().to_owned());
    }
}

impl StepExecutor for Stepped {
    type Prepared = &'static str;

    fn execute(&mut self, step: &StepInput<'_>) -> Result<StepOutput, StepError> {
        let batch = step.batch();
        if batch.sequences[0].id == PROBE {
            let broken = self.broken.load(Ordering::SeqCst);
            return if broken { Err(StepError::NoPrefix { slot: 0 }) } else { Ok(StepOutput::default()) };
        }
        self.batches.send(batch.clone()).unwrap();
        match self.orders.recv().unwrap() {
            Order::Tokens => {
                let token = |id| (id, Ok(SampledToken { token: 7, logprob: None }));
                let sampled = batch.sequences.iter().filter(|s| s.sample).map(|s| token(s.id)).collect();
                Ok(StepOutput { sampled, ..StepOutput::default() })
            }
            Order::NonFinite => {
                let sick = |sequence: &ScheduledSequence| (sequence.id, Err(SequenceFailure::NonFinite));
                Ok(StepOutput { sampled: batch.sequences.iter().map(sick).collect(), ..StepOutput::default() })
            }
            Order::Fail => Err(StepError::NoPrefix { slot: 0 }),
            Order::Panic => panic!("a kernel broke"),
        }
    }

    fn install(&mut self, slot: AdapterSlot, prepared: &'static str) {
        assert_ne!(prepared, "broken", "an adapter that breaks what installs it");
        self.slots.send((slot, Some(prepared))).unwrap();
    }

    fn remove(&mut self, slot: AdapterSlot) -> Leftover {
        self.slots.send((slot, None)).unwrap();
        Box::new(Freed(self.freed_on.clone()))
    }

    fn classes(&self, _: AdapterSlot) -> OpClasses {
        [OpClass::LowRank].into_iter().collect()
    }
}

struct Bench {
    broken: Arc<AtomicBool>,
    facts: mpsc::Receiver<EngineFact>,
    engine: StartedEngine<&'static str>,
    orders: mpsc::Sender<Order>,
    batches: mpsc::Receiver<ScheduledBatch>,
    slots: mpsc::Receiver<(AdapterSlot, Option<&'static str>)>,
    freed: mpsc::Receiver<String>,
}

fn bench_config() -> SchedulerConfig {
    SchedulerConfig {
        block_size: 4,
        num_blocks: 64,
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_prefill_chunk: None,
        max_model_len: 64,
        prefix_cache: true,
        shared_layers: None,
        base_digest: [0; 32],
        long_rope: None,
        share: ShareConfig::default(),
    }
}

fn bench() -> Bench {
    bench_with(EngineLimits::from(2))
}

fn bench_with(limits: EngineLimits) -> Bench {
    let (orders, order_receiver) = mpsc::channel();
    let (batch_sender, batches) = mpsc::channel();
    let (slot_sender, slots) = mpsc::channel();
    let broken = Arc::new(AtomicBool::new(false));
    let (fact_sender, facts) = mpsc::channel();
    let (freed_on, freed) = mpsc::channel();
    let executor = Stepped {
        broken: Arc::clone(&broken),
        orders: order_receiver,
        batches: batch_sender,
        slots: slot_sender,
        freed_on,
    };
    let config = bench_config();
    // The test may be over before the engine.
    let observer = Box::new(move |fact| {
        let _ = fact_sender.send(fact);
    });
    let engine = start(executor, config, limits, observer).unwrap();
    Bench { broken, facts, engine, orders, batches, slots, freed }
}

fn request(id: u64, max_tokens: u32) -> EngineRequest {
    EngineRequest {
        id: RequestId(id),
        client: ClientKey::LOCAL,
        connection: ConnectionId::default(),
        prompt: vec![1, 2, 3].into(),
        adapter: None,
        sampling: SamplingParams::greedy().into(),
        stopping: StoppingParams { max_tokens, min_tokens: 0, stop_token_ids: vec![] }.into(),
        choices: 1,
        priority: 0,
        tenant_salt: [].into(),
        deadline: None,
        arrived: Instant::now(),
    }
}

/// Says what it is told, and when it is dropped.
struct Flag(mpsc::Sender<&'static str>);

impl HeldAdapter for Flag {
    fn judge(&mut self, verdict: Result<(), AdapterFault>) {
        let word = match verdict {
            Ok(()) => "sound",
            Err(AdapterFault::NonFinite) => "not finite",
            Err(AdapterFault::StepFailed) => "step failed",
        };
        self.0.send(word).unwrap();
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

#[test]
fn a_request_runs_to_its_last_token_and_gives_its_lease_back() {
    let bench = bench();
    let (flag, dropped) = mpsc::channel();
    let mut events = bench.engine.handle.submit(request(1, 2), Some(Box::new(Flag(flag)))).unwrap();
    bench.orders.send(Order::Tokens).unwrap();
    assert!(matches!(events.blocking_recv(), Some(SequenceEvent::Started { .. })));
    assert!(matches!(events.blocking_recv(), Some(SequenceEvent::Token { token: Some(7), finish: None, .. })));
    assert!(dropped.try_recv().is_err(), "the lease lives while the request does");
    bench.orders.send(Order::Tokens).unwrap();
    let last = events.blocking_recv();
    assert!(matches!(last, Some(SequenceEvent::Token { finish: Some((FinishReason::Length, _)), .. })), "{last:?}");
    assert_eq!(events.blocking_recv(), None);
    assert_eq!((dropped.recv(), dropped.recv()), (Ok("sound"), Ok("dropped")));
}

#[test]
fn what_a_request_shows_of_its_adapter_is_told_before_the_lease_goes() {
    let bench = bench();
    let (flag, said) = mpsc::channel();
    let run = |id, orders: Vec<Order>| {
        let (version, slot) = (AdapterVersion([1; 32]), AdapterSlot(1));
        let binding =
            AdapterBinding { version, slot, virtual_tokens: None, active_from: 0, kv_from: 0, base_layers: 0 };
        let request = EngineRequest { adapter: Some(binding), ..request(id, 2) };
        let mut events = bench.engine.handle.submit(request, Some(Box::new(Flag(flag.clone())))).unwrap();
        orders.into_iter().for_each(|order| bench.orders.send(order).unwrap());
        while events.blocking_recv().is_some() {}
        std::iter::from_fn(|| said.recv().ok()).take_while(|word| *word != "dropped").collect::<Vec<_>>()
    };
    assert_eq!(run(1, vec![Order::Tokens, Order::NonFinite]), ["not finite"], "a token before does not count");
    // Tried without its adapter, it works: the adapter is to blame.
    assert_eq!(run(2, vec![Order::Panic, Order::Fail, Order::Panic, Order::Tokens]), ["step failed"]);
    // It fails on the base as well: the request is to blame, and the adapter has shown nothing.
    assert_eq!(run(3, vec![Order::Fail, Order::Fail, Order::Fail, Order::Fail]), [""; 0]);
    assert_eq!(run(4, vec![Order::Tokens, Order::Tokens]), ["sound"]);
}

/// Says how many events lie unread when it is dropped.
struct Witness {
    events: Arc<Mutex<Option<EventReceiver>>>,
    unread: mpsc::Sender<usize>,
}

impl HeldAdapter for Witness {
    fn judge(&mut self, _: Result<(), AdapterFault>) {}
}

impl Drop for Witness {
    fn drop(&mut self) {
        let unread = self.events.lock().unwrap().as_ref().map_or(usize::MAX, EventReceiver::len);
        let _ = self.unread.send(unread);
    }
}

#[test]
fn a_lease_is_back_before_the_last_event_is_out() {
    let bench = bench();
    let (said, unread) = mpsc::channel();
    let events = Arc::new(Mutex::new(None));
    let lease = Witness { events: Arc::clone(&events), unread: said };
    let received = bench.engine.handle.submit(request(1, 1), Some(Box::new(lease))).unwrap();
    *events.lock().unwrap() = Some(received);
    bench.orders.send(Order::Tokens).unwrap();
    assert_eq!(unread.recv(), Ok(1), "the start alone");
}

#[test]
fn an_abort_between_steps_keeps_the_request_out_of_the_next_one() {
    let bench = bench();
    let first = bench.engine.handle.submit(request(1, 9), None).unwrap();
    let _second = bench.engine.handle.submit(request(2, 9), None).unwrap();
    let mut seen = bench.batches.recv().unwrap().sequences.len();
    if seen == 1 {
        bench.orders.send(Order::Tokens).unwrap();
        seen = bench.batches.recv().unwrap().sequences.len();
    }
    assert_eq!(seen, 2);
    drop(first);
    bench.orders.send(Order::Tokens).unwrap();
    assert_eq!(bench.batches.recv().unwrap().sequences.len(), 1);
    bench.orders.send(Order::Tokens).unwrap();
}

#[test]
fn one_culprit_sent_a_hundred_times_leaves_the_engine_running() {
    let bench = bench();
    for attempt in 0..100 {
        let mut events = bench.engine.handle.submit(request(attempt, 9), None).unwrap();
        // It fails, and twice more when it is tried alone.
        for _ in 0..3 {
            bench.orders.send(if attempt % 2 == 0 { Order::Panic } else { Order::Fail }).unwrap();
        }
        assert!(matches!(events.blocking_recv(), Some(SequenceEvent::Started { .. })));
        assert_eq!(events.blocking_recv(), Some(SequenceEvent::Failed(RequestFailure::EngineFailed)));
        assert_eq!(events.blocking_recv(), None);
    }
    let mut events = bench.engine.handle.submit(request(100, 1), None).unwrap();
    bench.orders.send(Order::Tokens).unwrap();
    assert!(matches!(events.blocking_recv(), Some(SequenceEvent::Started { .. })));
    assert!(matches!(events.blocking_recv(), Some(SequenceEvent::Token { token: Some(7), .. })));
    assert_eq!(*bench.engine.ended.borrow(), None);
    let culprits = bench.facts.try_iter().filter(|fact| matches!(fact, EngineFact::Failed(StepCulprit::Request)));
    assert_eq!(culprits.count(), 100);
}

#[test]
fn a_fault_that_passes_costs_nobody_anything() {
    let bench = bench();
    let mut events = bench.engine.handle.submit(request(1, 2), None).unwrap();
    for order in [Order::Fail, Order::Tokens, Order::Panic, Order::Tokens] {
        bench.orders.send(order).unwrap();
    }
    assert!(matches!(events.blocking_recv(), Some(SequenceEvent::Started { .. })));
    assert!(matches!(events.blocking_recv(), Some(SequenceEvent::Token { finish: None, .. })));
    assert!(matches!(events.blocking_recv(), Some(SequenceEvent::Token { finish: Some(_), .. })));
}

#[test]
fn an_engine_whose_device_computes_nothing_any_more_ends_and_says_so() {
    let mut bench = bench();
    bench.broken.store(true, Ordering::SeqCst);
    let mut events = bench.engine.handle.submit(request(1, 9), None).unwrap();
    for _ in 0..8 {
        bench.orders.send(Order::Fail).unwrap();
    }
    assert!(matches!(events.blocking_recv(), Some(SequenceEvent::Started { .. })));
    assert_eq!(events.blocking_recv(), Some(SequenceEvent::Failed(RequestFailure::Draining)), "nobody's fault");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let end = runtime.block_on(bench.engine.ended.wait_for(Option::is_some)).unwrap().clone();
    assert!(matches!(end, Some(EngineEnd::DeviceBroken { .. })), "{end:?}");
    assert_eq!(bench.engine.handle.submit(request(9, 1), None).unwrap_err(), SubmitError::Stopped);
    assert!(bench.engine.handle.pulse().has_ended());
}

/// A defect outside the executor: there is nothing to go on with.
#[test]
fn a_panic_of_the_engine_itself_is_an_end_like_any_other_and_says_so() {
    let (orders, order_receiver) = mpsc::channel();
    let executor = Stepped {
        broken: Arc::default(),
        orders: order_receiver,
        batches: mpsc::channel().0,
        slots: mpsc::channel().0,
        freed_on: mpsc::channel().0,
    };
    drop(orders);
    let mut engine = start(
        executor,
        bench_config(),
        8,
        Box::new(|fact| assert!(!matches!(fact, EngineFact::Failed(_)), "a defect")),
    )
    .unwrap();
    // The executor fails by itself, and the first thing told of it is too much for the observer.
    let mut events = engine.handle.submit(request(1, 9), None).unwrap();
    assert!(matches!(events.blocking_recv(), Some(SequenceEvent::Started { .. })));
    assert_eq!(events.blocking_recv(), None, "the stream ends, and is not left hanging");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let end = runtime.block_on(engine.ended.wait_for(Option::is_some)).unwrap().clone();
    assert_eq!(end, Some(EngineEnd::Panicked { message: "a defect".into() }));
    assert_eq!(engine.handle.submit(request(2, 1), None).unwrap_err(), SubmitError::Stopped);
    assert_eq!(runtime.block_on(engine.handle.stats()), Err(SubmitError::Stopped));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_hangs_is_told_with_its_facts_and_so_is_its_end() {
    let bench = bench();
    let _first = bench.engine.handle.submit(request(1, 9), None).unwrap();
    assert_eq!(bench.batches.recv().unwrap().num_tokens(), 3);
    let (said, mut alarms) = tokio::sync::mpsc::unbounded_channel();
    let limits = WatchdogLimits { stuck: Duration::from_secs(10), hopeless: None };
    let watchdog = tokio::spawn(watch(bench.engine.handle.pulse(), limits, move |alarm| said.send(alarm).unwrap()));
    let Some(Alarm::Stuck { step, waited }) = alarms.recv().await else { panic!("a step hangs") };
    assert_eq!((step.sequences, step.rows), (1, 3));
    assert!(waited >= Duration::from_secs(10));
    bench.orders.send(Order::Tokens).unwrap();
    // The next step has begun.
    bench.batches.recv().unwrap();
    assert!(matches!(alarms.recv().await, Some(Alarm::Moving { .. })));
    bench.engine.handle.stop();
    bench.orders.send(Order::Tokens).unwrap();
    watchdog.await.unwrap();
}

#[test]
fn nothing_is_computed_for_a_reader_that_is_behind_and_all_of_it_once_it_reads() {
    let bench = bench_with(EngineLimits { queued: 2, window: 4 });
    let parked = |count| {
        let told = |fact| matches!(fact, EngineFact::Gauges(gauges) if gauges.parked == count);
        while !told(bench.facts.recv().unwrap()) {}
    };
    let mut slow = bench.engine.handle.submit(request(1, 20), None).unwrap();
    for _ in 0..100 {
        bench.orders.send(Order::Tokens).unwrap();
    }
    parked(1);
    assert_eq!((slow.len(), bench.batches.try_iter().count()), (5, 4), "its window, and no more");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let stats = runtime.block_on(bench.engine.handle.stats()).unwrap();
    assert_eq!((stats.parked, stats.running, stats.waiting, stats.kv_blocks_used), (1, 0, 0, 0));

    // Others go on.
    let mut other = bench.engine.handle.submit(request(2, 3), None).unwrap();
    while other.blocking_recv().is_some() {}
    assert!(bench.batches.try_iter().all(|batch| batch.sequences.len() == 1));
    assert_eq!(slow.len(), 5, "it has not moved");

    let mut tokens = 0;
    while let Some(event) = slow.blocking_recv() {
        if let SequenceEvent::Token { token, finish, .. } = event {
            tokens += usize::from(token.is_some());
            assert_eq!(finish.is_some(), tokens == 20);
        }
    }
    assert_eq!(tokens, 20);
}

#[test]
fn whoever_leaves_without_reading_is_let_go() {
    let bench = bench_with(EngineLimits { queued: 2, window: 4 });
    let (flag, said) = mpsc::channel();
    let slow = bench.engine.handle.submit(request(1, 20), Some(Box::new(Flag(flag)))).unwrap();
    for _ in 0..100 {
        bench.orders.send(Order::Tokens).unwrap();
    }
    while !matches!(bench.facts.recv().unwrap(), EngineFact::Gauges(gauges) if gauges.parked == 1) {}
    drop(slow);
    assert_eq!((said.recv(), said.recv()), (Ok("sound"), Ok("dropped")));
}

#[test]
fn requests_beyond_the_queue_limit_are_refused_with_the_numbers() {
    let bench = bench();
    let _running = bench.engine.handle.submit(request(1, 9), None).unwrap();
    // The step is held, so what follows stays queued.
    bench.batches.recv().unwrap();
    let _second = bench.engine.handle.submit(request(2, 9), None).unwrap();
    let _third = bench.engine.handle.submit(request(3, 9), None).unwrap();
    let refused = bench.engine.handle.submit(request(4, 9), None).unwrap_err();
    assert_eq!(refused, SubmitError::QueueFull { queued: 2, limit: 2 });
    bench.orders.send(Order::Tokens).unwrap();
}

#[test]
fn a_deadline_ends_a_request_in_any_phase() {
    let bench = bench();
    let mut expired = request(1, 9);
    expired.deadline = Some(Instant::now());
    let mut events = bench.engine.handle.submit(expired, None).unwrap();
    assert_eq!(events.blocking_recv(), Some(SequenceEvent::Failed(RequestFailure::DeadlineExceeded)));
    assert_eq!(events.blocking_recv(), None);
}

#[test]
fn adapters_are_installed_into_emptied_slots_between_steps() {
    let bench = bench();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(bench.engine.installs.install(AdapterSlot(3), "sql")).unwrap();
    assert_eq!(bench.freed.recv().unwrap(), "polydelta-engine", "of an empty slot there is nothing to free");
    let leftovers = runtime.block_on(bench.engine.handle.remove(vec![AdapterSlot(3)])).unwrap();
    assert!(bench.freed.try_recv().is_err(), "the engine thread frees nothing else");
    drop(leftovers);
    assert_eq!(bench.freed.recv().unwrap(), std::thread::current().name().unwrap());
    let changes: Vec<_> = bench.slots.try_iter().collect();
    assert_eq!(changes, [(AdapterSlot(3), None), (AdapterSlot(3), Some("sql")), (AdapterSlot(3), None)]);
}

#[test]
fn an_adapter_that_breaks_its_installation_is_refused_and_leaves_its_slot_empty() {
    let bench = bench();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let refused = runtime.block_on(bench.engine.installs.install(AdapterSlot(3), "broken"));
    assert!(matches!(refused, Err(InstallError::Step(StepError::Panicked { .. }))), "{refused:?}");
    runtime.block_on(bench.engine.installs.install(AdapterSlot(3), "sql")).unwrap();
    let changes: Vec<_> = bench.slots.try_iter().collect();
    let (empty, full) = ((AdapterSlot(3), None), (AdapterSlot(3), Some("sql")));
    assert_eq!(changes, [empty, empty, empty, full]);
}

#[test]
fn draining_ends_what_has_not_started_and_waits_for_the_rest() {
    let bench = bench();
    let mut running = bench.engine.handle.submit(request(1, 1), None).unwrap();
    bench.batches.recv().unwrap();
    let mut queued = bench.engine.handle.submit(request(2, 1), None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let handle = bench.engine.handle.clone();
    runtime.block_on(async {
        let drain = handle.drain();
        tokio::pin!(drain);
        // Polled once so that the command is sent before the step is let go.
        let early = tokio::time::timeout(Duration::ZERO, &mut drain).await;
        assert!(early.is_err(), "a request is still running");
        bench.orders.send(Order::Tokens).unwrap();
        drain.await.unwrap();
        assert!(matches!(running.recv().await, Some(SequenceEvent::Started { .. })));
        assert!(matches!(running.recv().await, Some(SequenceEvent::Token { finish: Some(_), .. })));
        assert_eq!(queued.recv().await, Some(SequenceEvent::Failed(RequestFailure::Draining)));
    });
    assert_eq!(handle.submit(request(3, 1), None).unwrap_err(), SubmitError::Stopped);
}
