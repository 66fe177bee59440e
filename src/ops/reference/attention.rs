//! Rotary embedding, the paged cache, and attention.

use super::memory::{Matrix, PagedKv};
use crate::ops::{AttentionSpec, KvDtype, RopeTable, StepPlan};

pub(super) fn rope_and_cache(
    dtype: KvDtype,
    step: &StepPlan,
    spec: &AttentionSpec,
    rope: &RopeTable,
    layer: usize,
    qkv: &mut Matrix,
    kv: &mut PagedKv,
) {
    let (q_dim, kv_dim) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    for row in 0..step.positions.len() {
        let numbers = qkv.row_mut(row);
        for head in numbers[..q_dim + kv_dim].chunks_exact_mut(spec.head_dim) {
            rotate(rope, step.rope_row(row), head);
        }
        let place = step.kv_slots[row] as usize * kv_dim;
        for column in 0..kv_dim {
            kv.k[layer][place + column] = dtype.round(numbers[q_dim + column]);
            kv.v[layer][place + column] = dtype.round(numbers[q_dim + kv_dim + column]);
        }
    }
}

fn rotate(rope: &RopeTable, position: usize, head: &mut [f32]) {
    let half = rope.rotary_dim / 2;
    for i in 0..half {
        let (cos, sin) = (rope.cos[position * half + i], rope.sin[position * half + i]);
        let (first, second) = (head[i], head[half + i]);
        head[i] = first * cos - second * sin;
        head[half + i] = second * cos + first * sin;
    }
}

pub(super) fn attention(
    step: &StepPlan,
    spec: &AttentionSpec,
    layer: usize,
    qkv: &Matrix,
    kv: &PagedKv,
    y: &mut Matrix,
) {
    let group = spec.heads / spec.kv_heads;
    let kv_dim = spec.kv_heads * spec.head_dim;
    for sequence in &step.sequences {
        for row in sequence.rows.clone() {
            let position = step.positions[row] as usize;
            let first = spec.window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
            for head in 0..spec.heads {
                let column = (head / group) * spec.head_dim;
                let place = |index: usize| {
                    let block = sequence.blocks[index / kv.shape.block_size] as usize;
                    (block * kv.shape.block_size + index % kv.shape.block_size) * kv_dim + column
                };
                let q = &qkv.row(row)[head * spec.head_dim..][..spec.head_dim];
                let keys = (first..=position).map(|index| &kv.k[layer][place(index)..][..spec.head_dim]);
                let weights = softmax(keys.map(|k| score(spec, q, k)).collect());
                let out = &mut y.row_mut(row)[head * spec.head_dim..][..spec.head_dim];
                out.fill(0.0);
                for (index, weight) in (first..=position).zip(weights) {
                    let v = &kv.v[layer][place(index)..][..spec.head_dim];
                    out.iter_mut().zip(v).for_each(|(out, v)| *out += weight * v);
                }
            }
        }
    }
}

fn score(spec: &AttentionSpec, q: &[f32], k: &[f32]) -> f32 {
    let score = spec.scale * q.iter().zip(k).fold(0.0, |sum, (q, k)| sum + q * k);
    spec.softcap.map_or(score, |cap| (score / cap).tanh() * cap)
}

fn softmax(mut scores: Vec<f32>) -> Vec<f32> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - max).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
    scores
}
