//! Deltas on a device. [`PreparedDelta`] is made on a loader thread (all bytes move there); installing and removing
//! change one slot of the tables, between steps, and move or free nothing.

use super::layout::BaseLayout;
use super::sites::DeltaSites;
use crate::ops::{Backend, OpsError, SiteId, SiteTable, SlotDelta};
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
    pub(super) entries: SlotDelta<B>,
    pub(super) virtual_rows: Option<VirtualRows<B>>,
}

/// Deltas of all installed adapters.
pub struct DeltaTable<B: Backend> {
    /// The numbers of the sites in it.
    pub sites: DeltaSites,
    entries: B::DeltaTable,
    /// By site: how many slots have entries there. What nobody has is found absent by one look.
    holders: Vec<u32>,
    virtual_rows: Vec<Option<VirtualRows<B>>>,
}

impl<B: Backend> DeltaTable<B> {
    /// An empty table for a base.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    pub fn new(backend: &B, layout: &BaseLayout) -> Result<Self, OpsError> {
        let sites = DeltaSites::new(layout);
        let holders = vec![0; sites.count];
        Ok(Self { sites, entries: backend.delta_table()?, holders, virtual_rows: Vec::new() })
    }

    /// Put a prepared adapter into an empty slot.
    pub fn install(&mut self, backend: &B, slot: AdapterSlot, delta: PreparedDelta<B>) {
        if self.virtual_rows.len() <= slot.index() {
            self.virtual_rows.resize_with(slot.index() + 1, || None);
        }
        self.virtual_rows[slot.index()] = delta.virtual_rows;
        for site in delta.entries.sites() {
            self.holders[site.index()] += 1;
        }
        backend.set_slot(&mut self.entries, slot, delta.entries);
    }

    /// Empty a slot: what was installed, whole, to be dropped where that may take its time.
    pub fn remove(&mut self, backend: &B, slot: AdapterSlot) -> Option<PreparedDelta<B>> {
        let entries = backend.clear_slot(&mut self.entries, slot)?;
        for site in entries.sites() {
            self.holders[site.index()] -= 1;
        }
        let virtual_rows = self.virtual_rows.get_mut(slot.index()).and_then(Option::take);
        Some(PreparedDelta { entries, virtual_rows })
    }

    /// The virtual tokens of a slot.
    #[must_use]
    pub fn virtual_rows(&self, slot: AdapterSlot) -> Option<&VirtualRows<B>> {
        self.virtual_rows.get(slot.index())?.as_ref()
    }

    /// The entries at one site, where any of these slots has some.
    pub(super) fn held(
        &self,
        backend: &B,
        site: SiteId,
        slots: impl IntoIterator<Item = AdapterSlot>,
    ) -> Option<SiteTable<'_, B>> {
        if self.holders[site.index()] == 0 {
            return None;
        }
        let holds = |slot| backend.slot(&self.entries, slot).is_some_and(|delta| delta.holds(site));
        slots.into_iter().any(holds).then_some(SiteTable { table: &self.entries, site })
    }
}
