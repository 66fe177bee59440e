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
use super::gemm::{Kernel, MAX_ROWS, Outputs, Portable, Store, Tile, WORDS};
#[cfg(target_arch = "x86_64")]
use super::isa::Fused;
use super::isa::{Arithmetic, DetectedIsa, Isa, Plain};
use super::kv::{KvLayout, TILE};
use super::math;
use crate::ops::{AttentionSpec, Dtype, SequencePlan, StepPlan};

/// Most (row, head) pairs of one item.
const MAX_QUERIES: usize = 32;
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
    /// Scores of the current tile, then weights.
    scores: [[f32; TILE]; MAX_QUERIES],
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
    let sequence = &pass.plan.sequences[item.sequence];
    let heads = item.heads.len();
    let mut queries = Queries {
        max: [f32::NEG_INFINITY; MAX_QUERIES],
        sum: [[0.0; TILE]; MAX_QUERIES],
        scores: [[0.0; TILE]; MAX_QUERIES],
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
    let block_size = pass.layout.shape.block_size;
    let kv_head = item.heads.start / (pass.spec.heads / pass.spec.kv_heads);
    for block in start / block_size..end.div_ceil(block_size) {
        for tile in 0..pass.layout.tiles() {
            let first = block * block_size + tile * TILE;
            let places = first..(first + TILE).min((block + 1) * block_size);
            let seen = |row: usize| {
                let seen: &Range<usize> = &visible[row];
                seen.start.max(places.start)..seen.end.min(places.end)
            };
            let (k, v) = pass.layout.tile(sequence.blocks[block] as usize, kv_head, tile);
            let (k, v) = (&pass.kv[k], &pass.kv[v]);
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
                    // SAFETY: handed on; `k` and `v` are one tile of the layout.
                    unsafe {
                        score::<K>(pass, item, part.clone(), k, &mut queries);
                        part.clone().for_each(|query| soften::<A>(pass, item, query, &lanes, &mut queries));
                        accumulate::<K>(pass, item, part, v, lanes, &mut queries);
                    }
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

    /// The output of one row and head.
    #[allow(clippy::mut_from_ref)]
    fn output(&self, row: usize, head: usize) -> &mut [f32] {
        let dim = self.spec.head_dim;
        let y = self.y.at(row, head * dim, dim);
        // SAFETY: `at` asserted the range; `attend`'s caller gives these columns to this thread, which holds one such
        // slice at a time.
        unsafe { std::slice::from_raw_parts_mut(y, dim) }
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

/// q·k of every lane, visible or not.
///
/// # Safety
/// The machine has the instruction set of `K`; `k` is the K of one tile.
#[inline(always)]
unsafe fn score<K: Kernel>(pass: &Pass<'_>, item: &Item, part: Range<usize>, k: &[u32], queries: &mut Queries) {
    for tile in tiles::<K>(part) {
        let mut operands = Tile {
            x: [std::ptr::null(); MAX_ROWS],
            w: k.as_ptr(),
            panel_stride: 0,
            k: 0..pass.spec.head_dim,
            y: [std::ptr::null_mut(); MAX_ROWS],
            width: TILE,
            store: Store::Overwrite,
        };
        for (i, query) in tile.clone().enumerate() {
            operands.x[i] = pass.query(item, query).as_ptr().cast();
            operands.y[i] = queries.scores[query].as_mut_ptr();
        }
        // SAFETY: each query is `head_dim` numbers, `k` one panel of that depth, each row of scores one panel wide.
        unsafe { K::tile(tile.len(), 1, &operands) };
    }
}

/// Scores to weights, one step of the online softmax.
#[inline(always)]
fn soften<A: Arithmetic>(pass: &Pass<'_>, item: &Item, query: usize, lanes: &Range<usize>, queries: &mut Queries) {
    let scores = &mut queries.scores[query];
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
    let old = queries.max[query];
    // `max` passes over a NaN, which then reaches the weights through `exp`.
    let max = old.max(math::fold_lanes(*scores, f32::max));
    // Only with scores of -inf; any finite number gives weights of 0 then.
    let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let keep = math::exp::<A>(old - base);
    let sum = &mut queries.sum[query];
    for lane in 0..TILE {
        scores[lane] = math::exp::<A>(scores[lane] - base);
        sum[lane] = A::mul_add(sum[lane], keep, scores[lane]);
    }
    queries.max[query] = max;
    // A factor of 1 would change no bit.
    if keep != 1.0 {
        pass.output_of(item, query).iter_mut().for_each(|y| *y *= keep);
    }
}

/// y += p V over the visible lanes.
///
/// # Safety
/// As [`attend`], on a machine with the instruction set of `K`; `v` is the V of one tile.
#[inline(always)]
unsafe fn accumulate<K: Kernel>(
    pass: &Pass<'_>,
    item: &Item,
    part: Range<usize>,
    v: &[u32],
    lanes: Range<usize>,
    queries: &mut Queries,
) {
    let dim = pass.spec.head_dim;
    let panels = dim.div_ceil(WORDS);
    for tile in tiles::<K>(part) {
        let side = K::panels(tile.len());
        for first in (0..panels).step_by(side) {
            let count = side.min(panels - first);
            let column = first * WORDS;
            let mut operands = Tile {
                x: [std::ptr::null(); MAX_ROWS],
                w: v[first * pass.layout.v_panel..(first + count) * pass.layout.v_panel].as_ptr(),
                panel_stride: pass.layout.v_panel,
                k: lanes.clone(),
                y: [std::ptr::null_mut(); MAX_ROWS],
                width: (dim - column).min(count * WORDS),
                store: Store::Continue,
            };
            for (i, query) in tile.clone().enumerate() {
                operands.x[i] = queries.scores[query].as_ptr().cast();
                operands.y[i] = pass.output_of(item, query)[column..].as_mut_ptr();
            }
            // SAFETY: the weights are 16 numbers, `v` has that many places in every panel, y was cut to the head;
            // the caller answers for threads and the instruction set.
            unsafe { K::tile(tile.len(), count, &operands) };
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
