//! Deltas: what the groups of a step have at a site says what is read.

use std::collections::BTreeSet;

use super::{Class, Cost, Failure, Seen};

use Class::{Activations, Adapters};

/// Rows of one slot, and what it has at a site.
struct Group {
    len: f64,
    slot: u64,
    /// Rank and columns of each pair.
    pairs: Vec<(f64, f64)>,
    /// Columns of each vector.
    vectors: Vec<f64>,
    /// Columns of each rotation of outputs.
    column_rotations: Vec<f64>,
    /// Numbers and columns of each sparse matrix.
    sparse: Vec<(f64, f64)>,
    /// Columns and stride of each full matrix.
    matrices: Vec<(f64, f64)>,
    /// Rows in place of the base's.
    replaced: f64,
    /// Size of a block of each rotation, and numbers from one block to the next.
    rotations: Vec<(f64, f64)>,
}

/// The groups of a row set with what they have at a site.
fn groups(launch: &Seen<'_>, set: &str, site: &str) -> Result<Vec<Group>, Failure> {
    let set = launch.args.follow(set)?;
    let number = launch.args.get(&format!("{site}.site"))?;
    let with_entries = |group: super::View<'_>| -> Result<Group, Failure> {
        let (len, slot) = (group.get("len")? as f64, group.get("slot")?);
        let (mut pairs, mut vectors, mut column_rotations, mut sparse) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut rotations, mut matrices, mut replaced) = (Vec::new(), Vec::new(), 0.0);
        let entries = launch.args.entry(&format!("{site}.slots"), slot)?;
        if let Some(entries) = entries.filter(|entries| entries.get("count").is_ok_and(|count| number < count)) {
            for at in entries.list_from("sites", number, 1)? {
                for pair in entries.list_from("pairs", at.get("pair")?, at.get("pairs")?)? {
                    pairs.push((pair.get("rank")? as f64, pair.get("columns")? as f64));
                }
                for vector in entries.list_from("vectors", at.get("vector")?, at.get("vectors")?)? {
                    vectors.push(vector.get("columns")? as f64);
                }
                for rotation in
                    entries.list_from("column_rotations", at.get("column_rotation")?, at.get("column_rotations")?)?
                {
                    column_rotations.push(rotation.get("columns")? as f64);
                }
                for matrix in entries.list_from("sparse", at.get("sparse")?, at.get("sparses")?)? {
                    sparse.push((matrix.get("count")? as f64, matrix.get("columns")? as f64));
                }
                for matrix in entries.list_from("dense", at.get("matrix")?, at.get("matrices")?)? {
                    matrices.push((matrix.get("columns")? as f64, matrix.get("stride")? as f64));
                }
                for rows in entries.list_from("replaced", at.get("replaced")?, at.get("replaces")?)? {
                    replaced += rows.get("count")? as f64;
                }
                for rotation in entries.list_from("rotations", at.get("rotation")?, at.get("rotations")?)? {
                    rotations.push((rotation.get("size")? as f64, rotation.get("stride")? as f64));
                }
            }
        }
        Ok(Group { len, slot, pairs, vectors, column_rotations, sparse, matrices, replaced, rotations })
    };
    set.list("group", set.get("groups")?)?.into_iter().map(with_entries).collect()
}

/// Bytes that are needed once, and those that are asked for.
#[derive(Default)]
struct Needed {
    once: f64,
    asked: f64,
}

impl Needed {
    fn times(&self) -> f64 {
        if self.once > 0.0 { self.asked / self.once } else { 1.0 }
    }
}

/// Ranks and rows of an item: `shrink_item` of lora.cu.
fn shrink_item(launch: &Seen<'_>, len: f64) -> (f64, f64) {
    match () {
        () if launch.size > 2.0 => (64.0, 64.0),
        () if len <= 8.0 => (16.0, 8.0),
        () if len <= 16.0 => (16.0, 16.0),
        () => (32.0, 32.0),
    }
}

