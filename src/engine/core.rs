//! The engine thread: commands, then schedule → execute → update → publish, over and over.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::error::{EngineError, StepError};
use super::executor::StepExecutor;
use super::handle::{Command, EngineHandle, EngineStats, Install, InstallHandle, Lease, Shared};
use crate::scheduler::{Events, Scheduler, SchedulerConfig, SchedulerStats};
use crate::telemetry::StepFacts;
use crate::types::{EngineRequest, RequestFailure, RequestId, ScheduledBatch, SequenceEvent, StepOutput};

/// After this many failed steps in a row the engine gives up: the device is not coming back.
const MAX_FAILED_STEPS: u32 = 3;

/// Longest wait when no step could be made of live requests: bounds the harm of a scheduler bug to latency.
const STALL_POLL: Duration = Duration::from_millis(20);

/// Told about every step that brought a result; a plain function, so that the hall needs no recorder.
pub type StepObserver = Box<dyn FnMut(&StepFacts) + Send>;

/// A started engine.
pub struct StartedEngine<P> {
    /// For requests.
    pub handle: EngineHandle,
    /// For adapters.
    pub installs: InstallHandle<P>,
    /// Turns true when the thread has ended, whatever the reason.
    pub ended: watch::Receiver<bool>,
}

/// Start the engine thread.
///
/// # Errors
/// [`EngineError::Scheduler`] and [`EngineError::Thread`].
pub fn start<E: StepExecutor>(
    executor: E,
    config: SchedulerConfig,
    queue_limit: usize,
    observer: StepObserver,
) -> Result<StartedEngine<E::Prepared>, EngineError> {
    let scheduler = Scheduler::new(config)?;
    let (command_sender, commands) = std::sync::mpsc::channel();
    let (install_sender, installs) = std::sync::mpsc::channel();
    let shared = Arc::new(Shared {
        commands: command_sender,
        draining: AtomicBool::new(false),
        queued: AtomicUsize::new(0),
        queue_limit,
    });
    let handle = EngineHandle { shared: Arc::clone(&shared) };
    let (ended_sender, ended) = watch::channel(false);
    let engine = Engine {
        executor,
        scheduler,
        live: HashMap::new(),
        commands,
        installs,
        shared,
        idle_waiters: Vec::new(),
        stats: EngineStats::default(),
        observed: SchedulerStats::default(),
        failures_in_a_row: 0,
        observer,
    };
    let thread = std::thread::Builder::new().name("polydelta-engine".to_owned());
    let run = move || {
        engine.run();
        ended_sender.send_replace(true);
    };
    thread.spawn(run).map_err(|source| EngineError::Thread { thread: "engine", source })?;
    Ok(StartedEngine { installs: InstallHandle { engine: handle.clone(), installs: install_sender }, handle, ended })
}

/// A request the engine has taken.
struct Live {
    events: mpsc::Sender<SequenceEvent>,
    /// Counts towards the queue limit until its first row is scheduled.
    queued: bool,
    lease: Option<Lease>,
}

struct Engine<E: StepExecutor> {
    executor: E,
    scheduler: Scheduler,
    live: HashMap<RequestId, Live>,
    commands: Receiver<Command>,
    installs: Receiver<Install<E::Prepared>>,
    shared: Arc<Shared>,
    idle_waiters: Vec<oneshot::Sender<()>>,
    stats: EngineStats,
    /// Counters as the observer last saw them.
    observed: SchedulerStats,
    failures_in_a_row: u32,
    observer: StepObserver,
}

/// Whether the loop goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    Stop,
}

impl<E: StepExecutor> Engine<E> {
    fn run(mut self) {
        let mut stalled = false;
        while self.failures_in_a_row < MAX_FAILED_STEPS && self.take_commands(stalled) == Flow::Continue {
            self.drop_abandoned();
            let scheduled = self.scheduler.schedule(Instant::now());
            self.publish(scheduled.events);
            stalled = scheduled.batch.is_empty();
            if !stalled {
                self.step(&scheduled.batch);
                // Compute threads take every core there is: without this, what arrives during a run of short steps
                // waits for the end of a time slice, several steps away.
                std::thread::yield_now();
            }
        }
        self.shared.draining.store(true, Ordering::Release);
        let events = self.scheduler.fail_all(RequestFailure::Draining);
        self.publish(events);
    }

