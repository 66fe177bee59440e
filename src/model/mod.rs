//! One decoder described by data: [`DecoderSpec`] from config.json, the checkpoint loader, the forward pass with delta
//! ops. Computes; never decides who runs, never waits, and knows no adapter method.

mod checkpoint;
mod config;
mod decoder;
mod error;
mod experts;
mod experts_config;
mod families;
mod fit;
mod layout;
mod rope;
mod rope_config;
mod source;
mod spec;
mod weights;
mod workspace;

pub use checkpoint::Checkpoint;
pub use decoder::{Decoder, DecoderLimits, EmbedRows, ModelInput};
pub use error::ModelError;
pub use families::read_spec;
pub use layout::base_layout;
pub use rope::rope_table;
pub use source::GgufRefusal;
pub use spec::{DecoderSpec, DenseMlp, Family, LayerSpec, Mlp, RopeScaling, RopeSpec};
pub use weights::{BaseModel, Progress};
pub use workspace::workspace_bytes;