/// A is read for every item's rows, x for every item's ranks; groups of one slot, and pairs of one group, come one behind the
/// other and find in the cache what was read before.
pub(super) fn shrink(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let inputs = launch.get("x.cols")?;
    let planes = launch.get("planes")?;
    let (mut a, mut x, mut v, mut items, mut flops) = (Needed::default(), Needed::default(), 0.0, 0.0, 0.0);
    let mut slots = BTreeSet::new();
    for group in groups(launch, "rows", "deltas")? {
        let (item_ranks, item_rows) = shrink_item(launch, group.len);
        let row_parts = (group.len / item_rows).ceil();
        let is_first = slots.insert(group.slot);
        for (rank, _) in &group.pairs {
            let rank_parts = (rank / item_ranks).ceil();
            let of_a = rank * inputs * launch.size;
            a.once += if is_first { of_a } else { 0.0 };
            a.asked += of_a * row_parts;
            x.asked += group.len * inputs * launch.size * rank_parts;
            v += 4.0 * planes * group.len * rank;
            items += rank_parts * row_parts * planes;
            flops += 2.0 * row_parts * item_rows * rank_parts * item_ranks * inputs;
        }
        x.once += if group.pairs.is_empty() { 0.0 } else { group.len * inputs * launch.size };
    }
    let cost = Cost::default()
        .again(Adapters, a.once, a.times(), 1.0)
        .again(Activations, x.once, x.times(), 1.0)
        .once(Activations, v);
    Ok(Cost { flops, busy: Some(items.min(launch.blocks())), ..cost })
}

/// B is read for as many rows at a time as fit, y read and written; every block that has columns of a group reads its v.
pub(super) fn expand(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let planes = launch.get("planes")?;
    let most = if launch.size > 2.0 { 64.0 } else { 16.0 };
    let parts = (launch.get("y.cols")? / launch.structs.number("EXPAND_COLUMNS")? as f64).ceil();
    let (mut b, mut v, mut y, mut flops) = (Needed::default(), 0.0, 0.0, 0.0);
    let mut slots = BTreeSet::new();
    let groups = groups(launch, "rows", "deltas")?;
    for group in &groups {
        let is_first = slots.insert(group.slot);
        for (rank, columns) in &group.pairs {
            let of_b = rank * columns * launch.size;
            b.once += if is_first { of_b } else { 0.0 };
            b.asked += of_b * (group.len / most).ceil();
            v += 4.0 * planes * group.len * rank;
            y += 8.0 * group.len * columns;
            flops += 2.0 * (group.len / 8.0).ceil() * 8.0 * (rank / 32.0).ceil() * 32.0 * columns;
        }
    }
    let readers = (launch.blocks() / groups.len().max(1) as f64).clamp(1.0, parts);
    let cost = Cost::default()
        .again(Adapters, b.once, b.times(), 1.0)
        .again(Activations, v, readers, 1.0)
        .once(Activations, y);
    Ok(Cost { flops, busy: Some((groups.len() as f64 * parts).min(launch.blocks())), ..cost })
}

/// Every plane of v is read and the first written, for the rows that have a bottleneck; a block has a row.
pub(super) fn bend_shrunk(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let planes = launch.get("planes")?;
    let (mut biases, mut v, mut rows) = (Needed::default(), 0.0, 0.0);
    let mut slots = BTreeSet::new();
    for group in groups(launch, "rows", "deltas")? {
        let is_first = slots.insert(group.slot);
        for (rank, _) in &group.pairs {
            biases.once += if is_first { 4.0 * rank } else { 0.0 };
            biases.asked += 4.0 * rank * group.len;
            v += 4.0 * (planes + 1.0) * group.len * rank;
            rows += group.len;
        }
    }
    let cost = Cost::default().again(Adapters, biases.once, biases.times(), 1.0).once(Activations, v);
    Ok(Cost { busy: Some(rows.min(launch.blocks())), ..cost })
}

/// x and h are read and written, v written in every form that it has, for the rows that have a bottleneck.
pub(super) fn blend_rows(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let row = 16.0 * launch.get("x.cols")? + launch.both_forms("v")?;
    let bias = 4.0 * launch.get("x.cols")?;
    let (mut biases, mut rows) = (Needed::default(), 0.0);
    let mut slots = BTreeSet::new();
    for group in groups(launch, "rows", "deltas")?.iter().filter(|group| !group.pairs.is_empty()) {
        biases.once += if slots.insert(group.slot) { bias } else { 0.0 };
        biases.asked += bias * group.len;
        rows += group.len;
    }
    Ok(Cost::default().again(Adapters, biases.once, biases.times(), 1.0).once(Activations, rows * row))
}

/// A block reads its row three times, from the cache but for the first, and writes every form of it.
pub(super) fn layer_norm_rows(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let row = 4.0 * launch.get("y.cols")? + launch.both_forms("y")?;
    let (mut vectors, mut rows) = (Needed::default(), 0.0);
    let mut slots = BTreeSet::new();
    for group in groups(launch, "rows", "deltas")?.iter().filter(|group| !group.vectors.is_empty()) {
        let columns: f64 = group.vectors.iter().sum();
        vectors.once += if slots.insert(group.slot) { 4.0 * columns } else { 0.0 };
        vectors.asked += 4.0 * columns * group.len;
        rows += group.len;
    }
    let cost = Cost::default().again(Adapters, vectors.once, vectors.times(), 1.0).once(Activations, rows * row);
    Ok(Cost { busy: Some(rows.min(launch.blocks())), ..cost })
}

