//! Arithmetic between KV indices and blocks. Holds no references: the owner of a table releases what is in it.

use std::num::NonZeroU32;

use crate::types::BlockId;

/// Token places per KV block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockSize(NonZeroU32);

impl BlockSize {
    /// `None` for 0.
    #[must_use]
    pub(crate) fn new(places: u32) -> Option<Self> {
        NonZeroU32::new(places).map(Self)
    }

    /// Places per block.
    #[must_use]
    pub(crate) fn get(self) -> usize {
        self.0.get() as usize
    }

    /// Blocks needed to hold `places` places.
    #[must_use]
    pub(crate) fn blocks_for(self, places: usize) -> usize {
        places.div_ceil(self.get())
    }

    /// Blocks that `places` places fill to the end.
    #[must_use]
    pub(crate) fn full_blocks(self, places: usize) -> usize {
        places / self.get()
    }
}

/// The blocks of one sequence in order: block `i` holds KV indices `i * block_size .. (i + 1) * block_size`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockTable {
    blocks: Vec<BlockId>,
}

impl BlockTable {
    /// Append a block.
    pub(crate) fn push(&mut self, block: BlockId) {
        self.blocks.push(block);
    }

    /// All blocks in order.
    #[must_use]
    pub(crate) fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Number of blocks.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Empty the table and return what it held, in order.
    pub(crate) fn take(&mut self) -> Vec<BlockId> {
        std::mem::take(&mut self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_place_lies_in_the_block_behind_those_that_are_full(size in 1u32..70, index in 0usize..5000) {
            let size = BlockSize::new(size).unwrap();
            prop_assert_eq!(size.full_blocks(index), index / size.get());
            prop_assert_eq!(size.blocks_for(index + 1), size.full_blocks(index) + 1);
            prop_assert_eq!(size.blocks_for(index) - size.full_blocks(index), usize::from(index % size.get() > 0));
        }
    }

    #[test]
    fn a_block_of_no_places_cannot_be_made() {
        assert_eq!(BlockSize::new(0), None);
    }
}
