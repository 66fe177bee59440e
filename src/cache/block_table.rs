//! Arithmetic between KV indices and blocks. Holds no references: the owner of a table releases what is in it.

use std::num::NonZeroU32;

use crate::types::BlockId;

/// Token places per KV block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(NonZeroU32);

impl BlockSize {
    /// `None` for 0.
    #[must_use]
    pub fn new(places: u32) -> Option<Self> {
        NonZeroU32::new(places).map(Self)
    }

    /// Places per block.
    #[must_use]
    pub fn get(self) -> usize {
        self.0.get() as usize
    }

    /// Blocks needed to hold `places` places.
    #[must_use]
    pub fn blocks_for(self, places: usize) -> usize {
        places.div_ceil(self.get())
    }

    /// Blocks that `places` places fill to the end.
    #[must_use]
    pub fn full_blocks(self, places: usize) -> usize {
        places / self.get()
    }

    /// KV index -> (which block of the table, offset in it).
    #[must_use]
    pub fn locate(self, kv_index: usize) -> (usize, usize) {
        (kv_index / self.get(), kv_index % self.get())
    }
}

/// The blocks of one sequence in order: block `i` holds KV indices `i * block_size .. (i + 1) * block_size`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
}

impl BlockTable {
    /// Append a block.
    pub fn push(&mut self, block: BlockId) {
        self.blocks.push(block);
    }

    /// All blocks in order.
    #[must_use]
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Number of blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// True for a sequence without KV.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The blocks that hold the first `places` places; all of them where the table is shorter.
    #[must_use]
    pub fn covering(&self, places: usize, size: BlockSize) -> &[BlockId] {
        &self.blocks[..size.blocks_for(places).min(self.blocks.len())]
    }

    /// Where a KV index lies: (block, offset in it). `None` past the end.
    #[must_use]
    pub fn kv_slot(&self, kv_index: usize, size: BlockSize) -> Option<(BlockId, usize)> {
        let (position, offset) = size.locate(kv_index);
        self.blocks.get(position).map(|block| (*block, offset))
    }

    /// Empty the table and return what it held, in order.
    pub fn take(&mut self) -> Vec<BlockId> {
        std::mem::take(&mut self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn locating_a_place_and_multiplying_back_is_the_identity(size in 1u32..70, index in 0usize..5000) {
            let size = BlockSize::new(size).unwrap();
            let (position, offset) = size.locate(index);
            prop_assert!(offset < size.get());
            prop_assert_eq!(position * size.get() + offset, index);
            prop_assert_eq!(size.full_blocks(index), position);
            prop_assert_eq!(size.blocks_for(index + 1), position + 1);
        }

        #[test]
        fn a_table_finds_every_place_it_covers_and_none_beyond(size in 1u32..9, blocks in 0usize..9) {
            let size = BlockSize::new(size).unwrap();
            let mut table = BlockTable::default();
            for i in 0..blocks {
                table.push(BlockId(100 + i as u32));
            }
            for index in 0..blocks * size.get() {
                let expected = (BlockId(100 + (index / size.get()) as u32), index % size.get());
                prop_assert_eq!(table.kv_slot(index, size), Some(expected));
                prop_assert_eq!(table.covering(index + 1, size).last(), Some(&expected.0));
            }
            prop_assert_eq!(table.kv_slot(blocks * size.get(), size), None);
        }
    }

    #[test]
    fn a_block_of_no_places_cannot_be_made() {
        assert_eq!(BlockSize::new(0), None);
    }
}