/// A row of A for every row, and B once for a slot.
pub(super) fn embedding_low_rank(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let (mut b, mut rows_of_a, mut y) = (Needed::default(), 0.0, 0.0);
    let mut slots = BTreeSet::new();
    for group in groups(launch, "rows", "deltas")? {
        let is_first = slots.insert(group.slot);
        for (rank, columns) in &group.pairs {
            let of_b = rank * columns * launch.size;
            b.once += if is_first { of_b } else { 0.0 };
            b.asked += of_b * group.len;
            rows_of_a += rank * group.len * launch.size;
            y += 8.0 * group.len * columns;
        }
    }
    let cost = Cost::default().again(Adapters, b.once, b.times(), 1.0).once(Adapters, rows_of_a);
    Ok(cost.once(Activations, y))
}

/// Which tokens have rows of their own is the step's to know: as if all had.
pub(super) fn replace_embeddings(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let groups = groups(launch, "rows", "deltas")?;
    let numbers = groups.iter().filter(|group| group.replaced > 0.0).map(|group| group.len).sum::<f64>();
    let numbers = numbers * launch.get("y.cols")?;
    Ok(Cost::default().once(Adapters, numbers * launch.size).once(Activations, 4.0 * numbers))
}

/// Rows in place of the base's are read once for as many rows of a group as are taken at a time, x for every run of them, side
/// by side; each has an id.
pub(super) fn replace_columns(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let inputs = launch.get("x.cols")?;
    let [outs, most] = if launch.size > 2.0 { [64.0, 64.0] } else { [16.0, 32.0] };
    let (mut rows, mut x, mut y, mut items, mut flops) = (Needed::default(), Needed::default(), 0.0, 0.0, 0.0);
    let mut slots = BTreeSet::new();
    for group in groups(launch, "rows", "deltas")?.iter().filter(|group| group.replaced > 0.0) {
        let rows_of_part = if launch.size <= 2.0 && group.len <= 8.0 { 8.0 } else { most };
        let (parts, runs) = ((group.len / rows_of_part).ceil(), (group.replaced / outs).ceil());
        let bytes = group.replaced * (inputs * launch.size + 4.0);
        rows.once += if slots.insert(group.slot) { bytes } else { 0.0 };
        rows.asked += bytes * parts;
        x.once += group.len * inputs * launch.size;
        x.asked += group.len * inputs * launch.size * runs;
        y += 4.0 * group.len * group.replaced;
        items += runs;
        flops += 2.0 * parts * rows_of_part * runs * outs * inputs;
    }
    let cost = Cost::default()
        .again(Adapters, rows.once, rows.times(), 1.0)
        .again(Activations, x.once, x.times(), 1.0)
        .once(Activations, y);
    Ok(Cost { flops, busy: Some(items.min(launch.blocks())), ..cost })
}

/// A head is read for every row of its slot; the row of x comes from the cache for all labels but the first.
pub(super) fn head_rows(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let inputs = launch.get("x.cols")?;
    let (mut heads, mut rows, mut flops) = (Needed::default(), 0.0, 0.0);
    let mut slots = BTreeSet::new();
    for group in groups(launch, "rows", "deltas")? {
        let labels: f64 = group.vectors.iter().sum();
        heads.once += if slots.insert(group.slot) { 4.0 * labels * inputs } else { 0.0 };
        heads.asked += 4.0 * labels * inputs * group.len;
        rows += if labels > 0.0 { 4.0 * group.len * (inputs + labels) } else { 0.0 };
        flops += 2.0 * labels * inputs * group.len;
    }
    let cost = Cost::default().again(Adapters, heads.once, heads.times(), 1.0).once(Activations, rows);
    Ok(Cost { flops, ..cost })
}

/// A full matrix is read for as many rows at a time as a block takes, eight or 32 of a group; groups of one slot come one behind
/// the other and find it in the cache only where it is small, so each reads it anew. y is read where the product is added.
pub(super) fn dense(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let inputs = launch.get("x.cols")?;
    let most = if launch.size > 2.0 { 64.0 } else { 16.0 };
    let (mut d, mut x, mut y, mut flops, mut busy) = (Needed::default(), 0.0, 0.0, 0.0, 0.0);
    let block_outs = if launch.size > 2.0 { 64.0 } else { 16.0 };
    let mut slots = BTreeSet::new();
    for group in groups(launch, "rows", "deltas")? {
        let is_first = slots.insert(group.slot);
        let parts = (group.len / most).ceil();
        for (columns, stride) in &group.matrices {
            let of_d = columns * stride * launch.size;
            d.once += if is_first { of_d } else { 0.0 };
            d.asked += of_d * parts;
            x += group.len * inputs * launch.size;
            y += 8.0 * group.len * columns;
            flops += 2.0 * (group.len / 8.0).ceil() * 8.0 * inputs * columns;
            busy += (columns / block_outs).ceil();
        }
    }
    let cost = Cost::default()
        .again(Adapters, d.once, d.times(), d.times())
        .again(Activations, x, (launch.get("y.cols")? / block_outs).ceil(), 1.0)
        .once(Activations, y);
    Ok(Cost { flops, busy: Some(busy.min(launch.blocks())), ..cost })
}

