//! `LowRank`, y += s·B(Ax): LoRA (Hu et al. 2021), and every method whose change of a weight is a product of two small
//! matrices.

use super::loading::Loading;
use super::op::{ClassOp, Weighting};
use crate::delta::change::{Change, product_norm};
use crate::delta::error::DeltaError;
use crate::delta::layout::Site;
use crate::delta::rows::StepRows;
use crate::delta::sites::Place;
use crate::ops::{Backend, HostMatrix, HostTensor, OpsError, SiteId, WeightFormat};

/// y += s·B(Ax).
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// `[rank, in]`.
    pub a: HostTensor,
    /// `[out, rank]`.
    pub b: HostTensor,
    /// s.
    pub scaling: f32,
}

impl ClassOp for LowRank {
    fn parameters(&self) -> usize {
        self.a.len() + self.b.len()
    }

    fn device_bytes(&self, weights: WeightFormat) -> u64 {
        (self.parameters() * weights.size()) as u64
    }

    fn rank(&self) -> Option<usize> {
        Some(self.a.rows())
    }

    fn scaling(&self) -> Option<f32> {
        Some(self.scaling)
    }

    fn weighting() -> Weighting<Self> {
        Ok(|op, weight| Self { scaling: weight * op.scaling, ..op })
    }

    fn change(&self) -> Result<Option<Change>, DeltaError> {
        Ok(Some(Change::OfWeight(f64::from(self.scaling.abs()) * product_norm(&self.b, &self.a)?)))
    }

    fn matrices(&self) -> Vec<HostMatrix<'_>> {
        vec![self.a.matrix(), self.b.matrix()]
    }

    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let (site, columns) = match loading.place(site) {
            Place::Linear(place) => (place.sites.low_rank, place.columns),
            Place::Hidden(sites) => (sites.low_rank, 0..loading.layout.hidden_size),
            Place::Router(site, experts) => (site, 0..experts),
            _ => unreachable!("compilers attach LowRank to linear and hidden sites and to routers only"),
        };
        loading.pair(site, self.a.rows(), self.scaling, columns);
        Ok(())
    }
}

/// Semantics: y = Wx, then y += s·B(Ax) for the rows that have pairs at the site.
pub(crate) fn multiply<B: Backend>(
    on: &StepRows<'_, B>,
    site: SiteId,
    x: &B::Buffer,
    weight: &B::Weight,
    y: &mut B::Buffer,
) {
    match on.held(site) {
        Some(pairs) => on.backend.gemm_low_rank(on.step, on.rows, pairs, x, weight, y),
        None => on.backend.gemm(on.step, on.rows, x, weight, y),
    }
}

/// Semantics: y += s·B(Ax) for the rows that have pairs at the site.
pub(crate) fn apply<B: Backend>(on: &StepRows<'_, B>, site: SiteId, x: &B::Buffer, y: &mut B::Buffer) {
    if let Some(pairs) = on.held(site) {
        on.backend.low_rank(on.step, on.rows, pairs, x, y);
    }
}
