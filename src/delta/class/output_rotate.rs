//! `OutputRotate`, y = c1∘y + c2∘rot(y): RoAd (Liao & Monz 2024).

use super::loading::Loading;
use super::op::ClassOp;
use crate::delta::change::{Change, length};
use crate::delta::error::DeltaError;
use crate::delta::layout::Site;
use crate::delta::rows::StepRows;
use crate::delta::sites::Place;
use crate::ops::{Backend, OpsError, SiteId};

/// y = c1∘y + c2∘rot(y), after the base's bias. Within every `group` of outputs the first half y1 and the second half y2
/// turn together: rot(y) = (−y2, y1).
#[derive(Clone, Debug, PartialEq)]
pub struct OutputRotate {
    /// `[2, out]`: c1, then c2.
    pub c: Vec<f32>,
    /// Outputs of a group: even, and it divides their number.
    pub group: usize,
}

impl ClassOp for OutputRotate {
    fn parameters(&self) -> usize {
        self.c.len()
    }

    fn computed(&self) -> &[f32] {
        &self.c
    }

    fn change(&self) -> Result<Option<Change>, DeltaError> {
        let (kept, turned) = self.c.split_at(self.c.len() / 2);
        let moved = length(kept.iter().map(|c| c - 1.0)).hypot(length(turned.iter().copied()));
        Ok(Some(Change::OfDirection(moved / (kept.len().max(1) as f64).sqrt())))
    }

    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let Place::Linear(place) = loading.place(site) else {
            unreachable!("compilers attach OutputRotate to linear sites only")
        };
        loading.column_rotation(place.sites.rotate_after_bias, &self.c, self.group, place.columns)
    }
}

/// Semantics: y = c1∘y + c2∘rot(y) for the rows that have a rotation at the site.
pub(crate) fn apply<B: Backend>(on: &StepRows<'_, B>, site: SiteId, y: &mut B::Buffer) {
    if let Some(column_rotations) = on.held(site) {
        on.backend.rotate_outputs(on.step, on.rows, column_rotations, y);
    }
}
