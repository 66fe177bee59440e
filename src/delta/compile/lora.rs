//! LoRA (Hu et al. 2021) as PEFT saves it, with rank and alpha patterns, rsLoRA (Kalajdzievski 2023), DoRA (Liu et al.
//! 2024), `lora_bias`, saved biases, and LoRA on the embedding and the head.

use super::{Compilation, dora, key};
use crate::delta::DeltaError;
use crate::delta::layout::{Module, ModuleKind};
use crate::delta::peft::json::Json;
use crate::delta::peft::targets::{PatternTable, Targets};
use crate::delta::program::DeltaOp;
use crate::ops::HostTensor;

/// `bias` of the config: which biases of the base the file replaces.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SavedBiases {
    None,
    All,
    LoraOnly,
}

struct LoraConfig {
    targets: Targets,
    rank: usize,
    alpha: f64,
    rank_pattern: PatternTable,
    alpha_pattern: PatternTable,
    rslora: bool,
    dora: bool,
    lora_bias: bool,
    biases: SavedBiases,
    tie: bool,
}

pub(super) fn compile(compilation: &mut Compilation<'_>) -> Result<&'static str, DeltaError> {
    let config = LoraConfig::read(compilation)?;
    let layout = compilation.base.layout;
    let mut matched = false;
    for module in layout.modules() {
        let targeted = config.contains(compilation, module)?;
        matched |= targeted;
        match (targeted, module.kind) {
            (true, ModuleKind::Linear) => linear(compilation, &config, module)?,
            (true, ModuleKind::Embedding) => embedding(compilation, &config, module)?,
            (true, ModuleKind::Norm) => {
                return Err(DeltaError::WrongModule { module: module.path.clone(), kind: "LoRA" });
            }
            (false, _) => not_targeted(compilation, &config, module)?,
        }
    }
    if !matched {
        return Err(DeltaError::NothingMatched);
    }
    Ok(match (config.dora, config.rslora) {
        (true, true) => "rsLoRA DoRA",
        (true, false) => "DoRA",
        (false, true) => "rsLoRA",
        (false, false) => "LoRA",
    })
}

impl LoraConfig {
    fn read(compilation: &Compilation<'_>) -> Result<Self, DeltaError> {
        let fields = &compilation.fields;
        fields.ignore(&["lora_dropout", "megatron_core", "qalora_group_size", "eva_config"]);
        check_init(compilation)?;
        let biases = match fields.str("bias")? {
            None | Some("none") => SavedBiases::None,
            Some("all") => SavedBiases::All,
            Some("lora_only") => SavedBiases::LoraOnly,
            Some(_) => return Err(fields.bad("bias", "none, all or lora_only")),
        };
        Ok(Self {
            targets: Targets::read(fields)?,
            rank: fields.usize("r")?.unwrap_or(8),
            alpha: fields.f64("lora_alpha")?.unwrap_or(8.0),
            rank_pattern: PatternTable::read(fields, "rank_pattern")?,
            alpha_pattern: PatternTable::read(fields, "alpha_pattern")?,
            rslora: fields.bool_or("use_rslora", false)?,
            dora: fields.bool_or("use_dora", false)?,
            lora_bias: fields.bool_or("lora_bias", false)?,
            biases,
            tie: fields.bool_or("ensure_weight_tying", false)?,
        })
    }

    /// With `ensure_weight_tying` on a tied base, a target of embedding or head is a target of both.
    fn contains(&self, compilation: &Compilation<'_>, module: &Module) -> Result<bool, DeltaError> {
        use crate::delta::layout::Site;
        if self.targets.contain(module)? {
            return Ok(true);
        }
        let layout = compilation.base.layout;
        let twin = match module.site {
            Site::LmHead => Site::Embed,
            Site::Embed => Site::LmHead,
            _ => return Ok(false),
        };
        match layout.modules().find(|other| other.site == twin) {
            Some(twin) if self.tie && layout.tied => self.targets.contain(twin),
            _ => Ok(false),
        }
    }

    /// Rank and scaling of a module.
    fn rank_and_scaling(&self, compilation: &Compilation<'_>, path: &str) -> Result<(usize, f32), DeltaError> {
        let rank = match self.rank_pattern.lookup(path)? {
            Some(rank) if rank >= 0.0 && rank.fract() == 0.0 && rank < 9e15 => rank as usize,
            Some(_) => return Err(compilation.fields.bad("rank_pattern", "whole numbers")),
            None => self.rank,
        };
        let max = compilation.limits.max_rank;
        if !(1..=max).contains(&rank) {
            return Err(DeltaError::Rank { module: path.to_owned(), rank, max });
        }
        let alpha = self.alpha_pattern.lookup(path)?.unwrap_or(self.alpha);
        let scaling = if self.rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 } as f32;
        if scaling.is_finite() {
            Ok((rank, scaling))
        } else {
            Err(compilation.fields.bad("lora_alpha", "a number whose scaling is a finite f32"))
        }
    }
}

/// Initialisations that change the base's weights make an adapter that is valid on the changed base alone.
fn check_init(compilation: &Compilation<'_>) -> Result<(), DeltaError> {
    match compilation.fields.get("init_lora_weights") {
        None | Some(Json::Bool(_)) => Ok(()),
        Some(Json::String(init)) if matches!(init.as_str(), "gaussian" | "eva" | "orthogonal") => Ok(()),
        Some(_) => {
            let hint = ": it changes the base's weights; save the adapter with PEFT's \
                        path_initial_model_for_weight_conversion";
            Err(compilation.fields.unsupported("init_lora_weights", hint))
        }
    }
}

