//! A delta is a small program: compilers from adapter files to a [`DeltaProgram`], one file per PEFT method, and its
//! residency on a device. A step knows op classes, never method names; this room never sees a request.

pub mod apply;
pub(crate) mod class;
mod compile;
pub mod convert;
mod error;
pub mod layout;
mod load;
mod peft;
mod problem;
mod program;
mod resident;
pub mod rows;
pub mod safetensors;
mod sites;

pub use class::{
    Bias, DeltaOp, EmbeddingLowRank, Gain, InputScale, LowRank, OutputScale, Prefix, PrefixLayer, PromptEmbeds,
};
pub use compile::{Base, CompileLimits, SERVED_KINDS, check_config, check_head, compile, config_refusals};
pub use error::DeltaError;
pub use layout::{BaseLayout, BaseReadError, BaseSizes, BaseWeights, LayerSite, Module, ModuleKind, Site};
pub use peft::json::{NamedBase, named_base};
pub use program::DeltaProgram;
pub use resident::{DeltaTable, PreparedDelta, VirtualRows};
pub use sites::{DeltaSites, EmbedSites, HiddenSites, LayerSites, LinearSites};
