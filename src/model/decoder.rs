//! The forward pass, written once for every family and backend.

use std::ops::Range;
use std::sync::Arc;

use super::spec::DecoderSpec;
use super::weights::{BaseModel, MlpWeights};
use super::workspace::Workspace;
use super::{ModelError, base_layout};
use crate::delta::apply::{LinearSite, join, linear};
use crate::delta::class::{
    added_tokens, embedding_low_rank, embedding_rows, expert_low_rank, gain, head, low_rank, prefix, prompt_embeds,
    scale,
};
use crate::delta::rows::StepRows;
use crate::delta::{DeltaTable, HiddenSites, PreparedDelta};
use crate::ops::{
    Backend, HeadColumns, KvShape, Launches, Norm, OpsError, OwnVocabularies, Rows, StepOutcomes, StepPlan,
    of_vocabulary,
};
use crate::types::{AdapterSlot, OpClasses};

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
    /// The rows go on from behind the shared layers ([`DecoderLimits::shared_layers`]), whose KV and hidden states lie at their
    /// places.
    pub from_shared: bool,
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
    /// Places for adapters.
    pub adapter_slots: usize,
    /// Hidden states behind so many layers are kept beside the KV, so that rows can go on from there; `None` keeps none.
    pub shared_layers: Option<usize>,
}

