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
use super::layout::{BaseLayout, BaseWeights, Module, Site};
use super::peft::fields::Fields;
use super::program::{DeltaOp, DeltaProgram};
use crate::ops::HostTensor;
use tensors::TensorSet;

/// PEFT's prefix of every module path.
const PREFIX: &str = "base_model.model.";

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
}

/// The base an adapter is compiled against.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// Modules and sizes.
    pub layout: &'a BaseLayout,
    /// Numbers, where a method needs them.
    pub weights: &'a dyn BaseWeights,
}

/// One compilation in progress.
struct Compilation<'a> {
    base: Base<'a>,
    fields: Fields,
    tensors: TensorSet<'a>,
    limits: CompileLimits,
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
    let tensors = TensorSet::read(weights)?;
    let mut compilation = Compilation { base, fields, tensors, limits, ops: Vec::new() };
    let peft_type = compilation.fields.str("peft_type")?.map(str::to_owned);
    let kind = match peft_type.as_deref() {
        Some("LORA") => lora::compile(&mut compilation)?,
        Some("IA3") => ia3::compile(&mut compilation)?,
        Some("LN_TUNING") => ln_tuning::compile(&mut compilation)?,
        Some("PROMPT_TUNING" | "P_TUNING") => prompt::compile_prompt(&mut compilation)?,
        Some("PREFIX_TUNING") => prompt::compile_prefix(&mut compilation)?,
        Some(_) => {
            let hint = "; served: LORA, IA3, LN_TUNING, PROMPT_TUNING, P_TUNING, PREFIX_TUNING";
            return Err(compilation.fields.unsupported("peft_type", hint));
        }
        None => return Err(compilation.fields.bad("peft_type", "a PEFT method")),
    };
    compilation.finish(kind)
}

impl Compilation<'_> {
    fn finish(mut self, kind: &'static str) -> Result<DeltaProgram, DeltaError> {
        self.fields.finish()?;
        if let Some(tensor) = self.tensors.left().next() {
            return Err(leftover(tensor, kind));
        }
        if self.ops.is_empty() {
            return Err(DeltaError::NothingMatched);
        }
        self.ops.sort_by_key(|(site, op)| (*site, op.class()));
        for (site, op) in &self.ops {
            check_computed(*site, op)?;
        }
        Ok(DeltaProgram { kind: kind.to_owned(), ops: self.ops })
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
fn leftover(tensor: &str, kind: &'static str) -> DeltaError {
    let feature = if tensor.contains("trainable_tokens_delta") {
        Some("trainable tokens")
    } else if tensor.starts_with(PREFIX) && !tensor.contains("lora_") && tensor.ends_with(".weight") {
        Some("modules_to_save")
    } else {
        None
    };
    match feature {
        Some(feature) => DeltaError::UnsupportedTensor { tensor: tensor.to_owned(), feature },
        None => DeltaError::UnknownTensor { tensor: tensor.to_owned(), kind },
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
