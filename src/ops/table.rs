//! Per-site tables of delta ops, indexed by adapter slot. Install and remove touch these tables only, between steps.

use std::ops::Range;

use super::Backend;
use crate::types::AdapterSlot;

/// One low-rank pair of a site. Each keeps its own memory at its true rank; the scaling is applied as f32 to the
/// product and never folded into bf16 numbers.
pub struct LowRank<B: Backend> {
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

/// A vector for some columns of a site.
pub struct ColumnVector<B: Backend> {
    /// `columns.len()` numbers.
    pub values: B::Vector,
    /// Output columns of the stacked site.
    pub columns: Range<usize>,
}

/// Vectors by slot: scales, biases, gains.
pub type SlotVectors<B> = SlotTable<ColumnVector<B>>;

/// The entries of one op class at one site, by slot. A slot may hold several (one per projection of a stacked site).
pub struct SlotTable<T> {
    by_slot: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for SlotTable<T> {
    fn default() -> Self {
        Self { by_slot: Vec::new(), len: 0 }
    }
}

impl<T> SlotTable<T> {
    /// Entries of a slot; empty for the base and for slots without this op here.
    #[must_use]
    pub fn get(&self, slot: Option<AdapterSlot>) -> &[T] {
        slot.and_then(|slot| self.by_slot.get(slot.index())).map_or(&[], Vec::as_slice)
    }

    /// Add an entry to a slot.
    pub fn push(&mut self, slot: AdapterSlot, entry: T) {
        if self.by_slot.len() <= slot.index() {
            self.by_slot.resize_with(slot.index() + 1, Vec::new);
        }
        self.by_slot[slot.index()].push(entry);
        self.len += 1;
    }

    /// Take all entries of a slot out.
    pub fn take(&mut self, slot: AdapterSlot) -> Vec<T> {
        let entries = self.by_slot.get_mut(slot.index()).map(std::mem::take).unwrap_or_default();
        self.len -= entries.len();
        entries
    }

    /// True when no slot has an entry: the class is absent at this site and costs nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
