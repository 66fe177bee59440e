//! VeRA (Kopiczko et al. 2024): ΔW = diag(λ_b)·B·diag(λ_d)·A, where all modules share A and B, each as many columns and
//! rows of them as it is wide.

use super::compilation::{Compilation, CompileLimits};
use super::folds::{Folds, matrix};
use super::method::Method;
use crate::delta::DeltaError;
use crate::delta::class::LowRank;
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::keys::{VERA_A, VERA_B};

pub(super) struct VeraConfig {
    folds: Folds,
    rank: usize,
}

/// A and B, as wide as the widest module.
struct Shared {
    a: Vec<f32>,
    /// Columns of A.
    inputs: usize,
    b: Vec<f32>,
}

impl VeraConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        // The key of the generator tells nothing where what it made is in the file.
        fields.ignore(&["projection_prng_key", "vera_dropout", "d_initial", "fan_in_fan_out"]);
        if !fields.bool_or("save_projection", true)? {
            let hint = ": A and B are numbers of torch's generator; train or save with save_projection=True";
            return Err(fields.unsupported("save_projection", hint));
        }
        let folds = Folds::read(fields, defaults::lora_targets(layout.model_type), limits, "VeRA", Some("vera_only"))?;
        Ok(Self { folds, rank: fields.usize("r")?.unwrap_or(256) })
    }

    fn shared(&self, compilation: &mut Compilation<'_>) -> Result<Shared, DeltaError> {
        let [_, inputs] = compilation.shared_sizes(VERA_A)?;
        let [outputs, _] = compilation.shared_sizes(VERA_B)?;
        let a = compilation.required_shared(VERA_A, &[self.rank, inputs])?.to_f32();
        let b = compilation.required_shared(VERA_B, &[outputs, self.rank])?.to_f32();
        Ok(Shared { a, inputs, b })
    }

    fn pair(
        &self,
        compilation: &mut Compilation<'_>,
        module: &Module,
        shared: &Shared,
    ) -> Result<Option<LowRank>, DeltaError> {
        let rank = self.rank;
        self.folds.check_rank(module, rank)?;
        let d = compilation.required(module, "vera_lambda_d", &[rank])?.to_f32();
        let b = compilation.required(module, "vera_lambda_b", &[module.output])?.to_f32();
        let a = matrix(compilation, rank, module.input, |row, col| d[row] * shared.a[row * shared.inputs + col])?;
        let b = matrix(compilation, module.output, rank, |row, col| b[row] * shared.b[row * rank + col])?;
        Ok(Some(LowRank { a, b, scaling: 1.0 }))
    }
}

impl Method for VeraConfig {
    fn kind(&self) -> &'static str {
        self.folds.kind()
    }

    fn own_key(&self) -> Option<&'static str> {
        Some(".vera_lambda_")
    }

    fn works_out_numbers(&self) -> bool {
        true
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let shared = self.shared(compilation)?;
        self.folds.modules().compile(compilation, |compilation, module| {
            let pair = self.pair(compilation, module, &shared)?;
            self.folds.give(compilation, module, pair)
        })
    }
}
