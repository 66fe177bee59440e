//! The places adapters can have on the device.

use std::collections::BTreeSet;

use crate::types::AdapterSlot;

/// Hands out `0..total`, lowest first, so that descriptor tables stay dense.
#[derive(Debug)]
pub(super) struct SlotPool {
    free: BTreeSet<AdapterSlot>,
    total: u32,
}

impl SlotPool {
    pub(super) fn new(total: u32) -> Self {
        Self { free: (0..total).map(AdapterSlot).collect(), total }
    }

    pub(super) fn total(&self) -> usize {
        self.total as usize
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn allocate(&mut self) -> Option<AdapterSlot> {
        self.free.pop_first()
    }

    pub(super) fn release(&mut self, slot: AdapterSlot) {
        debug_assert!(slot.0 < self.total, "{slot:?} is not of this pool");
        let fresh = self.free.insert(slot);
        debug_assert!(fresh, "{slot:?} was free already");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_handed_out_once_and_lowest_first() {
        let mut pool = SlotPool::new(2);
        assert_eq!(pool.allocate(), Some(AdapterSlot(0)));
        assert_eq!(pool.allocate(), Some(AdapterSlot(1)));
        assert_eq!(pool.allocate(), None);
        pool.release(AdapterSlot(0));
        assert_eq!((pool.free(), pool.total()), (1, 2));
        assert_eq!(pool.allocate(), Some(AdapterSlot(0)));
    }
}
