//! `Sparse`, y += Sx where most of S is zero: SHiRA (Bhardwaj et al. 2024).

use super::loading::Loading;
use super::op::{ClassOp, Weighting};
use crate::delta::change::{Change, length};
use crate::delta::error::DeltaError;
use crate::delta::layout::Site;
use crate::delta::rows::StepRows;
use crate::delta::sites::Place;
use crate::ops::{Backend, HostSparse, OpsError, SiteId, WeightFormat};

/// y += Sx.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse {
    /// S, `[out, in]`.
    pub matrix: HostSparse,
}

impl ClassOp for Sparse {
    fn parameters(&self) -> usize {
        self.matrix.entries.len()
    }

    /// A number with its column for every one that is kept, and where each row of S begins.
    fn device_bytes(&self, weights: WeightFormat) -> u64 {
        let each = weights.size() + size_of::<u32>();
        (self.matrix.entries.len() * each + self.matrix.starts.len() * size_of::<u32>()) as u64
    }

    fn change(&self) -> Result<Option<Change>, DeltaError> {
        Ok(Some(Change::OfWeight(length(self.matrix.entries.iter().map(|entry| entry.value)))))
    }

    fn weighting() -> Weighting<Self> {
        Ok(|mut op, weight| {
            op.matrix.entries.iter_mut().for_each(|entry| entry.value *= weight);
            op
        })
    }

    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let Place::Linear(place) = loading.place(site) else {
            unreachable!("compilers attach Sparse to linear sites only")
        };
        loading.sparse(place.sites.sparse, &self.matrix, place.columns)
    }
}

/// Semantics: y += Sx for the rows that have a sparse matrix at the site.
pub(crate) fn apply<B: Backend>(on: &StepRows<'_, B>, site: SiteId, x: &B::Buffer, y: &mut B::Buffer) {
    if let Some(matrices) = on.held(site) {
        on.backend.sparse(on.step, on.rows, matrices, x, y);
    }
}
