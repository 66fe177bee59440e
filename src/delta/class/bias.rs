//! `Bias`, y += b: saved biases (BitFit, Ben Zaken et al. 2021), as the difference to the base's, and `lora_bias`.

use super::loading::Loading;
use super::op::{ClassOp, Weighting};
use crate::delta::change::{Change, length};
use crate::delta::error::DeltaError;
use crate::delta::layout::Site;
use crate::delta::rows::StepRows;
use crate::delta::sites::Place;
use crate::ops::{Backend, OpsError, SiteId};

/// y += b, after everything else.
#[derive(Clone, Debug, PartialEq)]
pub struct Bias {
    /// `[out]`.
    pub b: Vec<f32>,
}

impl ClassOp for Bias {
    fn parameters(&self) -> usize {
        self.b.len()
    }

    fn computed(&self) -> &[f32] {
        &self.b
    }

    fn change(&self) -> Result<Option<Change>, DeltaError> {
        Ok(Some(Change::OfRow(length(self.b.iter().copied()))))
    }

    fn weighting() -> Weighting<Self> {
        Ok(|op, weight| Self { b: op.b.into_iter().map(|b| weight * b).collect() })
    }

    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let (site, columns) = match loading.place(site) {
            Place::Linear(place) => (place.sites.bias, place.columns),
            Place::Hidden(sites) => (sites.bias, 0..loading.layout.hidden_size),
            _ => unreachable!("compilers attach Bias to linear and hidden sites only"),
        };
        loading.vector(site, &self.b, columns)
    }
}

/// Semantics: y += b for the rows that have a b at the site.
pub(crate) fn apply<B: Backend>(on: &StepRows<'_, B>, site: SiteId, y: &mut B::Buffer) {
    if let Some(biases) = on.held(site) {
        on.backend.bias_rows(on.step, on.rows, biases, y);
    }
}
