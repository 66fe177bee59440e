//! From an adapter's files to a [`DeltaProgram`]: one file per PEFT method.
//!
//! Strict by construction: every tensor is consumed, every config field that changes the maths is implemented or
//! refused by name, at least one site matches, all shapes agree with the base, all numbers are finite.

mod dora;
mod ia3;
mod ln_tuning;
mod lora;
mod prompt;
mod tensors;

use super::DeltaError;
use super::layout::{BaseLayout, BaseWeights, Module, ModuleKind, Site};
use super::peft::defaults;
use super::peft::fields::{Fields, UnknownFields};
use super::peft::keys::{self, PREFIX};
use super::peft::targets::Targets;
use super::program::{DeltaOp, DeltaProgram};
use super::safetensors::{HeaderLimits, read_beginning};
use crate::ops::HostTensor;
use tensors::TensorSet;

/// Every [`DeltaProgram::kind`] that comes out of [`compile`].
pub const SERVED_KINDS: [&str; 9] =
    ["LoRA", "rsLoRA", "DoRA", "rsLoRA DoRA", "IA3", "LN tuning", "prompt tuning", "P-tuning", "prefix tuning"];

/// Limits of one adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// Largest rank.
    pub max_rank: usize,
    /// Most virtual tokens.
    pub max_virtual_tokens: usize,
    /// Let fields of the config pass that are not known here; the program says which. Known ones that change the maths
    /// and are not implemented are refused all the same.
    pub allow_unknown_fields: bool,
}

impl CompileLimits {
    fn unknown_fields(self) -> UnknownFields {
        if self.allow_unknown_fields { UnknownFields::Noted } else { UnknownFields::Refused }
    }
}

/// The base an adapter is compiled against.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// Modules and sizes.
    pub layout: &'a BaseLayout,
    /// Numbers, where a method needs them.
    pub weights: &'a dyn BaseWeights,
}

/// A method with its config, read and checked before any tensor is looked at.
enum Method {
    Lora(lora::LoraConfig),
    Ia3(ia3::Ia3Config),
    LnTuning(Targets),
    Prompt(prompt::PromptConfig),
    Prefix(prompt::PrefixConfig),
}

impl Method {
    fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        Ok(match fields.str("peft_type")? {
            Some("LORA") => Self::Lora(lora::LoraConfig::read(fields, layout, limits)?),
            Some("IA3") => Self::Ia3(ia3::Ia3Config::read(fields, layout)?),
            Some("LN_TUNING") => Self::LnTuning(Targets::read(fields, defaults::ln_targets(layout.model_type))?),
            Some("PROMPT_TUNING") => Self::Prompt(prompt::PromptConfig::read(fields, layout, limits, "prompt tuning")?),
            Some("P_TUNING") => Self::Prompt(prompt::PromptConfig::read(fields, layout, limits, "P-tuning")?),
            Some("PREFIX_TUNING") => Self::Prefix(prompt::PrefixConfig::read(fields, layout, limits)?),
            Some(_) => {
                let hint = "; served: LORA, IA3, LN_TUNING, PROMPT_TUNING, P_TUNING, PREFIX_TUNING";
                return Err(fields.unsupported("peft_type", hint));
            }
            None => return Err(not_of_peft(fields)),
        })
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        match self {
            Self::Lora(config) => config.compile(compilation),
            Self::Ia3(config) => config.compile(compilation),
            Self::LnTuning(targets) => ln_tuning::compile(targets, compilation),
            Self::Prompt(config) => config.compile(compilation),
            Self::Prefix(config) => config.compile(compilation),
        }
    }

    /// For people.
    fn kind(&self) -> &'static str {
        match self {
            Self::Lora(config) => config.kind(),
            Self::Ia3(_) => ia3::KIND,
            Self::LnTuning(_) => ln_tuning::KIND,
            Self::Prompt(config) => config.kind,
            Self::Prefix(_) => "prefix tuning",
        }
    }
}

/// Why a config without `peft_type` is none of PEFT's, where it is known whose it is.
fn not_of_peft(fields: &Fields) -> DeltaError {
    const MLX: &str = ": this is an adapter of MLX; fuse it with mlx_lm.fuse and serve the result with --model";
    const HUB: &str = ": this is an adapter of AdapterHub's library, whose format is not PEFT's";
    let theirs = [
        ("fine_tune_type", MLX),
        ("lora_parameters", MLX),
        ("model_class", HUB),
        ("architecture", HUB),
        ("config_id", HUB),
    ];
    match theirs.into_iter().find(|(field, _)| fields.get(field).is_some()) {
        Some((field, hint)) => fields.unsupported(field, hint),
        None => fields.bad("peft_type", "a PEFT method"),
    }
}

