//! Paged attention, prefill and decode alike, on the GEMM's tiles.
//!
//! One algorithm per (row, query head): walk the KV tiles that hold a visible place, in ascending order; score, mask,
//! online softmax (Milakov & Gimelshein 2018), add `p V`. Tile boundaries are counted from KV index 0, so neither
//! chunking nor the batch moves them; a tile without a visible place is skipped, and masked places of the others are
//! left out of `p V` instead of being multiplied by 0, so that what a stale page holds (even NaN) changes nothing.
//! Rows and the heads of a group share the reading of a tile, each with sums of its own.
#![allow(unsafe_code)]

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::gemm::{Avx2, Avx512};
use super::gemm::{Kernel, MAX_PANELS, MAX_ROWS, Outputs, Portable, Store, Tile, WORDS};
#[cfg(target_arch = "x86_64")]
use super::isa::Fused;
use super::isa::{Arithmetic, DetectedIsa, Isa, Plain};
use super::kv::{KvLayout, TILE};
use super::math;
use crate::ops::{AttentionSpec, Dtype, SequencePlan, StepPlan};

/// Most (row, head) pairs of one item.
const MAX_QUERIES: usize = 32;
/// KV tiles that few queries are scored against side by side: one query against one tile is a single chain of sums,
/// each waiting for the last.
const SIDE: usize = 4;
/// Queries that keep enough sums in flight against one tile.
const ENOUGH_QUERIES: usize = 5;
/// Most query heads of one item.
const MAX_HEADS: usize = 16;

/// What one thread does at a time: some rows of a sequence against one KV head, for some of its query heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    sequence: usize,
    rows: Range<usize>,
    heads: Range<usize>,
}

/// One call of attention.
pub(super) struct Pass<'a> {
    pub(super) plan: &'a StepPlan,
    pub(super) spec: AttentionSpec,
    pub(super) layout: KvLayout,
    /// Words of the layer.
    pub(super) kv: &'a [u32],
    pub(super) qkv: &'a [f32],
    /// Columns of `qkv`.
    pub(super) stride: usize,
    pub(super) y: Outputs<'a>,
}

/// Cut a step into items, enough for all threads where there are that many (row, head) pairs.
pub(super) fn items(plan: &StepPlan, spec: &AttentionSpec, threads: usize, items: &mut Vec<Item>) {
    items.clear();
    let group = spec.heads / spec.kv_heads;
    let groups = plan.sequences.len() * spec.kv_heads;
    let splits = threads.div_ceil(groups.max(1)).clamp(1, group);
    let heads_each = group.div_ceil(splits).min(MAX_HEADS);
    let rows_each = (MAX_QUERIES / heads_each).max(1);
    for (sequence, held) in plan.sequences.iter().enumerate() {
        for first in held.rows.clone().step_by(rows_each) {
            let rows = first..(first + rows_each).min(held.rows.end);
            for kv_head in 0..spec.kv_heads {
                for head in (0..group).step_by(heads_each) {
                    let heads = kv_head * group + head..kv_head * group + (head + heads_each).min(group);
                    items.push(Item { sequence, rows: rows.clone(), heads });
                }
            }
        }
    }
    // The last rows of a prompt see the most: begin with them, so that no thread is left with one at the end.
    items.reverse();
}

/// Running softmax of the queries of an item, query = row-major (row, head).
struct Queries {
    max: [f32; MAX_QUERIES],
    sum: [[f32; TILE]; MAX_QUERIES],
    /// KV tiles side by side.
    side: usize,
    /// Scores of the current tiles, then weights; row-major (query, tile of `side`, lane).
    scores: [f32; MAX_QUERIES * TILE],
}

impl Queries {
    /// Scores of a query from the `index`-th tile of a group on.
    fn scores(&mut self, query: usize, index: usize) -> &mut [f32] {
        &mut self.scores[(query * self.side + index) * TILE..]
    }
}

