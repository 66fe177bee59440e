//! HiRA (Huang et al. 2025): ΔW = W ⊙ (B·A), as many ranks as the base's weight has.

use super::compilation::{Compilation, CompileLimits, key};
use super::folds::{Folds, matrix_by_rows};
use super::host_maths::{product, tensor};
use super::modules::{Modules, OfModules};
use crate::delta::DeltaError;
use crate::delta::class::Dense;
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::PatternTable;

pub(super) struct HiraConfig {
    folds: Folds,
    rank: usize,
    rank_pattern: PatternTable,
}

impl HiraConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        // PEFT turns fan_in_fan_out off for linear modules.
        fields.ignore(&["hira_dropout", "fan_in_fan_out"]);
        Ok(Self {
            folds: Folds::read(fields, defaults::lora_targets(layout.model_type), limits, "HiRA", None)?,
            rank: fields.usize("r")?.unwrap_or(32),
            rank_pattern: PatternTable::read_whole(fields, "rank_pattern")?,
        })
    }

    fn dense(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<Option<Dense>, DeltaError> {
        let (rows, cols) = (module.output, module.input);
        let path = compilation.tensors.level().path(module).unwrap_or_default();
        // PEFT 0.21 reads rank_pattern and makes every module by `r`. Nothing but the shapes depends on which of the two it was.
        let of_pattern = self.rank_pattern.lookup(&path)?.map(|rank| rank as usize);
        let saved = compilation.tensors.shape(&key(module, "hira_A")).and_then(<[usize]>::first).copied();
        let rank = of_pattern.filter(|rank| saved == Some(*rank)).unwrap_or(self.rank);
        self.folds.check_rank(module, rank)?;
        let a = compilation.required(module, "hira_A", &[rank, cols])?;
        let b = compilation.required(module, "hira_B", &[rows, rank])?;
        if compilation.tensors.has_no_numbers() {
            let d = matrix_by_rows(compilation, rows, cols, |_, _| {})?;
            return Ok(Some(Dense { d, scaling: 1.0, replaces: false }));
        }
        let weight = compilation.base_tensor(&module.weight)?;
        let factors = product(&b, &tensor(&a, 0..rank)?)?;
        let d = matrix_by_rows(compilation, rows, cols, |row, numbers| {
            let factors = &factors[row * cols..];
            let weight = weight.rows_of(row..row + 1);
            let products = factors.iter().enumerate().map(|(col, factor)| weight.get(0, col) * factor);
            numbers.iter_mut().zip(products).for_each(|(number, product)| *number = product);
        })?;
        Ok(Some(Dense { d, scaling: 1.0, replaces: false }))
    }
}

impl OfModules for HiraConfig {
    const OWN_KEY: &'static str = ".hira_";

    fn modules(&self) -> &Modules {
        self.folds.modules()
    }

    fn give(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        let op = self.dense(compilation, module)?;
        self.folds.give(compilation, module, op)
    }
}
