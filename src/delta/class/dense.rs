//! `Dense`, a full matrix at a linear site: y += s·Dx for methods whose change of a weight is no small product (FourierFT,
//! Gao et al. 2024, and others), y = Dx for modules that a file has whole (`modules_to_save`).

use super::loading::Loading;
use super::op::{ClassOp, Weighting};
use crate::delta::change::{Change, length};
use crate::delta::error::DeltaError;
use crate::delta::layout::Site;
use crate::delta::rows::StepRows;
use crate::delta::sites::Place;
use crate::ops::{Backend, HostMatrix, HostTensor, OpsError, SiteId, WeightFormat};

/// y += s·Dx, or y = Dx.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    /// `[out, in]`.
    pub d: HostTensor,
    /// s of a product that is added.
    pub scaling: f32,
    /// y = Dx in place of the base's Wx, whose bias and whatever follows it stay.
    pub replaces: bool,
}

impl ClassOp for Dense {
    fn parameters(&self) -> usize {
        self.d.len()
    }

    fn device_bytes(&self, weights: WeightFormat) -> u64 {
        (self.parameters() * weights.size()) as u64
    }

    fn scaling(&self) -> Option<f32> {
        (!self.replaces).then_some(self.scaling)
    }

    fn replaces(&self) -> Option<bool> {
        Some(self.replaces)
    }

    fn change(&self) -> Result<Option<Change>, DeltaError> {
        let added = || Change::OfWeight(f64::from(self.scaling.abs()) * length(self.d.to_f32()));
        Ok((!self.replaces).then(added))
    }

    fn matrices(&self) -> Vec<HostMatrix<'_>> {
        vec![self.d.matrix()]
    }

    fn weighting() -> Weighting<Self> {
        Err("is a full matrix, of which a module has one")
    }

    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let Place::Linear(place) = loading.place(site) else {
            unreachable!("compilers attach Dense to linear sites only");
        };
        loading.dense(place.sites.dense, self.scaling, place.columns, self.replaces);
        Ok(())
    }
}

/// Semantics: y = Dx, or y += s·Dx, for the rows that have a D at the site.
pub(crate) fn apply<B: Backend>(on: &StepRows<'_, B>, site: SiteId, x: &B::Buffer, y: &mut B::Buffer) {
    if let Some(matrices) = on.held(site) {
        on.backend.dense(on.step, on.rows, matrices, x, y);
    }
}
