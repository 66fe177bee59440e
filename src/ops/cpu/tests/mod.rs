//! Every op against `reference` and, bit for bit, against itself in other batches, on every instruction set path this
//! machine has.

mod attention;
mod deltas;
mod gemm;
mod measure;
mod rows;
mod sample;

use std::collections::BTreeMap;

use super::*;
use crate::ops::reference::{Matrix, ReferenceBackend};
use crate::ops::{ColumnVector, LowRankPair, SiteId, SlotEntries};

const NUMERICS: [Numerics; 2] = [Numerics::F32, Numerics::BF16];

fn backend(isa: Isa, numerics: Numerics, threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads, numerics, isa: Some(isa) }).unwrap()
}

/// One backend per path and numerics.
fn backends(threads: usize) -> impl Iterator<Item = CpuBackend> {
    let available = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    available.flat_map(move |isa| NUMERICS.into_iter().map(move |numerics| backend(isa, numerics, threads)))
}

/// Numbers in [-1, 1), a function of the seed (SplitMix64).
fn numbers(seed: u64, len: usize) -> Vec<f32> {
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

fn buffer(cols: usize, data: &[f32]) -> Buffer {
    Buffer { cols, data: data.to_vec() }
}

fn matrix(cols: usize, data: &[f32]) -> Matrix {
    Matrix { cols, data: data.to_vec() }
}

/// A plan of rows that belong to no sequence.
fn plan_of(slots: Vec<Option<AdapterSlot>>) -> StepPlan {
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
fn step_of<B: Backend>(backend: &B, slots: Vec<Option<AdapterSlot>>) -> B::Step {
    let mut step = backend.step();
    backend.upload(&plan_of(slots), &mut step).unwrap();
    step
}

/// The only site of a test's tables.
const SITE: SiteId = SiteId(0);

/// A table with low-rank pairs by slot.
fn pairs_of<B: Backend>(backend: &B, entries: Vec<(u32, LowRankPair<B>)>) -> B::DeltaTable {
    table_of(backend, entries, |pairs| SlotDelta::new(SlotEntries { low_rank: pairs, ..SlotEntries::default() }))
}

/// A table with vectors by slot.
fn vectors_of<B: Backend>(backend: &B, entries: Vec<(u32, ColumnVector<B>)>) -> B::DeltaTable {
    table_of(backend, entries, |vectors| SlotDelta::new(SlotEntries { vectors, ..SlotEntries::default() }))
}

fn table_of<B: Backend, T>(
    backend: &B,
    entries: Vec<(u32, T)>,
    delta: impl Fn(Vec<(SiteId, T)>) -> SlotDelta<B>,
) -> B::DeltaTable {
    let mut by_slot: BTreeMap<u32, Vec<(SiteId, T)>> = BTreeMap::new();
    entries.into_iter().for_each(|(slot, entry)| by_slot.entry(slot).or_default().push((SITE, entry)));
    let mut table = backend.delta_table().unwrap();
    for (slot, entries) in by_slot {
        backend.set_slot(&mut table, AdapterSlot(slot), delta(entries));
    }
    table
}

fn at<B: Backend>(table: &B::DeltaTable) -> SiteTable<'_, B> {
    SiteTable { table, site: SITE }
}

/// `rows` times `y = W x`.
fn multiply<B: Backend>(backend: &B, rows: usize, x: &B::Buffer, w: &B::Weight, y: &mut B::Buffer) {
    backend.gemm(&step_of(backend, vec![None; rows]), Rows::All, x, w, y);
}

#[track_caller]
fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "{what}: number {at} is {got}, not {want}");
    }
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let close = (got - want).abs() <= tolerance * (1.0 + want.abs());
        assert!(close || (got.is_nan() && want.is_nan()), "{what}: number {at} is {got}, not {want}");
    }
}

fn name(backend: &CpuBackend) -> String {
    format!("{} {:?} {} threads", backend.info().isa, backend.numerics(), backend.info().threads)
}

#[test]
fn a_backend_names_what_it_runs_on() {
    let backend = CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::F32, isa: None }).unwrap();
    let info = backend.info();
    assert_eq!((info.name, info.threads), ("cpu", 2));
    assert_ne!(info.isa, "avx512bf16", "f32 has no use for bf16 products");
}

#[test]
fn a_path_this_machine_lacks_is_refused() {
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
        let refused = CpuBackend::new(CpuOptions { threads: 1, numerics: Numerics::F32, isa: Some(isa) });
        assert!(matches!(refused, Err(OpsError::Isa { isa: name }) if name == isa.as_str()));
    }
}
