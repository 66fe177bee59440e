//! Row-wise kernels: norms, rotary embedding, activations. Each works on one row and depends on nothing else.

use super::isa::{Arithmetic, dispatched};
use super::math;
use crate::ops::Activation;

dispatched! {
    /// `y = x * rsqrt(mean x² + eps) * weight`.
    fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) = norm
}

dispatched! {
    /// [`rms_norm`] in place.
    fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) = norm_in_place
}

dispatched! {
    /// Rotate the first `2 * cos.len()` numbers of every head, in two halves (GPT-NeoX).
    fn rotate_heads(heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) = rotate
}

dispatched! {
    /// `y = act(gate) * up`.
    fn gated(activation: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) = gate_row
}

dispatched! {
    /// `y = tanh(y / cap) * cap`.
    fn softcap(cap: f32, y: &mut [f32]) = cap_row
}

#[inline(always)]
fn norm_factor<A: Arithmetic>(x: &[f32], eps: f32) -> f32 {
    1.0 / (math::sum_of_squares::<A>(x) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn norm<A: Arithmetic>(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let factor = norm_factor::<A>(x, eps);
    for (y, (x, w)) in y.iter_mut().zip(x.iter().zip(weight)) {
        *y = x * factor * w;
    }
}

#[inline(always)]
fn norm_in_place<A: Arithmetic>(x: &mut [f32], weight: &[f32], eps: f32) {
    let factor = norm_factor::<A>(x, eps);
    for (x, w) in x.iter_mut().zip(weight) {
        *x = *x * factor * w;
    }
}

#[inline(always)]
fn rotate<A: Arithmetic>(heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    for head in heads.chunks_exact_mut(head_dim) {
        let (first, second) = head[..2 * half].split_at_mut(half);
        for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

#[inline(always)]
fn gate_row<A: Arithmetic>(activation: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
    let pairs = y.iter_mut().zip(gate.iter().zip(up));
    match activation {
        Activation::Silu => pairs.for_each(|(y, (gate, up))| *y = math::silu::<A>(*gate) * up),
        Activation::GeluTanh => pairs.for_each(|(y, (gate, up))| *y = math::gelu_tanh::<A>(*gate) * up),
        Activation::Gelu => pairs.for_each(|(y, (gate, up))| *y = math::gelu::<A>(*gate) * up),
    }
}

#[inline(always)]
fn cap_row<A: Arithmetic>(cap: f32, y: &mut [f32]) {
    y.iter_mut().for_each(|y| *y = math::tanh::<A>(*y / cap) * cap);
}