/// A base model with its deltas, KV cache and buffers.
pub struct Decoder<B: Backend> {
    backend: Arc<B>,
    spec: DecoderSpec,
    base: BaseModel<B>,
    deltas: DeltaTable<B>,
    kv: B::KvCache,
    shared_layers: Option<usize>,
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
            kept: limits.shared_layers.map_or(0, |_| spec.hidden_size),
        };
        let kv = backend.kv_cache(shape)?;
        let work = Workspace::new(backend.as_ref(), &spec, limits.max_rows)?;
        let deltas = DeltaTable::new(backend.as_ref(), &base_layout(&spec), limits.adapter_slots)?;
        Ok(Self { backend, spec, base, deltas, kv, shared_layers: limits.shared_layers, work })
    }

    /// Where the long frequencies begin in the rotary tables; `None` where there is one set only. Rows of a plan that
    /// has them are `position`, or this and `position` ([`StepPlan::rope_rows`]).
    #[must_use]
    pub fn long_rope_rows(&self) -> Option<u32> {
        self.spec.long_rope().map(|rope| rope.original_context)
    }

    /// Put an adapter into an empty slot.
    pub fn install(&mut self, slot: AdapterSlot, delta: PreparedDelta<B>) {
        self.deltas.install(&self.backend, slot, delta);
    }

    /// Empty a slot: what it held, whole.
    pub fn remove(&mut self, slot: AdapterSlot) -> Option<PreparedDelta<B>> {
        self.deltas.remove(&self.backend, slot)
    }

    /// The op classes of the adapter in a slot.
    #[must_use]
    pub fn classes(&self, slot: AdapterSlot) -> OpClasses {
        self.deltas.classes(slot)
    }

    /// Copy one KV block, with the hidden states that are kept of it.
    pub fn copy_block(&mut self, source: u32, target: u32) {
        self.backend.copy_block(&mut self.kv, source as usize, target as usize);
    }

    /// Fill blocks with the saved K and V of a slot's prefix; true if the slot has one.
    pub fn write_prefix(&mut self, slot: AdapterSlot, blocks: &[u32]) -> bool {
        prefix::write(self.backend.as_ref(), self.deltas.virtual_rows(slot), blocks, &mut self.kv)
    }

    /// Run one pass: choose or score a token for each of its sampled rows, in order, by the plan's outputs, and read its
    /// pooled rows.
    ///
    /// # Errors
    /// [`OpsError`] when the plan cannot be moved to the device, or when the device fails.
    pub fn forward(&mut self, input: &ModelInput) -> Result<StepOutcomes, OpsError> {
        self.upload(input)?;
        let Workspace { step, held, .. } = &mut self.work;
        // What prompt embeddings are written where is not in the plan, nor where rows begin.
        let recordable = (input.embeds.is_empty() && !input.from_shared).then_some(&*held);
        let mut launches = self.backend.begin(step, recordable);
        while launches == Launches::Wanted {
            self.pass(input, |backend, deltas, work, group| {
                let Workspace { step, logits, added_logits: added, vocab_sizes: sizes, .. } = work;
                let own = OwnVocabularies { added, sizes, table: deltas.entries() };
                backend.sample(step, group, logits, (!sizes.is_empty()).then_some(own));
            });
            launches = self.backend.end(&mut self.work.step);
        }
        self.backend.finish(&mut self.work.step)
    }

    /// Run one pass and look at the logits instead of choosing from them: `logits` is called once per sampled row, in
    /// order, with as many numbers as the vocabulary of the base, or of that row's adapter, has tokens.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn logits(&mut self, input: &ModelInput, mut logits: impl FnMut(usize, &[f32])) -> Result<(), OpsError> {
        let mut index = 0;
        self.upload(input)?;
        self.pass(input, |backend, _, work, group| {
            for row in 0..input.plan.sampled[group].sources.len() {
                let base = backend.read_row(&work.logits, row);
                match work.vocab_sizes.get(row) {
                    Some(size) => {
                        let (added, mut whole) = (backend.read_row(&work.added_logits, row), Vec::new());
                        logits(index, of_vocabulary(&base, &added, *size, &mut whole));
                    }
                    None => logits(index, &base),
                }
                index += 1;
            }
        });
        self.backend.finish(&mut self.work.step).map(drop)
    }

    /// Move a plan to the device, and find out which op classes its adapters have.
    fn upload(&mut self, input: &ModelInput) -> Result<(), OpsError> {
        let Self { backend, deltas, work, .. } = self;
        let slots = input.plan.rows.segments.iter().map(|segment| segment.slot);
        deltas.held(backend, slots, &mut work.held);
        backend.upload(&input.plan, &mut work.step)
    }

    /// Launch one pass; `use_logits` is called with each group of sampled rows when their logits are there.
    fn pass(&mut self, input: &ModelInput, mut use_logits: impl FnMut(&B, &DeltaTable<B>, &mut Workspace<B>, usize)) {
        let first = self.begin(input);
        for layer in first..self.spec.layers.len() {
            if self.shared_layers == Some(layer) && !input.from_shared {
                self.backend.keep_rows(&self.work.step, &self.work.residual, &mut self.kv);
            }
            self.attention_block(layer);
            self.mlp_block(layer);
        }
        for group in 0..input.plan.sampled.len() {
            self.head(group, &input.plan.sampled[group].rows.slots);
            use_logits(&self.backend, &self.deltas, &mut self.work, group);
        }
        self.pool(input.plan.pooled.len());
    }

    /// What is wanted of hidden states as they are behind the final norm.
    fn pool(&mut self, groups: usize) {
        if groups == 0 {
            return;
        }
        let Self { backend, spec, base, deltas, work, .. } = self;
        let Workspace { step, held, residual, normed, last, head_logits, .. } = work;
        let on = StepRows { backend: backend.as_ref(), deltas, step, rows: Rows::All, held };
        let norm = gain::norm(&on, deltas.sites.final_norm, &base.final_norm, spec.norm_eps);
        backend.rms_norm(step, Rows::All, norm, residual, normed);
        for group in 0..groups {
            backend.pool_rows(step, group, normed, last);
            let on = StepRows { backend: backend.as_ref(), deltas, step, rows: Rows::Pooled(group), held };
            head::apply(&on, &deltas.sites.labels, last, head_logits);
            backend.collect(step, group, last, head_logits);
        }
    }

    /// What the first layer reads, which is the answer.
    fn begin(&mut self, input: &ModelInput) -> usize {
        match self.shared_layers.filter(|_| input.from_shared) {
            Some(layers) => {
                self.backend.recall_rows(&self.work.step, &self.kv, &mut self.work.residual);
                layers
            }
            None => {
                self.embed(input);
                0
            }
        }
    }

    fn embed(&mut self, input: &ModelInput) {
        let Self { backend, spec, base, deltas, work, .. } = self;
        let Workspace { step, held, residual, .. } = work;
        let on = StepRows { backend: backend.as_ref(), deltas, step, rows: Rows::All, held };
        backend.embed(step, &base.embed, spec.embed_scale, residual);
        embedding_rows::embed(&on, deltas.sites.embed.rows, spec.embed_scale, residual);
        embedding_low_rank::apply(&on, deltas.sites.embed.low_rank, spec.embed_scale, residual);
        scale::apply(&on, deltas.sites.embed.scale, residual);
        for EmbedRows { slot, first, rows } in &input.embeds {
            prompt_embeds::write(on.backend, deltas.virtual_rows(*slot), *first, rows.clone(), residual);
        }
    }

    fn attention_block(&mut self, index: usize) {
        let Self { backend, spec, base, deltas, kv, work, .. } = self;
        let (layer, sites) = (&base.layers[index], &deltas.sites.layers[index]);
        let Workspace { step, held, residual, normed, qkv, attention, projected, .. } = work;
        let on = StepRows { backend: backend.as_ref(), deltas, step, rows: Rows::All, held };
        let norm = |weight, site| gain::norm(&on, site, weight, spec.norm_eps);
        let before = norm(&layer.attention_norm, sites.attention_norm);
        backend.rms_norm(step, Rows::All, before, residual, normed);
        linear(&on, layer.qkv.site(), &sites.qkv, normed, &mut work.scaled_hidden, qkv);
        if let (Some(q_norm), Some(k_norm)) = (&layer.q_norm, &layer.k_norm) {
            let q = HeadColumns { first: 0, heads: spec.heads, head_dim: spec.head_dim };
            let k = HeadColumns { first: spec.q_dim(), heads: spec.kv_heads, head_dim: spec.head_dim };
            backend.rms_norm_heads(step, Rows::All, norm(q_norm, sites.q_norm), q, qkv);
            backend.rms_norm_heads(step, Rows::All, norm(k_norm, sites.k_norm), k, qkv);
        }
        let shape = spec.attention(index);
        let rope = &base.ropes[spec.layers[index].rope];
        backend.rope_and_cache(step, &shape, rope, index, qkv, kv);
        backend.attention(step, &shape, index, qkv, kv, attention);
        linear(&on, layer.o.site(), &sites.o, attention, &mut work.scaled_attention, projected);
        let after = layer.attention_out_norm.as_ref().map(|weight| norm(weight, sites.attention_out_norm));
        add_to_residual(&on, after, &sites.after_attention, [projected, normed, residual, &mut work.scaled_hidden]);
    }

    fn mlp_block(&mut self, index: usize) {
        let Self { backend, spec, base, deltas, work, .. } = self;
        let (layer, sites) = (&base.layers[index], &deltas.sites.layers[index]);
        let Workspace { step, held, residual, normed, gate_up, activated, projected, .. } = work;
        let on = StepRows { backend: backend.as_ref(), deltas, step, rows: Rows::All, held };
        let norm = |weight, site| gain::norm(&on, site, weight, spec.norm_eps);
        backend.rms_norm(step, Rows::All, norm(&layer.mlp_norm, sites.mlp_norm), residual, normed);
        match &layer.mlp {
            MlpWeights::Dense { activation, gate_up: weights, down } => {
                linear(&on, weights.site(), &sites.gate_up, normed, &mut work.scaled_hidden, gate_up);
                backend.gated_activation(step, Rows::All, *activation, gate_up, activated);
                linear(&on, down.site(), &sites.down, activated, &mut work.scaled_inner, projected);
            }
            MlpWeights::Experts { spec, router, experts } => {
                let (logits, room) = (&mut work.router_logits, &mut work.experts);
                let Some(sites) = &sites.sparse else { unreachable!("a layer with experts has their sites") };
                low_rank::multiply(&on, sites.router, normed, router, logits);
                let deltas = expert_low_rank::deltas(&on, sites);
                backend.experts(step, Rows::All, spec, logits, experts, deltas, normed, room, projected);
            }
        }
        let after = layer.mlp_out_norm.as_ref().map(|weight| norm(weight, sites.mlp_out_norm));
        add_to_residual(&on, after, &sites.after_mlp, [projected, normed, residual, &mut work.scaled_hidden]);
    }

    /// Logits of a group of sampled rows, which have these adapters.
    fn head(&mut self, group: usize, slots: &[Option<AdapterSlot>]) {
        let Self { backend, spec, base, deltas, work, .. } = self;
        let Workspace { step, held, residual, last, last_normed, logits, added_logits, vocab_sizes, .. } = work;
        deltas.vocab_sizes(slots, spec.vocab_size, vocab_sizes);
        let rows = Rows::Sampled(group);
        let on = StepRows { backend: backend.as_ref(), deltas, step, rows, held };
        backend.gather_rows(step, rows, residual, last);
        let norm = gain::norm(&on, deltas.sites.final_norm, &base.final_norm, spec.norm_eps);
        backend.rms_norm(step, rows, norm, last, last_normed);
        let weight = base.lm_head.as_ref().unwrap_or(&base.embed);
        linear(&on, LinearSite { weight, bias: None }, &deltas.sites.lm_head, last_normed, last, logits);
        embedding_rows::multiply(&on, deltas.sites.head_rows, last_normed, logits);
        added_tokens::multiply(&on, deltas.sites.added_tokens, last_normed, added_logits);
        if let Some(cap) = spec.final_softcap {
            backend.softcap(step, rows, cap, logits);
            if on.held(deltas.sites.added_tokens).is_some() {
                backend.softcap(step, rows, cap, added_logits);
            }
        }
    }
}

/// Add what a block has computed, normed first where the family does so. The last buffer is scratch.
fn add_to_residual<B: Backend>(
    on: &StepRows<'_, B>,
    norm: Option<Norm<'_, B>>,
    sites: &HiddenSites,
    [projected, normed, residual, scratch]: [&mut B::Buffer; 4],
) {
    match norm {
        None => join(on, sites, projected, residual, scratch),
        Some(norm) => {
            on.backend.rms_norm(on.step, on.rows, norm, projected, normed);
            join(on, sites, normed, residual, scratch);
        }
    }
}
