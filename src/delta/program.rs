//! A delta as a small program: ops from a closed set, each attached to a site of the decoder.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::Site;
use crate::ops::HostTensor;
use crate::types::{AdapterFacts, OpClass, VirtualTokens};

/// Saved K and V of one layer, `[virtual tokens, kv_dim]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefixLayer {
    /// Keys as saved: no rope, no norm.
    pub k: Vec<f32>,
    /// Values.
    pub v: Vec<f32>,
}

/// One operation. Numbers are on the host, as the file has them; shapes are checked by the compiler that made it.
#[derive(Clone, Debug, PartialEq)]
pub enum DeltaOp {
    /// y += s·B(Ax).
    LowRank {
        /// `[rank, in]`.
        a: HostTensor,
        /// `[out, rank]`.
        b: HostTensor,
        /// s.
        scaling: f32,
    },
    /// e += s·B·A[:, id].
    EmbeddingLowRank {
        /// `[rank, vocab]`.
        a: HostTensor,
        /// `[hidden, rank]`.
        b: HostTensor,
        /// s.
        scaling: f32,
    },
    /// y = g∘y.
    OutputScale {
        /// `[out]`.
        g: Vec<f32>,
        /// After the base's bias (IA3) or before it (DoRA).
        after_bias: bool,
    },
    /// x = g∘x.
    InputScale {
        /// `[in]`.
        g: Vec<f32>,
    },
    /// y += b, after everything else.
    Bias {
        /// `[out]`.
        b: Vec<f32>,
    },
    /// The norm's weight for this row, offset already added.
    Gain {
        /// `[width of the norm]`.
        g: Vec<f32>,
    },
    /// Saved K and V, one entry per layer.
    Prefix {
        /// Virtual tokens.
        count: u32,
        /// One per decoder layer.
        layers: Vec<PrefixLayer>,
    },
    /// Learned embeddings.
    PromptEmbeds {
        /// `[virtual tokens, hidden]`.
        embeds: HostTensor,
    },
}

impl DeltaOp {
    /// Its class.
    #[must_use]
    pub fn class(&self) -> OpClass {
        match self {
            Self::LowRank { .. } => OpClass::LowRank,
            Self::EmbeddingLowRank { .. } => OpClass::EmbeddingLowRank,
            Self::OutputScale { .. } => OpClass::OutputScale,
            Self::InputScale { .. } => OpClass::InputScale,
            Self::Bias { .. } => OpClass::Bias,
            Self::Gain { .. } => OpClass::Gain,
            Self::Prefix { .. } => OpClass::Prefix,
            Self::PromptEmbeds { .. } => OpClass::PromptEmbeds,
        }
    }

    /// Rank of a low-rank op, 0 for others.
    #[must_use]
    pub fn rank(&self) -> usize {
        match self {
            Self::LowRank { a, .. } | Self::EmbeddingLowRank { a, .. } => a.rows(),
            _ => 0,
        }
    }

    /// Numbers it holds.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let count = match self {
            Self::LowRank { a, b, .. } | Self::EmbeddingLowRank { a, b, .. } => a.len() + b.len(),
            Self::OutputScale { g, .. } | Self::InputScale { g } | Self::Bias { b: g } | Self::Gain { g } => g.len(),
            Self::Prefix { layers, .. } => layers.iter().map(|layer| layer.k.len() + layer.v.len()).sum(),
            Self::PromptEmbeds { embeds } => embeds.len(),
        };
        count as u64
    }
}

/// A compiled adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaProgram {
    /// For people: `LoRA`, `DoRA`, `IA3` ….
    pub kind: String,
    /// Ops with their sites, in site order.
    pub ops: Vec<(Site, DeltaOp)>,
    /// Fields of the config that are not known here and were let pass ([`CompileLimits::allow_unknown_fields`]).
    ///
    /// [`CompileLimits::allow_unknown_fields`]: super::CompileLimits::allow_unknown_fields
    pub unknown_fields: Vec<String>,
}

impl DeltaProgram {
    /// The plain-data summary the other wing and clients see. `weight_bytes` is the size of one number of A and B on
    /// the device; vectors, saved K and V and prompt embeddings are f32.
    #[must_use]
    pub fn facts(&self, weight_bytes: usize) -> AdapterFacts {
        let mut facts = AdapterFacts {
            kind: self.kind.clone(),
            min_rank: 0,
            max_rank: 0,
            ops: BTreeMap::new(),
            targets: Vec::new(),
            device_bytes: 0,
            parameters: 0,
            virtual_tokens: None,
            unknown_fields: self.unknown_fields.clone(),
        };
        let ranks = || self.ops.iter().map(|(_, op)| op.rank() as u32).filter(|rank| *rank > 0);
        facts.min_rank = ranks().min().unwrap_or(0);
        facts.max_rank = ranks().max().unwrap_or(0);
        facts.targets = self.targets();
        for (_, op) in &self.ops {
            *facts.ops.entry(op.class()).or_default() += 1;
            facts.parameters += op.parameters();
            let size = if op.rank() > 0 { weight_bytes } else { 4 };
            facts.device_bytes += op.parameters() * size as u64;
            match op {
                DeltaOp::Prefix { count, .. } => {
                    facts.virtual_tokens = Some(VirtualTokens { count: *count, saved_kv: true });
                }
                DeltaOp::PromptEmbeds { embeds } => {
                    facts.virtual_tokens = Some(VirtualTokens { count: embeds.rows() as u32, saved_kv: false });
                }
                _ => {}
            }
        }
        facts
    }

    /// The sites of the ops in their order, each once and without its layer.
    fn targets(&self) -> Vec<String> {
        let mut parts = BTreeSet::new();
        for (site, _) in &self.ops {
            parts.insert(match site {
                Site::Layer(_, part) => (Site::Layer(0, *part), part.to_string()),
                outside => (*outside, outside.to_string()),
            });
        }
        parts.into_iter().map(|(_, name)| name).collect()
    }
}