/// Compute one item.
///
/// # Safety
/// No other thread touches the heads of the item in its rows of y meanwhile.
pub(super) unsafe fn attend(isa: DetectedIsa, pass: &Pass<'_>, item: &Item) {
    // SAFETY: `DetectedIsa` proves the instruction set; the caller answers for y.
    unsafe {
        match (isa.get(), pass.layout.dtype) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, Dtype::F32) => fused::<Avx512<false>>(pass, item),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, Dtype::Bf16) => fused::<Avx512<true>>(pass, item),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Dtype::F32) => fused::<Avx2<false>>(pass, item),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Dtype::Bf16) => fused::<Avx2<true>>(pass, item),
            (_, Dtype::F32) => walk::<Portable<Plain, false>, Plain>(pass, item),
            (_, Dtype::Bf16) => walk::<Portable<Plain, true>, Plain>(pass, item),
        }
    }
}

/// # Safety
/// As [`attend`], on a machine with AVX2, FMA and the instruction set of `K`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn fused<K: Kernel>(pass: &Pass<'_>, item: &Item) {
    // SAFETY: handed on.
    unsafe { walk::<K, Fused>(pass, item) }
}

/// # Safety
/// As [`attend`], on a machine with the instruction set of `K`.
#[inline(always)]
unsafe fn walk<K: Kernel, A: Arithmetic>(pass: &Pass<'_>, item: &Item) {
    let heads = item.heads.len();
    let mut queries = Queries {
        max: [f32::NEG_INFINITY; MAX_QUERIES],
        sum: [[0.0; TILE]; MAX_QUERIES],
        side: if item.rows.len() * heads < ENOUGH_QUERIES { SIDE } else { 1 },
        scores: [0.0; MAX_QUERIES * TILE],
    };
    for row in item.rows.clone() {
        for head in item.heads.clone() {
            pass.output(row, head).fill(0.0);
        }
    }
    let visible: [Range<usize>; MAX_QUERIES] =
        std::array::from_fn(|i| if i < item.rows.len() { pass.visible(item.rows.start + i) } else { 0..0 });
    let visible = &visible[..item.rows.len()];
    let start = visible.iter().map(|seen| seen.start).min().unwrap_or(0);
    let end = visible.iter().map(|seen| seen.end).max().unwrap_or(0);
    let (block_size, per_block) = (pass.layout.shape.block_size, pass.layout.tiles());
    let last = end.div_ceil(block_size) * per_block;
    for group in (start / block_size * per_block..last).step_by(queries.side) {
        let group = group..(group + queries.side).min(last);
        // SAFETY: handed on.
        unsafe { score::<K>(pass, item, 0..visible.len() * heads, group.clone(), &mut queries) };
        for (side, tile) in group.enumerate() {
            let first = tile / per_block * block_size + tile % per_block * TILE;
            let places = first..(first + TILE).min((tile / per_block + 1) * block_size);
            let seen = |row: usize| {
                let seen: &Range<usize> = &visible[row];
                seen.start.max(places.start)..seen.end.min(places.end)
            };
            // Rows that see the same places of this tile go together; only the diagonal and a window's edge differ.
            let mut row = 0;
            while row < visible.len() {
                let range = seen(row);
                let mut next = row + 1;
                while next < visible.len() && seen(next) == range {
                    next += 1;
                }
                if range.start < range.end {
                    let lanes = range.start - first..range.end - first;
                    let part = row * heads..next * heads;
                    // A loop, not a closure: closures may be compiled apart, without the instruction set.
                    for query in part.clone() {
                        soften::<A>(pass, item, query, side, &lanes, &mut queries);
                    }
                    // SAFETY: handed on.
                    unsafe { accumulate::<K>(pass, item, part, tile, side, lanes, &mut queries) };
                }
                row = next;
            }
        }
    }
    for query in 0..visible.len() * heads {
        let total = 1.0 / math::fold_lanes(queries.sum[query], |a, b| a + b);
        pass.output_of(item, query).iter_mut().for_each(|y| *y *= total);
    }
}

