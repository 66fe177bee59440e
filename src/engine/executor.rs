//! The seam between the hall and the computing wing: [`StepExecutor`], and the executor that runs a real decoder.

use std::sync::Arc;

use super::error::StepError;
use super::input_batch::StepInput;
use super::lease::Leftover;
use super::prepare::{PassInput, hand_out};
use crate::delta::{self, Base, BaseLayout, CompileLimits, DeltaError, DeltaProgram, PreparedDelta};
use crate::model::{Checkpoint, Decoder};
use crate::ops::{Backend, OpsError, StepOutcomes, WeightFormat};
use crate::types::{AdapterSlot, OpClasses, StepOutput};

/// Runs steps. Owned by the engine thread; a fake one makes the loop testable without a model.
pub trait StepExecutor: Send + 'static {
    /// An adapter whose bytes are on the device already, so that installing it moves none.
    type Prepared: Send + 'static;

    /// Apply the step's prefix writes and block copies, run its rows, sample. The same step may come again,
    /// whole or in parts, where it fails.
    ///
    /// # Errors
    /// [`StepError`]; nothing of the step's KV may be trusted then.
    fn execute(&mut self, step: &StepInput<'_>) -> Result<StepOutput, StepError>;

    /// Put an adapter into an empty slot.
    fn install(&mut self, slot: AdapterSlot, prepared: Self::Prepared);

    /// Empty a slot; harmless if it is. What it held is returned whole: freeing it takes longer than taking it out.
    fn remove(&mut self, slot: AdapterSlot) -> Leftover;

    /// The op classes of the adapter in a slot; none for an empty one.
    fn classes(&self, slot: AdapterSlot) -> OpClasses;
}

/// Runs steps on a decoder.
pub struct ModelExecutor<B: Backend> {
    decoder: Decoder<B>,
    block_size: u32,
    pass: PassInput,
}

impl<B: Backend> ModelExecutor<B> {
    /// An executor whose KV blocks have `block_size` places.
    #[must_use]
    pub fn new(decoder: Decoder<B>, block_size: u32) -> Self {
        Self { decoder, block_size, pass: PassInput::default() }
    }
}

impl<B: Backend> StepExecutor for ModelExecutor<B> {
    type Prepared = PreparedDelta<B>;

    fn execute(&mut self, step: &StepInput<'_>) -> Result<StepOutput, StepError> {
        let Self { decoder, block_size, pass } = self;
        let batch = step.batch();
        for write in &batch.prefix_writes {
            let blocks: Vec<u32> = write.blocks.iter().map(|block| block.0).collect();
            if !decoder.write_prefix(write.slot, &blocks) {
                return Err(StepError::NoPrefix { slot: write.slot.0 });
            }
        }
        for copy in &batch.block_copies {
            decoder.copy_block(copy.source.0, copy.target.0);
        }
        if batch.sequences.is_empty() {
            return Ok(StepOutput::default());
        }
        let mut outcomes = StepOutcomes::default();
        for from_shared in [true, false] {
            if batch.sequences.iter().all(|share| share.from_shared != from_shared) {
                continue;
            }
            pass.prepare(step, *block_size, decoder.long_rope_rows(), from_shared);
            let computed = decoder.forward(&pass.input);
            pass.input.plan.release();
            // Of rows that go on from the shared layers nothing is said.
            outcomes = computed?;
        }
        Ok(hand_out(step, outcomes))
    }

    fn install(&mut self, slot: AdapterSlot, prepared: PreparedDelta<B>) {
        self.decoder.install(slot, prepared);
    }

    fn remove(&mut self, slot: AdapterSlot) -> Leftover {
        Box::new(self.decoder.remove(slot))
    }

    fn classes(&self, slot: AdapterSlot) -> OpClasses {
        self.decoder.classes(slot)
    }
}

