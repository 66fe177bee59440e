//! One call of attention, and where its keys and values lie.
#![allow(unsafe_code)]

use std::ops::Range;

use super::super::gemm::Outputs;
use super::super::kv::{KvLayout, TILE};
use super::super::pack::Line;
use super::items::Item;
use crate::ops::{AttentionSpec, StepPlan};

/// KV tiles of a stretch: one step of the online softmax, and one query against one tile alone would be a single chain
/// of sums, each waiting for the last.
pub(super) const SIDE: usize = 4;
/// Places of a stretch.
pub(super) const STRETCH: usize = SIDE * TILE;

/// One call of attention.
pub(in crate::ops::cpu) struct Pass<'a> {
    pub(in crate::ops::cpu) plan: &'a StepPlan,
    pub(in crate::ops::cpu) spec: AttentionSpec,
    pub(in crate::ops::cpu) layout: KvLayout,
    /// Words of the layer.
    pub(in crate::ops::cpu) kv: &'a [u32],
    pub(in crate::ops::cpu) qkv: &'a [f32],
    /// Columns of `qkv`.
    pub(in crate::ops::cpu) stride: usize,
    pub(in crate::ops::cpu) y: Outputs<'a>,
}

impl Pass<'_> {
    /// KV indices a row sees: causal, and within the window.
    pub(super) fn visible(&self, row: usize) -> Range<usize> {
        let end = self.plan.positions[row] as usize + 1;
        self.spec.window.map_or(0, |window| end.saturating_sub(window as usize))..end
    }

    /// KV indices of a tile, counted from KV index 0.
    pub(super) fn places(&self, tile: usize) -> Range<usize> {
        let (size, per_block) = (self.layout.shape.block_size, self.layout.tiles());
        let first = tile / per_block * size + tile % per_block * TILE;
        first..(first + TILE).min((tile / per_block + 1) * size)
    }

    /// The tile of a KV index.
    pub(super) fn tile_of(&self, index: usize) -> usize {
        let (size, per_block) = (self.layout.shape.block_size, self.layout.tiles());
        index / size * per_block + index % size / TILE
    }

    /// Where K and V of a tile of the item's sequence lie.
    pub(super) fn words(&self, item: &Item, tile: usize) -> (Range<usize>, Range<usize>) {
        let per_block = self.layout.tiles();
        let block = self.plan.sequences[item.sequence].blocks[tile / per_block];
        let kv_head = item.heads.start / (self.spec.heads / self.spec.kv_heads);
        self.layout.tile(block as usize, kv_head, tile % per_block)
    }

    /// K and V of a tile of the item's sequence.
    pub(super) fn tile(&self, item: &Item, tile: usize) -> (&[u32], &[u32]) {
        let (k, v) = self.words(item, tile);
        (&self.kv[k], &self.kv[v])
    }

    /// The cache lines of K and V of a tile of the item's sequence.
    pub(super) fn lines(&self, item: &Item, tile: usize) -> &[Line] {
        let (k, v) = self.words(item, tile);
        // SAFETY: any words are a line, and `align_to` takes care of its alignment.
        unsafe { self.kv[k.start..v.end].align_to::<Line>().1 }
    }
}
