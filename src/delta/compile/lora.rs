//! LoRA (Hu et al. 2021) as PEFT saves it, with rank and alpha patterns, rsLoRA (Kalajdzievski 2023), DoRA (Liu et al.
//! 2024), aLoRA (Greenewald et al. 2025), `lora_bias`, saved biases, and LoRA on the embedding and the head, on parameters
//! (`target_parameters`), and on routers and experts.

use super::biases::SavedBiases;
use super::compilation::{Compilation, CompileLimits, key};
use super::dora;
use super::experts::OfExperts;
use super::method::Method;
use super::ranks::Ranks;
use super::tokens::TokenIndices;
use crate::delta::DeltaError;
use crate::delta::class::{Bias, EmbeddingLowRank, LowRank, OutputScale};
use crate::delta::layout::{BaseLayout, Module, ModuleKind, Site};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::{TargetParameters, Targets};
use crate::files::Json;
use crate::ops::HostTensor;

/// Fields that train, initialise or speed up, and never change what a trained adapter computes. PEFT turns
/// `fan_in_fan_out` off for linear modules.
pub(super) const IGNORED: [&str; 10] = [
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "qalora_group_size",
    // It changes the gradients alone.
    "velora_config",
];

pub(super) struct LoraConfig {
    targets: Targets,
    parameters: TargetParameters,
    ranks: Ranks,
    dora: bool,
    lora_bias: bool,
    biases: SavedBiases,
    tie: bool,
    tokens: TokenIndices,
    velora: bool,
    /// Of aLoRA; empty in every other.
    invocation_tokens: Vec<u32>,
}

/// Most invocation tokens: every prompt is searched for them.
const MAX_INVOCATION_TOKENS: usize = 256;

