//! A decoder on the CPU, and inputs of its passes as the engine would prepare them.

use std::sync::Arc;

use polydelta::delta::{DeltaProgram, PreparedDelta};
use polydelta::model::{BaseModel, Checkpoint, Decoder, DecoderLimits, DecoderSpec, ModelInput, base_layout};
use polydelta::ops::cpu::{CpuBackend, CpuOptions};
use polydelta::ops::{Backend, Numerics, RowPlan, SampledRows, SequencePlan, StepPlan};
use polydelta::types::AdapterSlot;

use super::Failure;
use super::adapters::lora;
use super::model::Shape;

/// Places of a KV block.
pub(crate) const BLOCK_SIZE: usize = 16;
/// Longest sequence of a bench.
pub(crate) const CONTEXT: usize = 4096;
/// Most rows of a step.
pub(crate) const MAX_ROWS: usize = 512;
/// Blocks of the cache for each sequence of a model: 1,024 places, so that four sequences' are one of [`CONTEXT`].
const BLOCKS: usize = 1024 / BLOCK_SIZE;
/// Places that sequences are laid out by.
const STRIDE: usize = 128;

/// The fastest kernels for bf16.
pub(crate) fn backend(threads: usize) -> Result<Arc<CpuBackend>, Failure> {
    Ok(Arc::new(CpuBackend::new(CpuOptions { threads, numerics: Numerics::BF16, isa: None })?))
}

/// A random model in bf16 with LoRA adapters in the first slots.
pub(crate) struct Model {
    decoder: Decoder<CpuBackend>,
}

impl Model {
    /// Write, load and pack a model with room for `sequences`, and install `adapters` LoRA of `rank`.
    pub(crate) fn new(
        shape: Shape,
        backend: &Arc<CpuBackend>,
        sequences: usize,
        adapters: usize,
        rank: usize,
    ) -> Result<Self, Failure> {
        let layout = base_layout(&shape.spec()?);
        let programs = (1..=adapters as u64).map(|seed| lora(&layout, rank, seed)).collect();
        Self::with(shape, backend, sequences, programs)
    }

    /// The same with a program in each of the first slots.
    pub(crate) fn with(
        shape: Shape,
        backend: &Arc<CpuBackend>,
        sequences: usize,
        programs: Vec<DeltaProgram>,
    ) -> Result<Self, Failure> {
        let spec = shape.spec()?;
        let limits = DecoderLimits {
            max_rows: MAX_ROWS,
            kv_blocks: sequences.max(CONTEXT / BLOCK_SIZE / BLOCKS) * BLOCKS,
            block_size: BLOCK_SIZE,
            adapter_slots: 256,
            shared_layers: None,
        };
        let mut decoder = Decoder::new(Arc::clone(backend), spec.clone(), load(shape, backend, &spec)?, limits)?;
        let layout = base_layout(&spec);
        for (slot, program) in (0..).map(AdapterSlot).zip(programs) {
            decoder.install(slot, PreparedDelta::new(backend.as_ref(), &layout, program)?);
        }
        Ok(Self { decoder })
    }

    /// Run a pass; the sum of the logits' first numbers, so that nothing is optimised away.
    pub(crate) fn run(&mut self, input: &ModelInput) -> Result<f32, Failure> {
        let mut sum = 0.0;
        self.decoder.logits(input, |_, logits| sum += logits[0])?;
        Ok(sum)
    }
}

/// The base of a random model; its folder lives only as long as it is read.
pub(crate) fn load(shape: Shape, backend: &CpuBackend, spec: &DecoderSpec) -> Result<BaseModel<CpuBackend>, Failure> {
    let folder = tempfile::tempdir()?;
    shape.write(folder.path())?;
    let checkpoint = Checkpoint::open(folder.path())?;
    Ok(BaseModel::load(backend, spec, &checkpoint, CONTEXT, &|_, _| {})?)
}

/// Rows that belong to no sequence, uploaded: enough for everything but attention.
pub(crate) fn step_of(backend: &CpuBackend, rows: RowPlan) -> Result<<CpuBackend as Backend>::Step, Failure> {
    let count = rows.len();
    let (ids, positions, kv_slots) = (vec![None; count], vec![0; count], vec![0; count]);
    let mut step = backend.step();
    backend.upload(&StepPlan { rows, ids, positions, kv_slots, ..StepPlan::default() }, &mut step)?;
    Ok(step)
}

/// One token for each of several sequences that have `position` tokens in the cache.
pub(crate) fn decode(slots: &[Option<AdapterSlot>], position: usize) -> ModelInput {
    rows(slots, 1, position)
}

/// `count` tokens for each of several sequences, the last of each sampled. Sequences lie side by side, each with room for
/// whole [`STRIDE`]s.
pub(crate) fn rows(slots: &[Option<AdapterSlot>], count: usize, start: usize) -> ModelInput {
    rows_in(slots, count, start, (start + count).next_multiple_of(STRIDE))
}

/// The same, each sequence in `places` of its own.
pub(crate) fn rows_in(slots: &[Option<AdapterSlot>], count: usize, start: usize, places: usize) -> ModelInput {
    let mut plan = StepPlan::default();
    let mut row_slots = Vec::new();
    let mut sampled = Vec::new();
    let each = places.div_ceil(BLOCK_SIZE);
    for (index, slot) in slots.iter().enumerate() {
        let first = row_slots.len();
        let blocks: Vec<u32> = (0..each).map(|block| (index * each + block) as u32).collect();
        for position in start..start + count {
            row_slots.push(*slot);
            plan.ids.push(Some((index * 131 + position * 7) as u32 % 4096));
            plan.positions.push(position as u32);
            plan.kv_slots.push(blocks[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32);
        }
        sampled.push(row_slots.len() as u32 - 1);
        plan.sequences.push(SequencePlan { rows: first..row_slots.len(), start: start as u32, blocks: blocks.into() });
    }
    plan.rows = RowPlan::new(row_slots);
    plan.sampled = SampledRows::groups(&plan.rows, &sampled);
    ModelInput { plan, ..ModelInput::default() }
}
