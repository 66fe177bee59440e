//! What a delta may attach to: the sites of a decoder, and which module path of the base each one is.
//!
//! The model room fills a [`BaseLayout`] from its spec; compilers look modules up in it and know nothing of families.

use std::collections::BTreeMap;
use std::fmt;

use crate::ops::HostTensor;

/// A place inside one decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerSite {
    /// Norm before attention.
    AttentionNorm,
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// q, k, v as one module (Phi-3); an op here spans all three.
    Qkv,
    /// Per-head norm of q.
    QNorm,
    /// Per-head norm of k.
    KNorm,
    /// Output projection of attention.
    O,
    /// Norm of attention's output before it joins the residual stream (Gemma).
    AttentionOutNorm,
    /// Hidden site: what attention adds to the residual stream (`attention_adapters` of the adapters library). No module
    /// of the base.
    AfterAttention,
    /// Norm before the MLP.
    MlpNorm,
    /// Gate projection.
    Gate,
    /// Up projection.
    Up,
    /// gate and up as one module (Phi-3).
    GateUp,
    /// Down projection.
    Down,
    /// The router of a sparse layer, from hidden states to a logit for each expert.
    Router,
    /// Gate projection of every expert.
    ExpertsGate,
    /// Up projection of every expert.
    ExpertsUp,
    /// gate and up of every expert as one parameter.
    ExpertsGateUp,
    /// Down projection of every expert.
    ExpertsDown,
    /// Norm of the MLP's output (Gemma).
    MlpOutNorm,
    /// Hidden site: what the MLP adds to the residual stream (`output_adapters`). No module of the base.
    AfterMlp,
}

impl LayerSite {
    /// Whether it comes behind the K and V of its layer.
    fn is_behind_kv(self) -> bool {
        use LayerSite as L;
        !matches!(self, L::AttentionNorm | L::K | L::V | L::Qkv | L::KNorm)
    }
}

/// A place of the decoder an op attaches to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// Token embedding.
    Embed,
    /// Inside a layer.
    Layer(u32, LayerSite),
    /// Norm before the head.
    FinalNorm,
    /// The head.
    LmHead,
    /// Head of every sequence's KV: prefix and prompt tuning.
    VirtualTokens,
    /// Behind the final norm, in place of the head of the base: labels instead of tokens.
    Labels,
}

impl fmt::Display for LayerSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AttentionNorm => "attention_norm",
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::Qkv => "qkv",
            Self::QNorm => "q_norm",
            Self::KNorm => "k_norm",
            Self::O => "o",
            Self::AttentionOutNorm => "attention_out_norm",
            Self::AfterAttention => "after_attention",
            Self::MlpNorm => "mlp_norm",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::GateUp => "gate_up",
            Self::Down => "down",
            Self::Router => "router",
            Self::ExpertsGate => "experts_gate",
            Self::ExpertsUp => "experts_up",
            Self::ExpertsGateUp => "experts_gate_up",
            Self::ExpertsDown => "experts_down",
            Self::MlpOutNorm => "mlp_out_norm",
            Self::AfterMlp => "after_mlp",
        })
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embed => f.write_str("embed"),
            Self::Layer(layer, site) => write!(f, "layer {layer} {site}"),
            Self::FinalNorm => f.write_str("final_norm"),
            Self::LmHead => f.write_str("lm_head"),
            Self::VirtualTokens => f.write_str("virtual tokens"),
            Self::Labels => f.write_str("labels"),
        }
    }
}

/// What a module of the base is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// `y = Wx (+ b)`, W is `[output, input]`.
    Linear,
    /// Rows by token id, `[output = hidden, input = vocab]`; stored as `[vocab, hidden]`.
    Embedding,
    /// A gain of `output` numbers.
    Norm,
}

/// One module of the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Full path as in the checkpoint, e.g. `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Its place.
    pub site: Site,
    /// What it is.
    pub kind: ModuleKind,
    /// Input width (vocabulary size for an embedding).
    pub input: usize,
    /// Output width.
    pub output: usize,
    /// Whether the base has a bias here, stored as `{path}.bias`.
    pub bias: bool,
    /// Name of its weight in the checkpoint (a tied head has the embedding's).
    pub weight: String,
}

impl Module {
    /// The layer this module belongs to.
    #[must_use]
    pub fn layer(&self) -> Option<u32> {
        match self.site {
            Site::Layer(layer, _) => Some(layer),
            _ => None,
        }
    }
}

/// A router with its experts in the place of a layer's MLP. They are no modules: what attaches to them is looked up by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseBlock {
    /// Its layer.
    pub layer: u32,
    /// Path as transformers 5 has it, where `experts` holds the matrices of all of them in two parameters, `gate_up_proj` and
    /// `down_proj`.
    pub path: String,
    /// Path as transformers 4 had it, where every matrix is a linear module; mostly the same.
    pub path_apart: String,
    /// Names there of gate, up and down of an expert.
    pub names_apart: [&'static str; 3],
    /// How many experts.
    pub experts: usize,
    /// Columns of gate, and of up, of each.
    pub intermediate_size: usize,
}

impl SparseBlock {
    /// Path of the router by the names of transformers 5.
    #[must_use]
    pub fn router(&self) -> String {
        format!("{}.gate", self.path)
    }