impl Pass<'_> {
    /// KV indices a row sees: causal, and within the window.
    fn visible(&self, row: usize) -> Range<usize> {
        let end = self.plan.positions[row] as usize + 1;
        self.spec.window.map_or(0, |window| end.saturating_sub(window as usize))..end
    }

    /// K and V of a tile, counted from KV index 0 of the item's sequence.
    fn tile(&self, item: &Item, tile: usize) -> (&[u32], &[u32]) {
        let per_block = self.layout.tiles();
        let block = self.plan.sequences[item.sequence].blocks[tile / per_block];
        let kv_head = item.heads.start / (self.spec.heads / self.spec.kv_heads);
        let (k, v) = self.layout.tile(block as usize, kv_head, tile % per_block);
        (&self.kv[k], &self.kv[v])
    }

    /// The output of one row and head.
    #[allow(clippy::mut_from_ref)]
    fn output(&self, row: usize, head: usize) -> &mut [f32] {
        let dim = self.spec.head_dim;
        // SAFETY: `attend`'s caller gives these columns to this thread, which holds one such slice at a time.
        unsafe { self.y.columns(row, head * dim, dim) }
    }

    #[allow(clippy::mut_from_ref)]
    fn output_of(&self, item: &Item, query: usize) -> &mut [f32] {
        let heads = item.heads.len();
        self.output(item.rows.start + query / heads, item.heads.start + query % heads)
    }

    fn query(&self, item: &Item, query: usize) -> &[f32] {
        let heads = item.heads.len();
        let (row, head) = (item.rows.start + query / heads, item.heads.start + query % heads);
        &self.qkv[row * self.stride + head * self.spec.head_dim..][..self.spec.head_dim]
    }
}

/// Cut queries into tiles of at most `K::ROWS`.
#[inline(always)]
fn tiles<K: Kernel>(part: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let count = part.len().div_ceil(K::ROWS);
    let mut start = part.start;
    (0..count).map(move |index| {
        let tile = start..start + (part.end - start).div_ceil(count - index);
        start = tile.end;
        tile
    })
}

/// q·k of every lane of some KV tiles, visible or not.
///
/// # Safety
/// The machine has the instruction set of `K`.
#[inline(always)]
unsafe fn score<K: Kernel>(
    pass: &Pass<'_>,
    item: &Item,
    part: Range<usize>,
    group: Range<usize>,
    queries: &mut Queries,
) {
    for rows in tiles::<K>(part) {
        let side = K::panels(rows.len());
        for first in (0..group.len()).step_by(side) {
            let count = side.min(group.len() - first);
            let mut operands = Tile {
                x: [std::ptr::null(); MAX_ROWS],
                w: [std::ptr::null(); MAX_PANELS],
                k: 0..pass.spec.head_dim,
                y: [std::ptr::null_mut(); MAX_ROWS],
                width: count * TILE,
                store: Store::Overwrite,
            };
            for panel in 0..count {
                operands.w[panel] = pass.tile(item, group.start + first + panel).0.as_ptr();
            }
            for (i, query) in rows.clone().enumerate() {
                operands.x[i] = pass.query(item, query).as_ptr().cast();
                operands.y[i] = queries.scores(query, first).as_mut_ptr();
            }
            // SAFETY: each query is `head_dim` numbers, each K one panel of that depth, each row of scores holds the
            // panels of the group side by side.
            unsafe { K::tile(rows.len(), count, &operands) };
        }
    }
}

/// Scores to weights, one step of the online softmax.
#[inline(always)]
fn soften<A: Arithmetic>(
    pass: &Pass<'_>,
    item: &Item,
    query: usize,
    side: usize,
    lanes: &Range<usize>,
    queries: &mut Queries,
) {
    let Queries { max, sum, scores, side: together } = queries;
    let scores: &mut [f32; TILE] = &mut scores.as_chunks_mut().0[query * *together + side];
    for score in scores.iter_mut() {
        *score *= pass.spec.scale;
    }
    if let Some(cap) = pass.spec.softcap {
        for score in scores.iter_mut() {
            *score = math::tanh::<A>(*score / cap) * cap;
        }
    }
    for (lane, score) in scores.iter_mut().enumerate() {
        *score = if lane >= lanes.start && lane < lanes.end { *score } else { f32::NEG_INFINITY };
    }
    let old = max[query];
    // `max` passes over a NaN, which then reaches the weights through `exp`.
    let new = old.max(math::fold_lanes(*scores, f32::max));
    // Only with scores of -inf; any finite number gives weights of 0 then.
    let base = if new == f32::NEG_INFINITY { 0.0 } else { new };
    let keep = math::exp::<A>(old - base);
    let sum = &mut sum[query];
    for lane in 0..TILE {
        scores[lane] = math::exp::<A>(scores[lane] - base);
        sum[lane] = A::mul_add(sum[lane], keep, scores[lane]);
    }
    max[query] = new;
    // A factor of 1 would change no bit.
    if keep != 1.0 {
        pass.output_of(item, query).iter_mut().for_each(|y| *y *= keep);
    }
}

