//! `OutputScale`, y = g∘y, and `InputScale`, x = g∘x: IA3 (Liu et al. 2022), and DoRA's magnitudes (Liu et al. 2024).

use super::loading::Loading;
use super::op::{ClassOp, Weighting};
use crate::delta::change::{Change, distance_from_one};
use crate::delta::error::DeltaError;
use crate::delta::layout::Site;
use crate::delta::rows::StepRows;
use crate::delta::sites::Place;
use crate::ops::{Backend, OpsError, SiteId};

/// y = g∘y.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputScale {
    /// `[out]`.
    pub g: Vec<f32>,
    /// After the base's bias (IA3) or before it (DoRA).
    pub after_bias: bool,
}

/// x = g∘x.
#[derive(Clone, Debug, PartialEq)]
pub struct InputScale {
    /// `[in]`.
    pub g: Vec<f32>,
}

impl ClassOp for OutputScale {
    fn parameters(&self) -> usize {
        self.g.len()
    }

    fn after_bias(&self) -> Option<bool> {
        Some(self.after_bias)
    }

    fn computed(&self) -> &[f32] {
        &self.g
    }

    fn change(&self) -> Result<Option<Change>, DeltaError> {
        Ok(Some(Change::OfDirection(distance_from_one(&self.g))))
    }

    fn weighting() -> Weighting<Self> {
        Err("multiplies what others add")
    }

    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let (site, columns) = match loading.place(site) {
            Place::Linear(place) if self.after_bias => (place.sites.scale_after_bias, place.columns),
            Place::Linear(place) => (place.sites.scale_before_bias, place.columns),
            Place::Embed(place) => (place.scale, 0..self.g.len()),
            _ => unreachable!("compilers attach OutputScale to linear sites and the embedding only"),
        };
        loading.vector(site, &self.g, columns)
    }
}

impl ClassOp for InputScale {
    fn parameters(&self) -> usize {
        self.g.len()
    }

    fn change(&self) -> Result<Option<Change>, DeltaError> {
        Ok(Some(Change::OfDirection(distance_from_one(&self.g))))
    }

    fn computed(&self) -> &[f32] {
        &self.g
    }

    fn weighting() -> Weighting<Self> {
        Err("multiplies what the base and others read")
    }

    /// Once for every input of the stack that the site covers.
    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let Place::Linear(place) = loading.place(site) else {
            unreachable!("compilers attach InputScale to linear sites only");
        };
        for input in &place.sites.inputs[place.inputs] {
            loading.vector(input.scale, &self.g, 0..self.g.len())?;
        }
        Ok(())
    }
}

/// Semantics: y = g∘y for the rows that have a g at the site.
pub(crate) fn apply<B: Backend>(on: &StepRows<'_, B>, site: SiteId, y: &mut B::Buffer) {
    if let Some(scales) = on.held(site) {
        on.backend.scale_rows(on.step, on.rows, scales, y);
    }
}
