//! A delta as a small program: ops from a closed set, each attached to a site of the decoder.

use std::collections::{BTreeMap, BTreeSet};

use super::class::DeltaOp;
use super::layout::Site;
use crate::ops::WeightFormat;
use crate::types::{AdapterFacts, AdapterTask, OpClasses};

/// A compiled adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaProgram {
    /// For people: `LoRA`, `DoRA`, `IA3` ….
    pub kind: String,
    /// What it was trained for.
    pub task: AdapterTask,
    /// Ops with their sites, in site order.
    pub ops: Vec<(Site, DeltaOp)>,
    /// Token ids that activate it; empty where its ops apply to every row.
    pub invocation_tokens: Vec<u32>,
    /// All ops come behind the last layer's K and V.
    pub keeps_base_kv: bool,
    /// All ops come behind so many of the first layers.
    pub base_layers: u32,
    /// Tokens of its vocabulary where the base has another number of them: those that the base lacks were added to it, or the
    /// last of the base's are missing.
    pub vocab_size: Option<usize>,
    /// Fields of the config that are not known here and were let pass ([`CompileLimits::allow_unknown_fields`]).
    ///
    /// [`CompileLimits::allow_unknown_fields`]: super::CompileLimits::allow_unknown_fields
    pub unknown_fields: Vec<String>,
}

impl DeltaProgram {
    /// The plain-data summary the other wing and clients see. `weights` is how matrices lie on the
    /// device; vectors, saved K and V and prompt embeddings are f32.
    #[must_use]
    pub fn facts(&self, weights: WeightFormat) -> AdapterFacts {
        let mut facts = AdapterFacts {
            kind: self.kind.clone(),
            group: self.group(),
            task: self.task,
            min_rank: 0,
            max_rank: 0,
            ops: BTreeMap::new(),
            targets: Vec::new(),
            device_bytes: 0,
            parameters: 0,
            virtual_tokens: None,
            invocation_tokens: self.invocation_tokens.clone(),
            keeps_base_kv: self.keeps_base_kv,
            base_layers: self.base_layers,
            vocab_size: self.vocab_size.map(|tokens| tokens as u32),
            unknown_fields: self.unknown_fields.clone(),
        };
        let ranks = || self.ops.iter().filter_map(|(_, op)| op.as_op().rank()).map(|rank| rank as u32);
        facts.min_rank = ranks().min().unwrap_or(0);
        facts.max_rank = ranks().max().unwrap_or(0);
        facts.targets = self.targets();
        for (_, op) in &self.ops {
            *facts.ops.entry(op.class()).or_default() += 1;
            let op = op.as_op();
            facts.parameters += op.parameters() as u64;
            facts.device_bytes += op.device_bytes(weights);
            facts.virtual_tokens = op.virtual_tokens().or(facts.virtual_tokens);
        }
        facts
    }

    /// The classes of its ops.
    #[must_use]
    pub fn classes(&self) -> OpClasses {
        self.ops.iter().map(|(_, op)| op.class()).collect()
    }

    /// The sites of the ops in their order, each once and without its layer.
    fn targets(&self) -> Vec<String> {
        let mut parts = BTreeSet::new();
        for site in self.ops.iter().flat_map(|(site, op)| [Some(*site), op.as_op().other_site()]).flatten() {
            parts.insert(match site {
                Site::Layer(_, part) => (Site::Layer(0, part), part.to_string()),
                outside => (outside, outside.to_string()),
            });
        }
        parts.into_iter().map(|(_, name)| name).collect()
    }
}
