//! What adapters hold at their sites, and the table of all slots.
//!
//! An adapter is put together on a loader thread ([`SlotDelta`]), set into a slot between two steps, and taken out of it
//! whole. What a kernel reads of it is its backend's table ([`DeltaMemory::DeltaTable`]).

use std::ops::Range;
use std::sync::Arc;

use super::{NonLinearity, OpsError, Wiring};
use crate::types::AdapterSlot;

/// The memory in which a backend keeps adapters.
pub trait DeltaMemory: Send + Sync + Sized + 'static {
    /// A packed matrix `[out, in]`, possibly several stacked along `out`.
    type Weight: Send + Sync;
    /// An f32 vector.
    type Vector: Send + Sync;
    /// A matrix `[out, in]` of which only what is not zero is kept.
    type Sparse: Send + Sync;
    /// Beside the numbers of one adapter: where its kernels find them. Nothing where kernels read what the host reads.
    type Entries: Send + Sync;
    /// Deltas of all slots at all sites, as the kernels read them.
    type DeltaTable: Send;

    /// Make [`DeltaMemory::Entries`], on the thread that brings the adapter.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    fn entries(&self, by_site: &EntriesBySite<Self>) -> Result<Self::Entries, OpsError>;
}

/// One op class at one place of the decoder. Whoever builds the deltas counts them from 0 on; here they are numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub u32);

impl SiteId {
    /// As an index.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Some of the sites.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SiteSet(Vec<u64>);

impl SiteSet {
    /// With these sites.
    #[must_use]
    pub fn new(sites: impl IntoIterator<Item = SiteId>) -> Self {
        let mut set = Self::default();
        for site in sites {
            let word = site.index() / 64;
            if set.0.len() <= word {
                set.0.resize(word + 1, 0);
            }
            set.0[word] |= 1 << (site.index() % 64);
        }
        set
    }

    /// Without any.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// With those of another set too.
    pub fn extend(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    /// Whether a site is in it.
    #[must_use]
    pub fn contains(&self, site: SiteId) -> bool {
        self.0.get(site.index() / 64).is_some_and(|word| word >> (site.index() % 64) & 1 == 1)
    }
}

/// One low-rank pair of a site. Each keeps its own memory at its true rank; the scaling is applied as f32 to the
/// product and never folded into bf16 numbers.
pub struct LowRankPair<B: DeltaMemory> {
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

/// A low-rank pair of an expert at a site that all experts of a layer share.
pub struct ExpertPair<B: DeltaMemory> {
    /// Whose.
    pub expert: u32,
    /// Columns are those of its gate and up stacked, or of its down.
    pub pair: LowRankPair<B>,
}

/// A vector for some columns of a site: a scale, a bias or a gain; or the weight of a head, row by row.
pub struct ColumnVector<B: DeltaMemory> {
    /// `columns.len()` numbers; of a head so many for every input.
    pub values: B::Vector,
    /// Output columns of the stacked site.
    pub columns: Range<usize>,
}

/// A rotation of pairs of columns of a site: within every `group` columns the first half y1 and the second half y2 turn
/// together, rot(y) = (−y2, y1).
pub struct ColumnRotation<B: DeltaMemory> {
    /// `[2, columns.len()]`: c1, then c2.
    pub c: B::Vector,
    /// Columns of a group: even, and it divides their number.
    pub group: usize,
    /// Output columns of the stacked site.
    pub columns: Range<usize>,
}

/// A sparse matrix for some columns of a site.
pub struct SparseColumns<B: DeltaMemory> {
    /// `[columns.len(), in]`.
    pub matrix: B::Sparse,
    /// Output columns of the stacked site.
    pub columns: Range<usize>,
}

/// Rows of a matrix that an adapter has in place of the base's.
pub struct ReplacedRows<B: DeltaMemory> {
    /// Which rows of the base's they are, ascending, each once.
    pub ids: Vec<u32>,
    /// `[ids.len(), in]`.
    pub rows: B::Weight,
}

/// A rotation of a site's inputs: square blocks along the diagonal, up to the order of the inputs. Blocks come in groups of
/// `interleaved`, each group over consecutive inputs: first the first halves of all its blocks, ⌊size / 2⌋ inputs each, then
/// their second halves.
pub struct Rotation<B: DeltaMemory> {
    /// `[blocks, size, size]`, or one for all, `[size, size]`. A block multiplies a row of its inputs from the right.
    pub blocks: B::Vector,
    /// Whether one block is there for all.
    pub is_shared: bool,
    /// Inputs of a block.
    pub size: usize,
    /// Blocks of a group, at least 1; the inputs are a multiple of `size * interleaved`.
    pub interleaved: usize,
}

impl<B: DeltaMemory> Rotation<B> {
    /// Which of the site's inputs is input `index` of a block.
    #[must_use]
    pub fn input(&self, block: usize, index: usize) -> usize {
        let (half, place) = (self.size / 2, block % self.interleaved);
        let group = (block - place) * self.size;
        match index.checked_sub(half) {
            None => group + place * half + index,
            Some(index) => group + self.interleaved * half + place * (self.size - half) + index,
        }
    }

