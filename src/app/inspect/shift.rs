//! How far an adapter moves the logits of prompts: the base and the adapter read the same tokens, row by row.

use std::sync::Arc;

use serde::Serialize;

use crate::delta::{DeltaProgram, PreparedDelta};
use crate::model::{BaseModel, Decoder, DecoderLimits, DecoderSpec, EmbedRows, ModelError, ModelInput, base_layout};
use crate::ops::{Backend, OpsError, RowPlan, SampledRows, SequencePlan};
use crate::types::{AdapterBinding, AdapterFacts, AdapterSlot, AdapterVersion, LongRope};

/// Places of a KV block.
const BLOCK_SIZE: usize = 16;
/// Rows of a pass, whose logits are all held.
const ROWS: usize = SampledRows::MOST;
const SLOT: AdapterSlot = AdapterSlot(0);
/// Nothing is found by it here.
const VERSION: AdapterVersion = AdapterVersion([0; 32]);

/// Over all tokens of all prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LogitShift {
    /// Prompts.
    pub prompts: usize,
    /// Their tokens: as many rows of logits were compared.
    pub tokens: usize,
    /// Mean distance of a logit.
    pub mean: f64,
    /// Largest distance of one.
    pub largest: f64,
    /// Mean Kullback–Leibler divergence of the adapter's next token from the base's, in nats.
    pub divergence: f64,
    /// Part of the tokens behind which another next token is the most likely one.
    pub other_top: f64,
}

impl LogitShift {
    pub(super) fn lines(&self) -> Vec<String> {
        let Self { prompts, tokens, mean, largest, divergence, other_top } = self;
        vec![
            format!(
                "moved by {mean:.4} in the mean and {largest:.3} at most, over {tokens} tokens of {prompts} prompts"
            ),
            format!(
                "divergence {divergence:.4} nats; another token is the most likely behind {:.1} %",
                100.0 * other_top
            ),
        ]
    }

    /// Take in a row of the base's and the same of the adapter's. Sums, until [`Self::averaged`].
    fn add(&mut self, base: &[f32], adapted: &[f32]) {
        let distance = |(a, b): (&f32, &f32)| f64::from((a - b).abs());
        self.tokens += 1;
        self.mean += base.iter().zip(adapted).map(distance).sum::<f64>() / base.len().max(1) as f64;
        self.largest = base.iter().zip(adapted).map(distance).fold(self.largest, f64::max);
        let (of_base, of_adapted) = (log_total(base), log_total(adapted));
        let divergence = |(a, b): (&f32, &f32)| {
            let (a, b) = (f64::from(*a) - of_base, f64::from(*b) - of_adapted);
            a.exp() * (a - b)
        };
        self.divergence += base.iter().zip(adapted).map(divergence).sum::<f64>().max(0.0);
        self.other_top += f64::from(u8::from(top(base) != top(adapted)));
    }

    fn averaged(self) -> Self {
        let tokens = self.tokens.max(1) as f64;
        let Self { mean, divergence, other_top, .. } = self;
        Self { mean: mean / tokens, divergence: divergence / tokens, other_top: other_top / tokens, ..self }
    }
}

/// log Σ exp.
fn log_total(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(most) + logits.iter().map(|logit| f64::from(logit - most).exp()).sum::<f64>().ln()
}

fn top(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
}

/// A base with an adapter in its only slot.
pub(super) struct Reader<B: Backend> {
    decoder: Decoder<B>,
    facts: AdapterFacts,
    long_rope: Option<LongRope>,
    /// Places for a sequence.
    context: usize,
}

/// One reading of a prompt.
struct Reading<'a> {
    prompt: &'a [u32],
    binding: Option<AdapterBinding>,
    blocks: Arc<Vec<u32>>,
    virtual_tokens: usize,
    long_from: u32,
}

