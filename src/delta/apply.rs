//! The order of the classes at linear and hidden sites, written once for every backend.
//!
//! Per token row (DESIGN's order): x' = InputRotate(InputScale(x)); y = Wx'; y = Dx or y += s·Dx (Dense); y += LowRank(x); y += Sparse(x); y∘=g before the bias;
//! y += base bias; y∘=g or OutputRotate after the bias; y += Bias. One class runs at a time for all rows at once; a row without an op of a class is not
//! touched by it. What a class does is its file's, in `delta::class`.

use super::class::{bias, bottleneck, dense, input, low_rank, output_rotate, scale, sparse};
use super::rows::StepRows;
use super::sites::{HiddenSites, LinearSites};
use crate::ops::Backend;

/// A linear site of the base.
pub struct LinearWeights<B: Backend> {
    /// Stacked projections `[out, in]`.
    pub weight: B::Weight,
    /// `[out]`, where the base has biases.
    pub bias: Option<B::Vector>,
}

impl<B: Backend> LinearWeights<B> {
    /// As [`linear`] takes it.
    pub fn site(&self) -> LinearSite<'_, B> {
        LinearSite { weight: &self.weight, bias: self.bias.as_ref() }
    }
}

/// A borrowed linear site; the head borrows the embedding where the two are tied.
pub struct LinearSite<'a, B: Backend> {
    /// Stacked projections `[out, in]`.
    pub weight: &'a B::Weight,
    /// `[out]`.
    pub bias: Option<&'a B::Vector>,
}

/// Semantics: y `[rows, out]` from x `[rows, in]` as in the module's words. `changed` is scratch as wide as x.
pub fn linear<B: Backend>(
    on: &StepRows<'_, B>,
    base: LinearSite<'_, B>,
    sites: &LinearSites,
    x: &B::Buffer,
    changed: &mut B::Buffer,
    y: &mut B::Buffer,
) {
    let is_multiplied = input::multiply(on, &sites.inputs, x, base.weight, changed, y);
    if is_multiplied || on.held(sites.dense).is_some() {
        if !is_multiplied {
            on.backend.gemm(on.step, on.rows, x, base.weight, y);
        }
        dense::apply(on, sites.dense, x, y);
        low_rank::apply(on, sites.low_rank, x, y);
    } else {
        low_rank::multiply(on, sites.low_rank, x, base.weight, y);
    }
    sparse::apply(on, sites.sparse, x, y);
    scale::apply(on, sites.scale_before_bias, y);
    if let Some(bias) = base.bias {
        on.backend.add_bias(on.step, on.rows, bias, y);
    }
    scale::apply(on, sites.scale_after_bias, y);
    output_rotate::apply(on, sites.rotate_after_bias, y);
    bias::apply(on, sites.bias, y);
}

/// Semantics: a [`Bottleneck`](super::Bottleneck) of the hidden site changes h, what a block has computed, and x, both
/// `[rows, hidden]`; then x += h; then x += LowRank(h); x += Bias. In exact numbers the last two are h changed before it is added; the
/// sum of x needs no copy of h. An adapter with a bottleneck has neither of them at its site. `v` is scratch as wide as x.
pub fn join<B: Backend>(
    on: &StepRows<'_, B>,
    sites: &HiddenSites,
    h: &mut B::Buffer,
    x: &mut B::Buffer,
    v: &mut B::Buffer,
) {
    bottleneck::apply(on, sites, x, h, v);
    on.backend.add(on.step, on.rows, x, h);
    low_rank::apply(on, sites.low_rank, h, x);
    bias::apply(on, sites.bias, x);
}
