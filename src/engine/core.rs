//! The engine thread: letters, then schedule → execute → update → publish, over and over.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::error::{EngineError, StepError};
use super::events::EventSender;
use super::executor::StepExecutor;
use super::handle::{EngineEnd, EngineHandle, EngineLimits, Install, InstallHandle, MAX_INSTALLS, Shared};
use super::input_batch::{InputBatch, StepInput};
use super::isolate::{BrokenDevice, Culprit, Guarded, Isolated, panic_text};
use super::lease::Lease;
use super::mailbox::{Letters, Mailbox, Submission};
use super::pulse::EnginePulse;
use super::stats::EngineStats;
use crate::scheduler::places::{Place, Places};
use crate::scheduler::{Events, Scheduler, SchedulerConfig, SchedulerStats};
use crate::telemetry::{EngineGauges, StepCulprit, StepFacts};
use crate::types::{AdapterFault, RequestFailure, RequestId, ScheduledBatch, SequenceEvent, StepOutput};

/// Longest wait when no step could be made of live requests: bounds the harm of a scheduler bug to latency.
const STALL_POLL: Duration = Duration::from_millis(20);

/// What happened in the engine.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::large_enum_variant)] // It is told and gone; nobody keeps many.
pub enum EngineFact {
    /// A step brought a result.
    Step(StepFacts),
    /// Requests have come or gone while no step ran.
    Gauges(EngineGauges),
    /// A step failed for the sake of this.
    Failed(StepCulprit),
}

/// Told what happened; a plain function, so that the hall needs no recorder. It is called on the engine thread, which
/// holds no lock then.
pub type EngineObserver = Box<dyn FnMut(EngineFact) + Send>;

/// A started engine.
pub struct StartedEngine<P> {
    /// For requests.
    pub handle: EngineHandle,
    /// For adapters.
    pub installs: InstallHandle<P>,
    /// Says why the thread has ended, once it has; a panic is no exception.
    pub ended: watch::Receiver<Option<EngineEnd>>,
}

/// Start the engine thread.
///
/// # Errors
/// [`EngineError::Scheduler`] and [`EngineError::Thread`].
pub fn start<E: StepExecutor>(
    executor: E,
    config: SchedulerConfig,
    limits: impl Into<EngineLimits>,
    observer: EngineObserver,
) -> Result<StartedEngine<E::Prepared>, EngineError> {
    let scheduler = Scheduler::new(config)?;
    let limits = limits.into();
    let (install_sender, installs) = mpsc::channel(MAX_INSTALLS);
    let pulse = EnginePulse::default();
    let shared = Arc::new(Shared {
        mailbox: Mailbox::default(),
        pulse: pulse.clone(),
        draining: AtomicBool::new(false),
        queue: Places::new(limits.queued),
        limits,
    });
    let handle = EngineHandle { shared: Arc::clone(&shared) };
    let (ended_sender, ended) = watch::channel(None);
    let engine = Engine {
        executor: Guarded::new(executor, pulse),
        scheduler,
        sequences: InputBatch::default(),
        live: HashMap::new(),
        installs,
        shared: Arc::clone(&shared),
        idle_waiters: Vec::new(),
        stats: EngineStats::default(),
        observed: SchedulerStats::default(),
        observer,
    };
    let run = move || {
        // The engine goes with its thread: every channel it held is closed when the end is announced.
        let end = catch_unwind(AssertUnwindSafe(|| engine.run())).unwrap_or_else(|panic| {
            let message = panic_text(&*panic);
            tracing::error!(message, "the engine panicked");
            EngineEnd::Panicked { message }
        });
        shared.draining.store(true, Ordering::Release);
        shared.mailbox.close();
        shared.pulse.end();
        ended_sender.send_replace(Some(end));
    };
    let thread = std::thread::Builder::new().name("polydelta-engine".to_owned());
    thread.spawn(run).map_err(|source| EngineError::Thread { thread: "engine", source })?;
    Ok(StartedEngine { installs: InstallHandle { engine: handle.clone(), installs: install_sender }, handle, ended })
}