/// Turns adapter files into what a [`StepExecutor`] installs. Used on loader threads while steps go on.
pub trait DeltaLoader: Send + Sync + 'static {
    /// See [`StepExecutor::Prepared`].
    type Prepared: Send + 'static;

    /// Check the config of a new adapter before its weights have come.
    ///
    /// # Errors
    /// [`DeltaError`]: why it is refused.
    fn check_config(&self, config: &[u8]) -> Result<(), DeltaError>;

    /// Check a new adapter in full; nothing moves to the device.
    ///
    /// # Errors
    /// [`DeltaError`]: why it is refused.
    fn check(&self, config: &[u8], weights: &[u8]) -> Result<DeltaProgram, DeltaError>;

    /// Compile an adapter that was accepted before: fields of its config that are not known here were let pass then,
    /// and an operator who has become stricter since does not lose it.
    ///
    /// # Errors
    /// [`DeltaError`]: why it is refused.
    fn compile(&self, config: &[u8], weights: &[u8]) -> Result<DeltaProgram, DeltaError>;

    /// The sum of weighted programs, added in their order.
    ///
    /// # Errors
    /// [`DeltaError`]: why it is refused.
    fn sum(&self, parts: Vec<DeltaProgram>) -> Result<DeltaProgram, DeltaError>;

    /// Bytes of the numbers that compiling works out besides those of the files, at most.
    ///
    /// # Errors
    /// [`DeltaError`]: why it is refused, as far as it shows without numbers.
    fn worked_out_bytes(&self, config: &[u8], weights: &[u8]) -> Result<u64, DeltaError>;

    /// Check what can be checked of a config and of the first bytes of weights, with the size of the whole file.
    ///
    /// # Errors
    /// [`DeltaError`]: why [`DeltaLoader::compile`] will refuse the whole.
    fn check_head(&self, config: Option<&[u8]>, weights: Option<(&[u8], u64)>) -> Result<(), DeltaError>;

    /// How matrices lie on the device.
    fn weight_format(&self) -> WeightFormat;

    /// Move a compiled adapter to the device.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    fn prepare(&self, program: DeltaProgram) -> Result<Self::Prepared, OpsError>;
}

/// The loader for a [`ModelExecutor`].
pub struct ModelLoader<B: Backend> {
    backend: Arc<B>,
    layout: BaseLayout,
    checkpoint: Arc<Checkpoint>,
    limits: CompileLimits,
}

impl<B: Backend> ModelLoader<B> {
    /// A loader for adapters of one base.
    #[must_use]
    pub fn new(backend: Arc<B>, layout: BaseLayout, checkpoint: Arc<Checkpoint>, limits: CompileLimits) -> Self {
        Self { backend, layout, checkpoint, limits }
    }

    fn base(&self) -> Base<'_> {
        Base { layout: &self.layout, weights: self.checkpoint.as_ref() }
    }
}

impl<B: Backend> DeltaLoader for ModelLoader<B> {
    type Prepared = PreparedDelta<B>;

    fn check_config(&self, config: &[u8]) -> Result<(), DeltaError> {
        delta::check_config(config, &self.layout, self.limits)
    }

    fn check(&self, config: &[u8], weights: &[u8]) -> Result<DeltaProgram, DeltaError> {
        delta::compile(config, weights, self.base(), self.limits)
    }

    fn compile(&self, config: &[u8], weights: &[u8]) -> Result<DeltaProgram, DeltaError> {
        let limits = CompileLimits { allow_unknown_fields: true, ..self.limits };
        delta::compile(config, weights, self.base(), limits)
    }

    fn sum(&self, parts: Vec<DeltaProgram>) -> Result<DeltaProgram, DeltaError> {
        DeltaProgram::sum(parts, self.limits)
    }

    fn worked_out_bytes(&self, config: &[u8], weights: &[u8]) -> Result<u64, DeltaError> {
        let limits = CompileLimits { allow_unknown_fields: true, ..self.limits };
        delta::worked_out_bytes(config, weights, self.base(), limits)
    }

    fn check_head(&self, config: Option<&[u8]>, weights: Option<(&[u8], u64)>) -> Result<(), DeltaError> {
        delta::check_head(config, weights, self.base(), self.limits)
    }

    fn weight_format(&self) -> WeightFormat {
        self.backend.numerics().weights
    }

    fn prepare(&self, program: DeltaProgram) -> Result<PreparedDelta<B>, OpsError> {
        PreparedDelta::new(self.backend.as_ref(), &self.layout, program)
    }
}
