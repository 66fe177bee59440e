//! Paged attention, prefill and decode alike, on the GEMM's tiles.
//!
//! One algorithm per (row, query head), *query* for short: walk the stretches of [`SIDE`] KV tiles that hold a visible
//! place, in ascending order; score, mask, online softmax (Milakov & Gimelshein 2018), add `p V` place by place.
//! Stretches are counted from KV index 0, so neither chunking nor the batch moves them; one without a visible place is
//! skipped, and masked places of the others are left out of `p V` instead of being multiplied by 0, so that what a stale
//! page holds (even NaN) changes nothing. Many queries share the reading of a stretch, each with sums of its own.
//!
//! This file says what an item is and which kernels compute it; `walk` is the algorithm, `items` cuts a step.
#![allow(unsafe_code)]

mod items;
mod walk;

use std::ops::Range;

pub(super) use items::{Item, assert_consistent, items};

#[cfg(target_arch = "x86_64")]
use super::gemm::{Avx2, Avx512};
use super::gemm::{Outputs, Portable};
#[cfg(target_arch = "x86_64")]
use super::isa::Fused;
use super::isa::{DetectedIsa, Isa, Plain};
use super::kv::{KvLayout, TILE};
use super::pack::{Line, PANEL};
use crate::ops::{AttentionSpec, Dtype, StepPlan};
use walk::walk;

/// Most queries of an item.
const MAX_QUERIES: usize = 96;
/// KV tiles of a stretch: one step of the online softmax, and one query against one tile alone would be a single chain
/// of sums, each waiting for the last.
const SIDE: usize = 4;
/// Places of a stretch.
const STRETCH: usize = SIDE * TILE;

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

impl Pass<'_> {
    /// KV indices a row sees: causal, and within the window.
    fn visible(&self, row: usize) -> Range<usize> {
        let end = self.plan.positions[row] as usize + 1;
        self.spec.window.map_or(0, |window| end.saturating_sub(window as usize))..end
    }

    /// KV indices of a tile, counted from KV index 0.
    fn places(&self, tile: usize) -> Range<usize> {
        let (size, per_block) = (self.layout.shape.block_size, self.layout.tiles());
        let first = tile / per_block * size + tile % per_block * TILE;
        first..(first + TILE).min((tile / per_block + 1) * size)
    }

    /// The tile of a KV index.
    fn tile_of(&self, index: usize) -> usize {
        let (size, per_block) = (self.layout.shape.block_size, self.layout.tiles());
        index / size * per_block + index % size / TILE
    }

    /// Where K and V of a tile of the item's sequence lie.
    fn words(&self, item: &Item, tile: usize) -> (Range<usize>, Range<usize>) {
        let per_block = self.layout.tiles();
        let block = self.plan.sequences[item.sequence].blocks[tile / per_block];
        let kv_head = item.heads.start / (self.spec.heads / self.spec.kv_heads);
        self.layout.tile(block as usize, kv_head, tile % per_block)
    }

    /// K and V of a tile of the item's sequence.
    fn tile(&self, item: &Item, tile: usize) -> (&[u32], &[u32]) {
        let (k, v) = self.words(item, tile);
        (&self.kv[k], &self.kv[v])
    }

    /// The cache lines of K and V of a tile of the item's sequence.
    fn lines(&self, item: &Item, tile: usize) -> &[Line] {
        let (k, v) = self.words(item, tile);
        // SAFETY: any words are a line, and `align_to` takes care of its alignment.
        unsafe { self.kv[k.start..v.end].align_to::<Line>().1 }
    }
}

/// Lines that one thread needs to compute items of heads of `head_dim`.
pub(super) fn workspace_lines(head_dim: usize) -> usize {
    let panels = head_dim.div_ceil(PANEL);
    // Queries and their outputs, their scores, keys and values of a stretch.
    2 * (MAX_QUERIES + STRETCH) * panels + MAX_QUERIES * SIDE
}

/// Compute one item. `lines` are [`workspace_lines`], of any contents.
///
/// # Safety
/// No other thread touches the heads of the item in its rows of y meanwhile.
pub(super) unsafe fn attend(isa: DetectedIsa, pass: &Pass<'_>, item: &Item, lines: &mut [Line]) {
    // SAFETY: `DetectedIsa` proves the instruction set; the caller answers for y.
    unsafe {
        match (isa.get(), pass.layout.dtype) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, Dtype::F32) => fused512::<false>(pass, item, lines),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, Dtype::Bf16) => fused512::<true>(pass, item, lines),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Dtype::F32) => fused256::<false>(pass, item, lines),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Dtype::Bf16) => fused256::<true>(pass, item, lines),
            (_, Dtype::F32) => walk::<Portable<Plain, false>, Portable<Plain, false>, Plain>(pass, item, lines),
            (_, Dtype::Bf16) => walk::<Portable<Plain, true>, Portable<Plain, false>, Plain>(pass, item, lines),
        }
    }
}

/// # Safety
/// As [`attend`], on a machine with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn fused256<const BF16: bool>(pass: &Pass<'_>, item: &Item, lines: &mut [Line]) {
    // SAFETY: handed on.
    unsafe { walk::<Avx2<BF16>, Avx2<false>, Fused>(pass, item, lines) }
}

/// # Safety
/// As [`attend`], on a machine with AVX-512F, AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn fused512<const BF16: bool>(pass: &Pass<'_>, item: &Item, lines: &mut [Line]) {
    // SAFETY: handed on.
    unsafe { walk::<Avx512<BF16>, Avx512<false>, Fused>(pass, item, lines) }
}
