//! Deltas as kernels find them: a table of slots, each the address of what its adapter has at every site.
//!
//! An adapter's own part is made where its numbers come from, on a loader thread. Setting and clearing a slot write one
//! address, on the stream of steps.

use std::sync::Arc;

use super::abi::{self, Address, ColumnRotation, Pair, Plain, ReplacedRows, SiteEntries, SlotHead};
use super::activations::number_of_non_linearity;
use super::driver::{Device, DeviceMemory};
use super::memory::{Vector, Weight};
use super::sizes::ROTATE_SHARED;
use super::sparse::SparseMatrix;
use super::uploader::Uploader;
use crate::ops::{
    Bottleneck, DeltaMemory, EntriesBySite, ExpertPair, LowRankPair, OpsError, SiteId, SlotDelta, SlotTable,
};
use crate::types::AdapterSlot;

/// Ranks of an expert's pair begin at a multiple of so many: they are read sixteen bytes at a time.
const RANKS_TOGETHER: usize = 8;

/// Where kernels find an adapter's entries.
#[derive(Debug)]
pub struct Entries {
    memory: DeviceMemory,
    /// Largest sum of the ranks of one site.
    pub(super) ranks: usize,
    /// Most rotations of one site.
    pub(super) rotations: usize,
}

impl Entries {
    pub(super) fn new<B>(uploader: &Uploader, by_site: &EntriesBySite<B>) -> Result<Self, OpsError>
    where
        B: DeltaMemory<Weight = Weight, Vector = Vector, Sparse = SparseMatrix>,
    {
        let mut lists = Lists::default();
        for site in by_site.all_sites() {
            lists.push(by_site, site)?;
        }
        let Lists {
            sites,
            pairs,
            vectors,
            rotations,
            column_rotations,
            sparse,
            bottlenecks,
            dense,
            expert_starts,
            replaced,
            ids,
            ..
        } = &lists;
        let sizes = [
            sites.len(),
            pairs.len(),
            vectors.len(),
            rotations.len(),
            column_rotations.len(),
            sparse.len(),
            bottlenecks.len(),
            dense.len(),
            expert_starts.len(),
            size_of_val(&replaced[..]),
            ids.len(),
        ];
        let mut end = size_of::<SlotHead>();
        let starts = sizes.map(|size| {
            end += size;
            end - size
        });
        let memory = uploader.allocate("a table of an adapter's entries", end)?;
        let [
            of_sites,
            of_pairs,
            of_vectors,
            of_rotations,
            of_columns,
            of_sparse,
            of_bottlenecks,
            of_dense,
            of_expert_starts,
            of_replaced,
            of_ids,
        ] = starts.map(|start| memory.address() + start as u64);
        let slot = SlotHead {
            sites: Address::new(of_sites),
            pairs: Address::new(of_pairs),
            vectors: Address::new(of_vectors),
            rotations: Address::new(of_rotations),
            column_rotations: Address::new(of_columns),
            sparse: Address::new(of_sparse),
            bottlenecks: Address::new(of_bottlenecks),
            dense: Address::new(of_dense),
            expert_starts: Address::new(of_expert_starts),
            replaced: Address::new(of_replaced),
            count: (sites.len() / size_of::<SiteEntries>()) as u32,
            vocab: by_site.vocab_size().unwrap_or(0) as u32,
        };
        // Their ids lie in this memory, too.
        let entry = |entry: &ReplacedRows| ReplacedRows { ids: Address::new(of_ids + entry.ids.get()), ..*entry };
        let replaced: Vec<u8> = replaced.iter().flat_map(|one| entry(one).bytes().to_vec()).collect();
        let numbers = [
            sites,
            pairs,
            vectors,
            rotations,
            column_rotations,
            sparse,
            bottlenecks,
            dense,
            expert_starts,
            &replaced,
            ids,
        ];
        let image = [slot.bytes(), &numbers.map(Vec::as_slice).concat()].concat();
        uploader.send(&memory, 0, 1, image.len(), |_, bytes| bytes.copy_from_slice(&image))?;
        Ok(Self { memory, ranks: lists.ranks, rotations: lists.most_rotations })
    }
}

/// The bytes of an adapter's lists.
#[derive(Default)]
struct Lists {
    sites: Vec<u8>,
    pairs: Vec<u8>,
    vectors: Vec<u8>,
    rotations: Vec<u8>,
    column_rotations: Vec<u8>,
    sparse: Vec<u8>,
    bottlenecks: Vec<u8>,
    /// Their addresses of ids count from the first byte of `ids`.
    replaced: Vec<ReplacedRows>,
    ids: Vec<u8>,
    dense: Vec<u8>,
    expert_starts: Vec<u8>,
    ranks: usize,
    most_rotations: usize,
}

