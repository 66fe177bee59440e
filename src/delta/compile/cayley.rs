//! Rotations out of skew-symmetric matrices: Cayley's (1846), (I - Q)(I + Q)⁻¹, and the series that PEFT has for it. Worked out
//! in f64.

use candle_core::{DType, Device, Tensor};

use super::compilation::Compilation;
use super::host_maths::solve;
use crate::delta::DeltaError;
use crate::delta::class::RotateStage;
use crate::delta::layout::Module;
use crate::ops::OpsError;
use crate::types::OpClass;

/// Numbers that are worked on at a time, where a block has no more.
const AT_ONCE: usize = 1 << 20;

/// What becomes of Q.
pub(super) enum Cayley {
    /// (I - Q)(I + Q)⁻¹.
    Exact,
    /// Σ cₖQᵏ, of these c. Q has the opposite sign of the exact form's: (I + Q)(I - Q)⁻¹ is I + 2Q + 2Q² ⋯.
    Series(Vec<f64>),
}

impl Cayley {
    /// PEFT's series of so many terms, whose last has the weight 1 instead of 2; three terms give it the fourth too.
    pub(super) fn series(terms: usize) -> Self {
        let mut weights = vec![2.0; terms.max(1)];
        if terms > 2 {
            weights.resize(terms.max(4), 2.0);
            weights[terms.max(4) - 1] = 1.0;
        }
        weights[0] = 1.0;
        Self::Series(weights)
    }

    /// A stage of a module's rotation with its numbers, `skew(block, row, column)` being those of Q; without any while those
    /// of the file have not come.
    pub(super) fn stage(
        &self,
        compilation: &Compilation<'_>,
        module: &Module,
        [blocks, size, interleaved]: [usize; 3],
        skew: impl Fn(usize, usize, usize) -> f64,
    ) -> Result<RotateStage, DeltaError> {
        let numbers = match compilation.tensors.has_no_numbers() {
            true => Vec::new(),
            false => self.rotations(blocks, size, skew)?,
        };
        // A series of a large Q may overflow.
        match numbers.iter().position(|number| !number.is_finite()) {
            Some(index) => {
                let tensor = format!("{} of {}", OpClass::InputRotate.as_str(), module.site);
                Err(DeltaError::NonFinite { tensor, index })
            }
            None => Ok(RotateStage { numbers, blocks, size, interleaved }),
        }
    }

    /// `[blocks, size, size]`.
    fn rotations(
        &self,
        blocks: usize,
        size: usize,
        skew: impl Fn(usize, usize, usize) -> f64,
    ) -> Result<Vec<f32>, DeltaError> {
        let of_block = size.saturating_mul(size);
        let mut rotations = Vec::new();
        let bytes = (of_block as u64).saturating_mul(blocks as u64).saturating_mul(size_of::<f32>() as u64);
        let refused = |_| OpsError::OutOfMemory { what: "rotations worked out from an adapter", bytes };
        rotations.try_reserve_exact(of_block.saturating_mul(blocks)).map_err(refused)?;
        let each = (AT_ONCE / of_block.max(1)).max(1);
        for first in (0..blocks).step_by(each) {
            let count = each.min(blocks - first);
            let number = |at: usize| skew(first + at / of_block, at % of_block / size, at % size);
            let q: Vec<f64> = (0..count * of_block).map(number).collect();
            match self {
                Self::Exact => q.chunks_exact(of_block).for_each(|q| rotations.extend(exact(q, size))),
                Self::Series(weights) => {
                    let q = Tensor::from_vec(q, (count, size, size), &Device::Cpu)?;
                    rotations.extend(sum_of_powers(&q, size, weights)?);
                }
            }
        }
        Ok(rotations)
    }
}

/// (I - Q)(I + Q)⁻¹, which is (I + Q)⁻¹(I - Q): the two commute.
fn exact(q: &[f64], size: usize) -> impl Iterator<Item = f32> {
    let unit = |at: usize| f64::from(u8::from(at / size == at % size));
    let mut sum: Vec<f64> = q.iter().enumerate().map(|(at, q)| unit(at) + q).collect();
    let mut difference: Vec<f64> = q.iter().enumerate().map(|(at, q)| unit(at) - q).collect();
    solve(&mut sum, &mut difference, size);
    difference.into_iter().map(|number| number as f32)
}

