//! MiSS (Kang & Yin 2024): y += Mᵀ·u, where u[k] is the sum of the inputs k, k + r, k + 2r …; in its form `bat` ΔW = W·M + M,
//! block by block of r × r.

use super::compilation::{Compilation, CompileLimits};
use super::folds::{Folds, matrix, matrix_by_rows};
use super::modules::{Modules, OfModules};
use crate::delta::DeltaError;
use crate::delta::class::{DeltaOp, Dense, LowRank};
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::files::Json;

pub(super) struct MissConfig {
    folds: Folds,
    rank: usize,
    form: Form,
}

/// What M is.
enum Form {
    /// `[r, out]`.
    Whole,
    /// `[r, outputs]`, repeated for the other outputs.
    Mini { outputs: usize },
    /// `[out / r, r, r]`: a block for every r outputs, which all blocks of W there are multiplied with.
    Blocks,
}

impl MissConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        fields.ignore(&["miss_dropout"]);
        let folds = Folds::read(fields, defaults::lora_targets(layout.model_type), limits, "MiSS", Some("miss_only"))?;
        let outputs = fields.usize("mini_r")?.unwrap_or(1);
        let form = match fields.get("init_weights") {
            None | Some(Json::Bool(_)) => Form::Whole,
            Some(Json::String(form)) if form == "mini" => Form::Mini { outputs },
            Some(Json::String(form)) if form == "bat" => Form::Blocks,
            Some(_) => return Err(fields.unsupported("init_weights", ": it is no form of MiSS that is known here")),
        };
        Ok(Self { folds, rank: fields.usize("r")?.unwrap_or(64), form })
    }

    fn fold(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<Option<DeltaOp>, DeltaError> {
        let rank = self.rank;
        self.folds.check_rank(module, rank)?;
        let outputs = match self.form {
            Form::Whole => module.output,
            Form::Mini { outputs } => outputs,
            Form::Blocks => rank,
        };
        let cuts_inputs = !matches!(self.form, Form::Blocks) || module.input.is_multiple_of(rank);
        if outputs == 0 || !module.output.is_multiple_of(outputs) || rank > module.input || !cuts_inputs {
            return Err(DeltaError::WrongModule { module: module.path.clone(), kind: self.folds.kind() });
        }
        match self.form {
            Form::Whole | Form::Mini { .. } => self.pair(compilation, module, outputs).map(|pair| Some(pair.into())),
            Form::Blocks => self.blocks(compilation, module).map(|dense| Some(dense.into())),
        }
    }

    fn blocks(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<Dense, DeltaError> {
        let rank = self.rank;
        let m = compilation.required(module, "miss_block", &[module.output / rank, rank, rank])?.to_f32();
        let weight = match compilation.tensors.has_no_numbers() {
            true => None,
            false => Some(compilation.base_tensor(&module.weight)?),
        };
        let d = matrix_by_rows(compilation, module.output, module.input, |row, numbers| {
            let Some(weight) = weight.as_ref().map(|weight| weight.rows_of(row..row + 1)) else { return };
            let block = &m[row / rank * rank * rank..][..rank * rank];
            for (at, numbers) in numbers.chunks_exact_mut(rank).enumerate() {
                numbers.copy_from_slice(&block[row % rank * rank..][..rank]);
                for (k, of_block) in block.chunks_exact(rank).enumerate() {
                    let w = weight.get(0, at * rank + k);
                    numbers.iter_mut().zip(of_block).for_each(|(number, m)| *number += w * m);
                }
            }
        })?;
        Ok(Dense { d, scaling: 1.0, replaces: false })
    }

    fn pair(&self, compilation: &mut Compilation<'_>, module: &Module, outputs: usize) -> Result<LowRank, DeltaError> {
        let rank = self.rank;
        let m = compilation.required(module, "miss_block", &[rank, outputs])?.to_f32();
        let a = matrix(compilation, rank, module.input, |row, col| f32::from(u8::from(col % rank == row)))?;
        let b = matrix(compilation, module.output, rank, |row, col| m[col * outputs + row % outputs])?;
        Ok(LowRank { a, b, scaling: 1.0 })
    }
}

impl OfModules for MissConfig {
    const OWN_KEY: &'static str = ".miss_block";

    fn modules(&self) -> &Modules {
        self.folds.modules()
    }

    fn give(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        let op = self.fold(compilation, module)?;
        self.folds.give(compilation, module, op)
    }
}
