//! The base's weights in candle's hands, a part at a time, and what candle does not have.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::ops::{HostData, HostTensor};

/// Rows of W handled at a time, so that a large head needs no second copy of itself.
const CHUNK: usize = 2048;

/// The rows of a weight, a chunk at a time.
pub(super) fn chunks(weight: &HostTensor) -> impl Iterator<Item = Range<usize>> + use<> {
    let rows = weight.rows();
    (0..rows).step_by(CHUNK).map(move |start| start..(start + CHUNK).min(rows))
}

/// The product of two matrices, `[rows of left, columns of right]`, in f32.
pub(super) fn product(left: &HostTensor, right: &Tensor) -> Result<Vec<f32>, candle_core::Error> {
    let mut product = Vec::with_capacity(left.rows() * right.dim(1)?);
    for rows in chunks(left) {
        product.extend(tensor(left, rows)?.matmul(right)?.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(product)
}

/// Some rows of a matrix, in f32.
pub(super) fn tensor(host: &HostTensor, rows: Range<usize>) -> Result<Tensor, candle_core::Error> {
    let matrix = host.rows_of(rows);
    let shape = (matrix.rows, matrix.cols);
    let numbers: Vec<f32> = match matrix.data {
        HostData::F32(data) => data.to_vec(),
        HostData::Bf16(data) => data.iter().map(|number| number.to_f32()).collect(),
    };
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

/// Make B the X of A X = B, `[size, size]` each, row-major, by Gaussian elimination with partial pivoting; A is spent. Where A
/// is singular, X is not finite.
pub(super) fn solve(a: &mut [f64], b: &mut [f64], size: usize) {
    let row = |row: usize| row * size..(row + 1) * size;
    let subtract = |matrix: &mut [f64], factor: f64, from: usize, other: usize| {
        let (low, high) = matrix.split_at_mut(from.max(other) * size);
        let (high, low) = (&mut high[..size], &mut low[row(from.min(other))]);
        let (from, other) = if from > other { (high, low) } else { (low, high) };
        from.iter_mut().zip(other).for_each(|(from, other)| *from -= factor * *other);
    };
    for k in 0..size {
        let magnitude = |row: &usize| a[row * size + k].abs();
        let pivot = (k..size).max_by(|one, other| magnitude(one).total_cmp(&magnitude(other))).unwrap_or(k);
        for matrix in [&mut *a, &mut *b] {
            if pivot != k {
                let (low, high) = matrix.split_at_mut(pivot * size);
                low[row(k)].swap_with_slice(&mut high[..size]);
            }
        }
        for below in k + 1..size {
            let factor = a[below * size + k] / a[k * size + k];
            subtract(a, factor, below, k);
            subtract(b, factor, below, k);
        }
    }
    for k in (0..size).rev() {
        let pivot = a[k * size + k];
        b[row(k)].iter_mut().for_each(|number| *number /= pivot);
        for above in 0..k {
            subtract(b, a[above * size + k], above, k);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::solve;

    #[test]
    fn what_is_solved_multiplies_back_also_where_rows_must_change_places() {
        let a = [0.0, 2.0, 1.0, 1.0, -3.0, 0.5, 4.0, 0.0, 2.0];
        let b = [1.0, 0.0, 2.0, -1.0, 3.0, 0.0, 0.0, 5.0, 1.0];
        let (mut spent, mut x) = (a, b);
        solve(&mut spent, &mut x, 3);
        for at in 0..9 {
            let sum: f64 = (0..3).map(|k| a[at / 3 * 3 + k] * x[k * 3 + at % 3]).sum();
            assert!((sum - b[at]).abs() < 1e-12, "{at}: {sum}");
        }
        let (mut singular, mut x) = ([1.0, 2.0, 2.0, 4.0], [1.0, 0.0, 0.0, 1.0]);
        solve(&mut singular, &mut x, 2);
        assert!(x.iter().any(|number| !number.is_finite()));
    }
}