/// Σ weightₖQᵏ of each of the blocks `[blocks, size, size]`, by Horner's rule.
fn sum_of_powers(q: &Tensor, size: usize, weights: &[f64]) -> Result<Vec<f32>, candle_core::Error> {
    let unit = Tensor::eye(size, DType::F64, &Device::Cpu)?;
    let (last, others) = weights.split_last().unwrap_or((&0.0, &[]));
    let mut sum = (&unit * *last)?.broadcast_as(q.shape())?.contiguous()?;
    for weight in others.iter().rev() {
        sum = q.matmul(&sum)?.broadcast_add(&(&unit * *weight)?)?;
    }
    sum.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 5;

    /// Of two blocks.
    fn skew(block: usize, row: usize, col: usize) -> f64 {
        let above = |row: usize, col: usize| ((3 * row + 7 * col + block) % 11) as f64 / 20.0 - 0.2;
        match row.cmp(&col) {
            std::cmp::Ordering::Less => above(row, col),
            std::cmp::Ordering::Equal => 0.0,
            std::cmp::Ordering::Greater => -above(col, row),
        }
    }

    fn product(a: &[f64], b: &[f64]) -> Vec<f64> {
        let cell = |at: usize| (0..SIZE).map(|k| a[at / SIZE * SIZE + k] * b[k * SIZE + at % SIZE]).sum();
        (0..SIZE * SIZE).map(cell).collect()
    }

    fn close(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(got, want)| (f64::from(*got) - want).abs() < 1e-6), "{got:?} {want:?}");
    }

    fn q(block: usize) -> Vec<f64> {
        (0..SIZE * SIZE).map(|at| skew(block, at / SIZE, at % SIZE)).collect()
    }

    fn unit() -> Vec<f64> {
        (0..SIZE * SIZE).map(|at| f64::from(u8::from(at / SIZE == at % SIZE))).collect()
    }

    #[test]
    fn the_exact_form_is_orthogonal_and_undoes_its_denominator() {
        let rotations = Cayley::Exact.rotations(2, SIZE, skew).unwrap();
        for (block, r) in rotations.chunks_exact(SIZE * SIZE).enumerate() {
            let wide: Vec<f64> = r.iter().map(|number| f64::from(*number)).collect();
            let turned: Vec<f64> = (0..SIZE * SIZE).map(|at| wide[at % SIZE * SIZE + at / SIZE]).collect();
            close(&product(&wide, &turned).iter().map(|number| *number as f32).collect::<Vec<f32>>(), &unit());
            let [sum, difference] = [1.0, -1.0]
                .map(|sign| -> Vec<f64> { unit().iter().zip(q(block)).map(|(unit, q)| unit + sign * q).collect() });
            close(&product(&wide, &sum).iter().map(|number| *number as f32).collect::<Vec<f32>>(), &difference);
        }
    }

    #[test]
    fn a_series_has_the_terms_of_peft() {
        let expected: [&[f64]; 7] = [
            &[1.0],
            &[1.0],
            &[1.0, 2.0],
            &[1.0, 2.0, 2.0, 1.0],
            &[1.0, 2.0, 2.0, 1.0],
            &[1.0, 2.0, 2.0, 2.0, 1.0],
            &[1.0, 2.0, 2.0, 2.0, 2.0, 1.0],
        ];
        for (terms, expected) in expected.into_iter().enumerate() {
            let Cayley::Series(weights) = Cayley::series(terms) else { panic!("not a series") };
            assert_eq!(weights, expected, "{terms} terms");
            let rotations = Cayley::series(terms).rotations(2, SIZE, skew).unwrap();
            for (block, r) in rotations.chunks_exact(SIZE * SIZE).enumerate() {
                let (mut power, mut sum) = (unit(), vec![0.0; SIZE * SIZE]);
                for weight in expected {
                    sum.iter_mut().zip(&power).for_each(|(sum, power)| *sum += weight * power);
                    power = product(&power, &q(block));
                }
                close(r, &sum);
            }
        }
    }

    #[test]
    fn blocks_of_one_input_and_many_blocks_are_cut_anywhere() {
        assert_eq!(Cayley::Exact.rotations(3, 1, |_, _, _| 0.0).unwrap(), [1.0; 3]);
        assert_eq!(Cayley::series(5).rotations(3, 1, |_, _, _| 0.0).unwrap(), [1.0; 3]);
        let (size, blocks) = (16, 5000);
        assert!(size * size * blocks > AT_ONCE);
        let one = |block: usize, row: usize, col: usize| match (row, col) {
            (0, 1) => block as f64,
            (1, 0) => -(block as f64),
            _ => 0.0,
        };
        let rotations = Cayley::Exact.rotations(blocks, size, one).unwrap();
        for (block, r) in rotations.chunks_exact(size * size).enumerate() {
            let t = block as f64;
            let [cos, sin] = [(1.0 - t * t) / (1.0 + t * t), -2.0 * t / (1.0 + t * t)].map(|number| number as f32);
            assert_eq!([r[0], r[1], r[size], r[size + 1], r[2 * size + 2]], [cos, sin, -sin, cos, 1.0], "{block}");
        }
    }
}
