//! Which full blocks can be reused, by content.
//!
//! A block is found by a chain of sha256 keys: the root covers whose KV it is (tenant salt, base, adapter version,
//! virtual tokens), each key covers its parent and the tokens of its block. Where the KV of a sequence turns from the
//! base's into its adapter's own, the chain goes on from another root, which covers the key before it. A hit also compares
//! the stored tokens and parent, so that a key collision is a miss and never another request's KV.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::types::{AdapterVersion, BlockId};

const ROOT_DOMAIN: &[u8] = b"polydelta/kv-prefix/root/v1\0";
const TURN_DOMAIN: &[u8] = b"polydelta/kv-prefix/turn/v1\0";
const BLOCK_DOMAIN: &[u8] = b"polydelta/kv-prefix/block/v1\0";

/// Everything besides tokens that KV depends on, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrefixScope {
    /// Tenants with different salts never share a block; empty is the common tenant.
    pub tenant_salt: Arc<[u8]>,
    /// Digest of the base model.
    pub base_digest: [u8; 32],
    /// `None` is the base alone.
    pub version: Option<AdapterVersion>,
    /// First KV index whose KV is the version's own; before it lies the base's. Two sequences may agree in all tokens of a
    /// block, and still an adapter be active from different ones of them on. 0 for the base alone.
    pub own_from: u32,
    /// Virtual tokens before the first real one.
    pub virtual_tokens: u32,
    /// Rotated by the long frequencies from the first token on (longrope).
    pub long_rope: bool,
}

impl PrefixScope {
    /// The parent key of the first block.
    #[must_use]
    pub(crate) fn root(&self) -> BlockKey {
        let mut hash = Sha256::new();
        hash.update(ROOT_DOMAIN);
        hash.update((self.tenant_salt.len() as u64).to_le_bytes());
        hash.update(&self.tenant_salt);
        hash.update(self.base_digest);
        match self.version {
            None => hash.update([0]),
            Some(version) => {
                hash.update([1]);
                hash.update(version.0);
            }
        }
        hash.update(self.own_from.to_le_bytes());
        hash.update(self.virtual_tokens.to_le_bytes());
        hash.update([u8::from(self.long_rope)]);
        BlockKey(hash.finalize().into())
    }

    /// The parent key of the first block of this scope behind one of another.
    #[must_use]
    pub(crate) fn behind(&self, before: BlockKey) -> BlockKey {
        let mut hash = Sha256::new();
        hash.update(TURN_DOMAIN);
        hash.update(self.root().0);
        hash.update(before.0);
        BlockKey(hash.finalize().into())
    }

    /// The scope of the base alone, with which the KV before `own_from` is shared.
    #[must_use]
    pub(crate) fn of_base(&self) -> Self {
        Self { version: None, own_from: 0, ..self.clone() }
    }
}

/// Key of a block in its chain, or of the root of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey([u8; 32]);

impl BlockKey {
    /// The key of the block that follows this one and holds `tokens`.
    #[must_use]
    pub(crate) fn child(&self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(BLOCK_DOMAIN);
        hash.update(self.0);
        hash.update((tokens.len() as u64).to_le_bytes());
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

/// The contents of one full block: what is looked up and what is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PrefixBlock<'a> {
    /// Whose KV.
    pub scope: &'a PrefixScope,
    /// Key of the block before it, or the scope's root where there is none, or what turns one scope into this one.
    pub parent: BlockKey,
    /// `parent.child(tokens)`.
    pub key: BlockKey,
    /// The real tokens in the block; fewer than its places where it begins with virtual tokens.
    pub tokens: &'a [u32],
}

/// A block that was found, with what says later whether it still holds what was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FoundBlock {
    /// The block.
    pub block: BlockId,
    entry: u64,
}

#[derive(Debug)]
struct Entry {
    /// No other entry has or had it.
    id: u64,
    scope: PrefixScope,
    parent: BlockKey,
    key: BlockKey,
    tokens: Box<[u32]>,
}

/// Blocks findable by content. At most one block per key, at most one key per block.
#[derive(Debug)]
pub(crate) struct PrefixIndex {
    by_key: HashMap<BlockKey, BlockId>,
    by_block: Vec<Option<Entry>>,
    /// Entries made so far.
    entries: u64,
}

impl PrefixIndex {
    /// Empty, for blocks `0..num_blocks`.
    #[must_use]
    pub(crate) fn new(num_blocks: u32) -> Self {
        Self { by_key: HashMap::new(), by_block: (0..num_blocks).map(|_| None).collect(), entries: 0 }
    }

