//! The paged KV cache, in the layout the GEMM tiles read.
//!
//! A block is cut into *KV tiles* of 16 places (the last may be shorter). Within a tile K is a panel whose columns are
//! places and whose k runs over the head, so that a score stays in one lane; V is panels whose columns run over the
//! head and whose k are places. Words are as in [`super::pack`]: f32, or two bf16 neighbouring in k. Both of one KV
//! head and tile lie together, so attention streams them. Layers are separate allocations of untouched pages, huge ones
//! where the system has them: a step jumps from block to block.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

use super::math::round_bf16_bits;
use super::memory::untouched;
use super::numerics::KvDtype;
use super::pack::PANEL;
use crate::ops::{KvShape, OpsError};

/// Places of a KV tile.
pub const TILE: usize = PANEL;

/// Sizes of the layout, in words.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvLayout {
    pub(super) shape: KvShape,
    pub(super) dtype: KvDtype,
    /// K of one head and tile.
    k_words: usize,
    /// One panel of V.
    pub(super) v_panel: usize,
    /// V of one head and tile.
    v_words: usize,
}

impl KvLayout {
    pub(super) fn new(shape: KvShape, dtype: KvDtype) -> Self {
        let per_line = match dtype {
            KvDtype::F32 => 1,
            KvDtype::Bf16 => 2,
        };
        let v_panel = TILE / per_line * PANEL;
        let k_words = shape.head_dim.div_ceil(per_line) * PANEL;
        Self { shape, dtype, k_words, v_panel, v_words: shape.head_dim.div_ceil(PANEL) * v_panel }
    }

    /// Tiles of a block.
    pub(super) fn tiles(&self) -> usize {
        self.shape.block_size.div_ceil(TILE)
    }

    fn tile_words(&self) -> usize {
        self.k_words + self.v_words
    }

    fn block_words(&self) -> usize {
        self.shape.kv_heads * self.tiles() * self.tile_words()
    }

    fn tile_start(&self, block: usize, head: usize, tile: usize) -> usize {
        block * self.block_words() + (head * self.tiles() + tile) * self.tile_words()
    }

    /// Words of K and of V of one tile.
    pub(super) fn tile(&self, block: usize, head: usize, tile: usize) -> (Range<usize>, Range<usize>) {
        let start = self.tile_start(block, head, tile);
        (start..start + self.k_words, start + self.k_words..start + self.tile_words())
    }
}

/// One layer's words, from a cache line on.
#[derive(Debug)]
struct Plane {
    words: Vec<u32>,
    skip: usize,
}

/// All layers of the paged KV cache.
#[derive(Debug)]
pub struct KvCache {
    layout: KvLayout,
    planes: Vec<Plane>,
    /// Bits of the hidden states of all places, `[blocks * block_size, kept]`.
    kept: Vec<u32>,
}

impl KvCache {
    pub(super) fn new(shape: KvShape, dtype: KvDtype) -> Result<Self, OpsError> {
        let layout = KvLayout::new(shape, dtype);
        let len = layout.block_words().saturating_mul(shape.blocks);
        let plane = || {
            let words = untouched("a layer of the KV cache", len.saturating_add(PANEL))?;
            let skip = words.as_ptr().align_offset(64).min(PANEL);
            Ok(Plane { words, skip })
        };
        let planes = (0..shape.layers).map(|_| plane()).collect::<Result<_, OpsError>>()?;
        let kept = shape.blocks.saturating_mul(shape.block_size).saturating_mul(shape.kept);
        Ok(Self { layout, planes, kept: untouched("hidden states beside the KV cache", kept)? })
    }

    fn kept_at(&self, place: u32) -> Range<usize> {
        let width = self.layout.shape.kept;
        place as usize * width..(place as usize + 1) * width
    }

    /// Keep the hidden state of a place.
    pub(super) fn keep(&mut self, place: u32, row: &[f32]) {
        let at = self.kept_at(place);
        self.kept[at].iter_mut().zip(row).for_each(|(kept, number)| *kept = number.to_bits());
    }

    /// What was kept of a place.
    pub(super) fn recall(&self, place: u32, row: &mut [f32]) {
        row.iter_mut().zip(&self.kept[self.kept_at(place)]).for_each(|(number, kept)| *number = f32::from_bits(*kept));
    }

    pub(super) fn layout(&self) -> KvLayout {
        self.layout
    }

    /// All words of a layer.
    pub(super) fn layer(&self, layer: usize) -> &[u32] {
        let plane = &self.planes[layer];
        &plane.words[plane.skip..]
    }

    /// Places of a layer to store to, from several threads if each keeps to heads of its own.
    pub(super) fn writer(&mut self, layer: usize) -> LayerWriter<'_> {
        let plane = &mut self.planes[layer];
        let words = &mut plane.words[plane.skip..];
        LayerWriter { layout: self.layout, words: words.as_mut_ptr(), len: words.len(), marker: PhantomData }
    }

    /// Store K and V of one token, `kv_heads * head_dim` numbers each, at `place` = block · block size + offset.
    pub(super) fn store(&mut self, layer: usize, place: usize, k: &[f32], v: &[f32]) {
        let KvShape { kv_heads, head_dim: dim, .. } = self.layout.shape;
        let writer = self.writer(layer);
        for head in 0..kv_heads {
            // SAFETY: the writer borrows the cache, and only this thread has it.
            unsafe { writer.store(place, head, &k[head * dim..][..dim], &v[head * dim..][..dim]) };
        }
    }

    /// Copy one block of every layer, with the hidden states of its places.
    pub(super) fn copy_block(&mut self, source: usize, target: usize) {
        let len = self.layout.block_words();
        for plane in &mut self.planes {
            let words = &mut plane.words[plane.skip..];
            words.copy_within(source * len..(source + 1) * len, target * len);
        }
        let len = self.layout.shape.block_size * self.layout.shape.kept;
        self.kept.copy_within(source * len..(source + 1) * len, target * len);
    }
}

