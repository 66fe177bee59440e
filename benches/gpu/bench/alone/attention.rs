//! Attention over a cache that is full, one layer after the other.

use half::bf16;
use polydelta::ops::{AttentionSpec, Backend, KvShape, SiteSet};
use serde_json::{Value, json};

use super::Site;
use crate::support::Failure;
use crate::support::large::{slots, step};
use crate::support::numbers::weights;
use crate::support::step::BLOCK_SIZE;

/// One shape: 32 heads of 128 over 8 of K and V, as Llama-3.1-8B has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attention {
    pub(crate) sequences: usize,
    /// Rows of each.
    pub(crate) tokens: usize,
    /// Places before them.
    pub(crate) context: usize,
    pub(crate) layers: usize,
}

impl Attention {
    /// Bytes of K and V in a second, as each sequence has them once, and operations.
    pub(super) fn measure(&self, site: Site<'_>) -> Result<Value, Failure> {
        let backend = site.backend;
        let (heads, kv_heads, head_dim) = (32, 8, 128);
        let spec = AttentionSpec { heads, kv_heads, head_dim, scale: 0.088, softcap: None, window: None };
        let rows = self.sequences * self.tokens;
        let places = (self.context + self.tokens).next_multiple_of(BLOCK_SIZE);
        let blocks = self.sequences * places / BLOCK_SIZE;
        let shape = KvShape { layers: self.layers, blocks, block_size: BLOCK_SIZE, kv_heads, head_dim, kept: 0 };
        // Zeros until something is written: every place has the same weight, and is read all the same.
        let kv = backend.kv_cache(shape)?;
        let columns = (heads + 2 * kv_heads) * head_dim;
        let numbers: Vec<f32> = weights(9, rows * columns, 1.0).into_iter().map(bf16::to_f32).collect();
        let qkv = backend.buffer_of(columns, &numbers)?;
        let mut y = backend.input_buffer(rows, heads * head_dim)?;
        let input = step(&slots(self.sequences, 0), self.tokens, self.context, places);
        let seconds = site.seconds(&input, &SiteSet::default(), |step| {
            for layer in 0..self.layers {
                backend.attention(step, &spec, layer, &qkv, &kv, &mut y);
            }
        })?;
        let each = seconds / self.layers as f64;
        let read = self.sequences * (self.context + self.tokens) * 2 * kv_heads * head_dim * 2;
        let seen = self.tokens * self.context + self.tokens * (self.tokens + 1) / 2;
        let operations = 4 * self.sequences * seen * heads * head_dim;
        Ok(json!({
            "op": "attention", "rows": rows, "sequences": self.sequences, "context": self.context, "seconds": each,
            "bytes_per_second": read as f64 / each, "of_copies": read as f64 / each / site.copies,
            "operations_per_second": operations as f64 / each,
        }))
    }
}
