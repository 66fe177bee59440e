//! What tests of ops share, through the backend trait alone: inputs, tables, scenes of attention, rows of logits, comparisons. Unit
//! tests of the backends in `src/ops` take it in, and integration tests.
#![allow(dead_code)] // Each of them uses a part of it.

pub(crate) mod attention;
pub(crate) mod bottleneck;
pub(crate) mod pool;
pub(crate) mod replaced;
pub(crate) mod sample;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use polydelta::ops::{
    Backend, ColumnRotation, ColumnVector, DenseMatrix, HostMatrix, HostSparse, KvShape, LowRankPair, ReplacedRows,
    Rotation, RowPlan, Rows, SiteId, SiteTable, SlotDelta, SlotEntries, SparseColumns, StepPlan,
};
use polydelta::types::AdapterSlot;

/// The only site of a test's tables.
pub(crate) const SITE: SiteId = SiteId(2);

/// Numbers in [-1, 1), a function of the seed (SplitMix64).
pub(crate) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..len).map(|_| (next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Slots of rows; 99 is the base.
pub(crate) fn slots(pattern: &[u32]) -> Vec<Option<AdapterSlot>> {
    pattern.iter().map(|slot| (*slot < 99).then_some(AdapterSlot(*slot))).collect()
}

/// A plan of rows that belong to no sequence.
pub(crate) fn plan_of(slots: Vec<Option<AdapterSlot>>) -> StepPlan {
    let rows = slots.len();
    StepPlan {
        rows: RowPlan::new(slots),
        ids: vec![None; rows],
        positions: vec![0; rows],
        kv_slots: vec![0; rows],
        ..StepPlan::default()
    }
}

/// A step of such rows.
pub(crate) fn step_of<B: Backend>(backend: &B, slots: Vec<Option<AdapterSlot>>) -> B::Step {
    let mut step = backend.step();
    backend.upload(&plan_of(slots), &mut step).unwrap();
    step
}

/// Rows that were kept at their places, in no order, as they are recalled from copies of the blocks.
pub(crate) fn kept_and_recalled<B: Backend>(backend: &B, rows: usize, width: usize) -> Vec<f32> {
    const BLOCK_SIZE: usize = 16;
    let blocks = rows.div_ceil(BLOCK_SIZE);
    let shape =
        KvShape { layers: 1, blocks: 2 * blocks, block_size: BLOCK_SIZE, kv_heads: 1, head_dim: 8, kept: width };
    let mut kv = backend.kv_cache(shape).unwrap();
    let at = |block: usize| {
        let kv_slots = (0..rows).rev().map(|place| (block * BLOCK_SIZE + place) as u32).collect();
        let mut step = backend.step();
        backend.upload(&StepPlan { kv_slots, ..plan_of(vec![None; rows]) }, &mut step).unwrap();
        step
    };
    let x = backend.buffer_of(width, &numbers(11, rows * width)).unwrap();
    backend.keep_rows(&at(0), &x, &mut kv);
    (0..blocks).for_each(|block| backend.copy_block(&mut kv, block, blocks + block));
    let mut y = backend.buffer(rows, width).unwrap();
    backend.recall_rows(&at(blocks), &kv, &mut y);
    rows_of(backend, &y, rows)
}

/// The first rows of a buffer.
pub(crate) fn rows_of<B: Backend>(backend: &B, buffer: &B::Buffer, rows: usize) -> Vec<f32> {
    (0..rows).flat_map(|row| backend.read_row(buffer, row).into_owned()).collect()
}

/// A low-rank pair in host terms, to be installed on any backend.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) slot: u32,
    pub(crate) rank: usize,
    pub(crate) columns: Range<usize>,
    pub(crate) seed: u64,
}

impl Pair {
    pub(crate) fn install<B: Backend>(&self, backend: &B, inputs: usize) -> (u32, LowRankPair<B>) {
        let (a, b) = (numbers(self.seed, self.rank * inputs), numbers(self.seed + 1, self.columns.len() * self.rank));
        let matrices = [HostMatrix::f32(self.rank, inputs, &a), HostMatrix::f32(self.columns.len(), self.rank, &b)];
        let mut weights = backend.weight_group(&matrices).unwrap().into_iter();
        let (a, b) = (weights.next().unwrap(), weights.next().unwrap());
        (self.slot, LowRankPair { a, b, rank: self.rank, scaling: 0.5, columns: self.columns.clone() })
    }
}

/// A table with low-rank pairs by slot.
pub(crate) fn pairs_of<B: Backend>(backend: &B, pairs: &[Pair], inputs: usize) -> B::DeltaTable {
    let entries = pairs.iter().map(|pair| pair.install(backend, inputs)).collect();
    table_of(backend, entries, |pairs| SlotEntries { low_rank: pairs, ..SlotEntries::default() })
}

/// A full matrix in host terms, to be installed on any backend.
#[derive(Clone, Debug)]
pub(crate) struct Full {
    pub(crate) slot: u32,
    pub(crate) columns: Range<usize>,
    pub(crate) replaces: bool,
    pub(crate) seed: u64,
}

/// A table with full matrices by slot.
pub(crate) fn full_of<B: Backend>(backend: &B, matrices: &[Full], inputs: usize) -> B::DeltaTable {
    let entry = |Full { slot, columns, replaces, seed }: &Full| {
        let numbers = numbers(*seed, columns.len() * inputs);
        let weight = backend.weight_group(&[HostMatrix::f32(columns.len(), inputs, &numbers)]).unwrap().remove(0);
        (*slot, DenseMatrix { weight, scaling: 0.25, columns: columns.clone(), replaces: *replaces })
    };
    let entries = matrices.iter().map(entry).collect();
    table_of(backend, entries, |dense| SlotEntries { dense, ..SlotEntries::default() })
}

/// Slots 0 to 4 with every kind of full matrix for so many columns, at least 30.
pub(crate) fn all_kinds_of_full(columns: usize) -> Vec<Full> {
    let full = |slot, columns, replaces, seed| Full { slot, columns, replaces, seed };
    vec![
        full(0, 0..columns, false, 10),
        full(1, 0..columns, true, 20),
        // Parts of a stack, one in place of the base's and one added to it.
        full(2, 0..17, true, 30),
        full(2, 20..columns, false, 40),
        full(4, 3..4, true, 50),
    ]
}

/// y with what full matrices of the rows' slots make of x; 99 is the base.
pub(crate) fn dense<B: Backend>(
    backend: &B,
    matrices: &[Full],
    pattern: &[u32],
    (inputs, x): (usize, &[f32]),
    y: &[f32],
) -> Vec<f32> {
    let table = full_of(backend, matrices, inputs);
    let (x, mut y) = (backend.buffer_of(inputs, x).unwrap(), backend.buffer_of(y.len() / pattern.len(), y).unwrap());
    backend.dense(&step_of(backend, slots(pattern)), Rows::All, at(&table), &x, &mut y);
    rows_of(backend, &y, pattern.len())
}

/// A table with vectors by slot: (slot, columns, numbers).
pub(crate) fn vectors_of<B: Backend>(backend: &B, vectors: &[(u32, Range<usize>, Vec<f32>)]) -> B::DeltaTable {
    let entry = |(slot, columns, values): &(u32, Range<usize>, Vec<f32>)| {
        let values = backend.vector(values).unwrap();
        (*slot, ColumnVector { values, columns: columns.clone() })
    };
    let entries = vectors.iter().map(entry).collect();
    table_of(backend, entries, |vectors| SlotEntries { vectors, ..SlotEntries::default() })
}

/// A table with column_rotations by slot: (slot, columns, group, numbers).
pub(crate) fn column_rotations_of<B: Backend>(
    backend: &B,
    column_rotations: &[(u32, Range<usize>, usize, Vec<f32>)],
) -> B::DeltaTable {
    let entry = |(slot, columns, group, c): &(u32, Range<usize>, usize, Vec<f32>)| {
        let c = backend.vector(c).unwrap();
        (*slot, ColumnRotation { c, group: *group, columns: columns.clone() })
    };
    let entries = column_rotations.iter().map(entry).collect();
    table_of(backend, entries, |column_rotations| SlotEntries { column_rotations, ..SlotEntries::default() })
}

/// A sparse matrix with up to `each` numbers in a row, and none in every fifth.
pub(crate) fn sparse(seed: u64, [rows, cols]: [usize; 2], each: usize) -> HostSparse {
    let (draws, values) = (numbers(seed, rows * each), numbers(seed + 1, rows * each));
    let place = |(at, draw): (usize, &f32)| (at / each, ((draw + 1.0) / 2.0 * cols as f32) as usize);
    let kept = || draws.iter().enumerate().map(place).enumerate().filter(|(_, (row, _))| row % 5 != 3);
    let values: Vec<f32> = kept().map(|(at, _)| values[at]).collect();
    let places: Vec<(usize, usize)> = kept().map(|(_, place)| place).collect();
    HostSparse::new([rows, cols], places.into_iter(), &values).unwrap()
}

/// A table with sparse matrices by slot: (slot, columns, matrix).
pub(crate) fn sparse_of<B: Backend>(backend: &B, matrices: &[(u32, Range<usize>, HostSparse)]) -> B::DeltaTable {
    let entry = |(slot, columns, matrix): &(u32, Range<usize>, HostSparse)| {
        let matrix = backend.sparse_matrix(matrix).unwrap();
        (*slot, SparseColumns { matrix, columns: columns.clone() })
    };
    let entries = matrices.iter().map(entry).collect();
    table_of(backend, entries, |sparse| SlotEntries { sparse, ..SlotEntries::default() })
}

/// A table with rows in place of a matrix's by slot: (slot, ids, seed).
pub(crate) fn replaced_of<B: Backend>(backend: &B, entries: &[(u32, Vec<u32>, u64)], inputs: usize) -> B::DeltaTable {
    let entry = |(slot, ids, seed): &(u32, Vec<u32>, u64)| {
        let values = numbers(*seed, ids.len() * inputs);
        let rows = backend.weight(&[HostMatrix::f32(ids.len(), inputs, &values)]).unwrap();
        (*slot, Arc::new(ReplacedRows { ids: ids.clone(), rows }))
    };
    let entries = entries.iter().map(entry).collect();
    table_of(backend, entries, |replaced| SlotEntries { replaced, ..SlotEntries::default() })
}

/// A rotation in host terms: any square blocks, since ops do not ask whether they turn.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub(crate) slot: u32,
    pub(crate) size: usize,
    pub(crate) interleaved: usize,
    pub(crate) is_shared: bool,
    pub(crate) seed: u64,
}

