//! Every op class at every place of the decoder, numbered: the rows of a backend's delta table.

use super::layout::{BaseLayout, LayerSite, Site};
use crate::ops::SiteId;

/// Op classes of one stacked linear site. Columns are those of the stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearSites {
    /// x = g∘x, one for each segment of the stack; columns are `0..in`.
    pub input_scale: Vec<SiteId>,
    /// y += s·B(Ax).
    pub low_rank: SiteId,
    /// y = g∘y, before the base's bias.
    pub scale_before_bias: SiteId,
    /// y = g∘y, after it.
    pub scale_after_bias: SiteId,
    /// y += b.
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
    /// Of the norm before the MLP.
    pub mlp_norm: SiteId,
    /// Of the norm of the MLP's output.
    pub mlp_out_norm: SiteId,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaSites {
    /// One entry per layer.
    pub layers: Vec<LayerSites>,
    /// e += s·B·A[:, id].
    pub embed: SiteId,
    /// e = g∘e (DoRA on the embedding).
    pub embed_scale: SiteId,
    /// The head.
    pub lm_head: LinearSites,
    /// Gain of the norm before the head.
    pub final_norm: SiteId,
}

/// Hands out numbers.
#[derive(Default)]
struct Counter(u32);

impl Counter {
    fn next(&mut self) -> SiteId {
        self.0 += 1;
        SiteId(self.0 - 1)
    }

    fn linear(&mut self, segments: usize) -> LinearSites {
        LinearSites {
            input_scale: (0..segments).map(|_| self.next()).collect(),
            low_rank: self.next(),
            scale_before_bias: self.next(),
            scale_after_bias: self.next(),
            bias: self.next(),
        }
    }

    fn layer(&mut self) -> LayerSites {
        LayerSites {
            qkv: self.linear(3),
            o: self.linear(1),
            gate_up: self.linear(2),
            down: self.linear(1),
            attention_norm: self.next(),
            q_norm: self.next(),
            k_norm: self.next(),
            attention_out_norm: self.next(),
            mlp_norm: self.next(),
            mlp_out_norm: self.next(),
        }
    }
}

impl DeltaSites {
    /// Of a base.
    #[must_use]
    pub fn new(layout: &BaseLayout) -> Self {
        let mut counter = Counter::default();
        Self {
            layers: (0..layout.layers).map(|_| counter.layer()).collect(),
            embed: counter.next(),
            embed_scale: counter.next(),
            lm_head: counter.linear(1),
            final_norm: counter.next(),
        }
    }

    /// The stack a logical site lies in; `None` for norms and the embedding.
    pub(super) fn stack(&self, site: Site) -> Option<&LinearSites> {
        let Site::Layer(layer, part) = site else { return (site == Site::LmHead).then_some(&self.lm_head) };
        let layer = &self.layers[layer as usize];
        match part {
            LayerSite::Q | LayerSite::K | LayerSite::V | LayerSite::Qkv => Some(&layer.qkv),
            LayerSite::O => Some(&layer.o),
            LayerSite::Gate | LayerSite::Up | LayerSite::GateUp => Some(&layer.gate_up),
            LayerSite::Down => Some(&layer.down),
            LayerSite::AttentionNorm
            | LayerSite::QNorm
            | LayerSite::KNorm
            | LayerSite::AttentionOutNorm
            | LayerSite::MlpNorm
            | LayerSite::MlpOutNorm => None,
        }
    }

    /// The gain of a norm. Compilers attach gains to norms only; outside the layers there is one norm.
    pub(super) fn gain(&self, site: Site) -> SiteId {
        let Site::Layer(layer, part) = site else { return self.final_norm };
        let layer = &self.layers[layer as usize];
        match part {
            LayerSite::AttentionNorm => layer.attention_norm,
            LayerSite::QNorm => layer.q_norm,
            LayerSite::KNorm => layer.k_norm,
            LayerSite::AttentionOutNorm => layer.attention_out_norm,
            LayerSite::MlpNorm => layer.mlp_norm,
            LayerSite::MlpOutNorm => layer.mlp_out_norm,
            LayerSite::Q
            | LayerSite::K
            | LayerSite::V
            | LayerSite::Qkv
            | LayerSite::O
            | LayerSite::Gate
            | LayerSite::Up
            | LayerSite::GateUp
            | LayerSite::Down => unreachable!("compilers attach Gain to norms only"),
        }
    }
}
