//! HRA (Yuan et al. 2024): y = W·H₁⋯H_r·x with Householder reflections H = I - 2uuᵀ. Their product is I - U·T·Uᵀ with an
//! upper triangular T (compact WY, Schreiber & Van Loan 1989), so ΔW = -(W·U·T)·Uᵀ.

use candle_core::{Device, Tensor};

use super::compilation::{Compilation, CompileLimits};
use super::folds::{Folds, matrix};
use super::host_maths::product;
use super::modules::{Modules, OfModules};
use crate::delta::DeltaError;
use crate::delta::class::LowRank;
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::ops::HostTensor;

pub(super) struct HraConfig {
    folds: Folds,
    rank: usize,
    orthonormal: bool,
}

impl HraConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        Ok(Self {
            folds: Folds::read(fields, defaults::lora_targets(layout.model_type), limits, "HRA", Some("hra_only"))?,
            rank: fields.usize("r")?.unwrap_or(8),
            orthonormal: fields.bool_or("apply_GS", false)?,
        })
    }

    fn pair(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<Option<LowRank>, DeltaError> {
        let (rank, input) = (self.rank, module.input);
        self.folds.check_rank(module, rank)?;
        let given = compilation.required(module, "hra_u", &[input, rank])?.to_f32();
        if compilation.tensors.has_no_numbers() {
            let none = |rows, cols| matrix(compilation, rows, cols, |_, _| 0.0);
            return Ok(Some(LowRank { a: none(rank, input)?, b: none(module.output, rank)?, scaling: 1.0 }));
        }
        let columns = (0..rank).map(|k| (0..input).map(|j| f64::from(given[j * rank + k])).collect()).collect();
        let reflections = if self.orthonormal { Reflections::orthonormal(columns) } else { Reflections::new(columns) };
        let b = reflections.times(&compilation.base_tensor(&module.weight)?)?;
        let a = matrix(compilation, rank, input, |row, col| reflections.columns[row][col] as f32)?;
        let b = matrix(compilation, module.output, rank, |row, col| b[row * rank + col])?;
        Ok(Some(LowRank { a, b, scaling: -1.0 }))
    }
}

impl OfModules for HraConfig {
    const OWN_KEY: &'static str = ".hra_u";

    fn modules(&self) -> &Modules {
        self.folds.modules()
    }

    fn give(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        let pair = self.pair(compilation, module)?;
        self.folds.give(compilation, module, pair)
    }
}

/// A product of reflections, I - U·T·Uᵀ.
struct Reflections {
    /// Of U, of norm 1.
    columns: Vec<Vec<f64>>,
    /// Columns of T: entry i of column k is T[i, k], i ≤ k.
    t: Vec<Vec<f64>>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn normalise(mut column: Vec<f64>) -> Vec<f64> {
    let norm = dot(&column, &column).sqrt();
    column.iter_mut().for_each(|number| *number /= norm);
    column
}

impl Reflections {
    /// H₁⋯H_r in the order of the columns.
    fn new(columns: Vec<Vec<f64>>) -> Self {
        let columns: Vec<Vec<f64>> = columns.into_iter().map(normalise).collect();
        let mut t: Vec<Vec<f64>> = Vec::with_capacity(columns.len());
        for (k, column) in columns.iter().enumerate() {
            // T grows by the column -2·T·(Uᵀu), and 2 below it.
            let seen: Vec<f64> = columns[..k].iter().map(|before| dot(before, column)).collect();
            let entry = |i: usize| -2.0 * (i..k).map(|at| t[at][i] * seen[at]).sum::<f64>();
            let grown = (0..k).map(entry).chain([2.0]).collect();
            t.push(grown);
        }
        Self { columns, t }
    }

    /// I - 2QQᵀ, where Q has the columns made orthonormal one after another (Gram–Schmidt).
    fn orthonormal(columns: Vec<Vec<f64>>) -> Self {
        let mut done: Vec<Vec<f64>> = Vec::with_capacity(columns.len());
        for mut column in columns {
            for before in &done {
                let along = dot(before, &column);
                column.iter_mut().zip(before).for_each(|(number, before)| *number -= along * before);
            }
            done.push(normalise(column));
        }
        let t = (0..done.len()).map(|k| (0..=k).map(|i| if i == k { 2.0 } else { 0.0 }).collect()).collect();
        Self { columns: done, t }
    }

    /// W·U·T, `[out, rank]`, of W `[out, in]`.
    fn times(&self, weight: &HostTensor) -> Result<Vec<f32>, candle_core::Error> {
        let (rank, input) = (self.columns.len(), weight.cols());
        let column = |j: usize, k: usize| (0..=k).map(|i| self.columns[i][j] * self.t[k][i]).sum::<f64>() as f32;
        let numbers: Vec<f32> =
            (0..input).flat_map(|j| (0..rank).map(move |k| (j, k))).map(|(j, k)| column(j, k)).collect();
        product(weight, &Tensor::from_vec(numbers, (input, rank), &Device::Cpu)?)
    }
}
