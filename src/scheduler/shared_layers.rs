//! What a sequence knows of the layers it shares: blocks in which they are computed are found by their tokens, as if it
//! were the base's sequence, and its rows go on from there.
//!
//! Only what the first layers compute is shared. The KV of the layers behind them is each adapter's own, so a block that
//! was found is copied, and the rest of it is computed in the copy. Knows counts and keys only.

use crate::cache::BlockKey;

/// Of one sequence without virtual tokens.
#[derive(Debug, Default)]
pub(super) struct SharedLayers {
    /// Keys of its first full blocks as those of the base would be.
    pub(super) keys: Vec<BlockKey>,
    /// Of tokens before this one the shared layers are computed.
    pub(super) until: usize,
}

impl SharedLayers {
    /// Of so many tokens behind those that are computed, the shared layers are computed and nothing else; `None` where it
    /// is of none.
    pub(super) fn ahead_of(&self, num_computed_tokens: usize) -> Option<usize> {
        self.until.checked_sub(num_computed_tokens).filter(|rows| *rows > 0)
    }
}