    /// Where the numbers of a block begin.
    #[must_use]
    pub fn first_number(&self, block: usize) -> usize {
        if self.is_shared { 0 } else { block * self.size * self.size }
    }
}

/// A bottleneck apart from its matrices, which are a low-rank pair of the same site.
pub struct Bottleneck<B: DeltaMemory> {
    /// What it reads and changes.
    pub wiring: Wiring,
    /// Between the matrices.
    pub non_linearity: NonLinearity,
    /// Added before it, `[rank]`.
    pub down_bias: B::Vector,
    /// Added to the branch with its blend, scaling already multiplied in, `[hidden]`.
    pub up_bias: B::Vector,
}

/// A full matrix for some columns of a site.
pub struct DenseMatrix<B: DeltaMemory> {
    /// `[columns.len(), in]`.
    pub weight: B::Weight,
    /// Multiplies a product that is added.
    pub scaling: f32,
    /// Output columns of the stacked site.
    pub columns: Range<usize>,
    /// The product takes the place of what is there; otherwise it is added to it.
    pub replaces: bool,
}

/// Entries sorted by site; a site may have several (one per projection of a stacked site).
struct BySite<T> {
    entries: Vec<T>,
    /// Where those of each site end, up to the last site that has any.
    ends: Vec<u32>,
}

impl<T> BySite<T> {
    /// Entries of one site keep their order.
    fn new(mut entries: Vec<(SiteId, T)>) -> Self {
        entries.sort_by_key(|(site, _)| *site);
        let mut ends = Vec::new();
        for (index, (site, _)) in entries.iter().enumerate() {
            ends.resize(site.index(), index as u32);
            ends.push(index as u32 + 1);
        }
        Self { entries: entries.into_iter().map(|(_, entry)| entry).collect(), ends }
    }

