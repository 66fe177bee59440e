//! Virtual tokens: prompt tuning (Lester et al. 2021), P-tuning (Liu et al. 2021; PEFT saves the encoder's result) and
//! prefix tuning (Li & Liang 2021).

use super::Compilation;
use crate::delta::DeltaError;
use crate::delta::layout::Site;
use crate::delta::program::{DeltaOp, PrefixLayer};
use crate::ops::HostTensor;

const TENSOR: &str = "prompt_embeddings";

pub(super) fn compile_prompt(compilation: &mut Compilation<'_>) -> Result<&'static str, DeltaError> {
    let fields = &compilation.fields;
    let training = ["prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"];
    let encoder = ["encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"];
    // How many layers and heads the base has does not enter the embeddings.
    fields.ignore(&["num_layers", "num_attention_heads"]);
    fields.ignore(&training);
    fields.ignore(&encoder);
    let hidden = compilation.base.layout.hidden_size;
    agree(compilation, "token_dim", hidden)?;
    let embeds = virtual_tokens(compilation, hidden)?;
    let kind = if compilation.fields.str("peft_type")? == Some("P_TUNING") { "P-tuning" } else { "prompt tuning" };
    compilation.ops.push((Site::VirtualTokens, DeltaOp::PromptEmbeds { embeds }));
    Ok(kind)
}

/// A saved row is `[layer][K, then V][KV head][head_dim]`; numbers enter the cache as they are.
pub(super) fn compile_prefix(compilation: &mut Compilation<'_>) -> Result<&'static str, DeltaError> {
    // A projection is applied before saving; its sizes do not matter any more.
    compilation.fields.ignore(&["prefix_projection", "encoder_hidden_size"]);
    let layout = compilation.base.layout;
    agree(compilation, "num_layers", layout.layers)?;
    agree(compilation, "token_dim", layout.kv_dim)?;
    agree(compilation, "num_attention_heads", layout.kv_heads)?;
    let kv_dim = layout.kv_dim;
    let saved = virtual_tokens(compilation, layout.layers * 2 * kv_dim)?;
    let (count, width, numbers) = (saved.rows(), saved.cols(), saved.to_f32());
    let part = |layer: usize, which: usize| -> Vec<f32> {
        let first = (2 * layer + which) * kv_dim;
        (0..count).flat_map(|token| &numbers[token * width + first..][..kv_dim]).copied().collect()
    };
    let layers = (0..layout.layers).map(|layer| PrefixLayer { k: part(layer, 0), v: part(layer, 1) }).collect();
    compilation.ops.push((Site::VirtualTokens, DeltaOp::Prefix { count: count as u32, layers }));
    Ok("prefix tuning")
}

/// The one tensor, `[num_virtual_tokens, width]`.
fn virtual_tokens(compilation: &mut Compilation<'_>, width: usize) -> Result<HostTensor, DeltaError> {
    agree(compilation, "num_transformer_submodules", 1)?;
    let fields = &compilation.fields;
    let count = fields.usize("num_virtual_tokens")?;
    let count = count.ok_or_else(|| fields.bad("num_virtual_tokens", "a whole number"))?;
    let max = compilation.limits.max_virtual_tokens;
    if !(1..=max).contains(&count) {
        return Err(DeltaError::VirtualTokens { count, max });
    }
    let missing = || DeltaError::MissingTensor { module: "virtual tokens".to_owned(), missing: TENSOR };
    compilation.tensors.take_shaped(TENSOR, &[count, width])?.ok_or_else(missing)
}

/// A size the config may state, which must be the base's.
fn agree(compilation: &Compilation<'_>, field: &'static str, base: usize) -> Result<(), DeltaError> {
    match compilation.fields.usize(field)? {
        Some(stated) if stated != base => Err(compilation.fields.bad(field, "the base model's size, or null")),
        _ => Ok(()),
    }
}
