//! Which KV blocks hold what: the block pool, block tables and the prefix index. Counts and ids only, never a tensor.
//!
//! [`KvCacheManager`] is the one owner of all of it: a block that is handed out leaves the prefix index in the same
//! call, so nobody can find KV that is about to be overwritten.

mod block_pool;
mod block_table;
mod prefix;

pub(crate) use block_pool::BlockPool;
pub(crate) use block_table::{BlockSize, BlockTable};
pub(crate) use prefix::{BlockKey, FoundBlock, PrefixBlock, PrefixIndex, PrefixScope};

use std::collections::BTreeSet;

use crate::types::{AdapterVersion, BlockId};

/// The block pool and the prefix index, kept consistent with each other.
#[derive(Debug)]
pub(crate) struct KvCacheManager {
    pool: BlockPool,
    /// `None` where prefix caching is off.
    index: Option<PrefixIndex>,
    /// Blocks by what the shared layers have computed in them, always as the base: scopes are those of the base. `None`
    /// where no layers are shared.
    shared_layers: Option<PrefixIndex>,
}

impl KvCacheManager {
    /// `num_blocks` free blocks; an empty prefix index where `prefix_cache`, and one of shared layers where these are, too.
    #[must_use]
    pub(crate) fn new(num_blocks: u32, prefix_cache: bool, shared_layers: bool) -> Self {
        let index = |wanted: bool| wanted.then(|| PrefixIndex::new(num_blocks));
        let (index, shared_layers) = (index(prefix_cache), index(prefix_cache && shared_layers));
        Self { pool: BlockPool::new(num_blocks), index, shared_layers }
    }

    /// Whether full blocks are kept findable for reuse.
    #[must_use]
    pub(crate) fn prefix_cache(&self) -> bool {
        self.index.is_some()
    }

    /// Whether what the first layers compute is kept findable for adapters that leave them as they are.
    #[must_use]
    pub(crate) fn shares_layers(&self) -> bool {
        self.shared_layers.is_some()
    }

    fn indices(&mut self) -> impl Iterator<Item = &mut PrefixIndex> {
        self.index.iter_mut().chain(&mut self.shared_layers)
    }

    /// Blocks that nobody holds; those still in the prefix index count.
    #[must_use]
    pub(crate) fn num_free(&self) -> usize {
        self.pool.num_free()
    }

    /// Blocks with at least one holder.
    #[must_use]
    pub(crate) fn num_used(&self) -> usize {
        self.pool.num_used()
    }

    /// Blocks in all.
    #[must_use]
    pub(crate) fn num_blocks(&self) -> usize {
        self.pool.num_blocks()
    }

    /// Holders of a block; 0 is free.
    #[cfg(test)]
    pub(crate) fn refs(&self, block: BlockId) -> u32 {
        self.pool.refs(block)
    }

    /// Whether nobody holds this block.
    #[must_use]
    pub(crate) fn is_free(&self, block: BlockId) -> bool {
        self.pool.refs(block) == 0
    }

    /// Whether this block can be found.
    #[must_use]
    pub(crate) fn is_indexed(&self, block: BlockId) -> bool {
        self.index.iter().chain(&self.shared_layers).any(|index| index.contains(block))
    }

    /// Take the block that has been free the longest; it is no longer findable. `None` when all are held.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let block = self.pool.allocate()?;
        self.indices().for_each(|index| index.remove(block));
        Some(block)
    }

    /// Become one more holder of a block, held or free (a prefix hit takes free blocks back).
    pub(crate) fn share(&mut self, block: BlockId) {
        self.pool.share(block);
    }

    /// Stop holding a block. The last holder frees it; an indexed block is then reused as late as possible, any other
    /// as early as possible.
    ///
    /// # Panics
    /// If nobody holds it: going on would give one tenant's KV to another.
    pub(crate) fn release(&mut self, block: BlockId) {
        let keep = self.is_indexed(block);
        self.pool.release(block, keep);
    }

    /// Release a whole table, last block first, so that the head of a shared prefix outlives its tail.
    pub(crate) fn release_table(&mut self, table: &mut BlockTable) {
        for block in table.take().into_iter().rev() {
            self.release(block);
        }
    }

    /// The block that holds exactly this, if it is in the index.
    #[must_use]
    pub(crate) fn find(&self, wanted: &PrefixBlock<'_>) -> Option<FoundBlock> {
        self.index.as_ref().and_then(|index| index.find(wanted))
    }

    /// Whether a block that was found would be found again.
    #[must_use]
    pub(crate) fn still_has(&self, found: FoundBlock) -> bool {
        self.index.as_ref().is_some_and(|index| index.still_has(found))
    }

    /// As [`Self::find`], a block in which the shared layers have computed exactly this.
    #[must_use]
    pub(crate) fn find_shared_layers(&self, wanted: &PrefixBlock<'_>) -> Option<FoundBlock> {
        self.shared_layers.as_ref().and_then(|index| index.find(wanted))
    }

    /// Make a block findable. All its places must have been computed in a completed step. Nothing happens where an
    /// equal block is findable already, or prefix caching is off.
    pub(crate) fn publish(&mut self, block: BlockId, contents: &PrefixBlock<'_>) {
        if let Some(index) = &mut self.index {
            index.insert(block, contents);
        }
    }

    /// Make a block findable by what the shared layers have computed in it, as [`Self::publish`] does.
    pub(crate) fn publish_shared_layers(&mut self, block: BlockId, contents: &PrefixBlock<'_>) {
        if let Some(index) = &mut self.shared_layers {
            index.insert(block, contents);
        }
    }

    /// Remove every block computed with this version from the index; its KV is not trusted any more.
    pub(crate) fn forget_version(&mut self, version: AdapterVersion) {
        if let Some(index) = &mut self.index {
            index.forget(|scope| scope.version == Some(version));
        }
    }

    /// Remove every block computed with one of these versions from the index, in one walk.
    pub(crate) fn forget_versions(&mut self, versions: &BTreeSet<AdapterVersion>) {
        if let Some(index) = &mut self.index {
            index.forget(|scope| scope.version.is_some_and(|version| versions.contains(&version)));
        }
    }

    /// Remove these blocks from the index, whoever holds them.
    pub(crate) fn forget_blocks(&mut self, blocks: &[BlockId]) {
        self.indices().for_each(|index| blocks.iter().for_each(|block| index.remove(*block)));
    }

    /// Remove every block of one scope from the index.
    pub(crate) fn forget_scope(&mut self, scope: &PrefixScope) {
        self.indices().for_each(|index| index.forget(|other| other == scope));
    }

    /// Empty the index.
    pub(crate) fn forget_all(&mut self) {
        self.indices().for_each(|index| index.forget(|_| true));
    }
}