    fn get(&self, site: SiteId) -> &[T] {
        let site = site.index();
        let Some(end) = self.ends.get(site) else { return &[] };
        let start = site.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.entries[start as usize..*end as usize]
    }
}

/// Makes the lists that an adapter has: as they come, by site, and as ops ask for them.
macro_rules! entry_lists {
    ($($(#[$doc:meta])* $list:ident: $entry:ty),* $(,)?) => {
        /// Entries of one adapter as they come, one list for each form that kernels read.
        pub struct SlotEntries<B: DeltaMemory> {
            $($(#[$doc])* pub $list: Vec<(SiteId, $entry)>,)*
            /// Tokens of the adapter's vocabulary, where it is not the base's.
            pub vocab_size: Option<usize>,
        }

        impl<B: DeltaMemory> Default for SlotEntries<B> {
            fn default() -> Self {
                Self { $($list: Vec::new(),)* vocab_size: None }
            }
        }

        /// Entries of one adapter by site.
        pub struct EntriesBySite<B: DeltaMemory> {
            $($list: BySite<$entry>,)*
            vocab_size: Option<usize>,
        }

        impl<B: DeltaMemory> EntriesBySite<B> {
            fn new(entries: SlotEntries<B>) -> Self {
                Self { $($list: BySite::new(entries.$list),)* vocab_size: entries.vocab_size }
            }

            $($(#[$doc])* #[must_use]
            pub fn $list(&self, site: SiteId) -> &[$entry] {
                self.$list.get(site)
            })*

            /// Tokens of the adapter's vocabulary, where it is not the base's.
            #[must_use]
            pub fn vocab_size(&self) -> Option<usize> {
                self.vocab_size
            }

            /// Every site up to the last one that has any entry.
            pub fn all_sites(&self) -> impl Iterator<Item = SiteId> + use<B> {
                let end = [$(self.$list.ends.len(),)*].into_iter().max().unwrap_or(0);
                (0..end as u32).map(SiteId)
            }

            /// Whether a site has any entry.
            fn holds(&self, site: SiteId) -> bool {
                $(!self.$list(site).is_empty())||*
            }
        }

        impl<'a, B: DeltaMemory<DeltaTable = SlotTable<B>>> SiteTable<'a, B> {
            $($(#[$doc])* ///
            /// Those of a slot; none for the base and for slots without any here.
            pub(super) fn $list(&self, slot: Option<AdapterSlot>) -> &'a [$entry] {
                self.delta(slot).map_or(&[], |delta| delta.by_site.$list(self.site))
            })*
        }
    };
}

entry_lists! {
    /// Low-rank pairs.
    low_rank: LowRankPair<B>,
    /// Low-rank pairs of experts; those of one site lie by expert.
    expert_pairs: ExpertPair<B>,
    /// Vectors.
    vectors: ColumnVector<B>,
    /// Rotations of inputs; those of one site come one after the other.
    rotations: Rotation<B>,
    /// Rotations of columns.
    column_rotations: ColumnRotation<B>,
    /// Sparse matrices.
    sparse: SparseColumns<B>,
    /// Rows in place of the base's, at most once at a site; a head that is the embedding shares those of the embedding.
    replaced: Arc<ReplacedRows<B>>,
    /// Bottlenecks; each has a low-rank pair of the same site.
    bottlenecks: Bottleneck<B>,
    /// Full matrices; those of one site cover other columns each.
    dense: DenseMatrix<B>,
}

/// All entries of one adapter, with their memory on the device.
pub struct SlotDelta<B: DeltaMemory> {
    by_site: EntriesBySite<B>,
    held: SiteSet,
    resident: B::Entries,
}

impl<B: DeltaMemory> SlotDelta<B> {
    /// Put entries together. Those of one site keep their order.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`], where kernels need memory to find them.
    pub fn new(backend: &B, mut entries: SlotEntries<B>) -> Result<Self, OpsError> {
        entries.expert_pairs.sort_by_key(|(_, pair)| pair.expert);
        let by_site = EntriesBySite::new(entries);
        let resident = backend.entries(&by_site)?;
        let held = SiteSet::new(by_site.all_sites().filter(|site| by_site.holds(*site)));
        Ok(Self { by_site, held, resident })
    }

    /// Entries by site.
    #[must_use]
    pub fn by_site(&self) -> &EntriesBySite<B> {
        &self.by_site
    }

    /// Rotations of a site.
    #[must_use]
    pub fn rotations(&self, site: SiteId) -> &[Rotation<B>] {
        self.by_site.rotations(site)
    }

    /// Bottlenecks of a site.
    #[must_use]
    pub fn bottlenecks(&self, site: SiteId) -> &[Bottleneck<B>] {
        self.by_site.bottlenecks(site)
    }

    /// Where kernels find them.
    #[must_use]
    pub fn resident(&self) -> &B::Entries {
        &self.resident
    }

    /// The sites that have any entry.
    #[must_use]
    pub fn held(&self) -> &SiteSet {
        &self.held
    }
}

/// The entries of all slots at one site: what an op of a delta class reads.
pub struct SiteTable<'a, B: DeltaMemory> {
    /// All sites.
    pub table: &'a B::DeltaTable,
    /// Which of them.
    pub site: SiteId,
}

impl<B: DeltaMemory> Clone for SiteTable<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: DeltaMemory> Copy for SiteTable<'_, B> {}

/// The table of a backend whose kernels read the host's memory.
pub struct SlotTable<B: DeltaMemory> {
    slots: Vec<Option<SlotDelta<B>>>,
}

impl<B: DeltaMemory> Default for SlotTable<B> {
    fn default() -> Self {
        Self { slots: Vec::new() }
    }
}

impl<B: DeltaMemory> SlotTable<B> {
    /// See [`Backend::set_slot`](super::Backend::set_slot).
    pub fn set(&mut self, slot: AdapterSlot, delta: SlotDelta<B>) {
        if self.slots.len() <= slot.index() {
            self.slots.resize_with(slot.index() + 1, || None);
        }
        debug_assert!(self.slots[slot.index()].is_none(), "a slot is cleared before it is set");
        self.slots[slot.index()] = Some(delta);
    }

    /// See [`Backend::clear_slot`](super::Backend::clear_slot).
    pub fn clear(&mut self, slot: AdapterSlot) -> Option<SlotDelta<B>> {
        self.slots.get_mut(slot.index()).and_then(Option::take)
    }

    /// See [`Backend::slot`](super::Backend::slot).
    #[must_use]
    pub fn get(&self, slot: AdapterSlot) -> Option<&SlotDelta<B>> {
        self.slots.get(slot.index())?.as_ref()
    }
}

impl<'a, B: DeltaMemory<DeltaTable = SlotTable<B>>> SiteTable<'a, B> {
    fn delta(&self, slot: Option<AdapterSlot>) -> Option<&'a SlotDelta<B>> {
        slot.and_then(|slot| self.table.get(slot))
    }

    /// Where the pairs of an expert lie among [`Self::expert_pairs`] of a slot.
    pub(super) fn pairs_of_expert(&self, slot: Option<AdapterSlot>, expert: u32) -> Range<usize> {
        let pairs = self.expert_pairs(slot);
        let first = pairs.partition_point(|pair| pair.expert < expert);
        first..first + pairs[first..].partition_point(|pair| pair.expert == expert)
    }

    /// The bottleneck of a slot with its matrices, where it has one here.
    pub(super) fn bottleneck(&self, slot: Option<AdapterSlot>) -> Option<(&'a Bottleneck<B>, &'a LowRankPair<B>)> {
        self.bottlenecks(slot).first().zip(self.low_rank(slot).first())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_sites_holds_what_was_put_in_and_what_another_has() {
        let mut set = SiteSet::new([SiteId(3), SiteId(64)]);
        set.extend(&SiteSet::new([SiteId(200), SiteId(3)]));
        let held: Vec<u32> = (0..300).filter(|site| set.contains(SiteId(*site))).collect();
        assert_eq!(held, [3, 64, 200]);
        set.clear();
        assert_eq!(set, SiteSet::default());
    }

    #[test]
    fn entries_are_found_by_site_in_the_order_they_came() {
        let entries = [(4, 'a'), (1, 'b'), (4, 'c'), (2, 'd'), (1, 'e')];
        let by_site = BySite::new(entries.map(|(site, entry)| (SiteId(site), entry)).to_vec());
        let found: Vec<&[char]> = (0..7).map(|site| by_site.get(SiteId(site))).collect();
        assert_eq!(found, [&[][..], &['b', 'e'], &['d'], &[], &['a', 'c'], &[], &[]]);
        assert!(BySite::<char>::new(Vec::new()).get(SiteId(0)).is_empty());
    }
}
