//! KV pages of adapters' virtual tokens: one set of blocks per adapter version, shared by all its sequences.
//!
//! A set is made when a sequence first needs it and stays until its blocks are wanted for something else. Whole
//! blocks are shared read-only at the head of block tables; the last, partly filled one is only copied from.

use std::collections::{BTreeMap, BTreeSet};

use super::policy::Rank;
use crate::types::{AdapterBinding, AdapterSlot, AdapterVersion, BlockId, LongRope, SequenceId};

/// Which virtual tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PagesKey {
    pub(super) version: AdapterVersion,
    pub(super) count: u32,
    pub(super) saved_kv: bool,
    /// Rotated by the long frequencies; saved K is not rotated at all.
    pub(super) long_rope: bool,
}

impl PagesKey {
    pub(super) fn of(adapter: &AdapterBinding) -> Option<Self> {
        let AdapterBinding { version, virtual_tokens, .. } = *adapter;
        virtual_tokens.map(|tokens| Self { version, count: tokens.count, saved_kv: tokens.saved_kv, long_rope: false })
    }

    /// The same virtual tokens under a sequence that is long, or is not.
    pub(super) fn rotated(self, long: bool) -> Self {
        Self { long_rope: long && !self.saved_kv, ..self }
    }

    /// First place that is rotated by the long frequencies.
    pub(super) fn long_from(&self) -> u32 {
        if self.long_rope { 0 } else { LongRope::NEVER }
    }
}

/// Progress of a prompt-embeddings prefill: a sequence that is never sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefill {
    pub(super) id: SequenceId,
    pub(super) num_computed: u32,
}

impl Prefill {
    /// Virtual tokens of the key's that are still to be computed.
    pub(super) fn num_remaining(self, key: PagesKey) -> usize {
        (key.count - self.num_computed) as usize
    }
}

#[derive(Debug)]
pub(super) struct PageSet {
    pub(super) blocks: Vec<BlockId>,
    /// `None` once all places are in the cache.
    pub(super) prefill: Option<Prefill>,
    /// Step of the last start of a sequence on it.
    pub(super) last_used: u64,
}

/// All page sets, and which live sequences, running or waiting, want which.
#[derive(Debug, Default)]
pub(super) struct VirtualPages {
    sets: BTreeMap<PagesKey, PageSet>,
    demand: BTreeMap<PagesKey, BTreeMap<Rank, AdapterSlot>>,
}

impl VirtualPages {
    /// A live sequence will need these pages.
    pub(super) fn join(&mut self, key: PagesKey, rank: Rank, slot: AdapterSlot) {
        self.demand.entry(key).or_default().insert(rank, slot);
    }

    /// The sequence has ended. Returns blocks to release where nobody wants an unfinished prefill any more.
    pub(super) fn leave(&mut self, key: PagesKey, rank: Rank) -> Vec<BlockId> {
        if let Some(ranks) = self.demand.get_mut(&key) {
            ranks.remove(&rank);
            if ranks.is_empty() {
                self.demand.remove(&key);
            }
        }
        let unfinished = self.sets.get(&key).is_some_and(|set| set.prefill.is_some());
        if unfinished && !self.demand.contains_key(&key) { self.remove(key) } else { Vec::new() }
    }

    pub(super) fn get(&self, key: PagesKey) -> Option<&PageSet> {
        self.sets.get(&key)
    }

    pub(super) fn insert(&mut self, key: PagesKey, set: PageSet) {
        self.sets.insert(key, set);
    }

    pub(super) fn touch(&mut self, key: PagesKey, step: u64) {
        if let Some(set) = self.sets.get_mut(&key) {
            set.last_used = step;
        }
    }

    /// Forget a set. Returns its blocks, to be released.
    pub(super) fn remove(&mut self, key: PagesKey) -> Vec<BlockId> {
        self.sets.remove(&key).map(|set| set.blocks).unwrap_or_default()
    }

    /// Forget the sets of a version. Returns their blocks, to be released.
    pub(super) fn remove_version(&mut self, version: AdapterVersion) -> Vec<BlockId> {
        self.remove_where(|key, _| key.version == version)
    }

