//! The cache and the walks over it.

use std::collections::BTreeMap;

use super::{Class, Cost, Failure, Seen};

use Class::{Activations, Kv, Weights};

/// Bytes of K and V of a place.
fn place(launch: &Seen<'_>) -> Result<f64, Failure> {
    Ok(2.0 * launch.get("kv.kv_heads")? * launch.get("kv.head_dim")? * launch.size)
}

/// q is turned where it lies, k and v go to the cache.
pub(super) fn rope_and_cache(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let rows = launch.args.follow("step")?.get("rows")? as f64;
    let q = launch.get("heads")? * launch.get("kv.head_dim")?;
    let tables = 8.0 * rows * launch.get("half")?;
    let cost = Cost::default().once(Weights, tables).once(Kv, rows * place(launch)?);
    Ok(cost.once(Activations, 4.0 * rows * (launch.get("qkv.cols")? + q)))
}

/// What the items of a step see.
struct Walks {
    /// Places of KV, each counted once for its sequence.
    places: f64,
    /// Places that blocks walk, for one KV head.
    walked: f64,
    /// Rows by the places that each sees.
    seen: f64,
    /// Chunks of all walks, as far as splits share them.
    chunks: f64,
    rows: f64,
    /// Rows by the splits that have something of them.
    split_rows: f64,
}

fn walks(launch: &Seen<'_>, rows_of_block: f64) -> Result<Walks, Failure> {
    let step = launch.args.follow("step")?;
    let (window, splits) = (launch.get("window")?, launch.get("splits")?);
    let chunk = launch.structs.number("SPLIT_PLACES")? as f64;
    let mut walks = Walks { places: 0.0, walked: 0.0, seen: 0.0, chunks: 0.0, rows: 0.0, split_rows: 0.0 };
    let mut sequences: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
    for item in step.list("item", step.get("items")?)? {
        let (rows, position) = (item.get("rows")? as f64, item.get("position")? as f64);
        let seen_from = |position: f64| if window > 0.0 { (position + 1.0 - window).max(0.0) } else { 0.0 };
        let (first, end) = (seen_from(position), position + rows);
        let sequence = sequences.entry(item.get("blocks")?).or_insert((first, end));
        *sequence = (sequence.0.min(first), sequence.1.max(end));
        let blocks = (rows / rows_of_block).ceil();
        let used = ((end / chunk).ceil() - (first / chunk).floor()).clamp(1.0, splits);
        walks.walked += blocks * (end - first);
        walks.seen +=
            (0..rows as u64).map(|row| position + row as f64 + 1.0 - seen_from(position + row as f64)).sum::<f64>();
        walks.chunks += blocks * used;
        walks.rows += rows;
        walks.split_rows += rows * used;
    }
    walks.places = sequences.values().map(|(first, end)| end - first).sum();
    Ok(walks)
}

/// K and V of a sequence are read for each of its items and for each of their blocks, side by side. What a tile computes of
/// places that a row does not see is not counted.
pub(super) fn attention(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let (heads, kv_heads) = (launch.get("heads")?, launch.get("kv.kv_heads")?);
    let (dim, splits) = (launch.get("kv.head_dim")?, launch.get("splits")?);
    // In f32 a block has a head and eight rows; else as many pairs as its grid shares the longest item's by.
    let most_rows = launch.structs.number("ROWS_OF_ITEM")? as f64;
    let rows_of_block = if launch.size > 2.0 { 8.0 } else { (most_rows / launch.grid[1]).max(1.0) };
    let walks = walks(launch, rows_of_block)?;
    let place = place(launch)?;
    let written = if splits > 1.0 {
        4.0 * walks.split_rows * heads * (dim + 2.0)
    } else {
        walks.rows * launch.both_forms("y")?
    };
    let cost = Cost::default()
        .again(Kv, walks.places * place, walks.walked / walks.places.max(1.0), 1.0)
        .again(Activations, 4.0 * walks.rows * heads * dim, walks.split_rows / walks.rows.max(1.0), 1.0)
        .once(Activations, written);
    let walkers = if launch.size > 2.0 { heads } else { kv_heads };
    Ok(Cost { flops: 4.0 * walks.seen * heads * dim, busy: Some(walks.chunks * walkers), ..cost })
}

/// What splits have written is read, and the rows are written.
pub(super) fn combine_attention(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let walks = walks(launch, 1.0)?;
    let parts = 4.0 * walks.split_rows * launch.get("heads")? * (launch.get("kv.head_dim")? + 2.0);
    Ok(Cost::default().once(Activations, parts + walks.rows * launch.both_forms("y")?))
}
