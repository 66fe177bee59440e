//! What a sequence knows of the layers it shares: blocks in which they are computed are found by their tokens, as if it
//! were the base's sequence, and its rows go on from there.
//!
//! Only what the first layers compute is shared. The KV of the layers behind them is each adapter's own, so a block that
//! was found is copied, and the rest of it is computed in the copy. Knows ids and counts only.

use super::sequence::Sequence;
use crate::cache::{BlockKey, PrefixBlock};
use crate::types::BlockId;

/// Of one sequence without virtual tokens.
#[derive(Debug, Default)]
pub(super) struct SharedLayers {
    /// Keys of its first full blocks as those of the base would be.
    keys: Vec<BlockKey>,
    /// Of tokens before this one the shared layers are computed.
    until: usize,
}

impl Sequence {
    /// Its next tokens of which the shared layers are computed, and nothing else; `None` where there are none.
    pub(super) fn num_from_shared(&self) -> Option<usize> {
        let until = self.shared.as_ref()?.until;
        until.checked_sub(self.num_computed_tokens).filter(|rows| *rows > 0)
    }

    /// Of tokens before this one the shared layers are computed.
    pub(super) fn set_shared_until(&mut self, token: usize) {
        if let Some(shared) = &mut self.shared {
            shared.until = token;
        }
    }

    /// Visit full blocks from `first` on with the contents that the shared layers know them by, as far as a new start could
    /// take them over, until `visit` returns false.
    pub(super) fn walk_shared_layers(&mut self, first: usize, mut visit: impl FnMut(&PrefixBlock<'_>) -> bool) {
        for block in first..self.end_of_reusable() {
            if !self.visit_shared(block, &mut visit) {
                return;
            }
        }
    }

    /// Visit the blocks that have become full since [`Sequence::walk_new_full_blocks`] was called.
    pub(super) fn walk_new_shared_layers(&mut self, mut visit: impl FnMut(BlockId, &PrefixBlock<'_>)) {
        for block in self.new_full_blocks() {
            let id = self.table.blocks()[block];
            self.visit_shared(block, &mut |contents| {
                visit(id, contents);
                true
            });
        }
    }

    /// False where it shares nothing, or where `visit` says so.
    fn visit_shared(&mut self, block: usize, visit: &mut impl FnMut(&PrefixBlock<'_>) -> bool) -> bool {
        let Some(mut shared) = self.shared.take() else { return false };
        let scope = self.scope.of_base();
        let parent =
            |keys: &[BlockKey], block: usize| block.checked_sub(1).map_or_else(|| scope.root(), |before| keys[before]);
        while shared.keys.len() <= block {
            let next = shared.keys.len();
            shared.keys.push(parent(&shared.keys, next).child(&self.block_tokens(next)));
        }
        let (parent, key) = (parent(&shared.keys, block), shared.keys[block]);
        self.shared = Some(shared);
        visit(&PrefixBlock { scope: &scope, parent, key, tokens: &self.block_tokens(block) })
    }
}
