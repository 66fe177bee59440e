//! The forward pass, written once for every family and backend.

use std::ops::Range;
use std::sync::Arc;

use super::spec::DecoderSpec;
use super::weights::{BaseModel, LayerWeights};
use super::{ModelError, base_layout};
use crate::delta::apply::{LinearSite, linear, touches};
use crate::delta::{DeltaTable, LayerDeltas, PreparedDelta, RemovedDelta, VirtualRows};
use crate::ops::{Backend, HeadColumns, KvShape, OpsError, RowPlan, SampleOutcome, StepPlan};
use crate::types::AdapterSlot;

/// Rows whose logits are computed at a time: bounds the logits buffer for large vocabularies.
const LOGIT_ROWS: usize = 64;

/// Rows of a step that come from an adapter's prompt embeddings instead of token ids.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbedRows {
    /// Adapter whose embeddings they are.
    pub slot: AdapterSlot,
    /// First virtual token.
    pub first: usize,
    /// Rows of the step, one per virtual token.
    pub rows: Range<usize>,
}

/// One pass: what varies by row.
#[derive(Clone, Debug, Default)]
pub struct ModelInput {
    /// Rows, positions, pages.
    pub plan: StepPlan,
    /// Prompt embeddings to write over the token embeddings.
    pub embeds: Vec<EmbedRows>,
}

/// Sizes that buffers are allocated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderLimits {
    /// Most rows of a pass.
    pub max_rows: usize,
    /// Blocks of the KV cache.
    pub kv_blocks: usize,
    /// Places per block.
    pub block_size: usize,
}

/// Activations of one pass, allocated once.
struct Workspace<B: Backend> {
    residual: B::Buffer,
    normed: B::Buffer,
    qkv: B::Buffer,
    attention: B::Buffer,
    gate_up: B::Buffer,
    activated: B::Buffer,
    projected: B::Buffer,
    scaled_hidden: B::Buffer,
    scaled_attention: B::Buffer,
    scaled_inner: B::Buffer,
    last: B::Buffer,
    last_normed: B::Buffer,
    logits: B::Buffer,
    step: B::Step,
}

/// A base model with its deltas, KV cache and buffers.
pub struct Decoder<B: Backend> {
    backend: Arc<B>,
    spec: DecoderSpec,
    base: BaseModel<B>,
    deltas: DeltaTable<B>,
    kv: B::KvCache,
    block_size: usize,
    work: Workspace<B>,
}

