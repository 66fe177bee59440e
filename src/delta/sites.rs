//! Every op class at every place of the decoder, numbered: the rows of a backend's delta table. Where one launch computes
//! several modules, they are one place.

use std::ops::Range;

use super::layout::{BaseLayout, LayerSite, Site};
use crate::ops::SiteId;

/// Op classes of what a projection reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputSites {
    /// x = g∘x.
    pub scale: SiteId,
    /// x = x R₁ ⋯ R_n, after it.
    pub rotate: SiteId,
}

/// Op classes of one stacked linear site. Columns are those of the stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearSites {
    /// One for each module of the stack: where the base has one module for all of it, rows have one input.
    pub inputs: Vec<InputSites>,
    /// y = Dx, or y += s·Dx.
    pub dense: SiteId,
    /// y += s·B(Ax).
    pub low_rank: SiteId,
    /// y += Sx, S sparse.
    pub sparse: SiteId,
    /// y = g∘y, before the base's bias.
    pub scale_before_bias: SiteId,
    /// y = g∘y, after it.
    pub scale_after_bias: SiteId,
    /// y = c1∘y + c2∘rot(y), after it.
    pub rotate_after_bias: SiteId,
    /// y += b.
    pub bias: SiteId,
}

/// Op classes of one hidden site: a bottleneck changes what a block adds to the residual stream; the others read that, and
/// add to the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HiddenSites {
    /// h += s·(U·f(D·v + b1) + b2).
    pub bottleneck: SiteId,
    /// v = LayerNorm(v) before it.
    pub norm_before: SiteId,
    /// h = LayerNorm(h) behind it.
    pub norm_after: SiteId,
    /// x += s·B(Ah).
    pub low_rank: SiteId,
    /// x += b.
    pub bias: SiteId,
}

/// Op classes of one decoder layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSites {
    /// q, k, v stacked.
    pub qkv: LinearSites,
    /// Output projection.
    pub o: LinearSites,
    /// gate, up stacked.
    pub gate_up: LinearSites,
    /// Down projection.
    pub down: LinearSites,
    /// Gain of the norm before attention.
    pub attention_norm: SiteId,
    /// Of the per-head norm of q.
    pub q_norm: SiteId,
    /// Of the per-head norm of k.
    pub k_norm: SiteId,
    /// Of the norm of attention's output.
    pub attention_out_norm: SiteId,
    /// Behind attention.
    pub after_attention: HiddenSites,
    /// Of the norm before the MLP.
    pub mlp_norm: SiteId,
    /// Of the norm of the MLP's output.
    pub mlp_out_norm: SiteId,
    /// Behind the MLP.
    pub after_mlp: HiddenSites,
    /// Of a router and experts in the place of the MLP.
    pub sparse: Option<SparseSites>,
}

/// Op classes of a router and its experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseSites {
    /// logits += s·B(Ax).
    pub router: SiteId,
    /// y += s·B(Ax) of gate and up stacked, in each expert.
    pub gate_up: SiteId,
    /// The same of down.
    pub down: SiteId,
}

/// Op classes of the token embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedSites {
    /// e = `rows[i]`.
    pub rows: SiteId,
    /// e += s·B·A[:, id].
    pub low_rank: SiteId,
    /// e = g∘e (DoRA).
    pub scale: SiteId,
}

/// Op classes behind the final norm, where labels are wanted instead of tokens. Columns are the labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelSites {
    /// logits = Wh.
    pub head: SiteId,
    /// logits += b.
    pub bias: SiteId,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaSites {
    /// How many numbers there are.
    pub count: usize,
    /// One entry per layer.
    pub layers: Vec<LayerSites>,
    /// Token embedding.
    pub embed: EmbedSites,
    /// The head.
    pub lm_head: LinearSites,
    /// Rows of the head in place of the base's.
    pub head_rows: SiteId,
    /// Rows of the head behind the base's.
    pub added_tokens: SiteId,
    /// Gain of the norm before the head.
    pub final_norm: SiteId,
    /// The heads of adapters.
    pub labels: LabelSites,
}

