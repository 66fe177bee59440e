//! From an adapter's files to a [`DeltaProgram`]: one file per method.
//!
//! Strict by construction: every tensor is consumed, every config field that changes the maths is implemented or
//! refused by name, at least one site matches, all shapes agree with the base, all numbers are finite.

mod adalora;
mod beft;
mod biases;
mod boft;
mod bottleneck;
mod c3a;
mod cayley;
mod compilation;
mod delora;
mod dora;
mod experts;
mod folds;
mod format;
mod fourier;
mod fourierft;
mod gralora;
mod head;
mod hira;
mod host_maths;
mod hra;
mod ia3;
mod layer_parameters;
mod ln_tuning;
mod loha;
mod lokr;
mod lora;
mod method;
mod miss;
mod modules;
mod oft;
mod phm;
mod prompt;
mod randlora;
mod ranks;
mod road;
mod saved;
mod saved_embedding;
mod shira;
mod tensors;
mod tokens;
mod torch_random;
mod vblora;
mod vera;
mod vocabulary;
mod wiring;

pub(super) use compilation::check_computed;
pub use compilation::{Base, CompileLimits};

use super::DeltaError;
use super::adapterhub;
use super::class::DeltaOp;
use super::layout::{BaseLayout, Site};
use super::peft::fields::Fields;
use super::peft::keys;
use super::program::DeltaProgram;
use super::safetensors::{HeaderLimits, read_beginning, read_header};
use crate::types::DeltaGroup;
use compilation::Compilation;
use head::Task;
use method::Method;
use saved::SavedModules;
use tensors::TensorSet;
use vocabulary::Resized;

/// Every [`DeltaProgram::kind`] that comes out of [`compile`], with its group.
pub const SERVED_KINDS: &[(&str, DeltaGroup)] = &[
    ("LoRA", DeltaGroup::Reparameterization),
    ("rsLoRA", DeltaGroup::Reparameterization),
    ("DoRA", DeltaGroup::Reparameterization),
    ("rsLoRA DoRA", DeltaGroup::Reparameterization),
    ("aLoRA", DeltaGroup::Reparameterization),
    ("rsLoRA aLoRA", DeltaGroup::Reparameterization),
    ("AdaLoRA", DeltaGroup::Reparameterization),
    ("LoHa", DeltaGroup::Reparameterization),
    ("LoKr", DeltaGroup::Reparameterization),
    ("VeRA", DeltaGroup::Reparameterization),
    ("MiSS", DeltaGroup::Reparameterization),
    ("HRA", DeltaGroup::Reparameterization),
    ("DeLoRA", DeltaGroup::Reparameterization),
    ("VB-LoRA", DeltaGroup::Reparameterization),
    ("GraLoRA", DeltaGroup::Reparameterization),
    ("FourierFT", DeltaGroup::Reparameterization),
    ("C3A", DeltaGroup::Reparameterization),
    ("RandLoRA", DeltaGroup::Reparameterization),
    ("HiRA", DeltaGroup::Reparameterization),
    ("OFT", DeltaGroup::Reparameterization),
    ("BOFT", DeltaGroup::Reparameterization),
    ("IA3", DeltaGroup::Addition),
    ("BEFT", DeltaGroup::Specification),
    ("RoAd", DeltaGroup::Reparameterization),
    ("SHiRA", DeltaGroup::Specification),
    ("LN tuning", DeltaGroup::Specification),
    ("trainable tokens", DeltaGroup::Specification),
    ("prompt tuning", DeltaGroup::Addition),
    ("P-tuning", DeltaGroup::Addition),
    ("multitask prompt tuning", DeltaGroup::Addition),
    ("CPT", DeltaGroup::Addition),
    ("prefix tuning", DeltaGroup::Addition),
    ("bottleneck", DeltaGroup::Addition),
    ("Compacter", DeltaGroup::Addition),
];

impl DeltaProgram {
    /// The group of its method.
    #[must_use]
    pub fn group(&self) -> Option<DeltaGroup> {
        SERVED_KINDS.iter().find(|(kind, _)| *kind == self.kind).map(|(_, group)| *group)
    }
}

/// Reads a config.
type Reader = fn(&Fields, &BaseLayout, CompileLimits) -> Result<Box<dyn Method>, DeltaError>;

fn boxed<M: Method + 'static>(read: Result<M, DeltaError>) -> Result<Box<dyn Method>, DeltaError> {
    read.map(|method| Box::new(method) as Box<dyn Method>)
}

