//! The base's matrices.

use super::{Class, Cost, Failure, Seen};

use Class::{Activations, Weights};

/// Rows and outputs of a block.
fn block(launch: &Seen<'_>, name: &str) -> Result<(f64, f64), Failure> {
    let [rows, outs, _] = launch.structs.gemm_block(name)?;
    Ok((rows as f64, outs as f64))
}

/// Blocks along y read the weight again, one whole weight later. All blocks read all of x, side by side.
pub(super) fn gemm_rows(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let name = if launch.name == "gemm" { "gemm_f32" } else { launch.name };
    let (block_rows, block_outs) = block(launch, name)?;
    let (rows, outs, inputs) = (launch.rows()?, launch.get("w.rows")?, launch.get("x.cols")?);
    let (parts, columns) = ((rows / block_rows).ceil(), (outs / block_outs).ceil());
    let weights = outs * launch.get("w.stride")? * launch.size;
    let cost = Cost::default()
        .again(Weights, weights, parts, parts)
        .again(Activations, rows * inputs * launch.size, columns, 1.0)
        .once(Activations, 4.0 * rows * outs);
    Ok(Cost { flops: 2.0 * parts * block_rows * outs * inputs, busy: Some(columns * parts), ..cost })
}

/// Blocks of one weight are neighbours. As many weights as there are processors for go side by side, and read x together; the
/// next ones read it again.
pub(super) fn gemm_tiles(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let (block_rows, block_outs) = block(launch, launch.name)?;
    let (rows, outs, inputs) = (launch.rows()?, launch.get("w.rows")?, launch.get("x.cols")?);
    let (parts, columns) = ((rows / block_rows).ceil(), (outs / block_outs).ceil());
    let turns = (parts * columns / launch.processors).ceil().min(columns);
    let weights = outs * launch.get("w.stride")? * launch.size;
    let cost = Cost::default()
        .again(Weights, weights, parts, 1.0)
        .again(Activations, rows * inputs * launch.size, columns, turns)
        .once(Activations, 4.0 * rows * outs);
    Ok(Cost { flops: 2.0 * parts * block_rows * columns * block_outs * inputs, busy: Some(parts * columns), ..cost })
}
