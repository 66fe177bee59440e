//! AdaLoRA (Zhang et al. 2023): ΔW = B·diag(E)·A, of which training keeps as many rows of a module as it is worth.

use std::collections::BTreeMap;

use super::compilation::{Compilation, CompileLimits};
use super::folds::{Folds, matrix};
use super::lora;
use super::modules::{Modules, OfModules};
use crate::delta::DeltaError;
use crate::delta::class::LowRank;
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::files::Json;

/// Fields of the budget's schedule, and those of LoRA's config that PEFT does not look at here.
const IGNORED: [&str; 14] = [
    "target_r",
    "tinit",
    "tfinal",
    "deltaT",
    "beta1",
    "beta2",
    "orth_reg_weight",
    "total_step",
    "r",
    "alpha_pattern",
    "use_rslora",
    "lora_bias",
    "ensure_weight_tying",
    "init_lora_weights",
];

/// PEFT adds it to the rank that it divides by.
const EPSILON: f64 = 1e-5;

pub(super) struct AdaLoraConfig {
    folds: Folds,
    initial_rank: usize,
    alpha: f64,
    /// Rows that are left, by the path of a module in the model it was trained on.
    ranks: BTreeMap<String, usize>,
}

impl AdaLoraConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        fields.ignore(&lora::IGNORED);
        fields.ignore(&IGNORED);
        Ok(Self {
            folds: Folds::read(
                fields,
                defaults::adalora_targets(layout.model_type),
                limits,
                "AdaLoRA",
                Some("lora_only"),
            )?,
            initial_rank: fields.usize("init_r")?.unwrap_or(12),
            alpha: fields.f64("lora_alpha")?.unwrap_or(8.0),
            ranks: ranks(fields)?,
        })
    }

    fn pair(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<Option<LowRank>, DeltaError> {
        let path = compilation.tensors.level().path(module).unwrap_or_default();
        let rank = self.ranks.get(path.as_ref()).copied().unwrap_or(self.initial_rank);
        if rank > 0 {
            self.folds.check_rank(module, rank)?;
        }
        let a = compilation.required(module, "lora_A", &[rank, module.input])?;
        let b = compilation.required(module, "lora_B", &[module.output, rank])?;
        let e = compilation.required(module, "lora_E", &[rank, 1])?.to_f32();
        if rank == 0 {
            return Ok(None);
        }
        let a = a.to_f32();
        let a = matrix(compilation, rank, module.input, |row, col| e[row] * a[row * module.input + col])?;
        let alpha = if self.alpha > 0.0 { self.alpha } else { rank as f64 };
        // The rank that training began with, whatever is left of it.
        Ok(Some(LowRank { a, b, scaling: (alpha / (self.initial_rank as f64 + EPSILON)) as f32 }))
    }
}

impl OfModules for AdaLoraConfig {
    const OWN_KEY: &'static str = ".lora_E";

    fn modules(&self) -> &Modules {
        self.folds.modules()
    }

    fn give(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        let pair = self.pair(compilation, module)?;
        self.folds.give(compilation, module, pair)
    }
}

/// `rank_pattern`: for `path.lora_E` the list of which rows are kept.
fn ranks(fields: &Fields) -> Result<BTreeMap<String, usize>, DeltaError> {
    let expected = "an object of lists of true and false, by the names of the modules' lora_E";
    let of_module = |(key, rows): &(String, Json)| {
        let Json::Array(rows) = rows else { return Err(fields.bad("rank_pattern", expected)) };
        let kept = |row: &Json| match row {
            Json::Bool(kept) => Ok(usize::from(*kept)),
            _ => Err(fields.bad("rank_pattern", expected)),
        };
        let Some((path, _)) = key.split_once(".lora_E") else { return Err(fields.bad("rank_pattern", expected)) };
        Ok((path.to_owned(), rows.iter().map(kept).sum::<Result<usize, _>>()?))
    };
    match fields.get("rank_pattern") {
        None => Ok(BTreeMap::new()),
        Some(Json::Object(entries)) => entries.iter().map(of_module).collect(),
        Some(_) => Err(fields.bad("rank_pattern", expected)),
    }
}