/// The methods that are served, by `peft_type`.
const METHODS: &[(&str, Reader)] = &[
    ("LORA", |fields, layout, limits| boxed(lora::LoraConfig::read(fields, layout, limits))),
    ("ADALORA", |fields, layout, limits| boxed(adalora::AdaLoraConfig::read(fields, layout, limits))),
    ("LOHA", |fields, layout, limits| boxed(loha::LoHaConfig::read(fields, layout, limits))),
    ("LOKR", |fields, layout, limits| boxed(lokr::LoKrConfig::read(fields, layout, limits))),
    ("VERA", |fields, layout, limits| boxed(vera::VeraConfig::read(fields, layout, limits))),
    ("MISS", |fields, layout, limits| boxed(miss::MissConfig::read(fields, layout, limits))),
    ("HRA", |fields, layout, limits| boxed(hra::HraConfig::read(fields, layout, limits))),
    ("DELORA", |fields, layout, limits| boxed(delora::DeloraConfig::read(fields, layout, limits))),
    ("VBLORA", |fields, layout, limits| boxed(vblora::VbLoraConfig::read(fields, layout, limits))),
    ("GRALORA", |fields, layout, limits| boxed(gralora::GraloraConfig::read(fields, layout, limits))),
    ("OFT", |fields, layout, _| boxed(oft::OftConfig::read(fields, layout))),
    ("BOFT", |fields, layout, _| boxed(boft::BoftConfig::read(fields, layout))),
    ("FOURIERFT", |fields, layout, limits| boxed(fourierft::FourierFtConfig::read(fields, layout, limits))),
    ("C3A", |fields, layout, limits| boxed(c3a::C3aConfig::read(fields, layout, limits))),
    ("RANDLORA", |fields, layout, limits| boxed(randlora::RandLoraConfig::read(fields, layout, limits))),
    ("HIRA", |fields, layout, limits| boxed(hira::HiraConfig::read(fields, layout, limits))),
    ("IA3", |fields, layout, _| boxed(ia3::Ia3Config::read(fields, layout))),
    ("BEFT", |fields, layout, _| boxed(beft::BeftConfig::read(fields, layout))),
    ("ROAD", |fields, layout, _| boxed(road::RoadConfig::read(fields, layout))),
    ("SHIRA", |fields, layout, limits| boxed(shira::ShiraConfig::read(fields, layout, limits))),
    ("LN_TUNING", |fields, layout, _| boxed(ln_tuning::LnTuningConfig::read(fields, layout))),
    ("TRAINABLE_TOKENS", |fields, layout, _| boxed(tokens::TrainableTokensConfig::read(fields, layout))),
    ("PROMPT_TUNING", |fields, layout, limits| {
        boxed(prompt::PromptConfig::read(fields, layout, limits, "prompt tuning"))
    }),
    ("P_TUNING", |fields, layout, limits| boxed(prompt::PromptConfig::read(fields, layout, limits, "P-tuning"))),
    ("MULTITASK_PROMPT_TUNING", |fields, layout, limits| boxed(prompt::MultitaskConfig::read(fields, layout, limits))),
    ("CPT", |fields, layout, limits| boxed(prompt::PromptConfig::read_cpt(fields, layout, limits))),
    ("PREFIX_TUNING", |fields, layout, limits| boxed(prompt::PrefixConfig::read(fields, layout, limits))),
];

/// What a config says.
struct Config {
    method: Box<dyn Method>,
    saved: SavedModules,
    task: Task,
}

/// The fields of an `adapter_config.json`, and what they say.
fn read_config(config: &[u8], layout: &BaseLayout, limits: CompileLimits) -> Result<(Fields, Config), DeltaError> {
    let fields = Fields::parse(config)?;
    let fields = if adapterhub::wrote(&fields) { fields.flattened(adapterhub::CONFIG) } else { fields };
    let method = read_method(&fields, layout, limits)?;
    let task = Task::read(&fields)?;
    let saved = match method.takes_saved_modules() && !task.has_head() {
        true => SavedModules::read(&fields, layout)?,
        false => SavedModules::none(),
    };
    Ok((fields, Config { method, saved, task }))
}

