//! What adapters hold at their sites, and the table of all slots.
//!
//! An adapter is put together on a loader thread ([`SlotDelta`]), set into a slot between two steps, and taken out of it
//! whole. What a kernel reads of it is its backend's table ([`DeltaMemory::DeltaTable`]).

use std::ops::Range;

use crate::types::AdapterSlot;

/// The memory in which a backend keeps adapters.
pub trait DeltaMemory: Send + Sync + Sized + 'static {
    /// A packed matrix `[out, in]`, possibly several stacked along `out`.
    type Weight: Send + Sync;
    /// An f32 vector.
    type Vector: Send + Sync;
    /// Deltas of all slots at all sites, as the kernels read them.
    type DeltaTable: Send;
}

/// One op class at one place of the decoder. Whoever builds the deltas counts them from 0 on; here they are numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub u32);

impl SiteId {
    /// As an index.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One low-rank pair of a site. Each keeps its own memory at its true rank; the scaling is applied as f32 to the
/// product and never folded into bf16 numbers.
pub struct LowRankPair<B: DeltaMemory> {
    /// `[rank, in]`, or `[vocab, rank]` (a transposed A) for an embedding.
    pub a: B::Weight,
    /// `[columns.len(), rank]`.
    pub b: B::Weight,
    /// Rank, at least 1.
    pub rank: usize,
    /// alpha / r, or as the method defines it.
    pub scaling: f32,
    /// Output columns of the stacked site.
    pub columns: Range<usize>,
}

/// A vector for some columns of a site: a scale, a bias or a gain.
pub struct ColumnVector<B: DeltaMemory> {
    /// `columns.len()` numbers.
    pub values: B::Vector,
    /// Output columns of the stacked site.
    pub columns: Range<usize>,
}

/// Entries sorted by site; a site may have several (one per projection of a stacked site).
struct BySite<T> {
    entries: Vec<T>,
    /// Where those of each site end, up to the last site that has any.
    ends: Vec<u32>,
}

impl<T> BySite<T> {
    /// Entries of one site keep their order.
    fn new(mut entries: Vec<(SiteId, T)>) -> Self {
        entries.sort_by_key(|(site, _)| *site);
        let mut ends = Vec::new();
        for (index, (site, _)) in entries.iter().enumerate() {
            ends.resize(site.index(), index as u32);
            ends.push(index as u32 + 1);
        }
        Self { entries: entries.into_iter().map(|(_, entry)| entry).collect(), ends }
    }

    fn get(&self, site: SiteId) -> &[T] {
        let site = site.index();
        let Some(end) = self.ends.get(site) else { return &[] };
        let start = site.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.entries[start as usize..*end as usize]
    }
}

/// Entries of one adapter as they come, one list for each form that kernels read.
pub struct SlotEntries<B: DeltaMemory> {
    /// Low-rank pairs.
    pub low_rank: Vec<(SiteId, LowRankPair<B>)>,
    /// Vectors.
    pub vectors: Vec<(SiteId, ColumnVector<B>)>,
}

impl<B: DeltaMemory> Default for SlotEntries<B> {
    fn default() -> Self {
        Self { low_rank: Vec::new(), vectors: Vec::new() }
    }
}

/// All entries of one adapter, with their memory on the device.
pub struct SlotDelta<B: DeltaMemory> {
    low_rank: BySite<LowRankPair<B>>,
    vectors: BySite<ColumnVector<B>>,
}

impl<B: DeltaMemory> SlotDelta<B> {
    /// Put entries together. Those of one site keep their order.
    #[must_use]
    pub fn new(entries: SlotEntries<B>) -> Self {
        Self { low_rank: BySite::new(entries.low_rank), vectors: BySite::new(entries.vectors) }
    }

    /// Low-rank pairs of a site.
    #[must_use]
    pub fn low_rank(&self, site: SiteId) -> &[LowRankPair<B>] {
        self.low_rank.get(site)
    }

    /// Vectors of a site.
    #[must_use]
    pub fn vectors(&self, site: SiteId) -> &[ColumnVector<B>] {
        self.vectors.get(site)
    }

    /// Every site that has any entry, ascending.
    pub fn sites(&self) -> impl Iterator<Item = SiteId> {
        let end = self.low_rank.ends.len().max(self.vectors.ends.len());
        (0..end as u32).map(SiteId).filter(|site| self.holds(*site))
    }

    /// Whether a site has any entry.
    #[must_use]
    pub fn holds(&self, site: SiteId) -> bool {
        !self.low_rank(site).is_empty() || !self.vectors(site).is_empty()
    }
}

/// The entries of all slots at one site: what an op of a delta class reads.
pub struct SiteTable<'a, B: DeltaMemory> {
    /// All sites.
    pub table: &'a B::DeltaTable,
    /// Which of them.
    pub site: SiteId,
}

impl<B: DeltaMemory> Clone for SiteTable<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: DeltaMemory> Copy for SiteTable<'_, B> {}

/// The table of a backend whose kernels read the host's memory.
pub struct SlotTable<B: DeltaMemory> {
    slots: Vec<Option<SlotDelta<B>>>,
}

impl<B: DeltaMemory> Default for SlotTable<B> {
    fn default() -> Self {
        Self { slots: Vec::new() }
    }
}

impl<B: DeltaMemory> SlotTable<B> {
    /// See [`Backend::set_slot`](super::Backend::set_slot).
    pub fn set(&mut self, slot: AdapterSlot, delta: SlotDelta<B>) {
        if self.slots.len() <= slot.index() {
            self.slots.resize_with(slot.index() + 1, || None);
        }
        debug_assert!(self.slots[slot.index()].is_none(), "a slot is cleared before it is set");
        self.slots[slot.index()] = Some(delta);
    }

    /// See [`Backend::clear_slot`](super::Backend::clear_slot).
    pub fn clear(&mut self, slot: AdapterSlot) -> Option<SlotDelta<B>> {
        self.slots.get_mut(slot.index()).and_then(Option::take)
    }

    /// See [`Backend::slot`](super::Backend::slot).
    #[must_use]
    pub fn get(&self, slot: AdapterSlot) -> Option<&SlotDelta<B>> {
        self.slots.get(slot.index())?.as_ref()
    }
}

impl<'a, B: DeltaMemory<DeltaTable = SlotTable<B>>> SiteTable<'a, B> {
    fn delta(&self, slot: Option<AdapterSlot>) -> Option<&'a SlotDelta<B>> {
        slot.and_then(|slot| self.table.get(slot))
    }

    /// Low-rank pairs of a slot; empty for the base and for slots without any here.
    pub(super) fn low_rank(&self, slot: Option<AdapterSlot>) -> &'a [LowRankPair<B>] {
        self.delta(slot).map_or(&[], |delta| delta.low_rank(self.site))
    }

    /// Vectors of a slot; empty for the base and for slots without any here.
    pub(super) fn vectors(&self, slot: Option<AdapterSlot>) -> &'a [ColumnVector<B>] {
        self.delta(slot).map_or(&[], |delta| delta.vectors(self.site))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_site_in_the_order_they_came() {
        let entries = [(4, 'a'), (1, 'b'), (4, 'c'), (2, 'd'), (1, 'e')];
        let by_site = BySite::new(entries.map(|(site, entry)| (SiteId(site), entry)).to_vec());
        let found: Vec<&[char]> = (0..7).map(|site| by_site.get(SiteId(site))).collect();
        assert_eq!(found, [&[][..], &['b', 'e'], &['d'], &[], &['a', 'c'], &[], &[]]);
        assert!(BySite::<char>::new(Vec::new()).get(SiteId(0)).is_empty());
    }
}
