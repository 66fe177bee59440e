//! Golden fixtures, and a decoder to run them on: the model room driven directly, one block table per sequence.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polydelta::delta::convert::pickle_to_safetensors;
use polydelta::delta::{Base, BaseLayout, CompileLimits, DeltaError, DeltaProgram, PreparedDelta, compile};
use polydelta::model::{
    BaseModel, Checkpoint, Decoder, DecoderLimits, DecoderSpec, EmbedRows, ModelInput, base_layout,
};
use polydelta::ops::{Backend, RowPlan, SampledRows, SequencePlan, WeightFormat};
use polydelta::types::{AdapterBinding, AdapterFacts, AdapterSlot, AdapterVersion, LongRope};
use serde::Deserialize;
use serde_json::Value;

pub(crate) const LIMITS: CompileLimits =
    CompileLimits { max_rank: 256, max_virtual_tokens: 64, allow_unknown_fields: false };
pub(crate) const BLOCK_SIZE: usize = 4;
const BLOCKS: usize = 512;

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) adapter: Option<String>,
    /// Adapters and weights that `adapter` is the mix of.
    #[serde(default)]
    pub(crate) mix: Vec<(String, f32)>,
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

pub(crate) const FAMILIES: [&str; 13] = [
    "gemma2",
    "gemma3",
    "llama",
    "llama3",
    "llama_bias",
    "mistral",
    "mixtral",
    "phi3",
    "phi3_longrope",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "qwen3_moe",
];

/// Adapters of AdapterHub's library, on bases of [`FAMILIES`].
pub(crate) const ADAPTERHUB: [&str; 3] = ["../adapterhub/llama", "../adapterhub/mistral", "../adapterhub/qwen2"];

/// Adapters of vocabularies that were resized before the training, on bases of [`FAMILIES`].
pub(crate) const VOCABULARY: [&str; 3] = ["../vocabulary/llama", "../vocabulary/qwen2", "../vocabulary/gemma2"];