impl Lists {
    fn push<B>(&mut self, by_site: &EntriesBySite<B>, site: SiteId) -> Result<(), OpsError>
    where
        B: DeltaMemory<Weight = Weight, Vector = Vector, Sparse = SparseMatrix>,
    {
        let (pairs, vectors, rotations) = (by_site.low_rank(site), by_site.vectors(site), by_site.rotations(site));
        let (column_rotations, sparse) = (by_site.column_rotations(site), by_site.sparse(site));
        let (bottlenecks, matrices) = (by_site.bottlenecks(site), by_site.dense(site));
        let of_experts = by_site.expert_pairs(site);
        let entries = SiteEntries {
            pair: (self.pairs.len() / size_of::<Pair>()) as u32,
            pairs: pairs.len() as u32,
            vector: (self.vectors.len() / size_of::<abi::ColumnVector>()) as u32,
            vectors: vectors.len() as u32,
            rotation: (self.rotations.len() / size_of::<abi::Rotation>()) as u32,
            rotations: rotations.len() as u32,
            column_rotation: (self.column_rotations.len() / size_of::<ColumnRotation>()) as u32,
            column_rotations: column_rotations.len() as u32,
            sparse: (self.sparse.len() / size_of::<abi::Sparse>()) as u32,
            sparses: sparse.len() as u32,
            bottleneck: (self.bottlenecks.len() / size_of::<abi::Bottleneck>()) as u32,
            bottlenecks: bottlenecks.len() as u32,
            replaced: self.replaced.len() as u32,
            replaces: by_site.replaced(site).len() as u32,
            matrix: (self.dense.len() / size_of::<abi::DenseMatrix>()) as u32,
            matrices: matrices.len() as u32,
            expert: (self.expert_starts.len() / size_of::<u32>()) as u32,
            experts: of_experts.last().map_or(0, |last| last.expert + 1),
        };
        self.sites.extend(entries.bytes());
        let mut ranks = 0;
        for pair in pairs {
            self.pairs.extend(pair_at(pair, ranks).bytes());
            ranks += pair.rank;
        }
        self.ranks = self.ranks.max(ranks);
        self.push_experts(of_experts);
        for vector in vectors {
            let (column, columns) = (vector.columns.start as u32, vector.columns.len() as u32);
            self.vectors.extend(abi::ColumnVector { values: vector.values.address(), column, columns }.bytes());
        }
        for rotation in column_rotations {
            let (column, columns) = (rotation.columns.start as u32, rotation.columns.len() as u32);
            let (c, group) = (rotation.c.address(), rotation.group as u32);
            self.column_rotations.extend(ColumnRotation { c, column, columns, group, pad: 0 }.bytes());
        }
        for entry in sparse {
            self.sparse.extend(entry.matrix.view(entry.columns.clone()).bytes());
        }
        for replaced in by_site.replaced(site) {
            let (rows, stride) = (replaced.rows.address(), replaced.rows.stride() as u32);
            let (ids, count) = (Address::new(self.ids.len() as u64), replaced.ids.len() as u32);
            self.replaced.push(ReplacedRows { ids, rows, count, stride });
            self.ids.extend(replaced.ids.iter().flat_map(|id| id.to_le_bytes()));
        }
        for rotation in rotations {
            if rotation.size * size_of::<f32>() > ROTATE_SHARED {
                let (what, expected) = ("a block of a rotation", "at most 8192 inputs");
                return Err(OpsError::Unsupported { what, found: rotation.size, expected });
            }
            let entry = abi::Rotation {
                blocks: rotation.blocks.address(),
                size: rotation.size as u32,
                interleaved: rotation.interleaved as u32,
                stride: rotation.first_number(1) as u32,
                pad: 0,
            };
            self.rotations.extend(entry.bytes());
        }
        self.most_rotations = self.most_rotations.max(rotations.len());
        for Bottleneck { wiring, non_linearity, down_bias, up_bias } in bottlenecks {
            let (non_linearity, slope) = number_of_non_linearity(*non_linearity);
            let entry = abi::Bottleneck {
                down_bias: down_bias.address(),
                up_bias: up_bias.address(),
                reads: wiring.reads.into(),
                stream: wiring.stream.into(),
                branch: wiring.branch.into(),
                non_linearity,
                slope,
            };
            self.bottlenecks.extend(entry.bytes());
        }
        for matrix in matrices {
            let entry = abi::DenseMatrix {
                d: matrix.weight.address(),
                stride: matrix.weight.stride() as u32,
                column: matrix.columns.start as u32,
                columns: matrix.columns.len() as u32,
                replaces: u32::from(matrix.replaces),
                scaling: matrix.scaling,
                pad: 0,
            };
            self.dense.extend(entry.bytes());
        }
        Ok(())
    }