/// A request the engine has taken.
struct Live {
    events: EventSender,
    /// Its reader is behind: the scheduler has laid it aside.
    parked: bool,
    /// Held until its first row is scheduled.
    queued: Option<Place>,
    lease: Option<Lease>,
    /// What its adapter has shown so far.
    verdict: Option<Result<(), AdapterFault>>,
}

impl Live {
    /// What an event says of the request's adapter: finite logits are a good sign, which a fault outweighs.
    fn learn(&mut self, event: &SequenceEvent) {
        match event {
            SequenceEvent::Token { .. } | SequenceEvent::PromptLogprob { .. } | SequenceEvent::Pooled(_) => {
                self.verdict = self.verdict.or(Some(Ok(())))
            }
            SequenceEvent::Failed(RequestFailure::NonFinite) => self.verdict = Some(Err(AdapterFault::NonFinite)),
            // Whose fault a failed step is was found out with the step.
            SequenceEvent::Failed(
                RequestFailure::EngineFailed | RequestFailure::Draining | RequestFailure::DeadlineExceeded,
            )
            | SequenceEvent::Started { .. } => {}
        }
    }

    /// Give the adapter back, with what it has shown.
    fn let_go(&mut self) {
        if let Some(mut lease) = self.lease.take()
            && let Some(verdict) = self.verdict
        {
            lease.judge(verdict);
        }
    }
}

struct Engine<E: StepExecutor> {
    executor: Guarded<E>,
    scheduler: Scheduler,
    /// As the scheduler has told them.
    sequences: InputBatch,
    live: HashMap<RequestId, Live>,
    installs: mpsc::Receiver<Install<E::Prepared>>,
    shared: Arc<Shared>,
    idle_waiters: Vec<oneshot::Sender<()>>,
    stats: EngineStats,
    /// Counters as the observer last saw them.
    observed: SchedulerStats,
    observer: EngineObserver,
}

impl<E: StepExecutor> Engine<E> {
    fn run(mut self) -> EngineEnd {
        let end = self.serve();
        self.shared.draining.store(true, Ordering::Release);
        let events = self.scheduler.fail_all(RequestFailure::Draining);
        self.publish(events);
        end
    }

    /// Until asked to stop, or until nothing can be computed any more.
    fn serve(&mut self) -> EngineEnd {
        let mut stalled = false;
        loop {
            if let Some(letters) = self.letters(stalled)
                && self.obey(letters)
            {
                return EngineEnd::Stopped;
            }
            let scheduled = self.scheduler.schedule(Instant::now());
            self.publish(scheduled.events);
            self.sequences.apply(&scheduled.batch);
            stalled = scheduled.batch.is_empty();
            if !stalled {
                if let Err(BrokenDevice { error }) = self.step(&scheduled.batch) {
                    tracing::error!(%error, "no step can be computed any more, not even one of the base alone");
                    return EngineEnd::DeviceBroken { error: error.to_string() };
                }
                // Compute threads take every core there is: without this, what arrives during a run of short steps
                // waits for the end of a time slice, several steps away.
                std::thread::yield_now();
            }
        }
    }

