//! The maths of a linear site with deltas, written once for every backend.
//!
//! Per token row (DESIGN's order): x' = InputScale(x); y = Wx'; y += LowRank(x); y∘=g before the bias; y += base bias;
//! y∘=g after the bias; y += Bias. One op class runs at a time for all rows at once; an absent class costs a look
//! at each adapter of the step.

use super::sites::LinearSites;
use crate::ops::{Backend, RowPlan, Rows, SiteId, SiteTable};

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

impl<B: Backend> Clone for LinearSite<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for LinearSite<'_, B> {}

/// Rows of an uploaded step, and what the host knows of them: which op classes run is decided before the first launch.
pub struct StepRows<'a, B: Backend> {
    /// Where they are.
    pub backend: &'a B,
    /// The uploaded step.
    pub step: &'a B::Step,
    /// Which of its rows.
    pub rows: Rows,
    /// The same on the host.
    pub plan: &'a RowPlan,
}

impl<B: Backend> StepRows<'_, B> {
    /// Whether any of the rows has an op at this site.
    #[must_use]
    pub fn touch(&self, deltas: SiteTable<'_, B>) -> bool {
        let held = |slot| self.backend.slot(deltas.table, slot).is_some_and(|delta| delta.holds(deltas.site));
        self.plan.segments.iter().any(|segment| held(segment.slot))
    }
}

/// Deltas of all slots at a stacked linear site.
pub struct LinearDeltas<'a, B: Backend> {
    /// At all sites.
    pub table: &'a B::DeltaTable,
    /// The numbers of this one's op classes.
    pub sites: &'a LinearSites,
}

impl<B: Backend> Clone for LinearDeltas<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for LinearDeltas<'_, B> {}

impl<'a, B: Backend> LinearDeltas<'a, B> {
    fn at(&self, site: SiteId) -> SiteTable<'a, B> {
        SiteTable { table: self.table, site }
    }
}

/// Semantics: y `[rows, out]` from x `[rows, in]` as in the module's words. `scaled` is scratch as wide as x.
pub fn linear<B: Backend>(
    on: &StepRows<'_, B>,
    site: LinearSite<'_, B>,
    deltas: LinearDeltas<'_, B>,
    x: &B::Buffer,
    scaled: &mut B::Buffer,
    y: &mut B::Buffer,
) {
    let StepRows { backend, step, rows, .. } = *on;
    let scaled_inputs = deltas.sites.input_scale.iter().any(|site| on.touch(deltas.at(*site)));
    let low_rank = deltas.at(deltas.sites.low_rank);
    match (scaled_inputs, on.touch(low_rank)) {
        (false, false) => backend.gemm(step, rows, x, site.weight, y),
        (false, true) => backend.gemm_low_rank(step, rows, low_rank, x, site.weight, y),
        (true, with_low_rank) => {
            multiply_scaled(on, site, deltas, x, scaled, y);
            if with_low_rank {
                backend.low_rank(step, rows, low_rank, x, y);
            }
        }
    }
    let scale_before_bias = deltas.at(deltas.sites.scale_before_bias);
    if on.touch(scale_before_bias) {
        backend.scale_rows(step, rows, scale_before_bias, y);
    }
    if let Some(bias) = site.bias {
        backend.add_bias(step, rows, bias, y);
    }
    let scale_after_bias = deltas.at(deltas.sites.scale_after_bias);
    if on.touch(scale_after_bias) {
        backend.scale_rows(step, rows, scale_after_bias, y);
    }
    let bias = deltas.at(deltas.sites.bias);
    if on.touch(bias) {
        backend.bias_rows(step, rows, bias, y);
    }
}

/// y = Wx' where some rows have an `InputScale`. At a site of one projection a copy of x is scaled where rows ask for it,
/// then one GEMM serves all. At a stacked site rows whose input differs for one projection run that projection again,
/// unstacked.
fn multiply_scaled<B: Backend>(
    on: &StepRows<'_, B>,
    site: LinearSite<'_, B>,
    deltas: LinearDeltas<'_, B>,
    x: &B::Buffer,
    scaled: &mut B::Buffer,
    y: &mut B::Buffer,
) {
    let StepRows { backend, step, rows, .. } = *on;
    if let [of_all] = deltas.sites.input_scale[..] {
        backend.scale_input(step, rows, deltas.at(of_all), x, scaled);
        backend.gemm(step, rows, scaled, site.weight, y);
        return;
    }
    backend.gemm(step, rows, x, site.weight, y);
    for (segment, scale) in deltas.sites.input_scale.iter().enumerate() {
        let scale = deltas.at(*scale);
        if on.touch(scale) {
            backend.gemm_scaled_segment(step, rows, scale, x, site.weight, segment, scaled, y);
        }
    }
}