impl<B: Backend> Decoder<B> {
    /// Allocate everything a pass needs.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    pub fn new(
        backend: Arc<B>,
        spec: DecoderSpec,
        base: BaseModel<B>,
        limits: DecoderLimits,
    ) -> Result<Self, ModelError> {
        let shape = KvShape {
            layers: spec.layers.len(),
            blocks: limits.kv_blocks,
            block_size: limits.block_size,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
        };
        let kv = backend.kv_cache(shape)?;
        let work = workspace(backend.as_ref(), &spec, limits.max_rows)?;
        let deltas = DeltaTable::new(&base_layout(&spec));
        Ok(Self { backend, spec, base, deltas, kv, block_size: limits.block_size, work })
    }

    /// Where the long frequencies begin in the rotary tables; `None` where there is one set only. Rows of a plan that
    /// has them are `position`, or this and `position` ([`StepPlan::rope_rows`]).
    #[must_use]
    pub fn long_rope_rows(&self) -> Option<u32> {
        self.spec.long_rope().map(|rope| rope.original_context)
    }

    /// Put an adapter into an empty slot.
    pub fn install(&mut self, slot: AdapterSlot, delta: PreparedDelta<B>) {
        self.deltas.install(slot, delta);
    }

    /// Empty a slot.
    pub fn remove(&mut self, slot: AdapterSlot) -> RemovedDelta<B> {
        self.deltas.remove(slot)
    }

    /// Copy one KV block.
    pub fn copy_block(&mut self, source: u32, target: u32) {
        self.backend.copy_block(&mut self.kv, source as usize, target as usize);
    }

    /// Fill blocks with the saved K and V of a slot's prefix; true if the slot has one.
    pub fn write_prefix(&mut self, slot: AdapterSlot, blocks: &[u32]) -> bool {
        let Some(VirtualRows::Prefix(layers)) = self.deltas.virtual_rows.get(Some(slot)).first() else { return false };
        let count = layers.first().map_or(0, |layer| layer.k.len() / self.spec.kv_dim());
        let place =
            |index: usize| blocks[index / self.block_size] * self.block_size as u32 + (index % self.block_size) as u32;
        let places: Vec<u32> = (0..count).map(place).collect();
        for (index, layer) in layers.iter().enumerate() {
            self.backend.write_kv(&mut self.kv, index, &places, &layer.k, &layer.v);
        }
        true
    }

    /// Run one pass and choose a token for each of its sampled rows, in order, by the plan's samples.
    ///
    /// # Errors
    /// [`OpsError`] when the plan cannot be moved to the device, or when the device fails.
    pub fn forward(&mut self, input: &ModelInput) -> Result<Vec<SampleOutcome>, OpsError> {
        debug_assert_eq!(input.plan.samples.len(), input.plan.sampled.len());
        self.pass(input, |backend, work, sampled| backend.sample(&mut work.step, sampled, &work.logits))?;
        self.backend.finish(&mut self.work.step)
    }

    /// Run one pass and look at the logits instead of choosing from them: `logits` is called once per sampled row, in
    /// order, with that row's `vocab_size` numbers.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn logits(&mut self, input: &ModelInput, mut logits: impl FnMut(usize, &[f32])) -> Result<(), OpsError> {
        self.pass(input, |backend, work, sampled| {
            for (row, index) in sampled.enumerate() {
                logits(index, &backend.read_row(&work.logits, row));
            }
        })?;
        self.backend.finish(&mut self.work.step).map(drop)
    }

    /// Run one pass; `use_logits` is called with as many of the sampled rows at a time as there is room for logits.
    fn pass(
        &mut self,
        input: &ModelInput,
        mut use_logits: impl FnMut(&B, &mut Workspace<B>, Range<usize>),
    ) -> Result<(), OpsError> {
        self.backend.upload(&input.plan, &mut self.work.step)?;
        self.embed(input);
        for layer in 0..self.spec.layers.len() {
            self.attention_block(layer, &input.plan.rows);
            self.mlp_block(layer, &input.plan.rows);
        }
        for (chunk, rows) in input.plan.sampled.chunks(LOGIT_ROWS).enumerate() {
            self.head(&input.plan.rows, rows);
            let first = chunk * LOGIT_ROWS;
            use_logits(&self.backend, &mut self.work, first..first + rows.len());
        }
        Ok(())
    }

    fn embed(&mut self, input: &ModelInput) {
        let Self { backend, spec, base, deltas, work, .. } = self;
        let rows = &input.plan.rows;
        backend.embed(&work.step, &base.embed, spec.embed_scale, &mut work.residual);
        if touches(rows, &deltas.embed) {
            backend.embedding_low_rank(&work.step, rows, &deltas.embed, spec.embed_scale, &mut work.residual);
        }
        if touches(rows, &deltas.embed_scale) {
            backend.scale_rows(rows, &deltas.embed_scale, &mut work.residual);
        }
        for chunk in &input.embeds {
            if let Some(VirtualRows::Embeds(embeds)) = deltas.virtual_rows.get(Some(chunk.slot)).first() {
                let targets: Vec<u32> = chunk.rows.clone().map(|row| row as u32).collect();
                let first = chunk.first * spec.hidden_size;
                let values = &embeds[first..first + targets.len() * spec.hidden_size];
                backend.write_rows(&targets, values, &mut work.residual);
            }
        }
    }

    fn attention_block(&mut self, index: usize, rows: &RowPlan) {
        let Self { backend, spec, base, deltas, kv, work, .. } = self;
        let (layer, delta) = (&base.layers[index], &deltas.layers[index]);
        let eps = spec.norm_eps;
        backend.rms_norm(rows, &work.residual, &layer.attention_norm, &delta.attention_norm, eps, &mut work.normed);
        linear(
            backend.as_ref(),
            rows,
            layer.qkv.site(),
            &delta.qkv,
            &work.normed,
            &mut work.scaled_hidden,
            &mut work.qkv,
        );
        normalise_heads(backend.as_ref(), spec, rows, layer, delta, &mut work.qkv);
        let attention = spec.attention(index);
        let rope = &base.ropes[spec.layers[index].rope];
        backend.rope_and_cache(&work.step, &attention, rope, index, &mut work.qkv, kv);
        backend.attention(&work.step, &attention, index, &work.qkv, kv, &mut work.attention);
        let (x, scaled) = (&work.attention, &mut work.scaled_attention);
        linear(backend.as_ref(), rows, layer.o.site(), &delta.o, x, scaled, &mut work.projected);
        match &layer.attention_out_norm {
            None => backend.add(rows.len(), &mut work.residual, &work.projected),
            Some(norm) => {
                let gains = &delta.attention_out_norm;
                backend.rms_norm(rows, &work.projected, norm, gains, eps, &mut work.normed);
                backend.add(rows.len(), &mut work.residual, &work.normed);
            }
        }
    }

    fn mlp_block(&mut self, index: usize, rows: &RowPlan) {
        let Self { backend, spec, base, deltas, work, .. } = self;
        let (layer, delta) = (&base.layers[index], &deltas.layers[index]);
        let eps = spec.norm_eps;
        backend.rms_norm(rows, &work.residual, &layer.mlp_norm, &delta.mlp_norm, eps, &mut work.normed);
        let (x, scaled) = (&work.normed, &mut work.scaled_hidden);
        linear(backend.as_ref(), rows, layer.gate_up.site(), &delta.gate_up, x, scaled, &mut work.gate_up);
        backend.gated_activation(rows.len(), spec.activation, &work.gate_up, &mut work.activated);
        let (x, scaled) = (&work.activated, &mut work.scaled_inner);
        linear(backend.as_ref(), rows, layer.down.site(), &delta.down, x, scaled, &mut work.projected);
        match &layer.mlp_out_norm {
            None => backend.add(rows.len(), &mut work.residual, &work.projected),
            Some(norm) => {
                backend.rms_norm(rows, &work.projected, norm, &delta.mlp_out_norm, eps, &mut work.normed);
                backend.add(rows.len(), &mut work.residual, &work.normed);
            }
        }
    }

    /// Logits of some rows of the pass.
    fn head(&mut self, rows: &RowPlan, sampled: &[u32]) {
        let Self { backend, spec, base, deltas, work, .. } = self;
        let last = RowPlan::new(sampled.iter().map(|row| rows.slots[*row as usize]).collect());
        backend.gather_rows(&work.residual, sampled, &mut work.last);
        let (norm, gains) = (&base.final_norm, &deltas.final_norm);
        backend.rms_norm(&last, &work.last, norm, gains, spec.norm_eps, &mut work.last_normed);
        let weight = base.lm_head.as_ref().unwrap_or(&base.embed);
        let site = LinearSite { weight, bias: None };
        let (x, scaled) = (&work.last_normed, &mut work.last);
        linear(backend.as_ref(), &last, site, &deltas.lm_head, x, scaled, &mut work.logits);
        if let Some(cap) = spec.final_softcap {
            backend.softcap(last.len(), cap, &mut work.logits);
        }
    }
}