    /// All letters there are; sleep while there is nothing to compute.
    fn letters(&mut self, stalled: bool) -> Option<Letters> {
        let idle = self.scheduler.is_idle();
        if !idle && !stalled {
            return self.shared.mailbox.take();
        }
        // Where all readers are behind, nothing moves before one has read or a deadline passes.
        let limit = if self.scheduler.has_work() {
            Some(STALL_POLL)
        } else {
            self.scheduler.next_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()))
        };
        self.tell_gauges();
        if idle {
            for waiter in self.idle_waiters.drain(..) {
                // The asker may have gone away.
                let _ = waiter.send(());
            }
        }
        self.shared.pulse.rest();
        Some(self.shared.mailbox.wait(limit))
    }

    /// True where the engine is to stop.
    fn obey(&mut self, letters: Letters) -> bool {
        let Letters { submissions, wishes, removals, forgotten, installs, drains, questions, stop } = letters;
        submissions.into_iter().for_each(|submission| self.submit(submission));
        for (id, wish) in wishes {
            for choice in wish.finished_choices {
                self.scheduler.finish_choice(id, choice);
            }
            if wish.abort {
                self.scheduler.abort(id);
            }
            if let Some(live) = self.live.get_mut(&id).filter(|_| wish.resume) {
                live.parked = false;
                self.scheduler.unpark(id);
            }
            self.forget_if_gone(id);
        }
        for (slots, done) in removals {
            let mut leftovers = Vec::with_capacity(slots.len());
            for slot in slots {
                match self.executor.remove(slot) {
                    Ok(leftover) => leftovers.push(leftover),
                    Err(error) => tracing::error!(%error, slot = slot.0, "emptying an adapter slot failed"),
                }
            }
            // The asker may have gone away; the slots are empty all the same.
            let _ = done.send(leftovers);
        }
        if !forgotten.is_empty() {
            self.scheduler.forget(&forgotten);
        }
        if installs {
            while let Ok(install) = self.installs.try_recv() {
                // As above.
                let _ = install.done.send(self.executor.install(install.slot, install.prepared));
            }
        }
        if !drains.is_empty() {
            let events = self.scheduler.drain();
            self.publish(events);
            self.idle_waiters.extend(drains);
        }
        for question in questions {
            // As above.
            let _ = question.send(self.snapshot());
        }
        stop
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { request, lease, place, events } = submission;
        let id = request.id;
        match self.scheduler.add(request) {
            Ok(_) => {
                self.live.insert(id, Live { events, parked: false, queued: Some(place), lease, verdict: None });
            }
            Err(error) => {
                // Admission checks against the same limits, so this is a request that raced with a drain, or a bug.
                tracing::warn!(%error, "the scheduler refused an admitted request");
                drop(place);
                events.send(SequenceEvent::Failed(RequestFailure::Draining));
            }
        }
    }

    fn step(&mut self, batch: &ScheduledBatch) -> Result<(), BrokenDevice> {
        let started = Instant::now();
        self.stats.steps += 1;
        let events = match self.executor.attempt(&StepInput::new(batch, &self.sequences)) {
            Ok(output) => {
                self.scheduler.learn(batch, started.elapsed());
                self.completed(batch, &output, started)
            }
            Err(error) => self.failed(batch, error, started)?,
        };
        self.publish(events);
        Ok(())
    }

    /// A step failed: those end who made it fail, the others have moved as if nothing had been.
    fn failed(&mut self, batch: &ScheduledBatch, error: StepError, started: Instant) -> Result<Events, BrokenDevice> {
        tracing::error!(%error, sequences = batch.sequences.len(), rows = batch.num_tokens(), "a step failed");
        self.stats.failed_steps += 1;
        let probe = self.scheduler.probe();
        let isolated = self.executor.isolate(batch, &self.sequences, error, probe.as_ref());
        let Isolated { batch, output, culprits } = isolated.inspect_err(|_| {
            (self.observer)(EngineFact::Failed(StepCulprit::Device));
        })?;
        let mut events = Events::new();
        if !batch.sequences.is_empty() {
            events = self.completed(&batch, &output, started);
        }
        for Culprit { batch, error, adapter } in culprits {
            let ended = self.scheduler.fail_step(&batch, RequestFailure::EngineFailed);
            for (request, _) in &ended {
                if let Some(live) = self.live.get_mut(request).filter(|_| adapter) {
                    live.verdict = Some(Err(AdapterFault::StepFailed));
                }
                tracing::error!(%error, request = request.0, adapter, "a request made its step fail; it ends");
            }
            let culprit = if adapter { StepCulprit::Adapter } else { StepCulprit::Request };
            (self.observer)(EngineFact::Failed(culprit));
            events.extend(ended);
        }
        Ok(events)
    }

    fn completed(&mut self, batch: &ScheduledBatch, output: &StepOutput, started: Instant) -> Events {
        let now = Instant::now();
        let step = StepInput::new(batch, &self.sequences);
        let (tokens, distinct) = (batch.num_tokens(), distinct_adapters(&step));
        let rows_by_class = self.executor.rows_by_class(&step);
        self.stats.tokens_computed += tokens as u64;
        let histogram = &mut self.stats.steps_by_distinct_adapters;
        if histogram.len() <= distinct {
            histogram.resize(distinct + 1, 0);
        }
        histogram[distinct] += 1;
        self.sequences.advance(batch, output);
        let events = self.scheduler.update(batch, output, now);
        let (before, after) = (self.observed, self.scheduler.stats());
        self.observed = after;
        (self.observer)(EngineFact::Step(StepFacts {
            tokens,
            sequences: batch.sequences.len(),
            distinct_adapters: distinct,
            rows_by_class,
            duration: now - started,
            gauges: gauges(&after),
            preemptions: after.preemptions - before.preemptions,
            prefix_queries: after.prefix_queries - before.prefix_queries,
            prefix_hits: after.prefix_hits - before.prefix_hits,
            shared_layer_hits: after.shared_layer_hits - before.shared_layer_hits,
            held_back: after.held_back - before.held_back,
        }));
        events
    }

    /// Between steps gauges follow what comes and goes; counters are told with the next step.
    fn tell_gauges(&mut self) {
        let now = gauges(&self.scheduler.stats());
        if now != gauges(&self.observed) {
            let EngineGauges { running, waiting, parked, kv_blocks_used, kv_blocks_total, parties } = now;
            self.observed =
                SchedulerStats { running, waiting, parked, kv_blocks_used, kv_blocks_total, parties, ..self.observed };
            (self.observer)(EngineFact::Gauges(now));
        }
    }

    fn publish(&mut self, events: Events) {
        let mut touched: Vec<RequestId> = events.iter().map(|(id, _)| *id).collect();
        touched.dedup();
        for (id, event) in &events {
            if let Some(live) = self.live.get_mut(id) {
                live.learn(event);
            }
        }
        // Before the last event, not after it: whoever has read that may unload the adapter.
        for id in &touched {
            if !self.scheduler.contains(*id)
                && let Some(live) = self.live.get_mut(id)
            {
                live.let_go();
            }
        }
        for (id, event) in events {
            let Some(live) = self.live.get_mut(&id) else { continue };
            live.queued = None;
            live.events.send(event);
        }
        // Only now: several choices of a request may end in one step.
        for id in touched {
            self.forget_if_gone(id);
            if let Some(live) = self.live.get_mut(&id)
                && !live.parked
                && live.events.lags()
            {
                live.parked = true;
                self.scheduler.park(id);
            }
        }
    }

    fn forget_if_gone(&mut self, id: RequestId) {
        if self.scheduler.contains(id) {
            return;
        }
        if let Some(mut live) = self.live.remove(&id) {
            live.let_go();
        }
    }

    fn snapshot(&self) -> EngineStats {
        let scheduler = self.scheduler.stats();
        EngineStats {
            running: scheduler.running,
            waiting: scheduler.waiting,
            parked: scheduler.parked,
            parties: scheduler.parties,
            rows_held_back: scheduler.held_back,
            kv_blocks_used: scheduler.kv_blocks_used,
            kv_blocks_total: scheduler.kv_blocks_total,
            preemptions: scheduler.preemptions,
            prefix_queries: scheduler.prefix_queries,
            prefix_hits: scheduler.prefix_hits,
            shared_layer_hits: scheduler.shared_layer_hits,
            ..self.stats.clone()
        }
    }
}

fn gauges(stats: &SchedulerStats) -> EngineGauges {
    EngineGauges {
        running: stats.running,
        waiting: stats.waiting,
        parked: stats.parked,
        kv_blocks_used: stats.kv_blocks_used,
        kv_blocks_total: stats.kv_blocks_total,
        parties: stats.parties,
    }
}

fn distinct_adapters(step: &StepInput<'_>) -> usize {
    let mut slots: Vec<_> = step.sequences().filter_map(|sequence| sequence.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    slots.len()
}

#[cfg(test)]
mod tests;