impl Family {
    pub(crate) fn open(name: &str) -> Self {
        Self::open_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(name))
    }

    /// Fixtures of the same form anywhere; without a base of their own they are for that of the family.
    pub(crate) fn open_dir(dir: PathBuf) -> Self {
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let checkpoint = Checkpoint::open(&base_of(&dir, &name)).unwrap();
        let spec = checkpoint.spec().unwrap();
        let cases: Cases = serde_json::from_slice(&fs::read(dir.join("cases.json")).unwrap()).unwrap();
        Self { name, dir, checkpoint, spec, cases: cases.cases }
    }

    /// Where its base lies.
    pub(crate) fn checkpoint_dir(&self) -> PathBuf {
        base_of(&self.dir, &self.name)
    }

    pub(crate) fn compile(&self, adapter: &str) -> Result<DeltaProgram, DeltaError> {
        let Some(parts) = self.mix(adapter) else { return self.compile_as(adapter, |_| {}) };
        let weighted = |(part, weight): &(String, f32)| self.compile(part)?.weighted(*weight);
        DeltaProgram::sum(parts.iter().map(weighted).collect::<Result<_, _>>()?, LIMITS)
    }

    /// What a name is the mix of.
    pub(crate) fn mix(&self, adapter: &str) -> Option<&[(String, f32)]> {
        let parts = |case: &&Case| case.adapter.as_deref() == Some(adapter) && !case.mix.is_empty();
        self.cases.iter().find(parts).map(|case| case.mix.as_slice())
    }

    /// With another config.
    pub(crate) fn compile_as(&self, adapter: &str, change: impl Fn(&mut Value)) -> Result<DeltaProgram, DeltaError> {
        let dir = self.dir.join("adapters").join(adapter);
        let mut config = serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap();
        change(&mut config);
        let config = serde_json::to_vec(&config).unwrap();
        let weights = weights_in(&dir);
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

fn base_of(dir: &Path, name: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(name);
    [dir, &golden].map(|dir| dir.join("base")).into_iter().find(|base| base.is_dir()).unwrap()
}

/// The weights of an adapter, by any name and in any form that is brought.
fn weights_in(dir: &Path) -> Vec<u8> {
    let known = ["adapter_model.safetensors", "adapter.safetensors"].map(|name| dir.join(name));
    if let Some(file) = known.iter().find(|file| file.is_file()) {
        return fs::read(file).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let converted = folder.path().join("converted");
    pickle_to_safetensors(&dir.join("pytorch_adapter.bin"), &converted).unwrap();
    fs::read(converted).unwrap()
}

/// A decoder with every served adapter of a family installed.
pub(crate) struct Runner<B: Backend> {
    backend: Arc<B>,
    layout: BaseLayout,
    pub(crate) decoder: Decoder<B>,
    pub(crate) slots: BTreeMap<String, AdapterSlot>,
    facts: BTreeMap<AdapterSlot, AdapterFacts>,
    next_block: u32,
    block_size: usize,
    long_rope: Option<LongRope>,
}

/// One greedy sequence in progress.
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) logits: Vec<Vec<f32>>,
    slot: Option<AdapterSlot>,
    /// First token whose row has the adapter.
    active_from: usize,
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
        Self::with_blocks_of(BLOCK_SIZE, backend, family, context, adapters)
    }

    /// With blocks of another size.
    pub(crate) fn with_blocks_of(
        block_size: usize,
        backend: B,
        family: &Family,
        context: usize,
        adapters: &[String],
    ) -> Self {
        let backend = Arc::new(backend);
        let base = BaseModel::load(backend.as_ref(), &family.spec, &family.checkpoint, context, &|_, _| {}).unwrap();
        let (kv_blocks, adapter_slots) = (BLOCKS * 8, 256);
        let limits = DecoderLimits { max_rows: 4096, kv_blocks, block_size, adapter_slots, shared_layers: None };
        let decoder = Decoder::new(Arc::clone(&backend), family.spec.clone(), base, limits).unwrap();
        let mut runner = Self {
            backend,
            layout: base_layout(&family.spec),
            decoder,
            slots: BTreeMap::new(),
            facts: BTreeMap::new(),
            next_block: 0,
            block_size,
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
        self.facts.insert(slot, program.facts(WeightFormat::F32));
        self.install_at(slot, program);
        self.slots.insert(name.to_owned(), slot);
    }

    /// Put a program into a slot that is empty.
    pub(crate) fn install_at(&mut self, slot: AdapterSlot, program: DeltaProgram) {
        self.decoder.install(slot, PreparedDelta::new(self.backend.as_ref(), &self.layout, program).unwrap());
    }

    /// A sequence with its virtual tokens already in its own first blocks.
    pub(crate) fn start(&mut self, case: &Case) -> Sequence {
        let slot = case.adapter.as_ref().map(|adapter| self.slots[adapter]);
        let bind = |slot| self.facts[&slot].bind(AdapterVersion([0; 32]), slot, &case.prompt);
        let binding: Option<AdapterBinding> = slot.map(bind);
        let rows = binding.and_then(|binding| binding.virtual_tokens);
        let (virtual_len, saved) = rows.map_or((0, false), |rows| (rows.count as usize, rows.saved_kv));
        let known = virtual_len + case.prompt.len();
        let total = known + case.ids.len();
        let count = total.div_ceil(self.block_size) as u32;
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
            active_from: binding.map_or(0, |binding| binding.active_from as usize),
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
                let token = position.checked_sub(sequence.virtual_len);
                slots.push(sequence.slot.filter(|_| token.is_none_or(|token| token >= sequence.active_from)));
                input.plan.ids.push(token.map(|token| sequence.tokens[token]));
                input.plan.positions.push(position as u32);
                if let Some(rope) = self.long_rope {
                    let long = position as u32 >= sequence.long_from;
                    input.plan.rope_rows.push(position as u32 + if long { rope.original_context } else { 0 });
                }
                let block = sequence.blocks[position / self.block_size];
                input.plan.kv_slots.push(block * self.block_size as u32 + (position % self.block_size) as u32);
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
        self.decode(cases, chunk, |_, _| {})
    }

    /// The same with the oracle's tokens in the place of those chosen, so that one that differs leaves the next comparable.
    pub(crate) fn follow(&mut self, cases: &[&Case], chunk: usize) -> Vec<Sequence> {
        self.decode(cases, chunk, |sequence, case| {
            let output = &mut sequence.tokens[sequence.prompt_len..];
            output.copy_from_slice(&case.ids[..output.len()]);
        })
    }

    fn decode(&mut self, cases: &[&Case], chunk: usize, after: impl Fn(&mut Sequence, &Case)) -> Vec<Sequence> {
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
            sequences.iter_mut().zip(cases).for_each(|(sequence, case)| after(sequence, case));
        }
    }
}

pub(crate) fn greedy(logits: &[f32]) -> (u32, f32) {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a))).unwrap();
    (best as u32, log_softmax(logits, best))
}

pub(crate) fn log_softmax(logits: &[f32], index: usize) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    (f64::from(logits[index] - max) - sum.ln()) as f32
}
