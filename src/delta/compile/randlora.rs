//! RandLoRA (Albert et al. 2025): ΔW = s·Σ_n B_n·diag(λ_n)·A·diag(γ_n), where all modules share A and the B_n, of which each takes as
//! many, and as much of them, as it is wide. Together they have full rank.

use candle_core::{Device, Tensor};

use super::compilation::{Compilation, CompileLimits, key};
use super::folds::{Folds, matrix_by_rows};
use super::host_maths::product;
use super::method::Method;
use crate::delta::DeltaError;
use crate::delta::class::Dense;
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::keys::{RANDLORA_A, RANDLORA_B};
use crate::ops::HostTensor;

pub(super) struct RandLoraConfig {
    folds: Folds,
    rank: usize,
    scaling: f32,
}

/// A `[rank, 1, least]` and B `[most, bases, rank]`, as wide as the widest module.
struct Shared {
    a: HostTensor,
    b: HostTensor,
    of_a: Vec<f32>,
    of_b: Vec<f32>,
}

impl RandLoraConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        // How A and B were made tells nothing where they are in the file; PEFT turns fan_in_fan_out off for linear modules.
        fields.ignore(&["projection_prng_key", "sparse", "very_sparse", "randlora_dropout", "fan_in_fan_out"]);
        if !fields.bool_or("save_projection", true)? {
            let hint = ": A and B are numbers of torch's generator; train or save with save_projection=True";
            return Err(fields.unsupported("save_projection", hint));
        }
        let rank = fields.usize("r")?.unwrap_or(32);
        if rank == 0 {
            return Err(fields.bad("r", "a positive whole number"));
        }
        let alpha = fields.f64("randlora_alpha")?.unwrap_or(640.0);
        let default = defaults::lora_targets(layout.model_type);
        let folds = Folds::read(fields, default, limits, "RandLoRA", Some("randlora_only"))?;
        Ok(Self { folds, rank, scaling: (alpha / rank as f64) as f32 })
    }

    fn shared(&self, compilation: &mut Compilation<'_>) -> Result<Shared, DeltaError> {
        let [_, _, least] = compilation.shared_sizes(RANDLORA_A)?;
        let [most, bases, _] = compilation.shared_sizes(RANDLORA_B)?;
        let a = compilation.required_shared(RANDLORA_A, &[self.rank, 1, least])?;
        let b = compilation.required_shared(RANDLORA_B, &[most, bases, self.rank])?;
        let (of_a, of_b) = (a.to_f32(), b.to_f32());
        Ok(Shared { a, b, of_a, of_b })
    }

    /// PEFT saves A and B once more for every module.
    fn drop_copies(
        &self,
        compilation: &mut Compilation<'_>,
        module: &Module,
        shared: &Shared,
    ) -> Result<(), DeltaError> {
        for (parameter, own) in [("randlora_A", &shared.a), ("randlora_B", &shared.b)] {
            let name = key(module, parameter);
            let tensor = compilation.tensors.own_key(&name).unwrap_or_default().to_owned();
            let copy = compilation.tensors.take_shaped(&name, &own.shape)?;
            if copy.is_some_and(|copy| !copy.data.equals(&own.data)) {
                let feature = "a RandLoRA whose modules have projections of their own";
                return Err(DeltaError::UnsupportedTensor { tensor, feature });
            }
        }
        Ok(())
    }

    fn dense(
        &self,
        compilation: &mut Compilation<'_>,
        module: &Module,
        shared: &Shared,
    ) -> Result<Option<Dense>, DeltaError> {
        let (rank, least) = (self.rank, module.input.min(module.output));
        let (bases, most) = (least.div_ceil(rank), module.input.max(module.output));
        let (shared_least, shared_bases) = (shared.a.shape[2], shared.b.shape[1]);
        if shared_least < least || shared_bases < bases || shared.b.rows() < most {
            return Err(DeltaError::WrongModule { module: module.path.clone(), kind: self.folds.kind() });
        }
        self.drop_copies(compilation, module, shared)?;
        let lambda = compilation.required(module, "randlora_lambda", &[rank, bases])?.to_f32();
        let gamma = compilation.required(module, "randlora_gamma", &[bases, least])?.to_f32();
        // Both lie end to end over ranks and bases, A with the bases of one rank side by side, B with the ranks of one base:
        // what PEFT multiplies is what stands at the same place of the two.
        let scaled = |at: usize, i: usize| {
            let (of_rank, base) = (at / bases, at % bases);
            lambda[at] * shared.of_a[of_rank * shared_least + i] * gamma[base * least + i]
        };
        let of_b = |o: usize, at: usize| shared.of_b[(o * shared_bases + at / rank) * rank + at % rank];
        let inner = rank * bases;
        let d = if module.input == least {
            folded(compilation, module, inner, of_b, scaled)?
        } else {
            folded(compilation, module, inner, |o, at| scaled(at, o), |at, i| of_b(i, at))?
        };
        Ok(Some(Dense { d, scaling: self.scaling, replaces: false }))
    }
}

/// Σ_k left(o, k)·right(k, i) for a module; without numbers while those of the file have not come.
fn folded(
    compilation: &Compilation<'_>,
    module: &Module,
    inner: usize,
    left: impl Fn(usize, usize) -> f32,
    right: impl Fn(usize, usize) -> f32,
) -> Result<HostTensor, DeltaError> {
    let (rows, cols) = (module.output, module.input);
    if compilation.tensors.has_no_numbers() {
        return matrix_by_rows(compilation, rows, cols, |_, _| {});
    }
    let numbers = |rows: usize, cols: usize, number: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
        (0..rows).flat_map(|row| (0..cols).map(move |col| number(row, col))).collect()
    };
    let left = HostTensor::f32(&[rows, inner], numbers(rows, inner, &left));
    let right = Tensor::from_vec(numbers(inner, cols, &right), (inner, cols), &Device::Cpu)?;
    Ok(HostTensor::f32(&[rows, cols], product(&left, &right)?))
}

impl Method for RandLoraConfig {
    fn kind(&self) -> &'static str {
        self.folds.kind()
    }

    fn own_key(&self) -> Option<&'static str> {
        Some(".randlora_")
    }

    fn works_out_numbers(&self) -> bool {
        true
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let shared = self.shared(compilation)?;
        self.folds.compile(compilation, |compilation, module| self.dense(compilation, module, &shared))
    }
}