impl<B: Backend> Reader<B> {
    /// For prompts of up to `longest` tokens; `load` puts the base on the device for sequences of so many.
    ///
    /// # Errors
    /// Of the base's weights, and memory that there is not.
    pub(super) fn new(
        backend: B,
        spec: &DecoderSpec,
        program: DeltaProgram,
        longest: usize,
        load: impl FnOnce(&B, usize) -> Result<BaseModel<B>, ModelError>,
    ) -> Result<Self, ModelError> {
        let backend = Arc::new(backend);
        let facts = program.facts(backend.numerics().weights);
        let context = facts.virtual_tokens.map_or(0, |tokens| tokens.count as usize) + longest;
        let base = load(backend.as_ref(), context)?;
        let limits = DecoderLimits {
            max_rows: ROWS,
            kv_blocks: 2 * context.div_ceil(BLOCK_SIZE),
            block_size: BLOCK_SIZE,
            adapter_slots: 1,
            shared_layers: None,
        };
        let mut decoder = Decoder::new(Arc::clone(&backend), spec.clone(), base, limits)?;
        decoder.install(SLOT, PreparedDelta::new(backend.as_ref(), &base_layout(spec), program)?);
        Ok(Self { decoder, facts, long_rope: spec.long_rope(), context })
    }

    /// Read prompts twice each.
    ///
    /// # Errors
    /// [`OpsError`]: of the device.
    pub(super) fn shift(&mut self, prompts: &[Vec<u32>]) -> Result<LogitShift, OpsError> {
        let mut shift = LogitShift { prompts: prompts.len(), ..LogitShift::default() };
        for prompt in prompts {
            let (base, adapted) = (self.reading(prompt, false), self.reading(prompt, true));
            self.begin(&adapted)?;
            for first in (0..prompt.len()).step_by(ROWS) {
                let tokens = first..prompt.len().min(first + ROWS);
                let of_base = self.logits(&base, tokens.clone())?;
                let of_adapter = self.logits(&adapted, tokens)?;
                of_base.iter().zip(&of_adapter).for_each(|(base, adapted)| shift.add(base, adapted));
            }
        }
        Ok(shift.averaged())
    }

