//! A sparse matrix as it lies in memory, and its product with rows that lie side by side.
//!
//! An output element is one accumulator over ascending columns, in a lane of its own, so that it has the same bits whatever
//! the rows beside it.

use std::ops::Range;

use super::isa::{Arithmetic, dispatched};
use super::math::round_bf16_bits;
use super::memory::filled;
use super::numerics::WeightFormat;
use crate::ops::{HostSparse, OpsError};

/// Most rows that one walk over a matrix serves: their numbers of one input fill a cache line.
pub(super) const MOST_LANES: usize = 16;

/// Numbers of a sparse matrix as they are kept.
#[derive(Debug)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<Bf16>),
}

/// Upper half of an f32.
#[derive(Clone, Copy, Debug)]
struct Bf16(u16);

/// A number as it is kept.
trait Kept: Copy {
    fn widen(self) -> f32;
}

impl Kept for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Kept for Bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

/// A sparse matrix `[out, in]`, row by row.
#[derive(Debug)]
pub struct SparseMatrix {
    inputs: usize,
    /// Where each row begins, and the end of the last.
    starts: Vec<u32>,
    columns: Vec<u32>,
    values: Values,
}

impl SparseMatrix {
    /// A copy; in bf16 the numbers are rounded to nearest even.
    pub(super) fn new(format: WeightFormat, matrix: &HostSparse) -> Result<Self, OpsError> {
        const WHAT: &str = "a sparse matrix";
        let entries = &matrix.entries;
        let mut starts = filled(WHAT, matrix.starts.len(), 0)?;
        starts.copy_from_slice(&matrix.starts);
        let mut columns = filled(WHAT, entries.len(), 0)?;
        columns.iter_mut().zip(entries).for_each(|(column, entry)| *column = entry.column);
        let values = match format {
            WeightFormat::F32 => {
                let mut values = filled(WHAT, entries.len(), 0.0)?;
                values.iter_mut().zip(entries).for_each(|(value, entry)| *value = entry.value);
                Values::F32(values)
            }
            WeightFormat::Bf16 => {
                let mut values = filled(WHAT, entries.len(), Bf16(0))?;
                let bits = |value: f32| Bf16((round_bf16_bits(value) >> 16) as u16);
                values.iter_mut().zip(entries).for_each(|(value, entry)| *value = bits(entry.value));
                Values::Bf16(values)
            }
        };
        Ok(Self { inputs: matrix.cols, starts, columns, values })
    }

    /// Inputs and outputs.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.inputs, self.starts.len() - 1)
    }

    /// Numbers it holds.
    pub(super) fn numbers(&self) -> usize {
        self.columns.len()
    }

    /// Where the numbers of an output lie.
    pub(super) fn held(&self, output: usize) -> Range<usize> {
        self.starts[output] as usize..self.starts[output + 1] as usize
    }
}

dispatched! {
    /// Sums of some outputs, `[output][lane]`, of x `[in][lanes]`.
    fn sum_outputs(matrix: &SparseMatrix, outputs: Range<usize>, x: &[f32], lanes: usize, sums: &mut [f32]) = sum
}

#[inline(always)]
fn sum<A: Arithmetic>(matrix: &SparseMatrix, outputs: Range<usize>, x: &[f32], lanes: usize, sums: &mut [f32]) {
    match &matrix.values {
        Values::F32(values) => sum_of::<A, _>(matrix, values, outputs, x, lanes, sums),
        Values::Bf16(values) => sum_of::<A, _>(matrix, values, outputs, x, lanes, sums),
    }
}

#[inline(always)]
fn sum_of<A: Arithmetic, V: Kept>(
    matrix: &SparseMatrix,
    values: &[V],
    outputs: Range<usize>,
    x: &[f32],
    lanes: usize,
    sums: &mut [f32],
) {
    match lanes {
        1 => walk::<A, V, 1>(matrix, values, outputs, x, sums),
        4 => walk::<A, V, 4>(matrix, values, outputs, x, sums),
        _ => walk::<A, V, MOST_LANES>(matrix, values, outputs, x, sums),
    }
}

#[inline(always)]
fn walk<A: Arithmetic, V: Kept, const LANES: usize>(
    matrix: &SparseMatrix,
    values: &[V],
    outputs: Range<usize>,
    x: &[f32],
    sums: &mut [f32],
) {
    let x = x.as_chunks::<LANES>().0;
    for (output, sums) in outputs.zip(sums.as_chunks_mut::<LANES>().0) {
        let held = matrix.held(output);
        let mut sum = [0.0; LANES];
        for (column, value) in matrix.columns[held.clone()].iter().zip(&values[held]) {
            let (value, x) = (value.widen(), &x[*column as usize]);
            for lane in 0..LANES {
                sum[lane] = A::mul_add(value, x[lane], sum[lane]);
            }
        }
        *sums = sum;
    }
}
