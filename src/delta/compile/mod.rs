//! From an adapter's files to a [`DeltaProgram`]: one file per PEFT method.
//!
//! Strict by construction: every tensor is consumed, every config field that changes the maths is implemented or
//! refused by name, at least one site matches, all shapes agree with the base, all numbers are finite.

mod compilation;
mod dora;
mod ia3;
mod ln_tuning;
mod lora;
mod prompt;
mod tensors;

pub use compilation::{Base, CompileLimits};

use super::DeltaError;
use super::class::DeltaOp;
use super::layout::{BaseLayout, Site};
use super::peft::defaults;
use super::peft::fields::Fields;
use super::peft::keys;
use super::peft::targets::Targets;
use super::program::DeltaProgram;
use super::safetensors::{HeaderLimits, read_beginning};
use compilation::Compilation;
use tensors::TensorSet;

/// Every [`DeltaProgram::kind`] that comes out of [`compile`].
pub const SERVED_KINDS: [&str; 9] =
    ["LoRA", "rsLoRA", "DoRA", "rsLoRA DoRA", "IA3", "LN tuning", "prompt tuning", "P-tuning", "prefix tuning"];

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

    /// What stands in the keys of its own tensors and of no other method's.
    fn own_key(&self) -> Option<&'static str> {
        match self {
            Self::Ia3(_) => Some(".ia3_l"),
            Self::LnTuning(_) => Some(".ln_tuning_layers."),
            Self::Lora(_) | Self::Prompt(_) | Self::Prefix(_) => None,
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
    let mut compilation = Compilation::new(base, tensors, method.kind(), method.own_key());
    // A key that means nothing here says more than what is missing in its place.
    match (method.compile(&mut compilation), unknown) {
        (Err(DeltaError::NothingMatched { .. }), Some(tensor)) => {
            let nearest = keys::nearest(&tensor, base.layout);
            return Err(DeltaError::NothingMatched { shown: format!("; the file has `{tensor}`: {nearest}") });
        }
        (_, Some(tensor)) => return Err(compilation.leftover(&tensor)),
        (compiled, None) => compiled?,
    }
    compilation.finish()
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

#[cfg(test)]
mod tests;
