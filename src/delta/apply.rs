//! The maths of a linear site with deltas, written once for every backend.
//!
//! Per token row (DESIGN's order): x' = InputScale(x); y = Wx'; y += LowRank(x); y∘=g before the bias; y += base bias;
//! y∘=g after the bias; y += Bias. One op class runs at a time for all rows at once; an absent class costs a look at a
//! length.

use super::resident::LinearDeltas;
use crate::ops::{Backend, RowPlan, Rows, SlotTable};

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
    /// Whether any of the rows has an op in this table.
    #[must_use]
    pub fn touch<T>(&self, table: &SlotTable<T>) -> bool {
        let held = |slot| !table.get(Some(slot)).is_empty();
        !table.is_empty() && self.plan.segments.iter().any(|segment| held(segment.slot))
    }
}

/// Semantics: y `[rows, out]` from x `[rows, in]` as in the module's words. `scaled` is scratch as wide as x.
pub fn linear<B: Backend>(
    on: &StepRows<'_, B>,
    site: LinearSite<'_, B>,
    deltas: &LinearDeltas<B>,
    x: &B::Buffer,
    scaled: &mut B::Buffer,
    y: &mut B::Buffer,
) {
    let StepRows { backend, step, rows, .. } = *on;
    let scaled_inputs = deltas.input_scale.iter().any(|table| on.touch(table));
    match (scaled_inputs, on.touch(&deltas.low_rank)) {
        (false, false) => backend.gemm(step, rows, x, site.weight, y),
        (false, true) => backend.gemm_low_rank(step, rows, &deltas.low_rank, x, site.weight, y),
        (true, low_rank) => {
            multiply_scaled(on, site, deltas, x, scaled, y);
            if low_rank {
                backend.low_rank(step, rows, &deltas.low_rank, x, y);
            }
        }
    }
    if on.touch(&deltas.scale_before_bias) {
        backend.scale_rows(step, rows, &deltas.scale_before_bias, y);
    }
    if let Some(bias) = site.bias {
        backend.add_bias(step, rows, bias, y);
    }
    if on.touch(&deltas.scale_after_bias) {
        backend.scale_rows(step, rows, &deltas.scale_after_bias, y);
    }
    if on.touch(&deltas.bias) {
        backend.bias_rows(step, rows, &deltas.bias, y);
    }
}

/// y = Wx' where some rows have an `InputScale`. At a site of one projection a copy of x is scaled where rows ask for it,
/// then one GEMM serves all. At a stacked site rows whose input differs for one projection run that projection again,
/// unstacked.
fn multiply_scaled<B: Backend>(
    on: &StepRows<'_, B>,
    site: LinearSite<'_, B>,
    deltas: &LinearDeltas<B>,
    x: &B::Buffer,
    scaled: &mut B::Buffer,
    y: &mut B::Buffer,
) {
    let StepRows { backend, step, rows, .. } = *on;
    if let [table] = &deltas.input_scale[..] {
        backend.scale_input(step, rows, table, x, scaled);
        backend.gemm(step, rows, scaled, site.weight, y);
        return;
    }
    backend.gemm(step, rows, x, site.weight, y);
    for (segment, table) in deltas.input_scale.iter().enumerate() {
        if on.touch(table) {
            backend.gemm_scaled_segment(step, rows, table, x, site.weight, segment, scaled, y);
        }
    }
}