/// Vectors are read for every row, y only where there are some.
pub(super) fn vector_rows(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let (mut vectors, mut y) = (Needed::default(), 0.0);
    let mut slots = BTreeSet::new();
    for group in groups(launch, "rows", "deltas")? {
        let columns: f64 = group.vectors.iter().sum();
        vectors.once += if slots.insert(group.slot) { 4.0 * columns } else { 0.0 };
        vectors.asked += 4.0 * columns * group.len;
        y += 8.0 * group.len * columns;
    }
    Ok(Cost::default().again(Adapters, vectors.once, vectors.times(), 1.0).once(Activations, y))
}

/// c1 and c2 are read for every row, y read and written.
pub(super) fn rotate_outputs(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let (mut c, mut y, mut flops) = (Needed::default(), 0.0, 0.0);
    let mut slots = BTreeSet::new();
    for group in groups(launch, "rows", "deltas")? {
        let columns: f64 = group.column_rotations.iter().sum();
        c.once += if slots.insert(group.slot) { 8.0 * columns } else { 0.0 };
        c.asked += 8.0 * columns * group.len;
        y += 8.0 * group.len * columns;
        flops += 3.0 * group.len * columns;
    }
    let cost = Cost::default().again(Adapters, c.once, c.times(), 1.0).once(Activations, y);
    Ok(Cost { flops, ..cost })
}

/// A walk over S serves so many rows: SPARSE_ROWS of sparse.cuh.
const ROWS_OF_WALK: f64 = 8.0;
/// What a number of x costs that is read by itself: a sector of the cache.
const SECTOR: f64 = 32.0;

/// A number of S is two: its place and its value. S is read for as many rows at a time as one walk serves; of x every number
/// of S asks for one by itself, and most of what it asks for was asked for before.
pub(super) fn sparse(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let inputs = launch.get("x.cols")?;
    let (mut s, mut x, mut y, mut flops) = (Needed::default(), Needed::default(), 0.0, 0.0);
    let mut slots = BTreeSet::new();
    for group in groups(launch, "rows", "deltas")? {
        let is_first = slots.insert(group.slot);
        for (numbers, columns) in &group.sparse {
            let of_s = numbers * (4.0 + launch.size) + 4.0 * columns;
            s.once += if is_first { of_s } else { 0.0 };
            s.asked += of_s * (group.len / ROWS_OF_WALK).ceil();
            x.asked += group.len * numbers * SECTOR;
            y += 8.0 * group.len * columns;
            flops += 2.0 * group.len * numbers;
        }
        x.once += if group.sparse.is_empty() { 0.0 } else { group.len * inputs * launch.size };
    }
    let cost = Cost::default()
        .again(Adapters, s.once, s.times(), 1.0)
        .again(Activations, x.once, x.times(), 1.0)
        .once(Activations, y);
    Ok(Cost { flops, ..cost })
}

/// A rotation is read for eight rows at a time (`ROTATE_ROWS` of rows.cu), a row read and written where it turns; the first
/// of several takes all other rows along.
pub(super) fn rotate_input(launch: &Seen<'_>) -> Result<Cost, Failure> {
    let (turn, cols, most) = (launch.get("turn")?, launch.get("y.cols")?, 8.0);
    let (mut blocks, mut turned, mut flops) = (Needed::default(), 0.0, 0.0);
    let mut slots = BTreeSet::new();
    for group in groups(launch, "rows", "deltas")? {
        let Some((size, stride)) = group.rotations.get(turn as usize) else { continue };
        let of_all = 4.0 * size * if *stride > 0.0 { cols } else { *size };
        blocks.once += if slots.insert(group.slot) { of_all } else { 0.0 };
        blocks.asked += of_all * (group.len / most).ceil();
        turned += group.len;
        flops += 2.0 * group.len * cols * size;
    }
    let moved = if turn == 0.0 { launch.rows()? } else { turned } * (4.0 * cols + launch.both_forms("y")?);
    let cost = Cost::default().again(Adapters, blocks.once, blocks.times(), 1.0).once(Activations, moved);
    Ok(Cost { flops, ..cost })
}
