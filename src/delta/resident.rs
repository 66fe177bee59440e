//! Deltas on a device. [`PreparedDelta`] is made on a loader thread (all bytes move there); installing and removing
//! change one slot of the tables, between steps, and move or free nothing.

use std::ops::Range;

use super::apply::LinearDeltas;
use super::layout::{BaseLayout, LayerSite, Site};
use super::program::{DeltaOp, DeltaProgram, PrefixLayer};
use super::sites::{DeltaSites, LinearSites};
use crate::ops::{Backend, ColumnVector, HostMatrix, LowRank, OpsError, SiteId, SiteTable, SlotDelta};
use crate::types::AdapterSlot;

/// What an adapter puts at the head of every sequence, on the device.
pub enum VirtualRows<B: Backend> {
    /// Saved K and V.
    Prefix {
        /// Virtual tokens.
        count: usize,
        /// One entry per layer: K and V, `[virtual tokens, kv_dim]` each.
        layers: Vec<(B::Buffer, B::Buffer)>,
    },
    /// `[virtual tokens, hidden]`.
    Embeds(B::Buffer),
}

/// A compiled adapter with its memory on the device.
pub struct PreparedDelta<B: Backend> {
    entries: SlotDelta<B>,
    virtual_rows: Option<VirtualRows<B>>,
}

/// Deltas of all installed adapters.
pub struct DeltaTable<B: Backend> {
    /// The numbers of the sites in it.
    pub sites: DeltaSites,
    entries: B::DeltaTable,
    virtual_rows: Vec<Option<VirtualRows<B>>>,
}

impl<B: Backend> DeltaTable<B> {
    /// An empty table for a base.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    pub fn new(backend: &B, layout: &BaseLayout) -> Result<Self, OpsError> {
        Ok(Self { sites: DeltaSites::new(layout), entries: backend.delta_table()?, virtual_rows: Vec::new() })
    }

    /// Put a prepared adapter into an empty slot.
    pub fn install(&mut self, backend: &B, slot: AdapterSlot, delta: PreparedDelta<B>) {
        if self.virtual_rows.len() <= slot.index() {
            self.virtual_rows.resize_with(slot.index() + 1, || None);
        }
        self.virtual_rows[slot.index()] = delta.virtual_rows;
        backend.set_slot(&mut self.entries, slot, delta.entries);
    }

    /// Empty a slot: what was installed, whole, to be dropped where that may take its time.
    pub fn remove(&mut self, backend: &B, slot: AdapterSlot) -> Option<PreparedDelta<B>> {
        let entries = backend.clear_slot(&mut self.entries, slot)?;
        let virtual_rows = self.virtual_rows.get_mut(slot.index()).and_then(Option::take);
        Some(PreparedDelta { entries, virtual_rows })
    }

    /// The virtual tokens of a slot.
    #[must_use]
    pub fn virtual_rows(&self, slot: AdapterSlot) -> Option<&VirtualRows<B>> {
        self.virtual_rows.get(slot.index())?.as_ref()
    }

    /// The entries of all slots at one site.
    #[must_use]
    pub fn at(&self, site: SiteId) -> SiteTable<'_, B> {
        SiteTable { table: &self.entries, site }
    }

    /// The entries of all slots at a stacked linear site.
    #[must_use]
    pub fn linear<'a>(&'a self, sites: &'a LinearSites) -> LinearDeltas<'a, B> {
        LinearDeltas { table: &self.entries, sites }
    }
}

impl<B: Backend> PreparedDelta<B> {
    /// Move a program's numbers to the device.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`]; nothing stays allocated then.
    pub fn new(backend: &B, layout: &BaseLayout, program: DeltaProgram) -> Result<Self, OpsError> {
        let turned = |(site, op)| Ok::<_, OpsError>((site, by_row_of_a(op)?));
        let ops: Vec<(Site, DeltaOp)> = program.ops.into_iter().map(turned).collect::<Result<_, _>>()?;
        let matrices: Vec<HostMatrix<'_>> = ops.iter().flat_map(|(_, op)| matrices(op)).collect();
        let mut weights = backend.weight_group(&matrices)?.into_iter();
        let sites = DeltaSites::new(layout);
        let mut parts = Parts { backend, layout, sites: &sites, low_rank: vec![], vectors: vec![], virtual_rows: None };
        for (site, op) in ops {
            parts.add(site, op, &mut weights)?;
        }
        let Parts { low_rank, vectors, virtual_rows, .. } = parts;
        Ok(Self { entries: SlotDelta::new(low_rank, vectors), virtual_rows })
    }
}

/// A of an embedding is read by row: transposed.
fn by_row_of_a(op: DeltaOp) -> Result<DeltaOp, OpsError> {
    Ok(match op {
        DeltaOp::EmbeddingLowRank { a, b, scaling } => DeltaOp::EmbeddingLowRank { a: a.transposed()?, b, scaling },
        op => op,
    })
}

/// The matrices of an op, in the order in which [`Parts::add`] takes them.
fn matrices(op: &DeltaOp) -> Vec<HostMatrix<'_>> {
    match op {
        DeltaOp::LowRank { a, b, .. } | DeltaOp::EmbeddingLowRank { a, b, .. } => vec![a.matrix(), b.matrix()],
        _ => Vec::new(),
    }
}