    /// Number of findable blocks.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether this block can be found.
    #[must_use]
    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.by_block[block.index()].is_some()
    }

    /// The block with these contents. Scope, parent and tokens are compared, not only the key.
    #[must_use]
    pub(crate) fn find(&self, wanted: &PrefixBlock<'_>) -> Option<FoundBlock> {
        let block = *self.by_key.get(&wanted.key)?;
        let entry = self.by_block[block.index()].as_ref()?;
        let equal = entry.parent == wanted.parent && *entry.tokens == *wanted.tokens && entry.scope == *wanted.scope;
        equal.then_some(FoundBlock { block, entry: entry.id })
    }

    /// Whether a block that was found would be found again: it has been findable, with the same contents, ever since.
    #[must_use]
    pub(crate) fn still_has(&self, found: FoundBlock) -> bool {
        self.by_block[found.block.index()].as_ref().is_some_and(|entry| entry.id == found.entry)
    }

    /// Make a block findable, in place of whatever it held before. A key that is taken stays with its first block.
    pub(crate) fn insert(&mut self, block: BlockId, contents: &PrefixBlock<'_>) {
        self.remove(block);
        if self.by_key.contains_key(&contents.key) {
            return;
        }
        self.entries += 1;
        self.by_key.insert(contents.key, block);
        self.by_block[block.index()] = Some(Entry {
            id: self.entries,
            scope: contents.scope.clone(),
            parent: contents.parent,
            key: contents.key,
            tokens: contents.tokens.into(),
        });
    }

    /// Make a block unfindable.
    pub(crate) fn remove(&mut self, block: BlockId) {
        if let Some(entry) = self.by_block[block.index()].take() {
            self.by_key.remove(&entry.key);
        }
    }

    /// Remove every block whose scope is chosen. Walks all blocks; meant for failures.
    pub(crate) fn forget(&mut self, chosen: impl Fn(&PrefixScope) -> bool) {
        for entry in &mut self.by_block {
            if let Some(gone) = entry.take_if(|entry| chosen(&entry.scope)) {
                self.by_key.remove(&gone.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scope(salt: &[u8], version: Option<u8>, virtual_tokens: u32) -> PrefixScope {
        let version = version.map(|byte| AdapterVersion([byte; 32]));
        PrefixScope {
            tenant_salt: salt.into(),
            base_digest: [9; 32],
            version,
            own_from: 0,
            virtual_tokens,
            long_rope: false,
        }
    }

    fn block<'a>(scope: &'a PrefixScope, parent: BlockKey, tokens: &'a [u32]) -> PrefixBlock<'a> {
        PrefixBlock { scope, parent, key: parent.child(tokens), tokens }
    }

    fn found(index: &PrefixIndex, wanted: &PrefixBlock<'_>) -> Option<BlockId> {
        index.find(wanted).map(|found| found.block)
    }

    #[test]
    fn what_was_found_is_there_until_its_block_is_taken_and_not_when_it_comes_back() {
        let scope = scope(b"", None, 0);
        let mut index = PrefixIndex::new(2);
        let (first, second) = (block(&scope, scope.root(), &[1, 2]), block(&scope, scope.root(), &[3, 4]));
        index.insert(BlockId(0), &first);
        let found = index.find(&first).unwrap();
        index.insert(BlockId(1), &second);
        assert!(index.still_has(found));
        index.insert(BlockId(0), &second);
        assert!(!index.still_has(found), "something else was written there");
        index.insert(BlockId(0), &first);
        assert!(!index.still_has(found), "it may have been written anew");
        assert!(index.still_has(index.find(&first).unwrap()));
        index.forget(|_| true);
        assert!(!index.still_has(found));
    }

    #[test]
    fn a_block_behind_the_bases_is_neither_the_bases_nor_another_adapters() {
        let base = scope(b"", None, 0);
        let own = [(1, 2), (1, 3), (2, 2)]
            .map(|(version, from)| PrefixScope { own_from: from, ..scope(b"", Some(version), 0) });
        let before = [[1, 2], [1, 3]].map(|tokens| base.root().child(&tokens));
        let mut parents: Vec<_> = own.iter().flat_map(|own| before.map(|before| own.behind(before))).collect();
        parents.extend(before);
        parents.extend(own.iter().map(PrefixScope::root));
        let distinct: std::collections::HashSet<_> = parents.iter().copied().collect();
        assert_eq!(distinct.len(), parents.len());
        assert_eq!(own[0].of_base(), base);
    }

    #[test]
    fn every_field_of_the_scope_changes_the_root() {
        let scopes = [
            scope(b"", None, 0),
            scope(b"a", None, 0),
            scope(b"", Some(0), 0),
            scope(b"", Some(1), 0),
            scope(b"", None, 1),
            PrefixScope { base_digest: [8; 32], ..scope(b"", None, 0) },
            PrefixScope { long_rope: true, ..scope(b"", None, 0) },
            PrefixScope { own_from: 3, ..scope(b"", Some(0), 0) },
        ];
        for (i, a) in scopes.iter().enumerate() {
            for b in &scopes[..i] {
                assert_ne!(a.root(), b.root(), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn a_salt_cannot_borrow_bytes_from_the_digest_that_follows_it() {
        let long = PrefixScope { base_digest: [7; 32], ..scope(&[7], None, 0) };
        let short = PrefixScope { base_digest: [7; 32], ..scope(&[], None, 0) };
        assert_ne!(long.root(), short.root());
    }

    #[test]
    fn a_key_collision_is_a_miss() {
        let scope = scope(b"", None, 0);
        let mut index = PrefixIndex::new(2);
        let stored = block(&scope, scope.root(), &[1, 2]);
        index.insert(BlockId(0), &stored);
        let forged_tokens = PrefixBlock { tokens: &[3, 4], ..stored };
        let forged_parent = PrefixBlock { parent: stored.key, ..stored };
        let other_scope = PrefixScope { tenant_salt: b"x"[..].into(), ..scope.clone() };
        let forged_scope = PrefixBlock { scope: &other_scope, ..stored };
        assert_eq!(index.find(&forged_tokens), None);
        assert_eq!(index.find(&forged_parent), None);
        assert_eq!(index.find(&forged_scope), None);
        assert_eq!(found(&index, &stored), Some(BlockId(0)));
    }

    #[test]
    fn the_first_block_keeps_a_key_and_a_removed_one_gives_it_up() {
        let scope = scope(b"", None, 0);
        let mut index = PrefixIndex::new(2);
        let contents = block(&scope, scope.root(), &[1, 2]);
        index.insert(BlockId(0), &contents);
        index.insert(BlockId(1), &contents);
        assert_eq!((found(&index, &contents), index.contains(BlockId(1))), (Some(BlockId(0)), false));
        index.remove(BlockId(0));
        assert_eq!(index.find(&contents), None);
        index.insert(BlockId(1), &contents);
        assert_eq!(found(&index, &contents), Some(BlockId(1)));
    }

    #[test]
    fn forgetting_a_version_leaves_the_others() {
        let (a, b) = (scope(b"", Some(1), 0), scope(b"", Some(2), 0));
        let mut index = PrefixIndex::new(2);
        index.insert(BlockId(0), &block(&a, a.root(), &[1]));
        index.insert(BlockId(1), &block(&b, b.root(), &[1]));
        index.forget(|scope| scope.version == a.version);
        assert_eq!(index.find(&block(&a, a.root(), &[1])), None);
        assert_eq!(found(&index, &block(&b, b.root(), &[1])), Some(BlockId(1)));
    }

    proptest! {
        /// Few tokens and few blocks, so that equal contents meet often.
        #[test]
        fn the_index_agrees_with_a_list_of_contents(
            ops in proptest::collection::vec((0u32..4, 0u8..2, proptest::collection::vec(0u32..2, 1..3), 0u8..4), 0..80)
        ) {
            let mut index = PrefixIndex::new(4);
            let mut model: Vec<Option<(u8, Vec<u32>)>> = vec![None; 4];
            for (target, salt, tokens, op) in ops {
                let scope = scope(&[salt], None, 0);
                let contents = block(&scope, scope.root(), &tokens);
                let wanted = Some((salt, tokens.clone()));
                if op == 0 {
                    index.remove(BlockId(target));
                    model[target as usize] = None;
                } else {
                    index.insert(BlockId(target), &contents);
                    model[target as usize] = None;
                    if !model.contains(&wanted) {
                        model[target as usize] = wanted.clone();
                    }
                }
                let position = model.iter().position(|held| *held == wanted);
                prop_assert_eq!(found(&index, &contents), position.map(|i| BlockId(i as u32)));
                prop_assert_eq!(index.len(), model.iter().flatten().count());
            }
        }
    }
}
