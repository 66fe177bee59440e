//! A step that fails ends only those who make it fail. Whatever the executor does, panics included, comes out of here as
//! plain data.
//!
//! The batch is run again by halves until those sequences remain that fail alone. That changes nothing for the others: a
//! row's K and V are a function of the row and of what lies before it, so writing them again writes the same numbers to
//! the same places; no sequence reads what another writes in the same step; a random draw is a function of seed, choice
//! and position; and the result of a row does not depend on its neighbours. Prefix writes and block copies go with the
//! sequences that need them: a copy made anew for a half must not undo what the other half has computed into its target.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::StepError;
use super::executor::StepExecutor;
use super::input_batch::{InputBatch, StepInput};
use super::lease::Leftover;
use super::pulse::EnginePulse;
use crate::telemetry::panic_message;
use crate::types::{AdapterSlot, RowsByClass, ScheduledBatch, ScheduledSequence, StepOutput};

/// After so many attempts at a step in which not even a row of the base could be computed the engine gives up: the device
/// is not coming back.
pub(super) const MAX_ATTEMPTS: u32 = 3;

/// A sequence that makes its step fail.
#[derive(Debug)]
pub(super) struct Culprit {
    /// It alone, with what it needs of the batch.
    pub(super) batch: ScheduledBatch,
    pub(super) error: StepError,
    /// Its adapter, where the same rows can be computed without it, or are rows of its own.
    pub(super) adapter: bool,
}

/// What became of a step.
#[derive(Debug, Default)]
pub(super) struct Isolated {
    /// The sequences that were computed.
    pub(super) batch: ScheduledBatch,
    pub(super) output: StepOutput,
    pub(super) culprits: Vec<Culprit>,
}

/// No row can be computed, whosever it is.
#[derive(Debug)]
pub(super) struct BrokenDevice {
    pub(super) error: StepError,
}

/// The executor behind a wall.
pub(super) struct Guarded<E> {
    executor: E,
    pulse: EnginePulse,
}

impl<E: StepExecutor> Guarded<E> {
    pub(super) fn new(executor: E, pulse: EnginePulse) -> Self {
        Self { executor, pulse }
    }

    /// Run a step once.
    pub(super) fn attempt(&mut self, step: &StepInput<'_>) -> Result<StepOutput, StepError> {
        self.pulse.begin(step.batch().sequences.len(), step.batch().num_tokens());
        contained(|| self.executor.execute(step))?
    }

    /// `batch` failed: find out whose fault it is. `probe` is a row of the base on a block of its own; it
    /// tells a device that computes nothing any more from sequences that all fail. Where there is no room for one, the
    /// device has the benefit of the doubt: ending the culprits makes room.
    pub(super) fn isolate(
        &mut self,
        batch: &ScheduledBatch,
        sequences: &InputBatch,
        mut error: StepError,
        probe: Option<&ScheduledBatch>,
    ) -> Result<Isolated, BrokenDevice> {
        for _ in 1..MAX_ATTEMPTS {
            let mut isolated = Isolated::default();
            self.halve(batch, sequences, &mut isolated);
            if !isolated.batch.sequences.is_empty() || probe.is_none_or(|probe| self.works(probe)) {
                for culprit in &mut isolated.culprits {
                    culprit.adapter = self.blames_adapter(&culprit.batch, sequences);
                }
                return Ok(isolated);
            }
            // Nobody's fault: once more, as it was.
            match self.attempt(&StepInput::new(batch, sequences)) {
                Ok(output) => return Ok(Isolated { batch: batch.clone(), output, culprits: Vec::new() }),
                Err(again) => error = again,
            }
        }
        Err(BrokenDevice { error })
    }

    /// Whether a step can be computed whose sequences all join in it.
    fn works(&mut self, batch: &ScheduledBatch) -> bool {
        let mut sequences = InputBatch::default();
        sequences.apply(batch);
        self.attempt(&StepInput::new(batch, &sequences)).is_ok()
    }

    /// Run the parts of a batch that failed, down to single sequences; these have a second chance.
    fn halve(&mut self, batch: &ScheduledBatch, sequences: &InputBatch, into: &mut Isolated) {
        let (left, right) = batch.sequences.split_at(batch.sequences.len() / 2);
        for shares in [left, right].into_iter().filter(|shares| !shares.is_empty()) {
            let half = part(batch, shares, sequences);
            let step = StepInput::new(&half, sequences);
            let alone = shares.len() == 1;
            match self.attempt(&step).or_else(|error| if alone { self.attempt(&step) } else { Err(error) }) {
                Ok(output) => {
                    into.batch.sequences.extend(half.sequences);
                    into.output.append(output);
                }
                Err(error) if alone => into.culprits.push(Culprit { batch: half, error, adapter: false }),
                Err(_) => self.halve(&half, sequences, into),
            }
        }
    }

    /// Whether a culprit's rows can be computed on the base. What that writes lies in its own places, and it ends.
    fn blames_adapter(&mut self, culprit: &ScheduledBatch, sequences: &InputBatch) -> bool {
        let Some(sequence) = StepInput::new(culprit, sequences).sequences().find(|sequence| sequence.slot.is_some())
        else {
            return false;
        };
        // Rows of the adapter itself.
        if sequence.ids().is_none() {
            return true;
        }
        let plain = ScheduledBatch { sequences: culprit.sequences.clone(), ..ScheduledBatch::default() };
        self.attempt(&StepInput::new(&plain, sequences).base_alone()).is_ok()
    }

    /// Put an adapter into a slot, whatever was in it.
    pub(super) fn install(&mut self, slot: AdapterSlot, prepared: E::Prepared) -> Result<(), StepError> {
        let installed = contained(|| {
            // It is empty: what was there has been removed.
            drop(self.executor.remove(slot));
            self.executor.install(slot, prepared);
        });
        if installed.is_err() {
            // Half an adapter is worse than none.
            drop(self.remove(slot)?);
        }
        installed
    }

    /// Empty a slot; what it held.
    pub(super) fn remove(&mut self, slot: AdapterSlot) -> Result<Leftover, StepError> {
        contained(|| self.executor.remove(slot))
    }

    /// Rows of a step, by the op classes of their adapters.
    pub(super) fn rows_by_class(&self, step: &StepInput<'_>) -> RowsByClass {
        let mut rows = RowsByClass::default();
        for sequence in step.sequences() {
            if let Some(slot) = sequence.slot {
                rows.add(self.executor.classes(slot), sequence.slots().flatten().count() as u64);
            }
        }
        rows
    }
}

/// The part of a batch that computes some of its sequences. They have joined.
fn part(whole: &ScheduledBatch, shares: &[ScheduledSequence], sequences: &InputBatch) -> ScheduledBatch {
    let mut part = ScheduledBatch { sequences: shares.to_vec(), ..ScheduledBatch::default() };
    let step = StepInput::new(&part, sequences);
    let (mut writes, mut copies) = (whole.prefix_writes.clone(), whole.block_copies.clone());
    writes.retain(|write| step.sequences().any(|one| one.slot == Some(write.slot)));
    copies.retain(|copy| step.sequences().any(|one| one.blocks.contains(&copy.target.0)));
    (part.prefix_writes, part.block_copies) = (writes, copies);
    part
}

/// Run something of the executor's; a panic is an error like any other.
fn contained<T>(work: impl FnOnce() -> T) -> Result<T, StepError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| StepError::Panicked { message: panic_text(&*panic) })
}

/// What a panic of the engine said.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic_message(panic).unwrap_or("no message").to_owned()
}
