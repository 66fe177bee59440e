//! Virtual tokens: prompt tuning (Lester et al. 2021), P-tuning (Liu et al. 2021; PEFT saves the encoder's result), CPT
//! (Blau et al. 2024; PEFT saves the sum of tokens and what was learned), multitask prompt tuning (Wang et al. 2023) and
//! prefix tuning (Li & Liang 2021).

use super::compilation::{Compilation, CompileLimits};
use super::folds::matrix;
use super::method::Method;
use crate::delta::DeltaError;
use crate::delta::class::{Prefix, PrefixLayer, PromptEmbeds};
use crate::delta::layout::{BaseLayout, Site};
use crate::delta::peft::fields::Fields;
use crate::delta::peft::keys::{TASK_COLS, TASK_ROWS, VIRTUAL_TOKENS};
use crate::ops::{HostTensor, TensorData};

/// Fields of prompt tuning that say how training began.
const OF_TRAINING: [&str; 4] =
    ["prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"];

/// Prompt tuning, P-tuning and CPT.
pub(super) struct PromptConfig {
    kind: &'static str,
    count: usize,
}

impl PromptConfig {
    pub(super) fn read(
        fields: &Fields,
        layout: &BaseLayout,
        limits: CompileLimits,
        kind: &'static str,
    ) -> Result<Self, DeltaError> {
        let encoder =
            ["encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"];
        fields.ignore(&OF_TRAINING);
        fields.ignore(&encoder);
        Ok(Self { kind, count: embeddings(fields, layout, limits)? })
    }

    /// The masks and limits of CPT are those of training, and what it learned is within them as it is saved.
    pub(super) fn read_cpt(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        fields.ignore(&["cpt_mask", "cpt_tokens_type_mask", "tokenizer_name_or_path"]);
        fields.ignore(&["opt_weighted_loss_type", "opt_loss_decay_factor"]);
        fields.ignore(&["opt_projection_epsilon", "opt_projection_format_epsilon"]);
        let count = embeddings(fields, layout, limits)?;
        match fields.indices("cpt_token_ids")? {
            Some(ids) if ids.len() != count => Err(fields.bad("cpt_token_ids", "num_virtual_tokens token ids")),
            _ => Ok(Self { kind: "CPT", count }),
        }
    }
}

impl Method for PromptConfig {
    fn kind(&self) -> &'static str {
        self.kind
    }

    /// PEFT's keys of such modules have another beginning.
    fn takes_saved_modules(&self) -> bool {
        false
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let embeds = saved(compilation, self.count, compilation.base.layout.hidden_size)?;
        compilation.push(Site::VirtualTokens, PromptEmbeds { embeds });
        Ok(())
    }
}

/// Multitask prompt tuning of one task: its embeddings are those that all tasks share, times a product of two small
/// matrices of its own, number by number.
pub(super) struct MultitaskConfig {
    count: usize,
    ranks: usize,
}

impl MultitaskConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        fields.ignore(&OF_TRAINING);
        fields.ignore(&["prompt_tuning_init_state_dict_path", "prompt_tuning_init_task"]);
        if fields.usize("num_tasks")?.unwrap_or(1) != 1 {
            let hint = ": a request names an adapter and no task; save each task as an adapter of its own, \
                        prompt_embeddings * (prefix_task_cols[task] @ prefix_task_rows[task]) as PROMPT_TUNING";
            return Err(fields.unsupported("num_tasks", hint));
        }
        let ranks = fields.usize("num_ranks")?.unwrap_or(1);
        match (1..=limits.max_rank).contains(&ranks) {
            true => Ok(Self { count: embeddings(fields, layout, limits)?, ranks }),
            false => Err(fields.bad("num_ranks", "at least 1 and at most the largest rank")),
        }
    }
}

impl Method for MultitaskConfig {
    fn kind(&self) -> &'static str {
        "multitask prompt tuning"
    }

    fn works_out_numbers(&self) -> bool {
        true
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let (count, ranks, width) = (self.count, self.ranks, compilation.base.layout.hidden_size);
        let shared = saved(compilation, count, width)?.to_f32();
        let cols = of_tasks(compilation, TASK_COLS, [count, ranks])?;
        let rows = of_tasks(compilation, TASK_ROWS, [ranks, width])?;
        let embeds = matrix(compilation, count, width, |token, at| {
            let product: f32 = (0..ranks).map(|rank| cols[token * ranks + rank] * rows[rank * width + at]).sum();
            shared[token * width + at] * product
        })?;
        if let TensorData::F32(numbers) = &embeds.data
            && let Some(index) = numbers.iter().position(|number| !number.is_finite())
        {
            return Err(DeltaError::NonFinite { tensor: "the embeddings of the task".to_owned(), index });
        }
        compilation.push(Site::VirtualTokens, PromptEmbeds { embeds });
        Ok(())
    }
}

/// A matrix of the one task, saved as `[1, rows, cols]`.
fn of_tasks(
    compilation: &mut Compilation<'_>,
    key: &'static str,
    [rows, cols]: [usize; 2],
) -> Result<Vec<f32>, DeltaError> {
    match compilation.tensors.take_shaped(key, &[1, rows, cols])? {
        Some(tensor) => Ok(tensor.to_f32()),
        None => Err(missing(compilation, key)),
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
}

impl Method for PrefixConfig {
    fn kind(&self) -> &'static str {
        "prefix tuning"
    }

    /// PEFT's keys of such modules have another beginning.
    fn takes_saved_modules(&self) -> bool {
        false
    }

    /// A saved row is `[layer][K, then V][KV head][head_dim]`; numbers enter the cache as they are.
    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
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

/// How many learned embeddings there are, each as wide as the base's.
fn embeddings(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<usize, DeltaError> {
    // How many layers and heads the base has does not enter them.
    fields.ignore(&["num_layers", "num_attention_heads"]);
    agree(fields, "token_dim", layout.hidden_size)?;
    virtual_tokens(fields, limits)
}

fn virtual_tokens(fields: &Fields, limits: CompileLimits) -> Result<usize, DeltaError> {
    agree(fields, "num_transformer_submodules", 1)?;
    let count = fields.usize("num_virtual_tokens")?;
    let count = count.ok_or_else(|| fields.bad("num_virtual_tokens", "a whole number"))?;
    let max = limits.max_virtual_tokens;
    if (1..=max).contains(&count) { Ok(count) } else { Err(DeltaError::VirtualTokens { count, max }) }
}

/// The tensor that all of these methods save, `[num_virtual_tokens, width]`.
fn saved(compilation: &mut Compilation<'_>, count: usize, width: usize) -> Result<HostTensor, DeltaError> {
    match compilation.tensors.take_shaped(VIRTUAL_TOKENS, &[count, width])? {
        Some(tensor) => Ok(tensor),
        None => Err(missing(compilation, VIRTUAL_TOKENS)),
    }
}

fn missing(compilation: &Compilation<'_>, key: &'static str) -> DeltaError {
    let (module, found) = ("virtual tokens".to_owned(), compilation.tensors.examples(""));
    DeltaError::MissingTensor { module, missing: key, found }
}

/// A size the config may state, which must be the base's.
fn agree(fields: &Fields, field: &'static str, base: usize) -> Result<(), DeltaError> {
    match fields.usize(field)? {
        Some(stated) if stated != base => Err(fields.bad(field, "the base model's size, or null")),
        _ => Ok(()),
    }
}
