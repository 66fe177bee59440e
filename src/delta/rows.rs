//! Rows of a step beside what adapters have for them. Which op classes run is decided here, on the host, before the first
//! launch of a step; kernels are the backend's.

use super::resident::DeltaTable;
use crate::ops::{Backend, Rows, SiteId, SiteSet, SiteTable};

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
    /// Where any adapter of the step has entries.
    pub held: &'a SiteSet,
}

impl<'a, B: Backend> StepRows<'a, B> {
    /// The entries at a site, where any adapter of the step has some: one look.
    #[must_use]
    pub fn held(&self, site: SiteId) -> Option<SiteTable<'a, B>> {
        self.held.contains(site).then(|| self.deltas.site(site))
    }
}
