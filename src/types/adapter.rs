//! What an adapter is, in plain data: the result of compiling it, as the registry, the scheduler and clients see it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ids::{AdapterSlot, AdapterVersion};
use super::request::{AdapterBinding, VirtualTokens};

macro_rules! op_classes {
    ($($(#[$doc:meta])* $class:ident),* $(,)?) => {
        /// The closed set of delta operations. A step runs one class at a time for all rows at once.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum OpClass {
            $($(#[$doc])* $class,)*
        }

        impl OpClass {
            /// All of them, in the order of their numbers.
            pub const ALL: [Self; [$(stringify!($class)),*].len()] = [$(Self::$class),*];

            /// Its name in the API, in metrics and in `inspect`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$class => stringify!($class),)*
                }
            }
        }
    };
}

op_classes! {
    /// y += s·B(Ax).
    LowRank,
    /// y += Sx, S sparse.
    Sparse,
    /// e += s·B·A[:, id] at the embedding.
    EmbeddingLowRank,
    /// y += s·B(Ax) within an expert, for the rows that chose it.
    ExpertLowRank,
    /// Rows of the embedding, of the head, or of both where they are one, in place of the base's.
    EmbeddingRows,
    /// y = g∘y.
    OutputScale,
    /// y = c1∘y + c2∘rot(y).
    OutputRotate,
    /// x = g∘x.
    InputScale,
    /// x = x R₁ ⋯ R_n.
    InputRotate,
    /// y += b.
    Bias,
    /// h += s·(U·f(D·v + b1) + b2) behind a block of a layer.
    Bottleneck,
    /// The norm weight of a row.
    Gain,
    /// Saved K and V at the head of the block table.
    Prefix,
    /// Learned embeddings at the head of the prompt.
    PromptEmbeds,
    /// Logits of labels from a hidden state.
    Head,
    /// y += s·Dx, or y = Dx in place of the base's.
    Dense,
    /// Logits of tokens that the base does not have.
    AddedTokens,
}

/// Some of the classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpClasses(u32);

impl OpClasses {
    /// Whether a class is among them.
    #[must_use]
    pub fn contain(self, class: OpClass) -> bool {
        self.0 >> class as u32 & 1 == 1
    }
}

impl FromIterator<OpClass> for OpClasses {
    fn from_iter<I: IntoIterator<Item = OpClass>>(classes: I) -> Self {
        Self(classes.into_iter().fold(0, |set, class| set | 1 << class as u32))
    }
}

/// Rows by the op classes that their adapters have; a row counts for each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowsByClass([u64; OpClass::ALL.len()]);

impl RowsByClass {
    /// Count rows of an adapter.
    pub fn add(&mut self, classes: OpClasses, rows: u64) {
        for class in OpClass::ALL {
            self.0[class as usize] += if classes.contain(class) { rows } else { 0 };
        }
    }

    /// Those of a class.
    #[must_use]
    pub fn of(&self, class: OpClass) -> u64 {
        self.0[class as usize]
    }
}

/// Most tokens that an adapter adds to the vocabulary of its base.
pub const MAX_ADDED_TOKENS: usize = 1024;

/// The three groups of delta tuning (Ding et al. 2023, "Parameter-efficient fine-tuning of large-scale pre-trained
/// language models").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeltaGroup {
    /// Parameters are added that the base does not have.
    Addition,
    /// Some of the base's parameters are trained.
    Specification,
    /// The change of the base's parameters has a form with fewer numbers.
    Reparameterization,
}

impl DeltaGroup {
    /// Its name in the API and in `inspect`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Addition => "addition",
            Self::Specification => "specification",
            Self::Reparameterization => "reparameterization",
        }
    }
}

/// What an adapter was trained for, as PEFT's `task_type` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdapterTask {
    /// Tokens: `CAUSAL_LM`, and adapters that do not say.
    #[default]
    Generation,
    /// Hidden states: `FEATURE_EXTRACTION`. It can generate all the same: the base's head is there.
    Embedding,
    /// One of so many labels for a text: `SEQ_CLS`.
    SequenceClassification {
        /// Of its head.
        labels: u32,
    },
    /// One of so many labels for every token: `TOKEN_CLS`.
    TokenClassification {
        /// Of its head.
        labels: u32,
    },
}

impl AdapterTask {
    /// As PEFT spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generation => "CAUSAL_LM",
            Self::Embedding => "FEATURE_EXTRACTION",
            Self::SequenceClassification { .. } => "SEQ_CLS",
            Self::TokenClassification { .. } => "TOKEN_CLS",
        }
    }

    /// Labels of its head; 0 without one.
    #[must_use]
    pub fn labels(self) -> u32 {
        match self {
            Self::Generation | Self::Embedding => 0,
            Self::SequenceClassification { labels } | Self::TokenClassification { labels } => labels,
        }
    }
}