    fn reading<'a>(&self, prompt: &'a [u32], adapted: bool) -> Reading<'a> {
        let count = self.context.div_ceil(BLOCK_SIZE) as u32;
        let first = if adapted { count } else { 0 };
        let binding = adapted.then(|| self.facts.bind(VERSION, SLOT, prompt));
        let virtual_tokens =
            binding.and_then(|binding| binding.virtual_tokens).map_or(0, |tokens| tokens.count as usize);
        let known = virtual_tokens + prompt.len();
        let long_from = self.long_rope.map_or(LongRope::NEVER, |rope| rope.first_long(known, virtual_tokens));
        Reading { prompt, binding, blocks: Arc::new((first..first + count).collect()), virtual_tokens, long_from }
    }

    /// What comes before the first token.
    fn begin(&mut self, reading: &Reading<'_>) -> Result<(), OpsError> {
        let Some(tokens) = reading.binding.and_then(|binding| binding.virtual_tokens) else { return Ok(()) };
        if tokens.saved_kv {
            let blocks = &reading.blocks[..reading.virtual_tokens.div_ceil(BLOCK_SIZE)];
            self.decoder.write_prefix(SLOT, blocks);
            return Ok(());
        }
        for first in (0..reading.virtual_tokens).step_by(ROWS) {
            let places = first..reading.virtual_tokens.min(first + ROWS);
            let rows = 0..places.len();
            let mut input = self.input(reading, places, |_| None);
            input.embeds.push(EmbedRows { slot: SLOT, first, rows });
            self.decoder.logits(&input, |_, _| {})?;
        }
        Ok(())
    }

    /// Logits behind each of some tokens, which come in order.
    fn logits(&mut self, reading: &Reading<'_>, tokens: std::ops::Range<usize>) -> Result<Vec<Vec<f32>>, OpsError> {
        let places = reading.virtual_tokens + tokens.start..reading.virtual_tokens + tokens.end;
        let mut input = self.input(reading, places, |place| Some(reading.prompt[place - reading.virtual_tokens]));
        let all: Vec<u32> = (0..tokens.len() as u32).collect();
        input.plan.sampled = SampledRows::groups(&input.plan.rows, &all);
        let mut rows = Vec::with_capacity(tokens.len());
        self.decoder.logits(&input, |_, logits| rows.push(logits.to_vec()))?;
        Ok(rows)
    }

    fn input(
        &self,
        reading: &Reading<'_>,
        places: std::ops::Range<usize>,
        id: impl Fn(usize) -> Option<u32>,
    ) -> ModelInput {
        let active = |place: usize| {
            let binding = reading.binding?;
            let token = place.checked_sub(reading.virtual_tokens);
            token.is_none_or(|token| token >= binding.active_from as usize).then_some(binding.slot)
        };
        let mut input = ModelInput::default();
        input.plan.rows = RowPlan::new(places.clone().map(active).collect());
        for place in places.clone() {
            let position = place as u32;
            input.plan.ids.push(id(place));
            input.plan.positions.push(position);
            input
                .plan
                .kv_slots
                .push(reading.blocks[place / BLOCK_SIZE] * BLOCK_SIZE as u32 + position % BLOCK_SIZE as u32);
            if let Some(rope) = self.long_rope {
                let long = if position >= reading.long_from { rope.original_context } else { 0 };
                input.plan.rope_rows.push(position + long);
            }
        }
        let (rows, start, blocks) = (0..places.len(), places.start as u32, Arc::clone(&reading.blocks));
        input.plan.sequences.push(SequencePlan { rows, start, blocks });
        input
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::delta::{Base, CompileLimits, compile};
    use crate::model::Checkpoint;
    use crate::ops::Numerics;
    use crate::ops::reference::ReferenceBackend;

    /// What transformers and peft generate first, behind prompts and adapters of every way to begin.
    #[test]
    fn the_base_and_the_adapter_are_read_as_peft_reads_them() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/llama");
        let checkpoint = Checkpoint::open(&dir.join("base")).unwrap();
        let (spec, cases) = (checkpoint.spec().unwrap(), std::fs::read(dir.join("cases.json")).unwrap());
        let (layout, cases): (_, serde_json::Value) = (base_layout(&spec), serde_json::from_slice(&cases).unwrap());
        let numbers = |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
        for name in ["lora_r4", "alora", "prefix_tuning", "prefix_long", "prompt_tuning", "dora_embed", "ia3"] {
            let of = |file: &str| std::fs::read(dir.join("adapters").join(name).join(file)).unwrap();
            let limits = CompileLimits { max_rank: 64, max_virtual_tokens: 64, allow_unknown_fields: false };
            let base = Base { layout: &layout, weights: &checkpoint };
            let program = compile(&of("adapter_config.json"), &of("adapter_model.safetensors"), base, limits).unwrap();
            let backend = ReferenceBackend::new(Numerics::F32);
            let load =
                |backend: &ReferenceBackend, context| BaseModel::load(backend, &spec, &checkpoint, context, &|_, _| {});
            let mut reader = Reader::new(backend, &spec, program, 128, load).unwrap();
            let mut read = 0;
            for case in cases["cases"].as_array().unwrap().iter().filter(|case| case["adapter"] == name) {
                let (prompt, ids) = (numbers(&case["prompt"]), numbers(&case["ids"]));
                let reading = reader.reading(&prompt, true);
                reader.begin(&reading).unwrap();
                let mut last = Vec::new();
                for first in (0..prompt.len()).step_by(ROWS) {
                    last = reader.logits(&reading, first..prompt.len().min(first + ROWS)).unwrap();
                }
                assert_eq!(last.last().map(|row| top(row)), Some(Some(ids[0] as usize)), "{}", case["name"]);
                let shift = reader.shift(&[prompt]).unwrap();
                let activated = name != "alora" || shift.mean > 0.0;
                assert!(shift.largest > 0.01 && shift.divergence > 0.0 || !activated, "{}: {shift:?}", case["name"]);
                read += 1;
            }
            assert!(read > 1, "{name}");
        }
    }

    #[test]
    fn rows_that_are_equal_have_not_moved_and_others_are_averaged() {
        let mut shift = LogitShift::default();
        shift.add(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]);
        assert_eq!((shift.mean, shift.largest, shift.divergence, shift.other_top), (0.0, 0.0, 0.0, 0.0));
        // One half each, and three quarters for the first: ½ ln(½ / ¾) + ½ ln(½ / ¼).
        shift.add(&[1.0, 1.0], &[3.0_f32.ln(), 0.0]);
        let shift = shift.averaged();
        let expected = 0.5 * (0.5 / 0.75_f64).ln() + 0.5 * (0.5 / 0.25_f64).ln();
        assert!((shift.divergence - expected / 2.0).abs() < 1e-6, "{shift:?}");
        assert_eq!((shift.tokens, shift.largest, shift.other_top), (2, 1.0, 0.0), "of equal ones the first is the top");
        let mut other = LogitShift::default();
        other.add(&[2.0, 1.0], &[1.0, 1.5]);
        assert_eq!((other.other_top, other.largest, other.mean), (1.0, 1.0, 0.75));
    }
}
