//! Deltas on a device. [`PreparedDelta`] is made on a loader thread (all bytes move there); installing and removing
//! change one slot of the tables, between steps, and move or free nothing.

use std::collections::BTreeMap;

use super::layout::BaseLayout;
use super::sites::DeltaSites;
use crate::ops::{Backend, OpsError, SiteId, SiteSet, SiteTable, SlotDelta};
use crate::types::{AdapterSlot, OpClasses};

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
    pub(super) classes: OpClasses,
    pub(super) vocab_size: Option<usize>,
}

/// Deltas of all installed adapters.
pub struct DeltaTable<B: Backend> {
    /// The numbers of the sites in it.
    pub sites: DeltaSites,
    entries: B::DeltaTable,
    virtual_rows: Vec<Option<VirtualRows<B>>>,
    classes: Vec<OpClasses>,
    /// Of adapters whose vocabulary is not the base's.
    vocab_sizes: BTreeMap<AdapterSlot, usize>,
}

impl<B: Backend> DeltaTable<B> {
    /// An empty table of so many slots for a base.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    pub fn new(backend: &B, layout: &BaseLayout, slots: usize) -> Result<Self, OpsError> {
        let sites = DeltaSites::new(layout);
        let entries = backend.delta_table(slots)?;
        Ok(Self { sites, entries, virtual_rows: Vec::new(), classes: Vec::new(), vocab_sizes: BTreeMap::new() })
    }

    /// Put a prepared adapter into an empty slot.
    pub fn install(&mut self, backend: &B, slot: AdapterSlot, delta: PreparedDelta<B>) {
        if self.virtual_rows.len() <= slot.index() {
            self.virtual_rows.resize_with(slot.index() + 1, || None);
            self.classes.resize_with(slot.index() + 1, OpClasses::default);
        }
        self.virtual_rows[slot.index()] = delta.virtual_rows;
        self.classes[slot.index()] = delta.classes;
        self.vocab_sizes.extend(delta.vocab_size.map(|tokens| (slot, tokens)));
        backend.set_slot(&mut self.entries, slot, delta.entries);
    }

    /// Empty a slot: what was installed, whole, to be dropped where that may take its time.
    pub fn remove(&mut self, backend: &B, slot: AdapterSlot) -> Option<PreparedDelta<B>> {
        let entries = backend.clear_slot(&mut self.entries, slot)?;
        let virtual_rows = self.virtual_rows.get_mut(slot.index()).and_then(Option::take);
        let classes = self.classes.get_mut(slot.index()).map(std::mem::take).unwrap_or_default();
        let vocab_size = self.vocab_sizes.remove(&slot);
        Some(PreparedDelta { entries, virtual_rows, classes, vocab_size })
    }

    /// Make `sizes` the vocabularies of rows with these adapters, in a base of `tokens`; empty where all have the base's.
    pub fn vocab_sizes(&self, slots: &[Option<AdapterSlot>], tokens: usize, sizes: &mut Vec<usize>) {
        sizes.clear();
        let own = |slot: &Option<AdapterSlot>| slot.and_then(|slot| self.vocab_sizes.get(&slot).copied());
        if !self.vocab_sizes.is_empty() && slots.iter().any(|slot| own(slot).is_some()) {
            sizes.extend(slots.iter().map(|slot| own(slot).unwrap_or(tokens)));
        }
    }

    /// The op classes of a slot; none for an empty one.
    #[must_use]
    pub fn classes(&self, slot: AdapterSlot) -> OpClasses {
        self.classes.get(slot.index()).copied().unwrap_or_default()
    }

    /// The virtual tokens of a slot.
    #[must_use]
    pub fn virtual_rows(&self, slot: AdapterSlot) -> Option<&VirtualRows<B>> {
        self.virtual_rows.get(slot.index())?.as_ref()
    }

    /// Make `held` the sites where any of these slots has entries; that of added tokens too where one has another vocabulary than
    /// the base's, also one with fewer tokens: with it, sampling is launched another way.
    pub fn held(&self, backend: &B, slots: impl IntoIterator<Item = AdapterSlot>, held: &mut SiteSet) {
        held.clear();
        for slot in slots {
            if let Some(delta) = backend.slot(&self.entries, slot) {
                held.extend(delta.held());
            }
            if self.vocab_sizes.contains_key(&slot) {
                held.extend(&SiteSet::new([self.sites.added_tokens]));
            }
        }
    }

    /// The entries of all slots.
    #[must_use]
    pub fn entries(&self) -> &B::DeltaTable {
        &self.entries
    }

    /// The entries of all slots at one site.
    pub(super) fn site(&self, site: SiteId) -> SiteTable<'_, B> {
        SiteTable { table: &self.entries, site }
    }
}