/// What a site is to a step: where its numbers lie.
pub(super) enum Place<'a> {
    /// Token embedding.
    Embed(&'a EmbedSites),
    /// Part of a stack.
    Linear(StackPlace<'a>),
    /// Behind a block of a layer.
    Hidden(&'a HiddenSites),
    /// The logits of a router, of so many experts.
    Router(SiteId, usize),
    /// Columns of gate and up, or of down, in each expert.
    Experts(SiteId, Range<usize>),
    /// The gain of a norm.
    Norm(SiteId),
    /// Before the first token; nothing is numbered there.
    VirtualTokens,
    /// An adapter's head.
    Labels(&'a LabelSites),
}

/// A linear site's part of its stack.
pub(super) struct StackPlace<'a> {
    /// The stack.
    pub(super) sites: &'a LinearSites,
    /// Which inputs of the stack are its own.
    pub(super) inputs: Range<usize>,
    /// Their output columns.
    pub(super) columns: Range<usize>,
}

/// Hands out numbers.
#[derive(Default)]
struct Counter(u32);

impl Counter {
    fn next(&mut self) -> SiteId {
        self.0 += 1;
        SiteId(self.0 - 1)
    }

    fn linear(&mut self, inputs: usize) -> LinearSites {
        LinearSites {
            inputs: (0..inputs).map(|_| InputSites { scale: self.next(), rotate: self.next() }).collect(),
            dense: self.next(),
            low_rank: self.next(),
            sparse: self.next(),
            scale_before_bias: self.next(),
            scale_after_bias: self.next(),
            rotate_after_bias: self.next(),
            bias: self.next(),
        }
    }

    fn hidden(&mut self) -> HiddenSites {
        HiddenSites {
            bottleneck: self.next(),
            norm_before: self.next(),
            norm_after: self.next(),
            low_rank: self.next(),
            bias: self.next(),
        }
    }

    fn layer(&mut self, layout: &BaseLayout, layer: u32) -> LayerSites {
        let inputs = |fused, modules| if layout.has(Site::Layer(layer, fused)) { 1 } else { modules };
        LayerSites {
            qkv: self.linear(inputs(LayerSite::Qkv, 3)),
            o: self.linear(1),
            gate_up: self.linear(inputs(LayerSite::GateUp, 2)),
            down: self.linear(1),
            attention_norm: self.next(),
            q_norm: self.next(),
            k_norm: self.next(),
            attention_out_norm: self.next(),
            after_attention: self.hidden(),
            mlp_norm: self.next(),
            mlp_out_norm: self.next(),
            after_mlp: self.hidden(),
            sparse: layout.sparse_block(layer).map(|_| SparseSites {
                router: self.next(),
                gate_up: self.next(),
                down: self.next(),
            }),
        }
    }
}

impl DeltaSites {
    /// Of a base.
    #[must_use]
    pub fn new(layout: &BaseLayout) -> Self {
        let mut counter = Counter::default();
        let mut sites = Self {
            count: 0,
            layers: (0..layout.layers as u32).map(|layer| counter.layer(layout, layer)).collect(),
            embed: EmbedSites { rows: counter.next(), low_rank: counter.next(), scale: counter.next() },
            lm_head: counter.linear(1),
            head_rows: counter.next(),
            added_tokens: counter.next(),
            final_norm: counter.next(),
            labels: LabelSites { head: counter.next(), bias: counter.next() },
        };
        sites.count = counter.0 as usize;
        sites
    }

    /// What a site of this base is to a step.
    pub(super) fn place(&self, layout: &BaseLayout, site: Site) -> Place<'_> {
        let (q, kv, inner) = (layout.q_dim, layout.kv_dim, layout.intermediate_size);
        let linear = |sites, inputs, columns| Place::Linear(StackPlace { sites, inputs, columns });
        let (number, part) = match site {
            Site::Embed => return Place::Embed(&self.embed),
            Site::FinalNorm => return Place::Norm(self.final_norm),
            Site::LmHead => return linear(&self.lm_head, 0..1, 0..layout.vocab_size),
            Site::VirtualTokens => return Place::VirtualTokens,
            Site::Labels => return Place::Labels(&self.labels),
            Site::Layer(layer, part) => (layer, part),
        };
        let layer = &self.layers[number as usize];
        match part {
            LayerSite::AttentionNorm => Place::Norm(layer.attention_norm),
            LayerSite::Q => linear(&layer.qkv, 0..1, 0..q),
            LayerSite::K => linear(&layer.qkv, 1..2, q..q + kv),
            LayerSite::V => linear(&layer.qkv, 2..3, q + kv..q + 2 * kv),
            LayerSite::Qkv => linear(&layer.qkv, 0..layer.qkv.inputs.len(), 0..q + 2 * kv),
            LayerSite::QNorm => Place::Norm(layer.q_norm),
            LayerSite::KNorm => Place::Norm(layer.k_norm),
            LayerSite::O => linear(&layer.o, 0..1, 0..layout.hidden_size),
            LayerSite::AttentionOutNorm => Place::Norm(layer.attention_out_norm),
            LayerSite::AfterAttention => Place::Hidden(&layer.after_attention),
            LayerSite::MlpNorm => Place::Norm(layer.mlp_norm),
            LayerSite::Gate => linear(&layer.gate_up, 0..1, 0..inner),
            LayerSite::Up => linear(&layer.gate_up, 1..2, inner..2 * inner),
            LayerSite::GateUp => linear(&layer.gate_up, 0..layer.gate_up.inputs.len(), 0..2 * inner),
            LayerSite::Down => linear(&layer.down, 0..1, 0..layout.hidden_size),
            LayerSite::Router
            | LayerSite::ExpertsGate
            | LayerSite::ExpertsUp
            | LayerSite::ExpertsGateUp
            | LayerSite::ExpertsDown => self.sparse_place(layout, number, part),
            LayerSite::MlpOutNorm => Place::Norm(layer.mlp_out_norm),
            LayerSite::AfterMlp => Place::Hidden(&layer.after_mlp),
        }
    }

    /// What a part of a sparse layer is to a step.
    fn sparse_place(&self, layout: &BaseLayout, layer: u32, part: LayerSite) -> Place<'_> {
        let sites = self.layers[layer as usize].sparse;
        let (Some(sites), Some(block)) = (sites, layout.sparse_block(layer)) else {
            unreachable!("compilers attach ops to routers and experts of sparse layers only")
        };
        let inner = block.intermediate_size;
        match part {
            LayerSite::Router => Place::Router(sites.router, block.experts),
            LayerSite::ExpertsGate => Place::Experts(sites.gate_up, 0..inner),
            LayerSite::ExpertsUp => Place::Experts(sites.gate_up, inner..2 * inner),
            LayerSite::ExpertsGateUp => Place::Experts(sites.gate_up, 0..2 * inner),
            _ => Place::Experts(sites.down, 0..layout.hidden_size),
        }
    }
}
