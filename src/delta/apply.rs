//! The order of the classes at linear and hidden sites, written once for every backend.
//!
//! Per token row (DESIGN's order): x' = InputScale(x); y = Wx'; y += LowRank(x); y∘=g before the bias; y += base bias;
//! y∘=g after the bias; y += Bias. One class runs at a time for all rows at once; a row without an op of a class is not
//! touched by it. What a class does is its file's, in `delta::class`.

use super::class::{bias, low_rank, scale};
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

/// Semantics: y `[rows, out]` from x `[rows, in]` as in the module's words. `scaled` is scratch as wide as x.
pub fn linear<B: Backend>(
    on: &StepRows<'_, B>,
    base: LinearSite<'_, B>,
    sites: &LinearSites,
    x: &B::Buffer,
    scaled: &mut B::Buffer,
    y: &mut B::Buffer,
) {
    if scale::multiply(on, &sites.input_scale, x, base.weight, scaled, y) {
        low_rank::apply(on, sites.low_rank, x, y);
    } else {
        low_rank::multiply(on, sites.low_rank, x, base.weight, y);
    }
    scale::apply(on, sites.scale_before_bias, y);
    if let Some(bias) = base.bias {
        on.backend.add_bias(on.step, on.rows, bias, y);
    }
    scale::apply(on, sites.scale_after_bias, y);
    bias::apply(on, sites.bias, y);
}

/// Semantics: x += h, what a block has computed, both `[rows, hidden]`; then the classes of the hidden site: x += LowRank(h);
/// x += Bias. In exact numbers that is h changed before it is added; the sum of x needs no copy of h.
pub fn join<B: Backend>(on: &StepRows<'_, B>, sites: &HiddenSites, h: &B::Buffer, x: &mut B::Buffer) {
    on.backend.add(on.step, on.rows, x, h);
    low_rank::apply(on, sites.low_rank, h, x);
    bias::apply(on, sites.bias, x);
}
