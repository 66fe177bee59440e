//! What is made once and kept while it is in use: bounded by what it costs, and what is gone is made again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::OnceCell;

/// What one costs beside what it is said to cost, however small it is.
pub(super) const EACH_BYTES: u64 = 4 << 10;

/// Made by the first who asks; those who ask meanwhile wait for it.
type Cell<V> = Arc<OnceCell<V>>;

/// At most so many bytes of them; the least recently used go first.
pub(super) struct Kept<K, V> {
    entries: HashMap<K, Entry<V>>,
    bytes: u64,
    max_bytes: u64,
    /// Counts uses.
    clock: u64,
}

struct Entry<V> {
    cell: Cell<V>,
    bytes: u64,
    used: u64,
}

impl<K: Copy + Eq + Hash, V> Kept<K, V> {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { entries: HashMap::new(), bytes: 0, max_bytes, clock: 0 }
    }

    /// The place of one that costs so much.
    pub(super) fn cell(&mut self, key: K, bytes: u64) -> Cell<V> {
        self.clock += 1;
        let bytes = bytes.min(self.max_bytes) + EACH_BYTES;
        let entry = self.entries.entry(key).or_insert_with(|| {
            self.bytes += bytes;
            Entry { cell: Cell::default(), bytes, used: 0 }
        });
        entry.used = self.clock;
        let cell = Arc::clone(&entry.cell);
        while self.bytes > self.max_bytes && self.entries.len() > 1 {
            self.forget_oldest();
        }
        cell
    }

    fn forget_oldest(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key);
        if let Some(entry) = oldest.and_then(|oldest| self.entries.remove(&oldest)) {
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 4 << 20;

    #[test]
    fn what_is_kept_is_bounded_and_the_least_used_goes_first() {
        for bytes in [0, 1, 100 << 10] {
            let mut kept: Kept<u64, ()> = Kept::new(MAX);
            let first = kept.cell(0, bytes);
            for number in 1..5000 {
                let cell = kept.cell(number, bytes);
                assert!(Arc::ptr_eq(&cell, &kept.cell(number, bytes)), "it is kept");
                assert!(Arc::ptr_eq(&first, &kept.cell(0, bytes)), "it is in use");
                assert!(kept.bytes <= MAX);
            }
            let most = MAX / (bytes + EACH_BYTES);
            assert_eq!((kept.entries.len() as u64, kept.bytes), (most, most * (bytes + EACH_BYTES)));
        }
        let mut kept: Kept<u64, ()> = Kept::new(MAX);
        kept.cell(0, u64::MAX);
        kept.cell(1, 1);
        assert_eq!(kept.entries.len(), 1, "however much one is said to have");
    }
}
