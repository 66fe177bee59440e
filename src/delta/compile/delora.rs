//! DeLoRA (Bini et al. 2025): ΔW = B·diag(λ / (r·‖a‖·‖b‖))·A·diag(n), where a and b are the rows of A and columns of B and n
//! the norms of the base's columns, which the file has.

use super::compilation::{Compilation, CompileLimits};
use super::folds::{Folds, matrix};
use super::modules::{Modules, OfModules};
use crate::delta::DeltaError;
use crate::delta::class::LowRank;
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::PatternTable;

/// PEFT's least norm.
const LEAST_NORM: f64 = 1e-4;

pub(super) struct DeloraConfig {
    folds: Folds,
    rank: usize,
    ranks: PatternTable,
}

impl DeloraConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        // The file has each module's λ.
        fields.ignore(&["delora_lambda", "lambda_pattern", "module_dropout"]);
        Ok(Self {
            folds: Folds::read(
                fields,
                defaults::lora_targets(layout.model_type),
                limits,
                "DeLoRA",
                Some("delora_only"),
            )?,
            rank: fields.usize("r")?.unwrap_or(8),
            ranks: PatternTable::read_whole(fields, "rank_pattern")?,
        })
    }

    fn pair(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<Option<LowRank>, DeltaError> {
        let path = compilation.tensors.level().path(module).unwrap_or_default();
        let rank = self.ranks.lookup(&path)?.map_or(self.rank, |rank| rank as usize);
        self.folds.check_rank(module, rank)?;
        let (input, output) = (module.input, module.output);
        let a = compilation.required(module, "delora_A", &[rank, input])?.to_f32();
        let b = compilation.required(module, "delora_B", &[output, rank])?;
        let lambda = compilation.required(module, "delora_lambda", &[1])?.to_f32();
        let norms = compilation.required(module, "delora_w_norm", &[input])?.to_f32();
        let columns = b.to_f32();
        let norm = |numbers: &mut dyn Iterator<Item = f32>| {
            numbers.map(|number| f64::from(number).powi(2)).sum::<f64>().sqrt().max(LEAST_NORM)
        };
        let scale = |k: usize| {
            let of_a = norm(&mut a.iter().skip(k * input).take(input).copied());
            let of_b = norm(&mut columns.iter().skip(k).step_by(rank).copied());
            lambda.first().map_or(0.0, |lambda| (f64::from(*lambda) / rank as f64 / (of_a * of_b)) as f32)
        };
        let scales: Vec<f32> = (0..rank).map(scale).collect();
        let a = matrix(compilation, rank, input, |row, col| scales[row] * a[row * input + col] * norms[col])?;
        Ok(Some(LowRank { a, b, scaling: 1.0 }))
    }
}

impl OfModules for DeloraConfig {
    const OWN_KEY: &'static str = ".delora_";

    fn modules(&self) -> &Modules {
        self.folds.modules()
    }

    fn give(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        let pair = self.pair(compilation, module)?;
        self.folds.give(compilation, module, pair)
    }
}