/// One compilation in progress.
struct Compilation<'a> {
    base: Base<'a>,
    tensors: TensorSet<'a>,
    ops: Vec<(Site, DeltaOp)>,
}

/// Compile the bytes of `adapter_config.json` and `adapter_model.safetensors`.
///
/// # Errors
/// The first reason to refuse, naming field or tensor. Nothing is allocated for a file whose header is refused.
pub fn compile(
    config: &[u8],
    weights: &[u8],
    base: Base<'_>,
    limits: CompileLimits,
) -> Result<DeltaProgram, DeltaError> {
    let fields = Fields::parse(config)?;
    let method = Method::read(&fields, base.layout, limits)?;
    let unknown_fields = fields.finish(limits.unknown_fields())?;
    let ops = build(&method, TensorSet::read(weights, base.layout)?, base)?;
    Ok(DeltaProgram { kind: method.kind().to_owned(), ops, unknown_fields })
}

fn build(method: &Method, tensors: TensorSet<'_>, base: Base<'_>) -> Result<Vec<(Site, DeltaOp)>, DeltaError> {
    if let Some(tensor) = tensors.whole_model() {
        return Err(DeltaError::WholeModel { tensor: tensor.to_owned(), kind: method.kind() });
    }
    let unknown = tensors.unknown().first().cloned();
    let mut compilation = Compilation { base, tensors, ops: Vec::new() };
    // A key that means nothing here says more than what is missing in its place.
    match (method.compile(&mut compilation), unknown) {
        (Err(DeltaError::NothingMatched { .. }), Some(tensor)) => {
            let nearest = keys::nearest(&tensor, base.layout);
            return Err(DeltaError::NothingMatched { shown: format!("; the file has `{tensor}`: {nearest}") });
        }
        (_, Some(tensor)) => return Err(leftover(&tensor, method.kind(), base.layout)),
        (compiled, None) => compiled?,
    }
    compilation.finish(method.kind())
}

/// Check the bytes of `adapter_config.json` alone, as [`compile`] does before it looks at any weight.
///
/// # Errors
/// The first reason to refuse.
pub fn check_config(config: &[u8], layout: &BaseLayout, limits: CompileLimits) -> Result<(), DeltaError> {
    let fields = Fields::parse(config)?;
    Method::read(&fields, layout, limits)?;
    fields.finish(limits.unknown_fields()).map(drop)
}

/// Check the beginning of an adapter as far as it has come: the bytes of `adapter_config.json`, and the first bytes of
/// `adapter_model.safetensors` with the size of the whole file. Once both are there, that every tensor is where the config
/// and the base want it, with its shape; nothing is allocated for their numbers.
///
/// # Errors
/// Why [`compile`] will refuse the whole.
pub fn check_head(
    config: Option<&[u8]>,
    weights: Option<(&[u8], u64)>,
    base: Base<'_>,
    limits: CompileLimits,
) -> Result<(), DeltaError> {
    let read = |config: &[u8]| {
        let fields = Fields::parse(config)?;
        let method = Method::read(&fields, base.layout, limits)?;
        fields.finish(limits.unknown_fields())?;
        Ok::<_, DeltaError>(method)
    };
    let method = config.map(read).transpose()?;
    let Some((first, file_bytes)) = weights else { return Ok(()) };
    let header = read_beginning(first, file_bytes, &HeaderLimits::default())?;
    match (method, header) {
        (Some(method), Some(header)) => {
            build(&method, TensorSet::without_numbers(&header, base.layout)?, base).map(drop)
        }
        _ => Ok(()),
    }
}

/// Every field of an `adapter_config.json` that [`compile`] refuses, for people who want to know them all at once: those
/// not supported, or the first that is wrong in itself. Empty if the config is fine; the weights may still not be.
#[must_use]
pub fn config_refusals(config: &[u8], layout: &BaseLayout, limits: CompileLimits) -> Vec<DeltaError> {
    let read = |fields: &Fields| Method::read(fields, layout, limits).map(|_| fields.refusals(limits.unknown_fields()));
    Fields::parse(config).and_then(|fields| read(&fields)).unwrap_or_else(|error| vec![error])
}