impl Turn {
    pub(crate) fn install<B: Backend>(&self, backend: &B, inputs: usize) -> Rotation<B> {
        let Self { size, interleaved, is_shared, .. } = *self;
        let blocks = if is_shared { 1 } else { inputs / size };
        // As large as those of a rotation, so that rows keep about their length.
        let factor = (3.0 / size as f32).sqrt();
        let numbers: Vec<f32> = numbers(self.seed, blocks * size * size).iter().map(|number| number * factor).collect();
        Rotation { blocks: backend.vector(&numbers).unwrap(), is_shared, size, interleaved }
    }
}

/// A table with vectors over all columns and rotations by slot.
pub(crate) fn turns_of<B: Backend>(
    backend: &B,
    inputs: usize,
    scales: &[(u32, Vec<f32>)],
    turns: &[Turn],
) -> B::DeltaTable {
    let mut table = backend.delta_table(16).unwrap();
    for slot in 0..16 {
        let own = scales.iter().filter(|(of, _)| *of == slot);
        let vector = |values: &[f32]| ColumnVector { values: backend.vector(values).unwrap(), columns: 0..inputs };
        let vectors = own.map(|(_, values)| (SITE, vector(values))).collect();
        let own = turns.iter().filter(|turn| turn.slot == slot);
        let rotations = own.map(|turn| (SITE, turn.install(backend, inputs))).collect();
        let entries = SlotEntries { vectors, rotations, ..SlotEntries::default() };
        backend.set_slot(&mut table, AdapterSlot(slot), SlotDelta::new(backend, entries).unwrap());
    }
    table
}

/// A table of entries by slot.
pub(crate) fn table_of<B: Backend, T>(
    backend: &B,
    entries: Vec<(u32, T)>,
    entries_of: impl Fn(Vec<(SiteId, T)>) -> SlotEntries<B>,
) -> B::DeltaTable {
    let mut by_slot: BTreeMap<u32, Vec<(SiteId, T)>> = BTreeMap::new();
    entries.into_iter().for_each(|(slot, entry)| by_slot.entry(slot).or_default().push((SITE, entry)));
    let mut table = backend.delta_table(16).unwrap();
    for (slot, entries) in by_slot {
        let delta = SlotDelta::new(backend, entries_of(entries)).unwrap();
        backend.set_slot(&mut table, AdapterSlot(slot), delta);
    }
    table
}

pub(crate) fn at<B: Backend>(table: &B::DeltaTable) -> SiteTable<'_, B> {
    SiteTable { table, site: SITE }
}

#[track_caller]
pub(crate) fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "{what}: number {at} is {got}, not {want}");
    }
}

#[track_caller]
pub(crate) fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let close = (got - want).abs() <= tolerance * (1.0 + want.abs());
        assert!(close || (got.is_nan() && want.is_nan()), "{what}: number {at} is {got}, not {want}");
    }
}