    /// Forget the sets of these versions that no live sequence wants. Returns their blocks, to be released.
    pub(super) fn remove_unwanted(&mut self, versions: &BTreeSet<AdapterVersion>) -> Vec<BlockId> {
        let Self { sets, demand } = self;
        let gone = |key: &PagesKey| versions.contains(&key.version) && !demand.contains_key(key);
        sets.extract_if(.., |key, _| gone(key)).flat_map(|(_, set)| set.blocks).collect()
    }

    /// Forget the set that was being written to these blocks. Returns them, to be released.
    pub(super) fn remove_written(&mut self, blocks: &[BlockId]) -> Vec<BlockId> {
        self.remove_where(|_, set| set.blocks == blocks)
    }

    /// Forget all sets. Returns their blocks, to be released.
    pub(super) fn remove_all(&mut self) -> Vec<BlockId> {
        self.remove_where(|_, _| true)
    }

    fn remove_where(&mut self, chosen: impl Fn(&PagesKey, &PageSet) -> bool) -> Vec<BlockId> {
        self.sets.extract_if(.., |key, set| chosen(key, set)).flat_map(|(_, set)| set.blocks).collect()
    }

    pub(super) fn num_prefilling(&self) -> usize {
        self.sets.values().filter(|set| set.prefill.is_some()).count()
    }

    /// Every block of every set, for counting references.
    #[cfg(test)]
    pub(super) fn blocks(&self) -> impl Iterator<Item = BlockId> {
        self.sets.values().flat_map(|set| set.blocks.iter().copied())
    }

    /// Unfinished prefills, each with the rank of the most senior sequence that wants it and that one's slot.
    pub(super) fn prefilling(&self) -> impl Iterator<Item = (Rank, AdapterSlot, PagesKey, Prefill)> {
        self.sets.iter().filter_map(|(key, set)| {
            let prefill = set.prefill?;
            let (rank, slot) = self.demand.get(key)?.first_key_value()?;
            Some((*rank, *slot, *key, prefill))
        })
    }

    /// The unfinished prefill with this id.
    pub(super) fn key_of(&self, id: SequenceId) -> Option<PagesKey> {
        self.sets.iter().find(|(_, set)| set.prefill.is_some_and(|prefill| prefill.id == id)).map(|(key, _)| *key)
    }

    /// `count` more places of this prefill are in the cache.
    pub(super) fn advance(&mut self, key: PagesKey, count: u32) {
        if let Some(set) = self.sets.get_mut(&key)
            && let Some(prefill) = &mut set.prefill
        {
            prefill.num_computed += count;
            if prefill.num_computed >= key.count {
                set.prefill = None;
            }
        }
    }

    /// Sequences that want these pages, most senior first.
    pub(super) fn wanted_by(&self, key: PagesKey) -> Vec<Rank> {
        self.demand.get(&key).map(|ranks| ranks.keys().copied().collect()).unwrap_or_default()
    }

    /// Finished sets that may give way to a sequence of rank `to`, in the order they should, with their number of
    /// blocks: unwanted ones first, longest unused first; then those wanted only by more junior sequences, most
    /// junior first, and where `any` says so those that more senior ones want too. `held` are the keys that are not for
    /// the taking.
    pub(super) fn reclaimable(&self, to: Rank, any: bool, held: impl Fn(&PagesKey) -> bool) -> Vec<(PagesKey, usize)> {
        let mut candidates: Vec<_> = self
            .sets
            .iter()
            .filter(|(key, set)| set.prefill.is_none() && !held(key))
            .filter_map(|(key, set)| {
                let wanted_by = self.demand.get(key).and_then(|ranks| ranks.keys().next().copied());
                let yields = any || wanted_by.is_none_or(|rank| to.is_senior_to(rank));
                yields.then_some((wanted_by.map(std::cmp::Reverse), set.last_used, *key, set.blocks.len()))
            })
            .collect();
        candidates.sort_unstable();
        candidates.into_iter().map(|(_, _, key, blocks)| (key, blocks)).collect()
    }
}