    /// Pairs of a site by expert, behind those that the site has itself, and where those of each begin.
    fn push_experts<B: DeltaMemory<Weight = Weight>>(&mut self, of_experts: &[ExpertPair<B>]) {
        let Some(last) = of_experts.last() else { return };
        let first = self.pairs.len() / size_of::<Pair>();
        let starts = (0..=last.expert + 1).map(|expert| of_experts.partition_point(|pair| pair.expert < expert));
        self.expert_starts.extend(starts.flat_map(|start| ((first + start) as u32).to_le_bytes()));
        for of_expert in of_experts.chunk_by(|one, next| one.expert == next.expert) {
            let mut ranks = 0;
            for ExpertPair { pair, .. } in of_expert {
                self.pairs.extend(pair_at(pair, ranks).bytes());
                ranks += pair.rank.next_multiple_of(RANKS_TOGETHER);
            }
            self.ranks = self.ranks.max(ranks);
        }
    }
}

/// A pair whose product of A has these ranks before it.
fn pair_at<B: DeltaMemory<Weight = Weight>>(pair: &LowRankPair<B>, first_rank: usize) -> Pair {
    Pair {
        a: pair.a.address(),
        b: pair.b.address(),
        rank: pair.rank as u32,
        first_rank: first_rank as u32,
        a_stride: pair.a.stride() as u32,
        b_stride: pair.b.stride() as u32,
        column: pair.columns.start as u32,
        columns: pair.columns.len() as u32,
        scaling: pair.scaling,
        a_rows: pair.a.view().rows,
    }
}

/// All slots.
pub struct DeltaTable<B: DeltaMemory> {
    device: Arc<Device>,
    slots: SlotTable<B>,
    addresses: DeviceMemory,
    /// Largest sum of ranks of a site over all installed adapters, those that have left included: what is kept for
    /// products of A need not shrink.
    pub(super) ranks: usize,
    /// Most rotations of a site over all of them: so many launches turn the inputs of any.
    pub(super) rotations: usize,
}

impl<B: DeltaMemory<Entries = Entries>> DeltaTable<B> {
    pub(super) fn new(device: &Arc<Device>, slots: usize) -> Result<Self, OpsError> {
        let addresses = DeviceMemory::new(device, &device.compute, "the table of adapters", slots * size_of::<u64>())?;
        addresses.clear(&device.compute)?;
        Ok(Self { device: Arc::clone(device), slots: SlotTable::default(), addresses, ranks: 0, rotations: 0 })
    }

    pub(super) fn set(&mut self, slot: AdapterSlot, delta: SlotDelta<B>) {
        let Entries { memory, ranks, rotations } = delta.resident();
        if *ranks > self.ranks || *rotations > self.rotations {
            self.ranks = self.ranks.max(*ranks);
            self.rotations = self.rotations.max(*rotations);
            self.device.exchange();
        }
        self.write(slot, memory.address());
        self.slots.set(slot, delta);
    }

    pub(super) fn clear(&mut self, slot: AdapterSlot) -> Option<SlotDelta<B>> {
        let delta = self.slots.clear(slot)?;
        self.write(slot, 0);
        Some(delta)
    }

    pub(super) fn get(&self, slot: AdapterSlot) -> Option<&SlotDelta<B>> {
        self.slots.get(slot)
    }

    pub(super) fn site(&self, site: SiteId) -> abi::SiteView {
        abi::SiteView { slots: self.slots_on_device(), site: site.0, pad: 0 }
    }

    /// What each slot holds; null for an empty one.
    pub(super) fn slots_on_device(&self) -> Address<Address<SlotHead>> {
        Address::new(self.addresses.address())
    }

    fn write(&self, slot: AdapterSlot, address: u64) {
        let written = self.addresses.set_u64(slot.index() * size_of::<u64>(), address, &self.device.compute);
        self.device.note(written);
    }
}