fn read_method(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Box<dyn Method>, DeltaError> {
    let Some(name) = fields.str("peft_type")? else {
        return match adapterhub::wrote(fields) {
            true => boxed(bottleneck::BottleneckConfig::read(fields, layout, limits)),
            false => Err(not_of_peft(fields)),
        };
    };
    match METHODS.iter().find(|(served, _)| *served == name) {
        Some((_, read)) => read(fields, layout, limits),
        None => {
            let served = METHODS.iter().map(|(served, _)| *served).collect::<Vec<_>>().join(", ");
            Err(fields.unsupported("peft_type", format!("; served: {served}")))
        }
    }
}

/// Why a config without `peft_type` is none of PEFT's, where it is known whose it is.
fn not_of_peft(fields: &Fields) -> DeltaError {
    const MLX: &str = ": this is an adapter of MLX; fuse it with mlx_lm.fuse and serve the result with --model";
    match ["fine_tune_type", "lora_parameters"].into_iter().find(|field| fields.get(field).is_some()) {
        Some(field) => fields.unsupported(field, MLX),
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
    let (fields, config) = read_config(config, base.layout, limits)?;
    let unknown_fields = fields.finish(limits.unknown_fields())?;
    let Built { ops, vocab_size } =
        build(&config, TensorSet::read(weights, config.method.format(), base.layout)?, base)?;
    Ok(DeltaProgram {
        kind: config.method.kind().to_owned(),
        task: config.task.of(&ops),
        invocation_tokens: config.method.invocation_tokens().to_vec(),
        keeps_base_kv: ops.iter().all(|(site, _)| base.layout.is_behind_kv(*site)),
        base_layers: ops.iter().map(|(site, _)| base.layout.layers_before(*site)).min().unwrap_or(0),
        vocab_size,
        ops,
        unknown_fields,
    })
}

/// What a file compiles to.
struct Built {
    ops: Vec<(Site, DeltaOp)>,
    /// Where it is not the base's.
    vocab_size: Option<usize>,
}

fn build(config: &Config, mut tensors: TensorSet<'_>, base: Base<'_>) -> Result<Built, DeltaError> {
    let Config { method, saved, task } = config;
    if let Some(tensor) = tensors.whole_model().filter(|_| saved.is_empty()) {
        return Err(DeltaError::WholeModel { tensor: tensor.to_owned(), kind: method.kind() });
    }
    let unknown = tensors.unknown();
    let of_experts = keys::first_of_experts(unknown, base.layout).cloned();
    let unknown = of_experts.clone().or_else(|| unknown.first().cloned());
    let resized = Resized::take(&mut tensors, base, method.invocation_tokens())?;
    let mut compilation = Compilation::new(base, tensors, saved.embedding, method.kind(), method.own_key());
    let vocab_size = resized.as_ref().map(Resized::tokens);
    compilation.vocab_size = vocab_size.unwrap_or(base.layout.vocab_size);
    let beside = saved.compile(&mut compilation).and_then(|()| task.compile(&mut compilation));
    let compiled = beside.and_then(|()| method.compile(&mut compilation));
    // A key that means nothing here says more than what is missing in its place.
    match (compiled, unknown) {
        (Err(DeltaError::NothingMatched { .. }), Some(tensor)) if of_experts.is_none() => {
            let nearest = keys::nearest(&tensor, base.layout);
            return Err(DeltaError::NothingMatched { shown: format!("; the file has `{tensor}`: {nearest}") });
        }
        (_, Some(tensor)) => return Err(compilation.leftover(&tensor)),
        // Beside modules that the file has whole a method needs none of its own.
        (Err(DeltaError::NothingMatched { .. }), None) if !saved.is_empty() => {}
        (compiled, None) => compiled?,
    }
    if let Some(resized) = resized {
        resized.join(&mut compilation)?;
    }
    Ok(Built { ops: compilation.finish()?, vocab_size })
}

/// Bytes of the numbers that [`compile`] works out besides those of the file, at most; nothing is allocated for them here.
///
/// # Errors
/// The first reason to refuse, as far as it shows without numbers.
pub fn worked_out_bytes(
    config: &[u8],
    weights: &[u8],
    base: Base<'_>,
    limits: CompileLimits,
) -> Result<u64, DeltaError> {
    /// Matrices on the way to a full one, each as large: the base's, and the factors that are multiplied.
    const ON_THE_WAY: u64 = 3;
    let (_, config) = read_config(config, base.layout, limits)?;
    if !config.method.works_out_numbers() {
        return Ok(0);
    }
    let header = read_header(weights, &HeaderLimits::default())?;
    let tensors = TensorSet::without_numbers(&header, config.method.format(), base.layout)?;
    let ops = build(&config, tensors, base)?.ops;
    let parameters = |op: &DeltaOp| op.as_op().parameters() as u64;
    let all = ops.iter().map(|(_, op)| parameters(op)).fold(0, u64::saturating_add);
    let full = ops.iter().filter(|(_, op)| op.as_op().replaces() == Some(false));
    let largest = full.map(|(_, op)| parameters(op)).max().unwrap_or(0);
    let numbers = all.saturating_add(largest.saturating_mul(ON_THE_WAY));
    Ok(numbers.saturating_mul(size_of::<f32>() as u64))
}

/// Check the bytes of `adapter_config.json` alone, as [`compile`] does before it looks at any weight.
///
/// # Errors
/// The first reason to refuse.
pub fn check_config(config: &[u8], layout: &BaseLayout, limits: CompileLimits) -> Result<(), DeltaError> {
    let (fields, _) = read_config(config, layout, limits)?;
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
        let (fields, read) = read_config(config, base.layout, limits)?;
        fields.finish(limits.unknown_fields())?;
        Ok::<_, DeltaError>(read)
    };
    let config = config.map(read).transpose()?;
    let Some((first, file_bytes)) = weights else { return Ok(()) };
    let header = read_beginning(first, file_bytes, &HeaderLimits::default())?;
    match (config, header) {
        (Some(config), Some(header)) => {
            let tensors = TensorSet::without_numbers(&header, config.method.format(), base.layout)?;
            build(&config, tensors, base).map(drop)
        }
        _ => Ok(()),
    }
}

/// Every field of an `adapter_config.json` that [`compile`] refuses, for people who want to know them all at once: those
/// not supported, or the first that is wrong in itself. Empty if the config is fine; the weights may still not be.
#[must_use]
pub fn config_refusals(config: &[u8], layout: &BaseLayout, limits: CompileLimits) -> Vec<DeltaError> {
    let read = read_config(config, layout, limits);
    read.map_or_else(|error| vec![error], |(fields, _)| fields.refusals(limits.unknown_fields()))
}

#[cfg(test)]
mod tests;