/// An adapter on its way to the device.
struct Parts<'a, B: Backend> {
    backend: &'a B,
    layout: &'a BaseLayout,
    sites: &'a DeltaSites,
    low_rank: Vec<(SiteId, LowRank<B>)>,
    vectors: Vec<(SiteId, ColumnVector<B>)>,
    virtual_rows: Option<VirtualRows<B>>,
}

impl<B: Backend> Parts<'_, B> {
    fn add(&mut self, site: Site, op: DeltaOp, weights: &mut impl Iterator<Item = B::Weight>) -> Result<(), OpsError> {
        let stack = self.sites.stack(site).zip(place(self.layout, site));
        match (op, stack) {
            (DeltaOp::LowRank { a, scaling, .. }, Some((stack, (_, columns)))) => {
                self.pair(stack.low_rank, a.rows(), scaling, columns, weights);
            }
            (DeltaOp::InputScale { g }, Some((stack, (segments, _)))) => {
                for segment in segments {
                    self.vector(stack.input_scale[segment], &g, 0..g.len())?;
                }
            }
            (DeltaOp::OutputScale { g, after_bias }, Some((stack, (_, columns)))) => {
                let site = if after_bias { stack.scale_after_bias } else { stack.scale_before_bias };
                self.vector(site, &g, columns)?;
            }
            (DeltaOp::Bias { b }, Some((stack, (_, columns)))) => self.vector(stack.bias, &b, columns)?,
            (DeltaOp::EmbeddingLowRank { b, scaling, .. }, _) => {
                self.pair(self.sites.embed, b.cols(), scaling, 0..self.layout.hidden_size, weights);
            }
            (DeltaOp::Gain { g }, _) => self.vector(self.sites.gain(site), &g, 0..g.len())?,
            (DeltaOp::Prefix { count, layers }, _) => {
                let layers = layers.iter().map(|layer| self.prefix(layer)).collect::<Result<_, _>>()?;
                self.virtual_rows = Some(VirtualRows::Prefix { count: count as usize, layers });
            }
            (DeltaOp::PromptEmbeds { embeds }, _) => {
                let embeds = self.backend.buffer_of(self.layout.hidden_size, &embeds.to_f32())?;
                self.virtual_rows = Some(VirtualRows::Embeds(embeds));
            }
            // The only scale outside a stack is DoRA's on the embedding; compilers give biases and inputs to stacks alone.
            (DeltaOp::OutputScale { g, .. } | DeltaOp::InputScale { g } | DeltaOp::Bias { b: g }, None) => {
                debug_assert_eq!(site, Site::Embed);
                self.vector(self.sites.embed_scale, &g, 0..g.len())?;
            }
            (DeltaOp::LowRank { .. }, None) => unreachable!("compilers attach LowRank to stacked sites only"),
        }
        Ok(())
    }

    fn pair(
        &mut self,
        site: SiteId,
        rank: usize,
        scaling: f32,
        columns: Range<usize>,
        weights: &mut impl Iterator<Item = B::Weight>,
    ) {
        match (weights.next(), weights.next()) {
            (Some(a), Some(b)) => self.low_rank.push((site, LowRank { a, b, rank, scaling, columns })),
            _ => unreachable!("`matrices` lists two for every low-rank op"),
        }
    }

    fn vector(&mut self, site: SiteId, values: &[f32], columns: Range<usize>) -> Result<(), OpsError> {
        self.vectors.push((site, ColumnVector { values: self.backend.vector(values)?, columns }));
        Ok(())
    }

    fn prefix(&self, layer: &PrefixLayer) -> Result<(B::Buffer, B::Buffer), OpsError> {
        let rows = |values: &[f32]| self.backend.buffer_of(self.layout.kv_dim, values);
        Ok((rows(&layer.k)?, rows(&layer.v)?))
    }
}

/// Segments and columns of a logical site in its stack.
fn place(layout: &BaseLayout, site: Site) -> Option<(Range<usize>, Range<usize>)> {
    let (q, kv, inner) = (layout.q_dim, layout.kv_dim, layout.intermediate_size);
    let Site::Layer(_, part) = site else {
        return (site == Site::LmHead).then_some((0..1, 0..layout.vocab_size));
    };
    Some(match part {
        LayerSite::Q => (0..1, 0..q),
        LayerSite::K => (1..2, q..q + kv),
        LayerSite::V => (2..3, q + kv..q + 2 * kv),
        LayerSite::Qkv => (0..3, 0..q + 2 * kv),
        LayerSite::O | LayerSite::Down => (0..1, 0..layout.hidden_size),
        LayerSite::Gate => (0..1, 0..inner),
        LayerSite::Up => (1..2, inner..2 * inner),
        LayerSite::GateUp => (0..2, 0..2 * inner),
        LayerSite::AttentionNorm
        | LayerSite::QNorm
        | LayerSite::KNorm
        | LayerSite::AttentionOutNorm
        | LayerSite::MlpNorm
        | LayerSite::MlpOutNorm => return None,
    })
}
