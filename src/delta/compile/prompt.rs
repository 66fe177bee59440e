//! Virtual tokens: prompt tuning (Lester et al. 2021), P-tuning (Liu et al. 2021; PEFT saves the encoder's result) and
//! prefix tuning (Li & Liang 2021).

use super::compilation::{Compilation, CompileLimits};
use crate::delta::DeltaError;
use crate::delta::class::{Prefix, PrefixLayer, PromptEmbeds};
use crate::delta::layout::{BaseLayout, Site};
use crate::delta::peft::fields::Fields;
use crate::delta::peft::keys::VIRTUAL_TOKENS;
use crate::ops::HostTensor;

/// Prompt tuning and P-tuning.
pub(super) struct PromptConfig {
    pub(super) kind: &'static str,
    count: usize,
}

impl PromptConfig {
    pub(super) fn read(
        fields: &Fields,
        layout: &BaseLayout,
        limits: CompileLimits,
        kind: &'static str,
    ) -> Result<Self, DeltaError> {
        let training = ["prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"];
        let encoder =
            ["encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"];
        // How many layers and heads the base has does not enter the embeddings.
        fields.ignore(&["num_layers", "num_attention_heads"]);
        fields.ignore(&training);
        fields.ignore(&encoder);
        agree(fields, "token_dim", layout.hidden_size)?;
        Ok(Self { kind, count: virtual_tokens(fields, limits)? })
    }

    pub(super) fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let embeds = saved(compilation, self.count, compilation.base.layout.hidden_size)?;
        compilation.push(Site::VirtualTokens, PromptEmbeds { embeds });
        Ok(())
    }
}

/// Prefix tuning.
pub(super) struct PrefixConfig {
    count: usize,
}

impl PrefixConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        // A projection is applied before saving; its sizes do not matter any more.
        fields.ignore(&["prefix_projection", "encoder_hidden_size"]);
        agree(fields, "num_layers", layout.layers)?;
        agree(fields, "token_dim", layout.kv_dim)?;
        agree(fields, "num_attention_heads", layout.kv_heads)?;
        Ok(Self { count: virtual_tokens(fields, limits)? })
    }

    /// A saved row is `[layer][K, then V][KV head][head_dim]`; numbers enter the cache as they are.
    pub(super) fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let BaseLayout { layers, kv_dim, .. } = *compilation.base.layout;
        let width = layers * 2 * kv_dim;
        let numbers = saved(compilation, self.count, width)?.to_f32();
        let part = |layer: usize, which: usize| -> Vec<f32> {
            let first = (2 * layer + which) * kv_dim;
            numbers.chunks_exact(width).flat_map(|token| &token[first..first + kv_dim]).copied().collect()
        };
        let layers = (0..layers).map(|layer| PrefixLayer { k: part(layer, 0), v: part(layer, 1) }).collect();
        compilation.push(Site::VirtualTokens, Prefix { count: self.count as u32, layers });
        Ok(())
    }
}

fn virtual_tokens(fields: &Fields, limits: CompileLimits) -> Result<usize, DeltaError> {
    agree(fields, "num_transformer_submodules", 1)?;
    let count = fields.usize("num_virtual_tokens")?;
    let count = count.ok_or_else(|| fields.bad("num_virtual_tokens", "a whole number"))?;
    let max = limits.max_virtual_tokens;
    if (1..=max).contains(&count) { Ok(count) } else { Err(DeltaError::VirtualTokens { count, max }) }
}

/// The one tensor, `[num_virtual_tokens, width]`.
fn saved(compilation: &mut Compilation<'_>, count: usize, width: usize) -> Result<HostTensor, DeltaError> {
    match compilation.tensors.take_shaped(VIRTUAL_TOKENS, &[count, width])? {
        Some(tensor) => Ok(tensor),
        None => {
            let (module, found) = ("virtual tokens".to_owned(), compilation.tensors.examples(""));
            Err(DeltaError::MissingTensor { module, missing: VIRTUAL_TOKENS, found })
        }
    }
}

/// A size the config may state, which must be the base's.
fn agree(fields: &Fields, field: &'static str, base: usize) -> Result<(), DeltaError> {
    match fields.usize(field)? {
        Some(stated) if stated != base => Err(fields.bad(field, "the base model's size, or null")),
        _ => Ok(()),
    }
}
