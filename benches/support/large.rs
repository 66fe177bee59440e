//! Models as large as those that are served, on a backend of any kind, without the time and the memory that making up their
//! numbers would take; and their steps, outputs included.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use half::bf16;
use polydelta::delta::{BaseLayout, DeltaOp, DeltaProgram, PreparedDelta};
use polydelta::model::{BaseModel, Checkpoint, Decoder, DecoderLimits, ModelInput, base_layout};
use polydelta::ops::{Backend, HostTensor, TensorData};
use polydelta::types::{AdapterSlot, Output, SampleSpec, SamplingParams};
use serde_json::{Map, json};

use super::Failure;
use super::adapters::lora;
use super::model::Shape;
use super::numbers::weights;
use super::step::{BLOCK_SIZE, rows_in};

/// Numbers that are made; all others are these again. Odd, so that no two rows of a matrix begin alike.
const POOL: usize = (4 << 20) + 1;

/// What the numbers of a model are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Random ones, over and over: what a device computes with them takes the power that it takes with others.
    Repeated,
    /// Zeros, which take no memory: for those who look at no number.
    Zeros,
}

/// What a decoder is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Most rows of a step.
    pub(crate) rows: usize,
    /// Places of the KV cache, for all sequences together.
    pub(crate) places: usize,
    /// Longest sequence.
    pub(crate) context: usize,
    /// Places for adapters.
    pub(crate) slots: usize,
}

/// A decoder of a shape. Its checkpoint lies in a folder below `scratch` while it is read.
pub(crate) fn decoder<B: Backend>(
    shape: Shape,
    backend: &Arc<B>,
    fill: Fill,
    room: Room,
    scratch: &Path,
) -> Result<Decoder<B>, Failure> {
    let spec = shape.spec()?;
    let folder = tempfile::tempdir_in(scratch)?;
    write(shape, folder.path(), fill)?;
    let checkpoint = Checkpoint::open(folder.path())?;
    let base = BaseModel::load(backend.as_ref(), &spec, &checkpoint, room.context, &|_, _| {})?;
    let limits = DecoderLimits {
        max_rows: room.rows,
        kv_blocks: room.places.div_ceil(BLOCK_SIZE),
        block_size: BLOCK_SIZE,
        adapter_slots: room.slots,
        shared_layers: None,
    };
    Ok(Decoder::new(Arc::clone(backend), spec, base, limits)?)
}

/// config.json and model.safetensors.
fn write(shape: Shape, dir: &Path, fill: Fill) -> Result<(), Failure> {
    std::fs::write(dir.join("config.json"), shape.config().to_string())?;
    let (mut header, mut end) = (Map::new(), 0);
    let tensors = shape.tensors()?;
    for (name, tensor) in &tensors {
        let begin = end;
        end += 2 * tensor.shape.iter().product::<usize>();
        let entry = json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end] });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = File::create(dir.join("model.safetensors"))?;
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    if fill == Fill::Zeros {
        out.flush()?;
        return Ok(file.set_len((8 + header.len() + end) as u64)?);
    }
    let bytes = |numbers: Vec<bf16>| numbers.into_iter().flat_map(bf16::to_le_bytes).collect::<Vec<u8>>();
    let (pool, mut at) = (bytes(weights(1, POOL, 0.035)), 0);
    for (_, tensor) in &tensors {
        let mut left = 2 * tensor.shape.iter().product::<usize>();
        if tensor.ones {
            out.write_all(&bytes(vec![bf16::ONE; left / 2]))?;
            continue;
        }
        while left > 0 {
            let part = left.min(pool.len() - at);
            out.write_all(&pool[at..at + part])?;
            (left, at) = (left - part, (at + part) % pool.len());
        }
    }
    Ok(out.flush()?)
}

/// A LoRA of `rank` on all linear modules.
pub(crate) fn adapter(layout: &BaseLayout, rank: usize, fill: Fill) -> DeltaProgram {
    match fill {
        Fill::Zeros => {
            let mut program = lora(layout, 1, 0);
            let widened = |tensor: &HostTensor, shape: Vec<usize>| {
                let len = tensor.len() * rank;
                HostTensor { shape, data: TensorData::Bf16(vec![bf16::ZERO; len]) }
            };
            for (_, op) in &mut program.ops {
                if let DeltaOp::LowRank(pair) = op {
                    pair.a = widened(&pair.a, vec![rank, pair.a.cols()]);
                    pair.b = widened(&pair.b, vec![pair.b.rows(), rank]);
                }
            }
            program
        }
        Fill::Repeated => lora(layout, rank, 1),
    }
}

/// Put adapters of these ranks into the first slots. Those of one rank have the same numbers, each a copy of its own.
pub(crate) fn install<B: Backend>(
    decoder: &mut Decoder<B>,
    (shape, backend): (Shape, &B),
    ranks: &[usize],
    fill: Fill,
) -> Result<(), Failure> {
    let layout = base_layout(&shape.spec()?);
    let mut made: Option<(usize, DeltaProgram)> = None;
    for (slot, rank) in ranks.iter().enumerate() {
        let program = match made.take() {
            Some((of, program)) if of == *rank => program,
            _ => adapter(&layout, *rank, fill),
        };
        decoder.install(AdapterSlot(slot as u32), PreparedDelta::new(backend, &layout, program.clone())?);
        made = Some((*rank, program));
    }
    Ok(())
}

/// The adapters of so many rows or sequences: none for 0, else `distinct` ones by turns of neighbours.
pub(crate) fn slots(count: usize, distinct: usize) -> Vec<Option<AdapterSlot>> {
    let slot = |row: usize| (distinct > 0).then(|| AdapterSlot((row * distinct / count) as u32));
    (0..count).map(slot).collect()
}

/// As [`rows_in`], with a greedy token wanted of each sequence.
pub(crate) fn step(slots: &[Option<AdapterSlot>], count: usize, start: usize, places: usize) -> ModelInput {
    let mut input = rows_in(slots, count, start, places);
    let greedy = SampleSpec {
        params: SamplingParams::greedy().into(),
        choice: 0,
        output_position: 0,
        banned: Vec::new(),
        counts: None,
    };
    input.plan.outputs = vec![Output::Sample(greedy); slots.len()];
    input
}
