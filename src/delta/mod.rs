//! A delta is a small program: compilers from adapter files to a [`DeltaProgram`], one file per PEFT method, and its
//! residency on a device. A step knows op classes, never method names; this room never sees a request.

mod adapterhub;
pub mod apply;
mod change;
pub(crate) mod class;
mod compile;
pub mod convert;
mod error;
mod export;
pub mod layout;
mod load;
mod mix;
mod peft;
mod problem;
mod program;
mod resident;
pub mod rows;
pub mod safetensors;
mod sites;

pub use change::Change;
pub(crate) use change::length;
pub use class::{
    AddedTokens, Bias, Bottleneck, DeltaOp, Dense, EmbeddingLowRank, EmbeddingRows, ExpertLowRank, Gain, Head,
    InputRotate, InputScale, LayerNorm, LowRank, OutputRotate, OutputScale, Prefix, PrefixLayer, PromptEmbeds,
    RotateStage, Sparse, refused_in_mix,
};
pub use compile::{
    Base, CompileLimits, SERVED_KINDS, check_config, check_head, compile, config_refusals, worked_out_bytes,
};
pub use error::DeltaError;
pub use export::{ExportError, LoraFiles};
pub use layout::{BaseLayout, BaseReadError, BaseSizes, BaseWeights, LayerSite, Module, ModuleKind, Site, SparseBlock};
pub use mix::{OF_ACTIVATED, OF_OTHER_TOKENS};
pub use peft::json::{NamedBase, named_base};
pub use program::DeltaProgram;
pub use resident::{DeltaTable, PreparedDelta, VirtualRows};
pub use sites::{DeltaSites, EmbedSites, HiddenSites, InputSites, LabelSites, LayerSites, LinearSites, SparseSites};
