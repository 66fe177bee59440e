//! C3A (Chen et al. 2024): ΔW is cut into square blocks of which each is circulant, its rows one kernel turned on by one place
//! each; the sum is divided by the width of the input.

use super::compilation::{Compilation, CompileLimits};
use super::folds::{Folds, matrix};
use super::modules::{Modules, OfModules};
use crate::delta::DeltaError;
use crate::delta::class::Dense;
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::TailTable;

pub(super) struct C3aConfig {
    folds: Folds,
    block: usize,
    block_pattern: TailTable,
}

impl C3aConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        let default = defaults::lora_targets(layout.model_type);
        Ok(Self {
            folds: Folds::read(fields, default, limits, "C3A", Some("c3a_only"))?,
            block: fields.usize("block_size")?.unwrap_or(256),
            block_pattern: TailTable::read(fields, "block_size_pattern")?,
        })
    }

    fn dense(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<Option<Dense>, DeltaError> {
        let (rows, cols) = (module.output, module.input);
        let path = compilation.tensors.level().path(module).unwrap_or_default();
        let block = self.block_pattern.lookup(&path)?.unwrap_or(self.block);
        if block == 0 || !rows.is_multiple_of(block) || !cols.is_multiple_of(block) {
            return Err(DeltaError::WrongModule { module: module.path.clone(), kind: self.folds.kind() });
        }
        let across = cols / block;
        let kernels = compilation.required(module, "c3a_kernel", &[rows / block, across, block])?.to_f32();
        let d = matrix(compilation, rows, cols, |row, col| {
            let kernel = row / block * across + col / block;
            kernels[kernel * block + (col % block + block - row % block) % block]
        })?;
        Ok(Some(Dense { d, scaling: 1.0 / cols as f32, replaces: false }))
    }
}

impl OfModules for C3aConfig {
    const OWN_KEY: &'static str = ".c3a_kernel";

    fn modules(&self) -> &Modules {
        self.folds.modules()
    }

    fn give(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        let op = self.dense(compilation, module)?;
        self.folds.give(compilation, module, op)
    }
}
