//! The maths of a linear site with deltas, written once for every backend.
//!
//! Per token row (DESIGN's order): x' = InputScale(x); y = Wx'; y += LowRank(x); y∘=g before the bias; y += base bias;
//! y∘=g after the bias; y += Bias. One op class runs at a time for all rows at once; an absent class costs a look at a
//! length.

use super::resident::LinearDeltas;
use crate::ops::{Backend, RowPlan, SlotTable};

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

/// Semantics: y `[rows, out]` from x `[rows, in]` as in the module's words. `scaled` is scratch as wide as x.
pub fn linear<B: Backend>(
    backend: &B,
    rows: &RowPlan,
    site: LinearSite<'_, B>,
    deltas: &LinearDeltas<B>,
    x: &B::Buffer,
    scaled: &mut B::Buffer,
    y: &mut B::Buffer,
) {
    let scaled_inputs = deltas.input_scale.iter().any(|table| touches(rows, table));
    match (scaled_inputs, touches(rows, &deltas.low_rank)) {
        (false, false) => backend.gemm(rows.len(), x, site.weight, y),
        (false, true) => backend.gemm_low_rank(rows, &deltas.low_rank, x, site.weight, y),
        (true, low_rank) => {
            multiply_scaled(backend, rows, site, deltas, x, scaled, y);
            if low_rank {
                backend.low_rank(rows, &deltas.low_rank, x, y);
            }
        }
    }
    if touches(rows, &deltas.scale_before_bias) {
        backend.scale_rows(rows, &deltas.scale_before_bias, y);
    }
    if let Some(bias) = site.bias {
        backend.add_bias(rows.len(), bias, y);
    }
    if touches(rows, &deltas.scale_after_bias) {
        backend.scale_rows(rows, &deltas.scale_after_bias, y);
    }
    if touches(rows, &deltas.bias) {
        backend.bias_rows(rows, &deltas.bias, y);
    }
}

/// Whether any row of the step has an op in this table.
pub fn touches<T>(rows: &RowPlan, table: &SlotTable<T>) -> bool {
    !table.is_empty() && rows.segments.iter().any(|segment| !table.get(Some(segment.slot)).is_empty())
}

/// y = Wx' where some rows have an `InputScale`.
fn multiply_scaled<B: Backend>(
    backend: &B,
    rows: &RowPlan,
    site: LinearSite<'_, B>,
    deltas: &LinearDeltas<B>,
    x: &B::Buffer,
    scaled: &mut B::Buffer,
    y: &mut B::Buffer,
) {
    if deltas.input_scale.len() == 1 {
        scale_all_rows(backend, rows, site, deltas, x, scaled, y);
    } else {
        backend.gemm(rows.len(), x, site.weight, y);
        rescale_segments(backend, rows, site, deltas, x, scaled, y);
    }
}

/// A site of one projection: scale a copy of x where rows ask for it, then one GEMM for all rows.
fn scale_all_rows<B: Backend>(
    backend: &B,
    rows: &RowPlan,
    site: LinearSite<'_, B>,
    deltas: &LinearDeltas<B>,
    x: &B::Buffer,
    scaled: &mut B::Buffer,
    y: &mut B::Buffer,
) {
    let all: Vec<u32> = (0..rows.len() as u32).collect();
    backend.gather_rows(x, &all, scaled);
    backend.scale_rows(rows, &deltas.input_scale[0], scaled);
    backend.gemm(rows.len(), scaled, site.weight, y);
}

/// A stacked site: rows whose input differs for one projection run that projection again, unstacked, from their own
/// scaled input.
fn rescale_segments<B: Backend>(
    backend: &B,
    rows: &RowPlan,
    site: LinearSite<'_, B>,
    deltas: &LinearDeltas<B>,
    x: &B::Buffer,
    scaled: &mut B::Buffer,
    y: &mut B::Buffer,
) {
    for (segment, table) in deltas.input_scale.iter().enumerate() {
        if !touches(rows, table) {
            continue;
        }
        let mut targets = Vec::new();
        let mut scales = Vec::new();
        for group in &rows.segments {
            if let Some(g) = table.get(Some(group.slot)).first() {
                targets.extend_from_slice(rows.rows_of(group));
                scales.resize(targets.len(), &g.values);
            }
        }
        backend.gather_scaled(x, &targets, &scales, scaled);
        backend.gemm_segment(scaled, site.weight, segment, &targets, y);
    }
}