impl LoraConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        fields.ignore(&IGNORED);
        check_init(fields)?;
        let tie = fields.bool_or("ensure_weight_tying", false)?;
        let parameters = TargetParameters::read(fields)?;
        // Beside parameters no module need be a target.
        let none: Option<&[&str]> = if parameters.is_empty() { None } else { Some(&[]) };
        let config = Self {
            targets: Targets::read_with_layers(fields, defaults::lora_targets(layout.model_type).or(none))?,
            parameters,
            ranks: Ranks::read(fields, limits)?,
            dora: fields.bool_or("use_dora", false)?,
            lora_bias: fields.bool_or("lora_bias", false)?,
            biases: SavedBiases::read(fields, "lora_only")?,
            tie,
            tokens: TokenIndices::read(fields, layout, tie)?,
            velora: fields.get("velora_config").is_some(),
            invocation_tokens: invocation_tokens(fields, layout)?,
        };
        if config.dora && config.lora_bias {
            // PEFT refuses the pair, so nothing tells what it would mean.
            return Err(fields.unsupported("lora_bias", " together with use_dora"));
        }
        if let Some(field) = config.beside_parameters().filter(|_| !config.parameters.is_empty()) {
            return Err(fields.unsupported(field, " together with target_parameters"));
        }
        match config.beside_invocation(fields).filter(|_| !config.invocation_tokens.is_empty()) {
            Some(field) => Err(fields.unsupported(field, " together with alora_invocation_tokens")),
            None => Ok(config),
        }
    }

    /// A field that cannot stand beside invocation tokens: PEFT refuses it, or it changes rows before the invocation, too.
    fn beside_invocation(&self, fields: &Fields) -> Option<&'static str> {
        let set = [
            ("use_dora", self.dora),
            ("velora_config", self.velora),
            ("bias", self.biases != SavedBiases::None),
            ("modules_to_save", fields.is_set("modules_to_save")),
            ("trainable_token_indices", fields.is_set("trainable_token_indices")),
        ];
        set.into_iter().find(|(_, set)| *set).map(|(field, _)| field)
    }

    /// A field that cannot stand beside target parameters, because PEFT refuses it.
    fn beside_parameters(&self) -> Option<&'static str> {
        let set = [
            ("use_dora", self.dora),
            ("lora_bias", self.lora_bias),
            ("velora_config", self.velora),
            ("alora_invocation_tokens", !self.invocation_tokens.is_empty()),
            ("bias", self.biases != SavedBiases::None),
        ];
        set.into_iter().find(|(_, set)| *set).map(|(field, _)| field)
    }

    /// With `ensure_weight_tying` on a tied base, a target of embedding or head is a target of both.
    fn contains(&self, compilation: &Compilation<'_>, module: &Module) -> Result<bool, DeltaError> {
        let layout = compilation.base.layout;
        if compilation.is_target(&self.targets, module)? {
            return Ok(true);
        }
        let twin = match module.site {
            Site::LmHead => Site::Embed,
            Site::Embed => Site::LmHead,
            _ => return Ok(false),
        };
        match layout.modules().find(|other| other.site == twin) {
            Some(twin) if self.tie && layout.tied => compilation.is_target(&self.targets, twin),
            _ => Ok(false),
        }
    }

    /// Whether the weight of a module is a target as a parameter, which on a linear module is the LoRA that the module would
    /// have. PEFT makes none of a norm's, and another one of an embedding's.
    fn weight_is_target(&self, compilation: &Compilation<'_>, module: &Module) -> Result<bool, DeltaError> {
        let path = compilation.tensors.level().path(module);
        if !path.is_some_and(|path| self.parameters.contain(&format!("{path}.weight"))) {
            return Ok(false);
        }
        match module.kind {
            ModuleKind::Linear => Ok(true),
            _ => Err(DeltaError::WrongModule { module: module.path.clone(), kind: self.kind() }),
        }
    }

    /// Rank and scaling of a module.
    fn rank_and_scaling(&self, compilation: &Compilation<'_>, module: &Module) -> Result<(usize, f32), DeltaError> {
        let path = compilation.tensors.level().path(module).unwrap_or_default();
        match self.weight_is_target(compilation, module)? {
            true => self.ranks.of(&module.path, &format!("{path}.weight")),
            false => self.ranks.of(&module.path, &path),
        }
    }

    fn linear(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        let (rank, scaling) = self.rank_and_scaling(compilation, module)?;
        let a = compilation.required(module, "lora_A.weight", &[rank, module.input])?;
        let b = compilation.required(module, "lora_B.weight", &[module.output, rank])?;
        let mut bias = None;
        if self.lora_bias {
            let saved = compilation.required(module, "lora_B.bias", &[module.output])?.to_f32();
            bias = Some(saved.into_iter().map(|b| scaling * b).collect::<Vec<f32>>());
        }
        if self.dora {
            let magnitude = compilation.required(module, "lora_magnitude_vector", &[module.output])?.to_f32();
            let g = dora_scales(compilation, module, &magnitude, |weight| dora::row_norms(weight, &a, &b, scaling))?;
            compilation.push(module.site, OutputScale { g, after_bias: false });
        }
        if let Some(replaced) = self.biases.take(compilation, module, true)? {
            bias = Some(match bias {
                Some(bias) => bias.iter().zip(replaced).map(|(a, b)| a + b).collect(),
                None => replaced,
            });
        }
        if let Some(b) = bias {
            compilation.push(module.site, Bias { b });
        }
        if self.velora {
            // What its backward pass projects with.
            compilation.tensors.remove(&key(module, "lora_velora_embed"));
        }
        compilation.push(module.site, LowRank { a, b, scaling });
        Ok(())
    }

    fn embedding(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        let (rank, scaling) = self.rank_and_scaling(compilation, module)?;
        let a = compilation.required(module, "lora_embedding_A", &[rank, module.input])?;
        let b = compilation.required(module, "lora_embedding_B", &[module.output, rank])?;
        if self.dora {
            let magnitude = compilation.required(module, "lora_magnitude_vector", &[module.output])?.to_f32();
            let g = dora_scales(compilation, module, &magnitude, |weight| dora::column_norms(weight, &a, &b, scaling))?;
            compilation.push(module.site, OutputScale { g, after_bias: false });
        }
        compilation.push(module.site, EmbeddingLowRank { a, b, scaling });
        Ok(())
    }

    /// The kind of adapter, where its options have no meaning within an expert: PEFT has none that could be compared with.
    fn refused_by_experts(&self) -> Option<&'static str> {
        let plain = !self.dora && !self.lora_bias && !self.velora && self.invocation_tokens.is_empty();
        match (plain, self.lora_bias) {
            (true, _) => None,
            (false, true) => Some("LoRA with lora_bias"),
            (false, false) => Some(self.kind()),
        }
    }

    /// A module without LoRA: `bias="all"` saves its bias all the same; a LoRA tensor for it contradicts the config.
    fn not_targeted(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        for parameter in ["lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B"] {
            if let Some(tensor) = compilation.tensors.own_key(&key(module, parameter)) {
                return Err(DeltaError::NotTargeted { tensor: tensor.to_owned() });
            }
        }
        if let Some(b) = self.biases.take(compilation, module, false)? {
            compilation.push(module.site, Bias { b });
        }
        Ok(())
    }
}