/// What an adapter compiled to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterFacts {
    /// For people: `LoRA`, `rsLoRA`, `DoRA`, `IA3`, `prefix tuning`, `prompt tuning`, `LN tuning`.
    pub kind: String,
    /// The method's group; `None` where it was stored before groups were.
    #[serde(default)]
    pub group: Option<DeltaGroup>,
    /// What it was trained for; of adapters that an earlier server compiled, generation.
    #[serde(default)]
    pub task: AdapterTask,
    /// Smallest rank of any low-rank op; 0 without one.
    pub min_rank: u32,
    /// Largest rank of any low-rank op; 0 without one.
    pub max_rank: u32,
    /// Number of ops of each class present.
    pub ops: BTreeMap<OpClass, u32>,
    /// The sites it changes, without their layers: `q`, `gate`, `lm_head` ….
    pub targets: Vec<String>,
    /// Bytes it takes on the device.
    pub device_bytes: u64,
    /// Learned numbers in the upload.
    pub parameters: u64,
    /// Present for prefix and prompt tuning.
    pub virtual_tokens: Option<VirtualTokens>,
    /// Token ids that activate it (aLoRA): it works on the rows from the start of their last occurrence in a prompt on, and
    /// on none where a prompt does not have them. Empty where it works on every row.
    #[serde(default)]
    pub invocation_tokens: Vec<u32>,
    /// The KV of rows that it works on is the base's, in every layer: it changes nothing but what comes behind the last
    /// layer's K and V.
    #[serde(default)]
    pub keeps_base_kv: bool,
    /// So many layers from the first on, and the embedding before them, are the base's for every row that it works on: what
    /// they compute is shared with the base ([`AdapterBinding::base_layers`]). 0 where it has virtual tokens, and of adapters
    /// that an earlier server compiled.
    #[serde(default)]
    pub base_layers: u32,
    /// Tokens of its vocabulary where the base has another number of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<u32>,
    /// Fields of its config that nobody here knows and that the operator has let pass.
    #[serde(default)]
    pub unknown_fields: Vec<String>,
}

impl AdapterFacts {
    /// What a request with this prompt needs to know of it, where it is in a slot.
    #[must_use]
    pub fn bind(&self, version: AdapterVersion, slot: AdapterSlot, prompt: &[u32]) -> AdapterBinding {
        let active_from = self.active_from(prompt);
        let kv_from = if self.keeps_base_kv { AdapterBinding::NEVER } else { active_from };
        let (virtual_tokens, base_layers) = (self.virtual_tokens, self.base_layers);
        AdapterBinding { version, slot, virtual_tokens, active_from, kv_from, base_layers }
    }

    /// The first token of a prompt that it works on; [`AdapterBinding::NEVER`] where there is none.
    fn active_from(&self, prompt: &[u32]) -> u32 {
        let invocation = &self.invocation_tokens;
        if invocation.is_empty() {
            return 0;
        }
        let last = prompt.windows(invocation.len()).rposition(|tokens| tokens == invocation);
        last.map_or(AdapterBinding::NEVER, |first| first as u32)
    }
}

/// What a version did to a request that ran on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AdapterFault {
    /// The request's rows became NaN or infinite.
    #[error("rows of it are not finite")]
    NonFinite,
    /// The request's rows made their step fail, and only with the adapter.
    #[error("rows of it make their step fail")]
    StepFailed,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts(invocation_tokens: &[u32], keeps_base_kv: bool) -> AdapterFacts {
        AdapterFacts {
            kind: String::new(),
            task: AdapterTask::default(),
            group: None,
            min_rank: 0,
            max_rank: 0,
            ops: BTreeMap::new(),
            targets: Vec::new(),
            device_bytes: 0,
            parameters: 0,
            virtual_tokens: None,
            invocation_tokens: invocation_tokens.to_vec(),
            keeps_base_kv,
            base_layers: 0,
            vocab_size: None,
            unknown_fields: Vec::new(),
        }
    }

    /// (first row it works on, first row whose KV is its own) in a prompt.
    fn bound(facts: &AdapterFacts, prompt: &[u32]) -> (u32, u32) {
        let binding = facts.bind(AdapterVersion([1; 32]), AdapterSlot(2), prompt);
        assert_eq!((binding.version, binding.slot), (AdapterVersion([1; 32]), AdapterSlot(2)));
        (binding.active_from, binding.kv_from)
    }

    #[test]
    fn an_adapter_is_active_from_the_last_invocation_on() {
        const NEVER: u32 = AdapterBinding::NEVER;
        let of = |invocation, prompt| bound(&facts(invocation, false), prompt);
        assert_eq!(of(&[], &[4, 5]), (0, 0));
        assert_eq!(of(&[5, 6], &[5, 6, 4, 5, 6, 7]), (3, 3));
        assert_eq!(of(&[5, 6], &[5, 6]), (0, 0));
        assert_eq!(of(&[5, 6], &[4, 5, 6]), (1, 1));
        assert_eq!(of(&[5, 5], &[5, 5, 5, 4]), (1, 1), "occurrences may overlap");
        assert_eq!(of(&[5, 6], &[6, 5, 4]), (NEVER, NEVER));
        assert_eq!(of(&[5, 6, 7], &[5, 6]), (NEVER, NEVER), "longer than the prompt");
        assert_eq!(bound(&facts(&[5], true), &[4, 5]), (1, NEVER));
        assert_eq!(bound(&facts(&[], true), &[4, 5]), (0, NEVER));
    }

    proptest! {
        /// PEFT's own way: every place where the first token stands is tried, the largest that fits wins.
        #[test]
        fn the_place_is_the_one_that_peft_finds(
            prompt in prop::collection::vec(0u32..3, 1..24),
            invocation in prop::collection::vec(0u32..3, 1..5),
        ) {
            let mut best = None;
            for start in (0..prompt.len()).filter(|at| prompt[*at] == invocation[0]) {
                if start + invocation.len() <= prompt.len() && prompt[start..start + invocation.len()] == invocation {
                    best = Some(start as u32);
                }
            }
            let found = bound(&facts(&invocation, false), &prompt).0;
            prop_assert_eq!(found, best.unwrap_or(AdapterBinding::NEVER));
        }
    }
}
