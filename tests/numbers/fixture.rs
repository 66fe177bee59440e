//! Golden fixtures, and a decoder to run them on: the model room driven directly, one block table per sequence.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polydelta::delta::{Base, BaseLayout, CompileLimits, DeltaError, DeltaProgram, PreparedDelta, compile};
use polydelta::model::{
    BaseModel, Checkpoint, Decoder, DecoderLimits, DecoderSpec, EmbedRows, ModelInput, base_layout,
};
use polydelta::ops::{Backend, RowPlan, SampledRows, SequencePlan, WeightFormat};
use polydelta::types::{AdapterSlot, LongRope};
use serde::Deserialize;

pub(crate) const LIMITS: CompileLimits =
    CompileLimits { max_rank: 256, max_virtual_tokens: 64, allow_unknown_fields: false };
pub(crate) const BLOCK_SIZE: usize = 4;
const BLOCKS: usize = 512;

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) adapter: Option<String>,
    pub(crate) prompt: Vec<u32>,
    pub(crate) ids: Vec<u32>,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) margins: Vec<f32>,
    pub(crate) top: Vec<Vec<(u32, f32)>>,
    pub(crate) max_model_len: Option<usize>,
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

pub(crate) struct Family {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) spec: DecoderSpec,
    pub(crate) cases: Vec<Case>,
}

pub(crate) const FAMILIES: [&str; 11] = [
    "gemma2",
    "gemma3",
    "llama",
    "llama3",
    "llama_bias",
    "mistral",
    "phi3",
    "phi3_longrope",
    "qwen2",
    "qwen2_window",
    "qwen3",
];

impl Family {
    pub(crate) fn open(name: &str) -> Self {
        Self::open_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(name))
    }

    /// Fixtures of the same form anywhere.
    pub(crate) fn open_dir(dir: PathBuf) -> Self {
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let checkpoint = Checkpoint::open(&dir.join("base")).unwrap();
        let spec = checkpoint.spec().unwrap();
        let cases: Cases = serde_json::from_slice(&fs::read(dir.join("cases.json")).unwrap()).unwrap();
        Self { name, dir, checkpoint, spec, cases: cases.cases }
    }

    pub(crate) fn compile(&self, adapter: &str) -> Result<DeltaProgram, DeltaError> {
        let dir = self.dir.join("adapters").join(adapter);
        let config = fs::read(dir.join("adapter_config.json")).unwrap();
        let weights = fs::read(dir.join("adapter_model.safetensors")).unwrap();
        let layout = base_layout(&self.spec);
        compile(&config, &weights, Base { layout: &layout, weights: &self.checkpoint }, LIMITS)
    }

    /// Context lengths the cases ask for; most families have one.
    pub(crate) fn context_lengths(&self) -> Vec<usize> {
        let mut lengths: Vec<usize> = self.cases.iter().map(|case| self.context_length(case)).collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    pub(crate) fn context_length(&self, case: &Case) -> usize {
        case.max_model_len.unwrap_or(self.spec.context_length)
    }
}

/// A decoder with every served adapter of a family installed.
pub(crate) struct Runner<B: Backend> {
    backend: Arc<B>,
    layout: BaseLayout,
    pub(crate) decoder: Decoder<B>,
    pub(crate) slots: BTreeMap<String, AdapterSlot>,
    virtual_tokens: BTreeMap<AdapterSlot, (usize, bool)>,
    next_block: u32,
    long_rope: Option<LongRope>,
}

/// One greedy sequence in progress.
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) logits: Vec<Vec<f32>>,
    slot: Option<AdapterSlot>,
    blocks: Vec<u32>,
    long_from: u32,
    prompt_len: usize,
    virtual_len: usize,
    computed: usize,
}

impl Sequence {
    pub(crate) fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }
}

impl<B: Backend> Runner<B> {
    pub(crate) fn new(backend: B, family: &Family, context: usize, adapters: &[String]) -> Self {
        let backend = Arc::new(backend);
        let base = BaseModel::load(backend.as_ref(), &family.spec, &family.checkpoint, context, &|_, _| {}).unwrap();
        let limits = DecoderLimits { max_rows: 4096, kv_blocks: BLOCKS * 8, block_size: BLOCK_SIZE };
        let decoder = Decoder::new(Arc::clone(&backend), family.spec.clone(), base, limits).unwrap();
        let mut runner = Self {
            backend,
            layout: base_layout(&family.spec),
            decoder,
            slots: BTreeMap::new(),
            virtual_tokens: BTreeMap::new(),
            next_block: 0,
            long_rope: family.spec.long_rope(),
        };
        for adapter in adapters {
            runner.install(adapter, family.compile(adapter).unwrap());
        }
        runner
    }

    /// Put a program into the next slot.
    pub(crate) fn install(&mut self, name: &str, program: DeltaProgram) {
        let slot = AdapterSlot(self.slots.len() as u32);
        if let Some(rows) = program.facts(WeightFormat::F32).virtual_tokens {
            self.virtual_tokens.insert(slot, (rows.count as usize, rows.saved_kv));
        }
        self.decoder.install(slot, PreparedDelta::new(self.backend.as_ref(), &self.layout, program).unwrap());
        self.slots.insert(name.to_owned(), slot);
    }

