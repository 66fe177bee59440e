//! Why an adapter cannot be compiled. Every refusal names the field or tensor and the numbers.

use std::borrow::Cow;

use super::layout::{BaseReadError, Site};
use super::safetensors::SafetensorsError;
use crate::types::OpClass;

/// Refusals of an adapter. All are the uploader's to mend but [`DeltaError::Base`] and [`DeltaError::Ops`].
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// `adapter_config.json` is not one JSON object, or a key occurs twice.
    #[error("adapter_config.json is not valid: {reason}")]
    Json {
        /// Where and why.
        reason: String,
    },
    /// `adapter_model.safetensors` is refused.
    #[error("adapter_model.safetensors: {0}")]
    Safetensors(#[from] SafetensorsError),
    /// A field has the wrong type or is out of range.
    #[error("adapter_config.json: `{field}` is {found}, expected {expected}")]
    BadField {
        /// Field name.
        field: String,
        /// The value, shortened.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A field that changes the maths and is not implemented.
    #[error("adapter_config.json: `{field}` = {found} is not supported{hint}")]
    UnsupportedField {
        /// Field name.
        field: String,
        /// The value, shortened.
        found: String,
        /// What to do instead, or nothing.
        hint: Cow<'static, str>,
    },
    /// A field that nobody here knows, so it may change the maths.
    #[error(
        "adapter_config.json: `{field}` = {found} is not known here; if it does not change what the adapter computes, the \
         flag --allow-unknown-adapter-fields of `serve` and `adapter inspect` lets it pass"
    )]
    UnknownField {
        /// Field name, shortened.
        field: String,
        /// The value, shortened.
        found: String,
    },
    /// The regular expression of a field cannot be used.
    #[error("adapter_config.json: the expression of `{field}` cannot be used: {reason}")]
    Regex {
        /// Field name.
        field: String,
        /// What the engine says.
        reason: String,
    },
    /// A tensor belongs to no module and parameter this method has.
    #[error("tensor `{tensor}` is not part of a {kind} adapter for this base: {nearest}")]
    UnknownTensor {
        /// Full key in the file.
        tensor: String,
        /// Kind of adapter.
        kind: &'static str,
        /// What the base has that comes nearest.
        nearest: String,
    },
    /// Two keys that mean the same parameter.
    #[error("tensors `{first}` and `{second}` are one and the same parameter, spelled in two ways")]
    SameTensor {
        /// Full key in the file.
        first: String,
        /// Full key in the file.
        second: String,
    },
    /// A file put together from two: nothing tells which one is meant.
    #[error(
        "tensors `{first}` and `{second}` are spelled in two ways ({difference}): save the adapter again by itself"
    )]
    MixedKeys {
        /// Full key in the file.
        first: String,
        /// Full key in the file.
        second: String,
        /// Where they differ.
        difference: &'static str,
    },
    /// The file has weights of a whole model and nothing that a method adds.
    #[error(
        "the file has weights of a whole model, such as `{tensor}`, and no parameter of a {kind} adapter: it is a full or a \
         merged model, which is served with --model"
    )]
    WholeModel {
        /// One of its keys.
        tensor: String,
        /// Kind of adapter by the config.
        kind: &'static str,
    },
    /// The method works and PEFT saves it, but it is not served yet.
    #[error("tensor `{tensor}` comes from {feature}, which is not served yet")]
    UnsupportedTensor {
        /// Full key in the file.
        tensor: String,
        /// What wrote it.
        feature: &'static str,
    },
    /// A tensor is for an expert that the base does not have.
    #[error("tensor `{tensor}` is for expert {expert}, and the base's layers have {experts}, counted from 0")]
    NoSuchExpert {
        /// Full key in the file.
        tensor: String,
        /// Whose it is.
        expert: u64,
        /// How many there are.
        experts: usize,
    },
    /// A tensor is there and the config says its module is no target.
    #[error("tensor `{tensor}` is for a module that adapter_config.json does not target")]
    NotTargeted {
        /// Full key in the file.
        tensor: String,
    },
    /// The config targets a module and the file has no tensor for it.
    #[error("module `{module}` is a target and the file has no `{missing}` for it; it has {found}")]
    MissingTensor {
        /// Module path in the base.
        module: String,
        /// Parameter suffix.
        missing: &'static str,
        /// Some of the file's own keys.
        found: String,
    },
    /// Numbers that PEFT saves, and would make anew from the state of torch's generator where they are not there.
    #[error(
        "module `{module}` is a target and the file has no `{missing}` for it: which they were depends on torch's generator; \
         write the adapter with PEFT's save_pretrained, which saves them"
    )]
    NotReproducible {
        /// Module path in the base.
        module: String,
        /// Parameter suffix.
        missing: &'static str,
    },
    /// A targeted module cannot carry this method.
    #[error("module `{module}` cannot carry {kind}")]
    WrongModule {
        /// Module path in the base.
        module: String,
        /// Kind of adapter.
        kind: &'static str,
    },
    /// Outputs that do not come in whole groups.
    #[error("module `{module}` has {outputs} outputs, which `group_size` = {group} does not divide")]
    Group {
        /// Module path in the base.
        module: String,
        /// Of the module.
        outputs: usize,
        /// By the config.
        group: usize,
    },
    /// A tensor's shape disagrees with the base or the config.
    #[error("tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Full key in the file.
        tensor: String,
        /// In the file.
        found: Vec<usize>,
        /// By the base and the config.
        expected: Vec<usize>,
    },
    /// A tensor or a token is of a vocabulary of another size, in a way that is not served: tokens were added or taken away
    /// before the training.
    #[error("`{of}` is for a vocabulary of {tokens} tokens and the base has {vocab_size}: {reason}")]
    ResizedVocabulary {
        /// Full key in the file, or a field.
        of: String,
        /// That it is for, or more.
        tokens: usize,
        /// Of the base.
        vocab_size: usize,
        /// Why it is not served.
        reason: &'static str,
    },
    /// A rank above the limit, or zero.
    #[error("rank {rank} of `{module}` is outside 1..={max}")]
    Rank {
        /// Module path in the base.
        module: String,
        /// Rank by the config.
        rank: usize,
        /// `--max-lora-rank`.
        max: usize,
    },
    /// No module of the base matches.
    #[error("the adapter matches no module of this base model{shown}")]
    NothingMatched {
        /// A key of the file and what the base has nearest to it, or nothing.
        shown: String,
    },
    /// A saved copy of a base tensor differs from the base: the adapter was trained on another model.
    #[error("tensor `{tensor}` differs from the base model's; the adapter was trained on another base")]
    BaseMismatch {
        /// Full key in the file.
        tensor: String,
    },
    /// Two tensors are one parameter of a tied base and have other numbers.
    #[error("tensors `{first}` and `{second}` are tied to each other and differ")]
    Untied {
        /// Full key in the file.
        first: String,
        /// Full key in the file.
        second: String,
    },
    /// More virtual tokens than the limit, or than the context holds.
    #[error("{count} virtual tokens are outside 1..={max}")]
    VirtualTokens {
        /// By the file.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// A head without labels, or with more than the limit.
    #[error("the head has {labels} labels, which is outside 1..={max}")]
    Labels {
        /// By the file.
        labels: usize,
        /// The limit.
        max: usize,
    },
    /// A number of the file, or one computed from it, is NaN or infinite.
    #[error("`{tensor}` is not finite at index {index}")]
    NonFinite {
        /// Tensor or computed vector.
        tensor: String,
        /// Flat index.
        index: usize,
    },
    /// An index of the file points at nothing.
    #[error("`{tensor}` has {index} at index {at}, which is outside 0..{bound}")]
    Index {
        /// Full key in the file.
        tensor: String,
        /// Flat index.
        at: usize,
        /// What is there.
        index: i64,
        /// How many there are of what it counts.
        bound: usize,
    },
    /// An op of a part of a mix cannot be weighted and added to others.
    #[error("it cannot be part of a mix: {} of {site} {reason}", class.as_str())]
    NotLinear {
        /// Of the op.
        class: OpClass,
        /// Where it is.
        site: Site,
        /// End of a sentence about the class.
        reason: &'static str,
    },
    /// Reading the base's weights back failed.
    #[error(transparent)]
    Base(#[from] BaseReadError),
    /// Host maths failed.
    #[error("computing with the base's weights: {0}")]
    Candle(#[from] candle_core::Error),
    /// The device refused memory.
    #[error(transparent)]
    Ops(#[from] crate::ops::OpsError),
}