impl Method for LoraConfig {
    fn kind(&self) -> &'static str {
        match (self.dora, !self.invocation_tokens.is_empty(), self.ranks.is_rslora()) {
            (true, _, true) => "rsLoRA DoRA",
            (true, _, false) => "DoRA",
            (false, true, true) => "rsLoRA aLoRA",
            (false, true, false) => "aLoRA",
            (false, false, true) => "rsLoRA",
            (false, false, false) => "LoRA",
        }
    }

    fn invocation_tokens(&self) -> &[u32] {
        &self.invocation_tokens
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let layout = compilation.base.layout;
        let mut matched = false;
        for module in layout.modules() {
            let (as_module, as_weight) =
                (self.contains(compilation, module)?, self.weight_is_target(compilation, module)?);
            if as_module && as_weight {
                // PEFT refuses to wrap it twice.
                return Err(DeltaError::WrongModule { module: module.path.clone(), kind: "LoRA twice" });
            }
            let targeted = as_module || as_weight;
            matched |= targeted;
            match (targeted, module.kind) {
                (true, ModuleKind::Linear) => self.linear(compilation, module)?,
                // PEFT refuses an embedding beside an invocation.
                (true, ModuleKind::Embedding) if !self.invocation_tokens.is_empty() => {
                    return Err(DeltaError::WrongModule { module: module.path.clone(), kind: self.kind() });
                }
                (true, ModuleKind::Embedding) => self.embedding(compilation, module)?,
                (true, ModuleKind::Norm) => {
                    return Err(DeltaError::WrongModule { module: module.path.clone(), kind: self.kind() });
                }
                (false, _) => self.not_targeted(compilation, module)?,
            }
        }
        let of_experts = OfExperts {
            targets: &self.targets,
            parameters: &self.parameters,
            ranks: &self.ranks,
            refused_kind: self.refused_by_experts(),
        };
        matched |= of_experts.compile(compilation)?;
        if !matched {
            return Err(DeltaError::NothingMatched { shown: String::new() });
        }
        self.tokens.compile(compilation, |compilation, module| self.contains(compilation, module))
    }
}

/// The tokens that activate an aLoRA. Empty is a LoRA, as in PEFT.
fn invocation_tokens(fields: &Fields, layout: &BaseLayout) -> Result<Vec<u32>, DeltaError> {
    let field = "alora_invocation_tokens";
    let ids = match fields.get(field) {
        None => return Ok(Vec::new()),
        Some(Json::Array(_)) => fields.indices(field)?.unwrap_or_default(),
        Some(_) => return Err(fields.bad(field, "a list of token ids")),
    };
    if ids.len() > MAX_INVOCATION_TOKENS || ids.iter().any(|id| *id >= layout.vocab_size) {
        return Err(fields.bad(field, "at most 256 ids of the base's vocabulary"));
    }
    Ok(ids.into_iter().map(|id| id as u32).collect())
}

/// Initialisations that change the base's weights make an adapter that is valid on the changed base alone.
fn check_init(fields: &Fields) -> Result<(), DeltaError> {
    const HARMLESS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];
    match fields.get("init_lora_weights") {
        None | Some(Json::Bool(_)) => Ok(()),
        Some(Json::String(init)) if HARMLESS.iter().any(|name| init.eq_ignore_ascii_case(name)) => Ok(()),
        Some(_) => {
            let hint = ": it changes the base's weights; save the adapter with PEFT's \
                        path_initial_model_for_weight_conversion";
            Err(fields.unsupported("init_lora_weights", hint))
        }
    }
}

/// DoRA's scales: the magnitudes over norms of the changed weight, which needs the adapter's numbers.
fn dora_scales(
    compilation: &Compilation<'_>,
    module: &Module,
    magnitude: &[f32],
    norms: impl Fn(&HostTensor) -> Result<Vec<f32>, candle_core::Error>,
) -> Result<Vec<f32>, DeltaError> {
    if compilation.tensors.has_no_numbers() {
        return Ok(Vec::new());
    }
    let norms = norms(&compilation.base_tensor(&module.weight)?)?;
    Ok(magnitude.iter().zip(norms).map(|(m, norm)| m / norm).collect())
}