    /// A sequence with its virtual tokens already in its own first blocks.
    pub(crate) fn start(&mut self, case: &Case) -> Sequence {
        let slot = case.adapter.as_ref().map(|adapter| self.slots[adapter]);
        let (virtual_len, saved) = slot.and_then(|slot| self.virtual_tokens.get(&slot).copied()).unwrap_or((0, false));
        let known = virtual_len + case.prompt.len();
        let total = known + case.ids.len();
        let count = total.div_ceil(BLOCK_SIZE) as u32;
        let blocks: Vec<u32> = (self.next_block..self.next_block + count).rev().collect();
        self.next_block += count;
        if virtual_len > 0 && saved {
            assert!(self.decoder.write_prefix(slot.unwrap(), &blocks));
        }
        Sequence {
            tokens: case.prompt.clone(),
            logprobs: Vec::new(),
            logits: Vec::new(),
            slot,
            blocks,
            long_from: self.long_rope.map_or(LongRope::NEVER, |rope| rope.first_long(known, virtual_len)),
            prompt_len: case.prompt.len(),
            virtual_len,
            computed: if saved { virtual_len } else { 0 },
        }
    }

    pub(crate) fn free_all(&mut self) {
        self.next_block = 0;
    }

    /// One pass over several sequences, each with at most `chunk` new rows.
    pub(crate) fn step(&mut self, sequences: &mut [&mut Sequence], chunk: usize) {
        let mut input = ModelInput::default();
        let mut slots = Vec::new();
        let mut sampled = Vec::new();
        let mut sampled_rows = Vec::new();
        for (index, sequence) in sequences.iter_mut().enumerate() {
            let total = sequence.virtual_len + sequence.tokens.len();
            let end = total.min(sequence.computed.saturating_add(chunk));
            // A chunk never mixes prompt embeddings with token ids, as in the scheduler.
            let end = if sequence.computed < sequence.virtual_len { end.min(sequence.virtual_len) } else { end };
            let first_row = slots.len();
            for position in sequence.computed..end {
                slots.push(sequence.slot);
                let id = position.checked_sub(sequence.virtual_len).map(|at| sequence.tokens[at]);
                input.plan.ids.push(id);
                input.plan.positions.push(position as u32);
                if let Some(rope) = self.long_rope {
                    let long = position as u32 >= sequence.long_from;
                    input.plan.rope_rows.push(position as u32 + if long { rope.original_context } else { 0 });
                }
                let block = sequence.blocks[position / BLOCK_SIZE];
                input.plan.kv_slots.push(block * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32);
            }
            let rows = first_row..slots.len();
            if sequence.computed < sequence.virtual_len {
                let slot = sequence.slot.unwrap();
                input.embeds.push(EmbedRows { slot, first: sequence.computed, rows: rows.clone() });
            }
            if end == total {
                sampled.push(index);
                sampled_rows.push(rows.end as u32 - 1);
            }
            let start = sequence.computed as u32;
            input.plan.sequences.push(SequencePlan { rows, start, blocks: sequence.blocks.clone().into() });
            sequence.computed = end;
        }
        input.plan.rows = RowPlan::new(slots);
        input.plan.sampled = SampledRows::groups(&input.plan.rows, &sampled_rows);
        self.decoder
            .logits(&input, |index, logits| {
                let sequence = &mut sequences[sampled[index]];
                let (token, logprob) = greedy(logits);
                sequence.tokens.push(token);
                sequence.logprobs.push(logprob);
                sequence.logits.push(logits.to_vec());
            })
            .unwrap();
    }

    /// Greedy decoding of one case that computes the whole sequence again for every token, as after a preemption.
    pub(crate) fn recompute(&mut self, case: &Case) -> Sequence {
        self.free_all();
        let mut sequence = self.start(case);
        let first = sequence.computed;
        while sequence.output().len() < case.ids.len() {
            sequence.computed = first;
            let before = sequence.output().len();
            while sequence.output().len() == before {
                self.step(&mut [&mut sequence], usize::MAX);
            }
        }
        sequence
    }

    /// Greedy decoding of several cases in one batch.
    pub(crate) fn generate(&mut self, cases: &[&Case], chunk: usize) -> Vec<Sequence> {
        self.free_all();
        let mut sequences: Vec<Sequence> = cases.iter().map(|case| self.start(case)).collect();
        loop {
            let mut open: Vec<&mut Sequence> = sequences
                .iter_mut()
                .zip(cases)
                .filter(|(s, c)| s.output().len() < c.ids.len())
                .map(|(s, _)| s)
                .collect();
            if open.is_empty() {
                return sequences;
            }
            self.step(&mut open, chunk);
        }
    }
}

fn greedy(logits: &[f32]) -> (u32, f32) {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a))).unwrap();
    (best as u32, log_softmax(logits, best))
}

pub(crate) fn log_softmax(logits: &[f32], index: usize) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    (f64::from(logits[index] - max) - sum.ln()) as f32
}
