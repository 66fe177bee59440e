//! FourierFT (Gao et al. 2024): ΔW = s·Re(F⁻¹(S)), the inverse discrete Fourier transform in two dimensions of a spectrum with
//! a few entries. The file has the entries; their places are what torch's generator makes of the config's seed.

use super::compilation::{Compilation, CompileLimits};
use super::folds::{Folds, matrix_by_rows};
use super::fourier::{Complex, Transform, roots_of_unity};
use super::modules::{Modules, OfModules};
use super::torch_random::permutation_start;
use crate::delta::DeltaError;
use crate::delta::class::Dense;
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::TailTable;

pub(super) struct FourierFtConfig {
    folds: Folds,
    frequencies: usize,
    frequency_pattern: TailTable,
    scaling: f64,
    seed: u64,
}

impl FourierFtConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        // PEFT turns fan_in_fan_out off for linear modules.
        fields.ignore(&["fan_in_fan_out"]);
        let default = defaults::lora_targets(layout.model_type);
        Ok(Self {
            folds: Folds::read(fields, default, limits, "FourierFT", Some("fourier_only"))?,
            frequencies: fields.usize("n_frequency")?.unwrap_or(1000),
            frequency_pattern: TailTable::read(fields, "n_frequency_pattern")?,
            scaling: fields.f64("scaling")?.unwrap_or(150.0),
            seed: fields.usize("random_loc_seed")?.unwrap_or(777) as u64,
        })
    }

    /// D is the sum of the frequencies; what divides it and s are one scaling, so that D keeps its digits in 16 bits.
    fn dense(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<Option<Dense>, DeltaError> {
        let (rows, cols) = (module.output, module.input);
        let numbers = rows.saturating_mul(cols);
        let path = compilation.tensors.level().path(module).unwrap_or_default();
        let count = self.frequency_pattern.lookup(&path)?.unwrap_or(self.frequencies);
        if !(1..=numbers).contains(&count) {
            let expected = "at least 1 and at most the numbers of a weight";
            let (field, found) = ("n_frequency".to_owned(), count.to_string());
            return Err(DeltaError::BadField { field, found, expected });
        }
        let spectrum = compilation.required(module, "fourierft_spectrum", &[count])?.to_f32();
        let scaling = (self.scaling / numbers as f64) as f32;
        if compilation.tensors.has_no_numbers() {
            let d = matrix_by_rows(compilation, rows, cols, |_, _| {})?;
            return Ok(Some(Dense { d, scaling, replaces: false }));
        }
        let places = permutation_start(numbers, count, self.seed);
        let entries = places.into_iter().zip(spectrum).map(|(at, number)| (at / cols, at % cols, f64::from(number)));
        let mut spectrum = Spectrum::new(entries.collect(), rows, cols);
        let d = matrix_by_rows(compilation, rows, cols, |row, numbers| spectrum.transform(row, numbers))?;
        Ok(Some(Dense { d, scaling, replaces: false }))
    }
}

impl OfModules for FourierFtConfig {
    const OWN_KEY: &'static str = ".fourierft_spectrum";

    fn modules(&self) -> &Modules {
        self.folds.modules()
    }

    fn give(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        let op = self.dense(compilation, module)?;
        self.folds.give(compilation, module, op)
    }
}

/// A few frequencies of a matrix, and what it takes to make rows of them. Along a column the entries are few and are summed
/// one by one; along a row they have become many.
struct Spectrum {
    /// Row, column and number.
    entries: Vec<(usize, usize, f64)>,
    /// Of the length of a column.
    roots: Vec<Complex>,
    along_row: Transform,
    line: Vec<Complex>,
    /// Of two neighbouring rows: of the even one the real parts, of the odd one the imaginary parts.
    sums: Vec<Complex>,
}

impl Spectrum {
    fn new(entries: Vec<(usize, usize, f64)>, rows: usize, cols: usize) -> Self {
        let line = vec![Complex::default(); cols];
        Self { entries, roots: roots_of_unity(rows), along_row: Transform::new(cols), sums: line.clone(), line }
    }

    /// The real part of row `row` of the sum of all frequencies; an odd row follows the even one before it.
    fn transform(&mut self, row: usize, numbers: &mut [f32]) {
        let is_even = row.is_multiple_of(2);
        if is_even {
            self.sum_pair(row);
        }
        let part = |sum: &Complex| if is_even { sum.re } else { sum.im };
        numbers.iter_mut().zip(&self.sums).for_each(|(number, sum)| *number = part(sum) as f32);
    }

    /// The real parts of two rows by one transform. That of a line is the transform of half the line and half its conjugate
    /// turned round, which is real by itself; so the second row goes along as the imaginary part.
    fn sum_pair(&mut self, row: usize) {
        self.line.fill(Complex::default());
        let (rows, cols) = (self.roots.len(), self.line.len());
        for (of_row, of_col, number) in &self.entries {
            let [even, odd] = [row, row + 1].map(|row| self.roots[of_row * row % rows].scaled(number / 2.0));
            let (at, turned) = (*of_col, (cols - of_col) % cols);
            self.line[at] = self.line[at] + even + odd.times_i();
            self.line[turned] = self.line[turned] + even.conjugate() + odd.conjugate().times_i();
        }
        self.along_row.run(&self.line, &mut self.sums);
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;

    #[test]
    fn rows_are_the_sum_of_all_frequencies() {
        for (rows, cols) in [(1, 1), (5, 8), (12, 7), (6, 43), (9, 1)] {
            let entry = |at: usize| (at * 7 % rows, at * 5 % cols, (at as f64 - 3.5) / 2.0);
            let entries: Vec<_> = (0..9).map(entry).collect();
            let mut spectrum = Spectrum::new(entries.clone(), rows, cols);
            let mut numbers = vec![0.0; cols];
            for row in 0..rows {
                spectrum.transform(row, &mut numbers);
                for (col, number) in numbers.iter().enumerate() {
                    let angle =
                        |u: usize, v: usize| TAU * ((u * row) as f64 / rows as f64 + (v * col) as f64 / cols as f64);
                    let sum: f64 = entries.iter().map(|(u, v, number)| number * angle(*u, *v).cos()).sum();
                    assert!((f64::from(*number) - sum).abs() < 1e-5, "{rows} x {cols}, [{row}, {col}]");
                }
            }
        }
    }
}
