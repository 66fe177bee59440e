//! An adapter on its way to the device: what classes put their resident forms into. Knows no class.

use std::ops::Range;
use std::sync::Arc;
use std::vec;

use crate::delta::layout::{BaseLayout, Site};
use crate::delta::resident::{PreparedDelta, VirtualRows};
use crate::delta::sites::{DeltaSites, Place};
use crate::ops::{
    Backend, Bottleneck, ColumnRotation, ColumnVector, DenseMatrix, ExpertPair, HostSparse, LowRankPair, OpsError,
    ReplacedRows, Rotation, SiteId, SlotDelta, SlotEntries, SparseColumns,
};
use crate::types::OpClasses;

/// One adapter, as far as it has been loaded.
pub(crate) struct Loading<'a, B: Backend> {
    backend: &'a B,
    pub(super) layout: &'a BaseLayout,
    pub(super) sites: &'a DeltaSites,
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

    /// All that was loaded, of ops of these classes, of a vocabulary of its own where there is one.
    pub(in crate::delta) fn finish(
        self,
        classes: OpClasses,
        vocab_size: Option<usize>,
    ) -> Result<PreparedDelta<B>, OpsError> {
        let Self { backend, mut entries, virtual_rows, .. } = self;
        entries.vocab_size = vocab_size;
        Ok(PreparedDelta { entries: SlotDelta::new(backend, entries)?, virtual_rows, classes, vocab_size })
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

    /// Add a pair of an expert, of the next two weights, A and B.
    pub(super) fn expert_pair(&mut self, site: SiteId, expert: u32, rank: usize, scaling: f32, columns: Range<usize>) {
        match (self.weights.next(), self.weights.next()) {
            (Some(a), Some(b)) => {
                let pair = LowRankPair { a, b, rank, scaling, columns };
                self.entries.expert_pairs.push((site, ExpertPair { expert, pair }));
            }
            _ => unreachable!("`ClassOp::matrices` lists two for every pair"),
        }
    }

    /// Add rows, which are the next weight, in place of those of the base at every one of the sites.
    pub(super) fn replaced(&mut self, sites: &[SiteId], ids: Vec<u32>) {
        let Some(rows) = self.weights.next() else { unreachable!("`ClassOp::matrices` lists the rows") };
        let replaced = Arc::new(ReplacedRows { ids, rows });
        self.entries.replaced.extend(sites.iter().map(|site| (*site, Arc::clone(&replaced))));
    }

    /// Add a full matrix, the next weight.
    pub(super) fn dense(&mut self, site: SiteId, scaling: f32, columns: Range<usize>, replaces: bool) {
        match self.weights.next() {
            Some(weight) => self.entries.dense.push((site, DenseMatrix { weight, scaling, columns, replaces })),
            None => unreachable!("`ClassOp::matrices` lists one for every full matrix"),
        }
    }

    /// Add a vector.
    pub(super) fn vector(&mut self, site: SiteId, values: &[f32], columns: Range<usize>) -> Result<(), OpsError> {
        self.entries.vectors.push((site, ColumnVector { values: self.backend.vector(values)?, columns }));
        Ok(())
    }

    /// Add a rotation of pairs of columns.
    pub(super) fn column_rotation(
        &mut self,
        site: SiteId,
        c: &[f32],
        group: usize,
        columns: Range<usize>,
    ) -> Result<(), OpsError> {
        self.entries.column_rotations.push((site, ColumnRotation { c: self.backend.vector(c)?, group, columns }));
        Ok(())
    }

    /// Add a sparse matrix.
    pub(super) fn sparse(&mut self, site: SiteId, matrix: &HostSparse, columns: Range<usize>) -> Result<(), OpsError> {
        self.entries.sparse.push((site, SparseColumns { matrix: self.backend.sparse_matrix(matrix)?, columns }));
        Ok(())
    }

    /// Add a rotation behind those that the site has.
    pub(super) fn rotation(
        &mut self,
        site: SiteId,
        numbers: &[f32],
        is_shared: bool,
        size: usize,
        interleaved: usize,
    ) -> Result<(), OpsError> {
        let blocks = self.backend.vector(numbers)?;
        self.entries.rotations.push((site, Rotation { blocks, is_shared, size, interleaved }));
        Ok(())
    }

    /// Add what is between the matrices of a pair.
    pub(super) fn bottleneck(&mut self, site: SiteId, entry: Bottleneck<B>) {
        self.entries.bottlenecks.push((site, entry));
    }

    /// A vector of an entry.
    pub(super) fn numbers(&self, values: &[f32]) -> Result<B::Vector, OpsError> {
        self.backend.vector(values)
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
