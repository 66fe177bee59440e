//! How far an op is from changing nothing, for people who look at an adapter before they serve it. No step asks.

use candle_core::{Device, Tensor};

use super::error::DeltaError;
use crate::ops::HostTensor;

/// How far an op is from changing nothing; 0 for one without effect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// Frobenius norm of what is added to a weight.
    OfWeight(f64),
    /// How far a row of random numbers moves, as a part of its length.
    OfDirection(f64),
    /// Euclidean norm of what is added to every row.
    OfRow(f64),
}

impl Change {
    /// The number, whatever it is of.
    #[must_use]
    pub fn size(self) -> f64 {
        match self {
            Self::OfWeight(size) | Self::OfDirection(size) | Self::OfRow(size) => size,
        }
    }
}

/// Root of the sum of squares.
pub(crate) fn length(numbers: impl IntoIterator<Item = f32>) -> f64 {
    numbers.into_iter().map(|number| f64::from(number).powi(2)).sum::<f64>().sqrt()
}

/// Root of the mean square distance of factors from 1.
pub(in crate::delta) fn distance_from_one(factors: &[f32]) -> f64 {
    length(factors.iter().map(|factor| factor - 1.0)) / (factors.len().max(1) as f64).sqrt()
}

/// Frobenius norm of BA, `[out, rank]` times `[rank, in]`: the root of the trace of (BᵀB)(AAᵀ), which are no larger than the
/// rank.
pub(in crate::delta) fn product_norm(b: &HostTensor, a: &HostTensor) -> Result<f64, DeltaError> {
    let matrix = |host: &HostTensor| Tensor::from_vec(host.to_f32(), (host.rows(), host.cols()), &Device::Cpu);
    let (b, a) = (matrix(b)?, matrix(a)?);
    let (of_b, of_a) = (b.t()?.contiguous()?.matmul(&b)?, a.matmul(&a.t()?.contiguous()?)?);
    let (of_b, of_a) = (of_b.flatten_all()?.to_vec1::<f32>()?, of_a.flatten_all()?.to_vec1::<f32>()?);
    let trace: f64 = of_b.iter().zip(&of_a).map(|(b, a)| f64::from(*b) * f64::from(*a)).sum();
    // What rounding leaves of nothing may be below it.
    Ok(trace.max(0.0).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::class::ClassOp;
    use crate::delta::class::{Bias, Dense, InputRotate, LowRank, OutputRotate, OutputScale, RotateStage};

    fn close(op: &dyn ClassOp, expected: f64) {
        let found = op.change().unwrap().unwrap().size();
        assert!((found - expected).abs() < 1e-6, "{found} vs {expected}");
    }

    #[test]
    fn a_product_is_as_large_as_the_matrix_that_it_is() {
        // BA = [[1, 2], [3, 6], [0, 0]] + [[0, 1], [0, 0], [0, 4]].
        let a = HostTensor::f32(&[2, 2], vec![1.0, 2.0, 0.0, 1.0]);
        let b = HostTensor::f32(&[3, 2], vec![1.0, 1.0, 3.0, 0.0, 0.0, 4.0]);
        close(&LowRank { a: a.clone(), b, scaling: -2.0 }, 2.0 * (1.0_f64 + 9.0 + 9.0 + 36.0 + 16.0).sqrt());
        close(&LowRank { a, b: HostTensor::f32(&[3, 2], vec![0.0; 6]), scaling: 1.0 }, 0.0);
    }

    #[test]
    fn what_is_added_and_what_is_turned_or_scaled_have_sizes_of_their_own() {
        close(&Bias { b: vec![3.0, -4.0] }, 5.0);
        close(&OutputScale { g: vec![1.0, 1.0, 1.0, 3.0], after_bias: true }, 1.0);
        let d = HostTensor::f32(&[1, 2], vec![3.0, 4.0]);
        close(&Dense { d: d.clone(), scaling: 0.5, replaces: false }, 2.5);
        assert_eq!(Dense { d, scaling: 1.0, replaces: true }.change().unwrap(), None);
        // A quarter turn moves every vector by √2 of its length; none leaves it where it is.
        close(&OutputRotate { c: vec![0.0, 0.0, 1.0, 1.0], group: 2 }, 2.0_f64.sqrt());
        let stage = |numbers: [f32; 4]| RotateStage { numbers: numbers.into(), blocks: 1, size: 2, interleaved: 1 };
        close(&InputRotate { stages: vec![stage([0.0, 1.0, -1.0, 0.0])] }, 2.0_f64.sqrt());
        close(&InputRotate { stages: vec![stage([1.0, 0.0, 0.0, 1.0]); 2] }, 0.0);
    }
}