/// A layer of the cache as threads write it, a head each.
pub(super) struct LayerWriter<'a> {
    layout: KvLayout,
    words: *mut u32,
    len: usize,
    marker: PhantomData<&'a mut [u32]>,
}

// SAFETY: stands for a `&mut [u32]` of which each thread writes other words, by the contract of `store`.
unsafe impl Sync for LayerWriter<'_> {}

impl LayerWriter<'_> {
    /// Store one head of K and V, `head_dim` numbers each, at `place` = block · block size + offset.
    ///
    /// # Safety
    /// No other thread stores to the same head of this layer meanwhile: neighbouring places share words.
    pub(super) unsafe fn store(&self, place: usize, head: usize, k: &[f32], v: &[f32]) {
        let layout = &self.layout;
        let (block, offset) = (place / layout.shape.block_size, place % layout.shape.block_size);
        assert!(head < layout.shape.kv_heads, "a head the cache lacks");
        let (k_words, v_words) = layout.tile(block, head, offset / TILE);
        assert!(v_words.end <= self.len, "a place outside the cache");
        // SAFETY: within the layer, as just asserted; tiles of other heads lie elsewhere, and this one is the caller's.
        let (k_words, v_words) = unsafe {
            let words = |range: Range<usize>| std::slice::from_raw_parts_mut(self.words.add(range.start), range.len());
            (words(k_words), words(v_words))
        };
        store_k(layout.dtype, k, offset % TILE, k_words);
        store_v(layout, v, offset % TILE, v_words);
    }
}

fn store_k(dtype: KvDtype, k: &[f32], lane: usize, words: &mut [u32]) {
    match dtype {
        KvDtype::F32 => words.iter_mut().skip(lane).step_by(PANEL).zip(k).for_each(|(word, k)| *word = k.to_bits()),
        KvDtype::Bf16 => {
            for (word, pair) in words.iter_mut().skip(lane).step_by(PANEL).zip(k.chunks(2)) {
                let high = pair.get(1).map_or(0, |k| round_bf16_bits(*k));
                *word = round_bf16_bits(pair[0]) >> 16 | high;
            }
        }
    }
}

fn store_v(layout: &KvLayout, v: &[f32], lane: usize, words: &mut [u32]) {
    for (panel, v) in words.chunks_exact_mut(layout.v_panel).zip(v.chunks(PANEL)) {
        match layout.dtype {
            KvDtype::F32 => {
                panel[lane * PANEL..][..v.len()].iter_mut().zip(v).for_each(|(word, v)| *word = v.to_bits());
            }
            KvDtype::Bf16 => {
                let line = &mut panel[lane / 2 * PANEL..][..v.len()];
                for (word, v) in line.iter_mut().zip(v) {
                    let bits = round_bf16_bits(*v);
                    *word =
                        if lane.is_multiple_of(2) { *word & 0xffff_0000 | bits >> 16 } else { *word & 0xffff | bits };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> KvShape {
        KvShape { layers: 2, blocks: 3, block_size: 20, kv_heads: 2, head_dim: 19, kept: 0 }
    }

    fn read(cache: &KvCache, layer: usize, place: usize, head: usize, dim: usize) -> (f32, f32) {
        let layout = cache.layout();
        let (block, offset) = (place / 20, place % 20);
        let (k, v) = layout.tile(block, head, offset / TILE);
        let (k, v, lane) = (&cache.layer(layer)[k], &cache.layer(layer)[v], offset % TILE);
        let panel = &v[dim / PANEL * layout.v_panel..];
        match layout.dtype {
            KvDtype::F32 => (f32::from_bits(k[dim * PANEL + lane]), f32::from_bits(panel[lane * PANEL + dim % PANEL])),
            KvDtype::Bf16 => {
                let half = |word: u32, at: usize| {
                    f32::from_bits(if at.is_multiple_of(2) { word << 16 } else { word & 0xffff_0000 })
                };
                (half(k[dim / 2 * PANEL + lane], dim), half(panel[lane / 2 * PANEL + dim % PANEL], lane))
            }
        }
    }

    #[test]
    fn what_is_stored_is_read_back_and_copied_with_its_block() {
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let mut cache = KvCache::new(shape(), dtype).unwrap();
            let token = |place: usize| -> (Vec<f32>, Vec<f32>) {
                (0..38).map(|i| ((place * 38 + i) as f32 + 0.3, -((place * 38 + i) as f32) - 0.7)).unzip()
            };
            for place in 20..40 {
                let (k, v) = token(place);
                cache.store(1, place, &k, &v);
            }
            cache.copy_block(1, 2);
            for (place, source) in (20..60).map(|place| (place, 20 + place % 20)) {
                let (k, v) = token(source);
                for (index, (k, v)) in k.iter().zip(&v).enumerate() {
                    let got = read(&cache, 1, place, index / 19, index % 19);
                    let kept = crate::ops::KvDtype::from(dtype);
                    assert_eq!(got, (kept.round(*k), kept.round(*v)), "{dtype:?} {place} {index}");
                }
            }
            assert!(cache.layer(0).iter().all(|word| *word == 0));
            assert_eq!(cache.layer(0).as_ptr() as usize % 64, 0);
        }
    }
}
