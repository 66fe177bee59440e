//! `Gain`, the norm's weight for a row: LN tuning (Zhao et al. 2023).

use super::loading::Loading;
use super::op::{ClassOp, Weighting};
use crate::delta::layout::Site;
use crate::delta::rows::StepRows;
use crate::delta::sites::Place;
use crate::ops::{Backend, Norm, OpsError, SiteId};

/// The norm's weight for a row, offset already added.
#[derive(Clone, Debug, PartialEq)]
pub struct Gain {
    /// `[width of the norm]`.
    pub g: Vec<f32>,
}

impl ClassOp for Gain {
    fn parameters(&self) -> usize {
        self.g.len()
    }

    fn computed(&self) -> &[f32] {
        &self.g
    }

    fn weighting() -> Weighting<Self> {
        Err("replaces a weight of the base")
    }

    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let Place::Norm(site) = loading.place(site) else { unreachable!("compilers attach Gain to norms only") };
        loading.vector(site, &self.g, 0..self.g.len())
    }
}

/// A norm of the base with the gains that rows have instead of its weight.
pub(crate) fn norm<'a, B: Backend>(on: &StepRows<'a, B>, site: SiteId, weight: &'a B::Vector, eps: f32) -> Norm<'a, B> {
    Norm { weight, gains: on.held(site), eps }
}