    /// Path of the module that holds all experts there.
    #[must_use]
    pub fn all_experts(&self) -> String {
        format!("{}.experts", self.path)
    }

    /// Path of a matrix of an expert by the names of transformers 4: gate, up, down.
    #[must_use]
    pub fn matrix(&self, expert: u32, matrix: usize) -> String {
        format!("{}.experts.{expert}.{}", self.path_apart, self.names_apart[matrix])
    }

    /// A site of its layer.
    pub(super) fn site(&self, part: LayerSite) -> Site {
        Site::Layer(self.layer, part)
    }
}

/// Everything compilers need to know about the base apart from its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct BaseLayout {
    modules: BTreeMap<String, Module>,
    sparse_blocks: Vec<SparseBlock>,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Columns of q.
    pub q_dim: usize,
    /// Columns of k, and of v.
    pub kv_dim: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Columns of gate, and of up, of dense layers; 0 where there is none.
    pub intermediate_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Added to stored norm weights (Gemma: 1): a saved gain replaces the stored weight, before this is added.
    pub norm_offset: f32,
    /// The head is the embedding.
    pub tied: bool,
    /// `model_type` of its config, by which PEFT looks up what a null in an adapter's config means.
    pub model_type: &'static str,
}

/// Sizes of a base, to build a [`BaseLayout`] from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BaseSizes {
    /// See [`BaseLayout`].
    pub layers: usize,
    /// See [`BaseLayout`].
    pub hidden_size: usize,
    /// See [`BaseLayout`].
    pub q_dim: usize,
    /// See [`BaseLayout`].
    pub kv_dim: usize,
    /// See [`BaseLayout`].
    pub kv_heads: usize,
    /// See [`BaseLayout`].
    pub intermediate_size: usize,
    /// See [`BaseLayout`].
    pub vocab_size: usize,
    /// See [`BaseLayout`].
    pub norm_offset: f32,
    /// See [`BaseLayout`].
    pub tied: bool,
    /// See [`BaseLayout`].
    pub model_type: &'static str,
}

impl BaseLayout {
    /// A layout of these modules.
    #[must_use]
    pub fn new(sizes: BaseSizes, modules: Vec<Module>) -> Self {
        Self {
            modules: modules.into_iter().map(|module| (module.path.clone(), module)).collect(),
            sparse_blocks: Vec::new(),
            layers: sizes.layers,
            hidden_size: sizes.hidden_size,
            q_dim: sizes.q_dim,
            kv_dim: sizes.kv_dim,
            kv_heads: sizes.kv_heads,
            intermediate_size: sizes.intermediate_size,
            vocab_size: sizes.vocab_size,
            norm_offset: sizes.norm_offset,
            tied: sizes.tied,
            model_type: sizes.model_type,
        }
    }

    /// The layout of a base with these sparse blocks.
    #[must_use]
    pub fn with_sparse_blocks(self, sparse_blocks: Vec<SparseBlock>) -> Self {
        Self { sparse_blocks, ..self }
    }

    /// Blocks with a router and experts, in the order of their layers.
    pub fn sparse_blocks(&self) -> impl Iterator<Item = &SparseBlock> {
        self.sparse_blocks.iter()
    }

    /// That of a layer, where it has one.
    #[must_use]
    pub fn sparse_block(&self, layer: u32) -> Option<&SparseBlock> {
        self.sparse_blocks().find(|block| block.layer == layer)
    }

    /// The module at a path.
    #[must_use]
    pub fn module(&self, path: &str) -> Option<&Module> {
        self.modules.get(path)
    }

    /// Whether a module lies at a site.
    #[must_use]
    pub(super) fn has(&self, site: Site) -> bool {
        self.modules().any(|module| module.site == site)
    }

    /// Whether an op at a site leaves the KV of every layer as it is: it comes behind the K and V of the last one.
    #[must_use]
    pub fn is_behind_kv(&self, site: Site) -> bool {
        match site {
            Site::FinalNorm | Site::LmHead | Site::Labels => true,
            Site::Layer(layer, site) => layer as usize + 1 == self.layers && site.is_behind_kv(),
            Site::Embed | Site::VirtualTokens => false,
        }
    }

    /// How many of the first layers an op at a site leaves as they are, with the embedding before them.
    #[must_use]
    pub fn layers_before(&self, site: Site) -> u32 {
        match site {
            Site::Embed | Site::VirtualTokens => 0,
            Site::Layer(layer, _) => layer,
            Site::FinalNorm | Site::LmHead | Site::Labels => self.layers as u32,
        }
    }

    /// All modules, by path.
    pub fn modules(&self) -> impl Iterator<Item = &Module> {
        self.modules.values()
    }
}

/// The base's numbers, for methods that need them at load (DoRA, saved biases). Names are the checkpoint's.
pub trait BaseWeights {
    /// The tensor of that name, as stored; `None` if the checkpoint has none.
    ///
    /// # Errors
    /// Whatever reading it says, as text for people.
    fn tensor(&self, name: &str) -> Result<Option<HostTensor>, BaseReadError>;
}

/// The base's checkpoint could not be read back.
#[derive(Debug, thiserror::Error)]
#[error("reading `{name}` from the base model: {reason}")]
pub struct BaseReadError {
    /// Tensor name.
    pub name: String,
    /// What the reader said.
    pub reason: String,
}
