//! Rows in, rows out: every number is read once and written once.

use super::{Class, Cost, Failure, Seen};

use Class::{Activations, Weights};

/// A row of the table for every row.
pub(super) fn embed(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let (rows, cols) = (launch.args.follow("step")?.get("rows")? as f64, launch.get("table.cols")?);
    Ok(Cost::default().once(Weights, rows * cols * launch.size).once(Activations, 4.0 * rows * cols))
}

pub(super) fn copy_rows(launch: &Seen<'_>) -> Result<Cost, Failure> {
    Ok(Cost::default().once(Activations, 8.0 * launch.get("count")? * launch.get("y.cols")?))
}

pub(super) fn gather_rows(launch: &Seen<'_>) -> Result<Cost, Failure> {
    Ok(Cost::default().once(Activations, 8.0 * launch.rows()? * launch.get("y.cols")?))
}

pub(super) fn kept_rows(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let rows = launch.args.follow("step")?.get("rows")? as f64;
    Ok(Cost::default().once(Activations, 8.0 * rows * launch.get("y.cols")?))
}

/// Every row of every span is read once, and one is written of each.
pub(super) fn pool_rows(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let (count, cols) = (launch.args.follow("rows")?.get("count")?, launch.get("y.cols")?);
    let mut rows = count as f64;
    for span in launch.args.list("spans", count)? {
        rows += span.get("rows")? as f64 + f64::from(u8::from(span.get("onto")? != 0));
    }
    Ok(Cost::default().once(Activations, 4.0 * rows * cols))
}

/// Reads both and writes one.
pub(super) fn add(launch: &Seen<'_>) -> Result<Cost, Failure> {
    Ok(Cost::default().once(Activations, 12.0 * launch.rows()? * launch.get("y.cols")?))
}

/// x has gate and up side by side.
pub(super) fn gated_activation(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let row = 4.0 * launch.get("x.cols")? + launch.both_forms("y")?;
    Ok(Cost::default().once(Activations, launch.rows()? * row))
}

/// The rounded form beside the one that is there.
pub(super) fn round_rows(launch: &Seen<'_>) -> Result<Cost, Failure> {
    Ok(Cost::default().once(Activations, launch.rows()? * launch.both_forms("x")?))
}

/// A block reads its row twice, the second time from the cache.
pub(super) fn rms_norm(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let (rows, cols) = (launch.rows()?, launch.get("x.cols")?);
    let moved = rows * (4.0 * cols + launch.both_forms("y")?);
    Ok(Cost::default().again(Weights, 4.0 * cols, rows, 1.0).once(Activations, moved))
}

pub(super) fn rms_norm_heads(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let cols = launch.get("heads")? * launch.get("head_dim")?;
    Ok(Cost::default().once(Activations, 8.0 * launch.rows()? * cols))
}

pub(super) fn add_bias(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let (rows, cols) = (launch.rows()?, launch.get("y.cols")?);
    Ok(Cost::default().again(Weights, 4.0 * cols, rows, 1.0).once(Activations, 8.0 * rows * cols))
}

pub(super) fn softcap(launch: &Seen<'_>) -> Result<Cost, Failure> {
    Ok(Cost::default().once(Activations, 8.0 * launch.rows()? * launch.get("y.cols")?))
}

/// All rows, those without a scale as they are.
pub(super) fn scale_input(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let row = 4.0 * launch.get("x.cols")? + launch.both_forms("y")?;
    Ok(Cost::default().once(Activations, launch.rows()? * row))
}

/// Greedy: one pass over the logits, a block for every row.
pub(super) fn sample(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let rows = launch.rows()?;
    let cost = Cost::default().once(Activations, 4.0 * rows * launch.get("vocab")?);
    Ok(Cost { busy: Some(rows), ..cost })
}

/// As if every row had all the tokens that may be added: its logits are read, put together, and gone over.
pub(super) fn sample_own(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let rows = launch.rows()?;
    let cost = Cost::default().once(Activations, 12.0 * rows * launch.get("widest")?);
    Ok(Cost { busy: Some(rows), ..cost })
}
