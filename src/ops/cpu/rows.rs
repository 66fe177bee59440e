//! Row-wise kernels: norms, rotary embedding, activations. Each works on one row and depends on nothing else.

use super::isa::{Arithmetic, dispatched};
use super::math;
use crate::ops::{Activation, NonLinearity};

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
    /// Turn the pairs of every group of y: `(y1, y2) = (c1 y1 - c2 y2, c1 y2 + c2 y1)`, each number with its own c1 and c2.
    fn turn_pairs(c: &[f32], group: usize, y: &mut [f32]) = turn
}

dispatched! {
    /// `y = act(gate) * up`.
    fn gated(activation: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) = gate_row
}

dispatched! {
    /// `gate = act(gate) * up`: the bits of [`gated`].
    fn gate_in_place(activation: Activation, gate: &mut [f32], up: &[f32]) = gate_row_in_place
}

dispatched! {
    /// `y = f(y + bias)`.
    fn bend(non_linearity: NonLinearity, bias: &[f32], y: &mut [f32]) = bend_row
}

dispatched! {
    /// `y = (y - mean) * rsqrt(mean (y - mean)² + eps) * weight + bias`.
    fn layer_norm(weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) = layer_norm_row
}

dispatched! {
    /// `y = tanh(y / cap) * cap`.
    fn softcap(cap: f32, y: &mut [f32]) = cap_row
}

dispatched! {
    /// `y[c] = Σ_k w[c, k] * x[k]`, w row-major.
    fn head(w: &[f32], x: &[f32], y: &mut [f32]) = head_row
}

#[inline(always)]
fn head_row<A: Arithmetic>(w: &[f32], x: &[f32], y: &mut [f32]) {
    for (y, w) in y.iter_mut().zip(w.chunks_exact(x.len())) {
        *y = math::dot::<A>(w, x);
    }
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
fn turn<A: Arithmetic>(c: &[f32], group: usize, y: &mut [f32]) {
    let (c1, c2) = c.split_at(y.len());
    let groups = y.chunks_exact_mut(group).zip(c1.chunks_exact(group).zip(c2.chunks_exact(group)));
    for (y, (c1, c2)) in groups {
        let half = group / 2;
        let (first, second) = y.split_at_mut(half);
        let of_first = c1[..half].iter().zip(&c2[..half]);
        let of_second = c1[half..].iter().zip(&c2[half..]);
        for ((a, b), ((a1, a2), (b1, b2))) in first.iter_mut().zip(second).zip(of_first.zip(of_second)) {
            (*a, *b) = (a1 * *a - a2 * *b, b1 * *b + b2 * *a);
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
fn gate_row_in_place<A: Arithmetic>(activation: Activation, gate: &mut [f32], up: &[f32]) {
    let pairs = gate.iter_mut().zip(up);
    match activation {
        Activation::Silu => pairs.for_each(|(gate, up)| *gate = math::silu::<A>(*gate) * up),
        Activation::GeluTanh => pairs.for_each(|(gate, up)| *gate = math::gelu_tanh::<A>(*gate) * up),
        Activation::Gelu => pairs.for_each(|(gate, up)| *gate = math::gelu::<A>(*gate) * up),
    }
}

#[inline(always)]
fn cap_row<A: Arithmetic>(cap: f32, y: &mut [f32]) {
    y.iter_mut().for_each(|y| *y = math::tanh::<A>(*y / cap) * cap);
}

#[inline(always)]
fn bend_row<A: Arithmetic>(non_linearity: NonLinearity, bias: &[f32], y: &mut [f32]) {
    let biased = y.iter_mut().zip(bias);
    match non_linearity {
        NonLinearity::Gate(Activation::Silu) => biased.for_each(|(y, b)| *y = math::silu::<A>(*y + b)),
        NonLinearity::Gate(Activation::GeluTanh) => biased.for_each(|(y, b)| *y = math::gelu_tanh::<A>(*y + b)),
        NonLinearity::Gate(Activation::Gelu) => biased.for_each(|(y, b)| *y = math::gelu::<A>(*y + b)),
        NonLinearity::Identity => biased.for_each(|(y, b)| *y += b),
        NonLinearity::Relu => biased.for_each(|(y, b)| *y = math::relu(*y + b)),
        NonLinearity::Relu6 => biased.for_each(|(y, b)| *y = (*y + b).clamp(0.0, 6.0)),
        NonLinearity::SquaredRelu => biased.for_each(|(y, b)| *y = math::relu(*y + b) * math::relu(*y + b)),
        NonLinearity::LeakyRelu { slope } => biased.for_each(|(y, b)| {
            let x = *y + b;
            *y = if x > 0.0 { x } else { slope * x };
        }),
        NonLinearity::Sigmoid => biased.for_each(|(y, b)| *y = math::sigmoid::<A>(*y + b)),
        NonLinearity::Tanh => biased.for_each(|(y, b)| *y = math::tanh::<A>(*y + b)),
        NonLinearity::Mish => biased.for_each(|(y, b)| *y = math::mish::<A>(*y + b)),
        NonLinearity::QuickGelu => biased.for_each(|(y, b)| {
            let x = *y + b;
            *y = x * math::sigmoid::<A>(NonLinearity::QUICK * x);
        }),
        NonLinearity::ClippedGelu => biased.for_each(|(y, b)| {
            *y = math::gelu::<A>(*y + b).clamp(-NonLinearity::CLIP, NonLinearity::CLIP);
        }),
        NonLinearity::Laplace => biased.for_each(|(y, b)| {
            let x = (*y + b - NonLinearity::LAPLACE_MEAN) / NonLinearity::LAPLACE_WIDTH;
            *y = 0.5 * (1.0 + math::erf::<A>(x));
        }),
    }
}

#[inline(always)]
fn layer_norm_row<A: Arithmetic>(weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    let mean = math::sum(y) / y.len() as f32;
    y.iter_mut().for_each(|y| *y -= mean);
    let factor = norm_factor::<A>(y, eps);
    for (y, (w, b)) in y.iter_mut().zip(weight.iter().zip(bias)) {
        *y = *y * factor * w + b;
    }
}