fn normalise_heads<B: Backend>(
    backend: &B,
    spec: &DecoderSpec,
    rows: &RowPlan,
    layer: &LayerWeights<B>,
    delta: &LayerDeltas<B>,
    qkv: &mut B::Buffer,
) {
    if let (Some(q_norm), Some(k_norm)) = (&layer.q_norm, &layer.k_norm) {
        let q = HeadColumns { first: 0, heads: spec.heads, head_dim: spec.head_dim };
        let k = HeadColumns { first: spec.q_dim(), heads: spec.kv_heads, head_dim: spec.head_dim };
        backend.rms_norm_heads(rows, qkv, q, q_norm, &delta.q_norm, spec.norm_eps);
        backend.rms_norm_heads(rows, qkv, k, k_norm, &delta.k_norm, spec.norm_eps);
    }
}

fn workspace<B: Backend>(backend: &B, spec: &DecoderSpec, rows: usize) -> Result<Workspace<B>, OpsError> {
    let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
    let (q, kv) = (spec.q_dim(), spec.kv_dim());
    let sampled = LOGIT_ROWS.min(rows);
    Ok(Workspace {
        residual: backend.buffer(rows, hidden)?,
        normed: backend.buffer(rows, hidden)?,
        qkv: backend.buffer(rows, q + 2 * kv)?,
        attention: backend.buffer(rows, q)?,
        gate_up: backend.buffer(rows, 2 * inner)?,
        activated: backend.buffer(rows, inner)?,
        projected: backend.buffer(rows, hidden)?,
        scaled_hidden: backend.buffer(rows, hidden)?,
        scaled_attention: backend.buffer(rows, q)?,
        scaled_inner: backend.buffer(rows, inner)?,
        last: backend.buffer(sampled, hidden)?,
        last_normed: backend.buffer(sampled, hidden)?,
        logits: backend.buffer(sampled, spec.vocab_size)?,
        step: backend.step(),
    })
}
