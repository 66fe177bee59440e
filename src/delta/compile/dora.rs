//! DoRA's norms (Liu et al. 2024), computed once at load: g = m / ‖W + s·BA‖, a constant of the adapter at inference.

use candle_core::{Device, Tensor};

use crate::ops::HostTensor;

/// Rows of W handled at a time, so that a large head needs no second copy of itself.
const CHUNK: usize = 2048;

/// Norm of each row of `W + s·B·A`: W `[out, in]`, A `[rank, in]`, B `[out, rank]`; `out` numbers.
pub(super) fn row_norms(
    weight: &HostTensor,
    a: &HostTensor,
    b: &HostTensor,
    scaling: f32,
) -> Result<Vec<f32>, candle_core::Error> {
    let a = tensor(a, 0..a.rows())?;
    let mut norms = Vec::with_capacity(weight.rows());
    for start in (0..weight.rows()).step_by(CHUNK) {
        let rows = start..(start + CHUNK).min(weight.rows());
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
    for start in (0..weight.rows()).step_by(CHUNK) {
        let rows = start..(start + CHUNK).min(weight.rows());
        let update = (tensor(&a, rows.clone())?.matmul(&b)? * f64::from(scaling))?;
        let changed = (tensor(weight, rows)? + update)?;
        squares = (squares + changed.sqr()?.sum(0)?)?;
    }
    squares.sqrt()?.to_vec1()
}

fn tensor(host: &HostTensor, rows: std::ops::Range<usize>) -> Result<Tensor, candle_core::Error> {
    let matrix = host.rows_of(rows);
    let shape = (matrix.rows, matrix.cols);
    let numbers: Vec<f32> = match matrix.data {
        crate::ops::HostData::F32(data) => data.to_vec(),
        crate::ops::HostData::Bf16(data) => data.iter().map(|number| number.to_f32()).collect(),
    };
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}