/// y += p V over the visible lanes.
///
/// # Safety
/// As [`attend`], on a machine with the instruction set of `K`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn accumulate<K: Kernel>(
    pass: &Pass<'_>,
    item: &Item,
    part: Range<usize>,
    tile: usize,
    side: usize,
    lanes: Range<usize>,
    queries: &mut Queries,
) {
    let dim = pass.spec.head_dim;
    let panels = dim.div_ceil(WORDS);
    let (_, v) = pass.tile(item, tile);
    for rows in tiles::<K>(part) {
        let together = K::panels(rows.len());
        for first in (0..panels).step_by(together) {
            let count = together.min(panels - first);
            let column = first * WORDS;
            let mut operands = Tile {
                x: [std::ptr::null(); MAX_ROWS],
                w: [std::ptr::null(); MAX_PANELS],
                k: lanes.clone(),
                y: [std::ptr::null_mut(); MAX_ROWS],
                width: (dim - column).min(count * WORDS),
                store: Store::Continue,
            };
            for (panel, v) in v.chunks_exact(pass.layout.v_panel).skip(first).take(count).enumerate() {
                operands.w[panel] = v.as_ptr();
            }
            for (i, query) in rows.clone().enumerate() {
                operands.x[i] = queries.scores(query, side).as_ptr().cast();
                operands.y[i] = pass.output_of(item, query)[column..].as_mut_ptr();
            }
            // SAFETY: the weights are 16 numbers, `v` has that many places in every panel, y was cut to the head;
            // the caller answers for threads and the instruction set.
            unsafe { K::tile(rows.len(), count, &operands) };
        }
    }
}

/// Check once what the kernels rely on: rows in order, none twice, all within the plan.
pub(super) fn assert_consistent(plan: &StepPlan) {
    let rows = plan.rows.len();
    assert!(plan.ids.len() == rows && plan.positions.len() == rows && plan.kv_slots.len() == rows);
    let mut end = 0;
    for SequencePlan { rows: held, .. } in &plan.sequences {
        assert!(held.start >= end && held.end >= held.start && held.end <= rows, "sequences overlap");
        end = held.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::RowPlan;

    #[test]
    fn items_cover_every_row_and_head_once() {
        for (heads, kv_heads, threads) in [(7, 1, 2), (8, 8, 2), (14, 2, 8), (71, 1, 1), (40, 1, 3)] {
            let spec = AttentionSpec { heads, kv_heads, head_dim: 4, scale: 1.0, softcap: None, window: None };
            let sequence = |rows: Range<usize>| SequencePlan { rows, start: 0, blocks: vec![0] };
            let plan = StepPlan {
                rows: RowPlan::new(vec![None; 50]),
                sequences: vec![sequence(0..1), sequence(1..49), sequence(49..50)],
                ..StepPlan::default()
            };
            let mut list = Vec::new();
            items(&plan, &spec, threads, &mut list);
            let mut seen = vec![0; 50 * heads];
            for item in &list {
                assert!(item.rows.len() * item.heads.len() <= MAX_QUERIES);
                let group = heads / kv_heads;
                assert_eq!(item.heads.start / group, (item.heads.end - 1) / group);
                item.rows.clone().for_each(|row| item.heads.clone().for_each(|head| seen[row * heads + head] += 1));
            }
            assert!(seen.iter().all(|times| *times == 1));
        }
    }
}
