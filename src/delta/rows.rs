//! Rows of a step beside what adapters have for them. Which op classes run is decided here, on the host, before the first
//! launch of a step; kernels are the backend's.

use super::resident::DeltaTable;
use crate::ops::{Backend, RowPlan, Rows, SiteId, SiteTable, StepPlan};

/// Rows of an uploaded step, what the host knows of them, and the deltas installed.
pub struct StepRows<'a, B: Backend> {
    /// Where they are.
    pub backend: &'a B,
    /// All installed deltas.
    pub deltas: &'a DeltaTable<B>,
    /// The uploaded step.
    pub step: &'a B::Step,
    /// Which of its rows.
    pub rows: Rows,
    /// The same on the host.
    pub plan: &'a RowPlan,
}

impl<'a, B: Backend> StepRows<'a, B> {
    /// Some rows of a step.
    #[must_use]
    pub fn new(backend: &'a B, deltas: &'a DeltaTable<B>, step: &'a B::Step, rows: Rows, plan: &'a StepPlan) -> Self {
        Self { backend, deltas, step, rows, plan: plan.of(rows) }
    }

    /// The entries at a site, where any of the rows has some. A class that no installed adapter has at the site costs one
    /// look; one that others have, a look at each adapter of the step.
    #[must_use]
    pub fn held(&self, site: SiteId) -> Option<SiteTable<'a, B>> {
        self.deltas.held(self.backend, site, self.plan.segments.iter().map(|segment| segment.slot))
    }
}