    /// Take all commands there are; block while there is nothing to compute.
    fn take_commands(&mut self, stalled: bool) -> Flow {
        if let Some(flow) = self.wait_for_command(stalled) {
            return flow;
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => {
                    if self.obey(command) == Flow::Stop {
                        return Flow::Stop;
                    }
                }
                Err(TryRecvError::Empty) => return Flow::Continue,
                Err(TryRecvError::Disconnected) => return Flow::Stop,
            }
        }
    }

    /// The first command, where there is nothing else to do; `Some` where the loop must end.
    fn wait_for_command(&mut self, stalled: bool) -> Option<Flow> {
        let received = if self.scheduler.is_idle() {
            for waiter in self.idle_waiters.drain(..) {
                // The asker may have gone away.
                let _ = waiter.send(());
            }
            self.commands.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else if stalled {
            self.commands.recv_timeout(STALL_POLL)
        } else {
            return None;
        };
        match received {
            Ok(command) => (self.obey(command) == Flow::Stop).then_some(Flow::Stop),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Flow::Stop),
        }
    }

    fn obey(&mut self, command: Command) -> Flow {
        match command {
            Command::Submit(request, lease, events) => self.submit(request, lease, events),
            Command::FinishChoice(id, choice) => {
                self.scheduler.finish_choice(id, choice);
                self.forget_if_gone(id);
            }
            Command::Abort(id) => {
                self.scheduler.abort(id);
                self.forget_if_gone(id);
            }
            Command::Remove(slots, done) => {
                slots.into_iter().for_each(|slot| self.executor.remove(slot));
                // The asker may have gone away; the slots are empty all the same.
                let _ = done.send(());
            }
            Command::Wake => {
                while let Ok(install) = self.installs.try_recv() {
                    self.executor.remove(install.slot);
                    self.executor.install(install.slot, install.prepared);
                    // As above.
                    let _ = install.done.send(());
                }
            }
            Command::Stats(reply) => drop(reply.send(self.snapshot())),
            Command::Drain(reply) => {
                let events = self.scheduler.drain();
                self.publish(events);
                self.idle_waiters.push(reply);
            }
            Command::Stop => return Flow::Stop,
        }
        Flow::Continue
    }

    fn submit(&mut self, request: EngineRequest, lease: Option<Lease>, events: mpsc::Sender<SequenceEvent>) {
        let id = request.id;
        match self.scheduler.add(request) {
            Ok(_) => {
                self.live.insert(id, Live { events, queued: true, lease });
            }
            Err(error) => {
                // Admission checks against the same limits, so this is a request that raced with a drain, or a bug.
                tracing::warn!(%error, "the scheduler refused an admitted request");
                self.shared.queued.fetch_sub(1, Ordering::AcqRel);
                drop(events.try_send(SequenceEvent::Failed(RequestFailure::Draining)));
            }
        }
    }

    /// A closed channel means that its client has gone.
    fn drop_abandoned(&mut self) {
        let gone: Vec<RequestId> =
            self.live.iter().filter(|(_, live)| live.events.is_closed()).map(|(id, _)| *id).collect();
        for id in gone {
            self.scheduler.abort(id);
            self.forget_if_gone(id);
        }
    }

    fn step(&mut self, batch: &ScheduledBatch) {
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.executor.execute(batch)));
        let result = result.unwrap_or_else(|panic| Err(StepError::Panicked { message: panic_message(&*panic) }));
        let now = Instant::now();
        self.stats.steps += 1;
        let events = match result {
            Ok(output) => self.completed(batch, &output, started, now),
            Err(error) => {
                tracing::error!(%error, sequences = batch.sequences.len(), "a step failed; its requests end");
                self.stats.failed_steps += 1;
                self.failures_in_a_row += 1;
                self.scheduler.fail_all(RequestFailure::EngineFailed)
            }
        };
        self.publish(events);
    }

    fn completed(&mut self, batch: &ScheduledBatch, output: &StepOutput, started: Instant, now: Instant) -> Events {
        self.failures_in_a_row = 0;
        let (tokens, distinct) = (batch.num_tokens(), distinct_adapters(batch));
        self.stats.tokens_computed += tokens as u64;
        let histogram = &mut self.stats.steps_by_distinct_adapters;
        if histogram.len() <= distinct {
            histogram.resize(distinct + 1, 0);
        }
        histogram[distinct] += 1;
        let events = self.scheduler.update(batch, output, now);
        let (before, after) = (self.observed, self.scheduler.stats());
        self.observed = after;
        (self.observer)(&StepFacts {
            tokens,
            sequences: batch.sequences.len(),
            distinct_adapters: distinct,
            duration: now - started,
            running: after.running,
            waiting: after.waiting,
            kv_blocks_used: after.kv_blocks_used,
            kv_blocks_total: after.kv_blocks_total,
            preemptions: after.preemptions - before.preemptions,
            prefix_queries: after.prefix_queries - before.prefix_queries,
            prefix_hits: after.prefix_hits - before.prefix_hits,
            parties: after.parties,
            held_back: after.held_back - before.held_back,
        });
        events
    }

    fn publish(&mut self, events: Events) {
        let touched: Vec<RequestId> = events.iter().map(|(id, _)| *id).collect();
        // Before the last event, not after it: whoever has read that may unload the adapter.
        for id in &touched {
            if !self.scheduler.contains(*id)
                && let Some(live) = self.live.get_mut(id)
            {
                live.lease = None;
            }
        }
        for (id, event) in events {
            let Some(live) = self.live.get_mut(&id) else { continue };
            if live.queued {
                live.queued = false;
                self.shared.queued.fetch_sub(1, Ordering::AcqRel);
            }
            // The channel holds every event a request can have: only a closed one refuses, and that request is
            // dropped before the next step.
            drop(live.events.try_send(event));
        }
        // Only now: several choices of a request may end in one step.
        touched.into_iter().for_each(|id| self.forget_if_gone(id));
    }

    fn forget_if_gone(&mut self, id: RequestId) {
        if !self.scheduler.contains(id)
            && let Some(live) = self.live.remove(&id)
            && live.queued
        {
            self.shared.queued.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn snapshot(&self) -> EngineStats {
        let scheduler = self.scheduler.stats();
        EngineStats {
            running: scheduler.running,
            waiting: scheduler.waiting,
            kv_blocks_used: scheduler.kv_blocks_used,
            kv_blocks_total: scheduler.kv_blocks_total,
            preemptions: scheduler.preemptions,
            prefix_queries: scheduler.prefix_queries,
            prefix_hits: scheduler.prefix_hits,
            ..self.stats.clone()
        }
    }
}

fn distinct_adapters(batch: &ScheduledBatch) -> usize {
    let mut slots: Vec<_> = batch.sequences.iter().filter_map(|sequence| sequence.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    slots.len()
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests;