fn linear(compilation: &mut Compilation<'_>, config: &LoraConfig, module: &Module) -> Result<(), DeltaError> {
    let (rank, scaling) = config.rank_and_scaling(compilation, &module.path)?;
    let a = required(compilation, module, "lora_A.weight", &[rank, module.input])?;
    let b = required(compilation, module, "lora_B.weight", &[module.output, rank])?;
    check_base_copy(compilation, module)?;
    let mut bias = None;
    if config.lora_bias {
        let saved = required(compilation, module, "lora_B.bias", &[module.output])?.to_f32();
        bias = Some(saved.into_iter().map(|b| scaling * b).collect::<Vec<f32>>());
    }
    if config.dora {
        let magnitude = required(compilation, module, "lora_magnitude_vector", &[module.output])?.to_f32();
        let weight = compilation.base_tensor(&module.weight)?;
        let norms = dora::row_norms(&weight, &a, &b, scaling)?;
        let g: Vec<f32> = magnitude.iter().zip(norms).map(|(m, norm)| m / norm).collect();
        // The low-rank bias stands inside DoRA's scale, the Bias op outside.
        bias = bias.map(|bias| bias.iter().zip(&g).map(|(b, g)| b * g).collect());
        compilation.push(module, DeltaOp::OutputScale { g, after_bias: false });
    }
    if config.biases != SavedBiases::None && module.bias {
        let replaced = replaced_bias(compilation, module, "base_layer.bias")?;
        bias = Some(match (bias, replaced) {
            (Some(bias), Some(replaced)) => bias.iter().zip(replaced).map(|(a, b)| a + b).collect(),
            (bias, replaced) => bias.or(replaced).unwrap_or_default(),
        })
        .filter(|bias| !bias.is_empty());
    }
    if let Some(b) = bias {
        compilation.push(module, DeltaOp::Bias { b });
    }
    compilation.push(module, DeltaOp::LowRank { a, b, scaling });
    Ok(())
}

fn embedding(compilation: &mut Compilation<'_>, config: &LoraConfig, module: &Module) -> Result<(), DeltaError> {
    let (rank, scaling) = config.rank_and_scaling(compilation, &module.path)?;
    let a = required(compilation, module, "lora_embedding_A", &[rank, module.input])?;
    let b = required(compilation, module, "lora_embedding_B", &[module.output, rank])?;
    check_base_copy(compilation, module)?;
    if config.dora {
        let magnitude = required(compilation, module, "lora_magnitude_vector", &[module.output])?.to_f32();
        let weight = compilation.base_tensor(&module.weight)?;
        let norms = dora::column_norms(&weight, &a, &b, scaling)?;
        let g = magnitude.iter().zip(norms).map(|(m, norm)| m / norm).collect();
        compilation.push(module, DeltaOp::OutputScale { g, after_bias: false });
    }
    compilation.push(module, DeltaOp::EmbeddingLowRank { a, b, scaling });
    Ok(())
}

/// A module without LoRA: `bias="all"` saves its bias all the same; a LoRA tensor for it contradicts the config.
fn not_targeted(compilation: &mut Compilation<'_>, config: &LoraConfig, module: &Module) -> Result<(), DeltaError> {
    for parameter in ["lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B"] {
        let tensor = key(module, parameter);
        if compilation.tensors.left().any(|left| left == tensor) {
            return Err(DeltaError::NotTargeted { tensor });
        }
    }
    if config.biases == SavedBiases::All
        && module.bias
        && let Some(b) = replaced_bias(compilation, module, "bias")?
    {
        compilation.push(module, DeltaOp::Bias { b });
    }
    Ok(())
}

fn required(
    compilation: &mut Compilation<'_>,
    module: &Module,
    parameter: &'static str,
    shape: &[usize],
) -> Result<HostTensor, DeltaError> {
    let missing = || DeltaError::MissingTensor { module: module.path.clone(), missing: parameter };
    compilation.tensors.take_shaped(&key(module, parameter), shape)?.ok_or_else(missing)
}

/// PEFT saves the base's weight beside LoRA on embeddings and heads: a no-op if it is ours, else another base.
fn check_base_copy(compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
    let tensor = key(module, "base_layer.weight");
    if !compilation.tensors.left().any(|left| left == tensor) {
        return Ok(());
    }
    let base = compilation.base_tensor(&module.weight)?;
    match compilation.tensors.take_copy(&tensor, &base) {
        Some(false) => Err(DeltaError::BaseMismatch { tensor }),
        _ => Ok(()),
    }
}

/// Saved biases replace the base's; the op adds the difference.
fn replaced_bias(
    compilation: &mut Compilation<'_>,
    module: &Module,
    parameter: &str,
) -> Result<Option<Vec<f32>>, DeltaError> {
    let Some(saved) = compilation.tensors.take_shaped(&key(module, parameter), &[module.output])? else {
        return Ok(None);
    };
    let base = compilation.base_tensor(&format!("{}.bias", module.path))?.to_f32();
    Ok(Some(saved.to_f32().iter().zip(base).map(|(saved, base)| saved - base).collect()))
}
