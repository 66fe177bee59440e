//! An adapter on its way to the device: what classes put their resident forms into. Knows no class.

use std::ops::Range;
use std::vec;

use crate::delta::layout::{BaseLayout, Site};
use crate::delta::resident::{PreparedDelta, VirtualRows};
use crate::delta::sites::{DeltaSites, Place};
use crate::ops::{Backend, ColumnVector, LowRankPair, OpsError, SiteId, SlotDelta, SlotEntries};

/// One adapter, as far as it has been loaded.
pub(crate) struct Loading<'a, B: Backend> {
    backend: &'a B,
    pub(super) layout: &'a BaseLayout,
    sites: &'a DeltaSites,
    /// Of the ops' matrices, in their order.
    weights: vec::IntoIter<B::Weight>,
    entries: SlotEntries<B>,
    virtual_rows: Option<VirtualRows<B>>,
}

impl<'a, B: Backend> Loading<'a, B> {
    /// Nothing loaded but the weights of all matrices.
    pub(in crate::delta) fn new(
        backend: &'a B,
        layout: &'a BaseLayout,
        sites: &'a DeltaSites,
        weights: Vec<B::Weight>,
    ) -> Self {
        let (weights, entries) = (weights.into_iter(), SlotEntries::default());
        Self { backend, layout, sites, weights, entries, virtual_rows: None }
    }

    /// All that was loaded.
    pub(in crate::delta) fn finish(self) -> PreparedDelta<B> {
        PreparedDelta { entries: SlotDelta::new(self.entries), virtual_rows: self.virtual_rows }
    }

    /// What a site is to a step.
    pub(super) fn place(&self, site: Site) -> Place<'a> {
        self.sites.place(self.layout, site)
    }

    /// Add a pair of the next two weights, A and B.
    pub(super) fn pair(&mut self, site: SiteId, rank: usize, scaling: f32, columns: Range<usize>) {
        match (self.weights.next(), self.weights.next()) {
            (Some(a), Some(b)) => self.entries.low_rank.push((site, LowRankPair { a, b, rank, scaling, columns })),
            _ => unreachable!("`ClassOp::matrices` lists two for every pair"),
        }
    }

    /// Add a vector.
    pub(super) fn vector(&mut self, site: SiteId, values: &[f32], columns: Range<usize>) -> Result<(), OpsError> {
        self.entries.vectors.push((site, ColumnVector { values: self.backend.vector(values)?, columns }));
        Ok(())
    }

    /// Rows of a buffer of their own.
    pub(super) fn rows(&self, cols: usize, values: &[f32]) -> Result<B::Buffer, OpsError> {
        self.backend.buffer_of(cols, values)
    }

    /// Set what stands at the head of every sequence.
    pub(super) fn set_virtual_rows(&mut self, rows: VirtualRows<B>) {
        self.virtual_rows = Some(rows);
    }
}
