//! DoRA's norms (Liu et al. 2024), computed once at load: g = m / ‖W + s·BA‖, a constant of the adapter at inference.

use candle_core::{Device, Tensor};

use super::host_maths::{chunks, tensor};
use crate::ops::HostTensor;

/// Norm of each row of `W + s·B·A`: W `[out, in]`, A `[rank, in]`, B `[out, rank]`; `out` numbers.
pub(super) fn row_norms(
    weight: &HostTensor,
    a: &HostTensor,
    b: &HostTensor,
    scaling: f32,
) -> Result<Vec<f32>, candle_core::Error> {
    let a = tensor(a, 0..a.rows())?;
    let mut norms = Vec::with_capacity(weight.rows());
    for rows in chunks(weight) {
        let update = (tensor(b, rows.clone())?.matmul(&a)? * f64::from(scaling))?;
        let changed = (tensor(weight, rows)? + update)?;
        norms.extend(changed.sqr()?.sum(1)?.sqrt()?.to_vec1::<f32>()?);
    }
    Ok(norms)
}

/// Norm of each column of `E + s·(B·A)ᵀ`: E `[vocab, hidden]`, A `[rank, vocab]`, B `[hidden, rank]`; `hidden` numbers.
/// PEFT measures an embedding along the vocabulary.
pub(super) fn column_norms(
    weight: &HostTensor,
    a: &HostTensor,
    b: &HostTensor,
    scaling: f32,
) -> Result<Vec<f32>, candle_core::Error> {
    let a = a.transposed().map_err(candle_core::Error::wrap)?;
    let b = tensor(b, 0..b.rows())?.t()?;
    let mut squares = Tensor::zeros(weight.cols(), candle_core::DType::F32, &Device::Cpu)?;
    for rows in chunks(weight) {
        let update = (tensor(&a, rows.clone())?.matmul(&b)? * f64::from(scaling))?;
        let changed = (tensor(weight, rows)? + update)?;
        squares = (squares + changed.sqr()?.sum(0)?)?;
    }
    squares.sqrt()?.to_vec1()
}