impl Compilation<'_> {
    fn finish(mut self, kind: &'static str) -> Result<Vec<(Site, DeltaOp)>, DeltaError> {
        self.drop_base_copies()?;
        if let Some(tensor) = self.tensors.left().next() {
            return Err(leftover(tensor, kind, self.base.layout));
        }
        if self.ops.is_empty() {
            return Err(DeltaError::NothingMatched { shown: String::new() });
        }
        self.ops.sort_by_key(|(site, op)| (*site, op.class()));
        for (site, op) in &self.ops {
            check_computed(*site, op)?;
        }
        Ok(self.ops)
    }

    /// PEFT puts embedding and head into the file as they are: beside an adapter on them, and where
    /// `save_embedding_layers` asks for it. A copy of the base's does nothing. Beside an adapter any other means another
    /// base; alone it replaces the base's and is left to be refused.
    fn drop_base_copies(&mut self) -> Result<(), DeltaError> {
        let layout = self.base.layout;
        for module in layout.modules().filter(|m| m.kind == ModuleKind::Embedding || m.site == Site::LmHead) {
            let (beside, alone) = (key(module, "base_layer.weight"), key(module, "weight"));
            if !self.tensors.has(&beside) && !self.tensors.has(&alone) {
                continue;
            }
            if self.tensors.has_no_numbers() {
                // Whether they are copies is seen when their numbers have come.
                self.tensors.remove(&alone);
                self.tensors.remove(&beside);
                continue;
            }
            let base = self.base_tensor(&module.weight)?;
            self.tensors.drop_copy(&alone, &base)?;
            if !self.tensors.drop_copy(&beside, &base)? {
                let tensor = self.tensors.own_key(&beside).unwrap_or(&beside).to_owned();
                return Err(DeltaError::BaseMismatch { tensor });
            }
        }
        Ok(())
    }

    /// Take a tensor that must be there.
    fn required(
        &mut self,
        module: &Module,
        parameter: &'static str,
        shape: &[usize],
    ) -> Result<HostTensor, DeltaError> {
        match self.tensors.take_shaped(&key(module, parameter), shape)? {
            Some(tensor) => Ok(tensor),
            None => {
                let found = self.tensors.examples(&key(module, ""));
                Err(DeltaError::MissingTensor { module: module.path.clone(), missing: parameter, found })
            }
        }
    }

    /// Whether the config targets a module, by its path in the model the adapter was trained on.
    fn is_target(&self, targets: &Targets, module: &Module) -> Result<bool, DeltaError> {
        match self.tensors.level().path(module) {
            Some(path) => targets.contain(module, &path),
            None => Ok(false),
        }
    }

    fn push(&mut self, module: &Module, op: DeltaOp) {
        self.ops.push((module.site, op));
    }

    /// A tensor of the base that its config promises.
    fn base_tensor(&self, name: &str) -> Result<HostTensor, DeltaError> {
        let missing = || super::layout::BaseReadError { name: name.to_owned(), reason: "it is not there".to_owned() };
        Ok(self.base.weights.tensor(name)?.ok_or_else(missing)?)
    }
}

/// Key of a parameter of a module in the file.
fn key(module: &Module, parameter: &str) -> String {
    format!("{PREFIX}{}.{parameter}", module.path)
}

/// Why a tensor nobody took is refused: a feature of PEFT that is known by its keys, or nothing known.
fn leftover(tensor: &str, kind: &'static str, layout: &BaseLayout) -> DeltaError {
    let own = match kind {
        ia3::KIND => Some(".ia3_l"),
        ln_tuning::KIND => Some(".ln_tuning_layers."),
        _ => None,
    };
    if own.is_some_and(|own| tensor.contains(own)) && keys::is_of_base(tensor, layout) {
        return DeltaError::NotTargeted { tensor: tensor.to_owned() };
    }
    let feature = if tensor.contains("trainable_tokens_delta") {
        Some("trainable tokens")
    } else if tensor.starts_with(PREFIX) && !tensor.contains("lora_") && tensor.ends_with(".weight") {
        Some("modules_to_save or a resized vocabulary")
    } else {
        None
    };
    match feature {
        Some(feature) => DeltaError::UnsupportedTensor { tensor: tensor.to_owned(), feature },
        None => DeltaError::UnknownTensor { tensor: tensor.to_owned(), kind, nearest: keys::nearest(tensor, layout) },
    }
}

/// Vectors computed from finite numbers can overflow (a magnitude over a norm of nearly 0).
fn check_computed(site: Site, op: &DeltaOp) -> Result<(), DeltaError> {
    let (DeltaOp::OutputScale { g, .. } | DeltaOp::InputScale { g } | DeltaOp::Bias { b: g } | DeltaOp::Gain { g }) =
        op
    else {
        return Ok(());
    };
    match g.iter().position(|number| !number.is_finite()) {
        Some(index) => Err(DeltaError::NonFinite { tensor: format!("{} of {site}", op.class().as_str()), index }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
