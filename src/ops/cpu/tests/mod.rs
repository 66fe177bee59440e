//! Every op against `reference` and, bit for bit, against itself in other batches, on every instruction set path this
//! machine has.

mod attention;
mod bottleneck;
mod deltas;
mod dense;
mod expert_deltas;
mod experts;
mod gemm;
mod measure;
mod pooled;
mod replaced;
mod rows;
mod sample;
#[path = "../../../../tests/ops/mod.rs"]
mod scene;
mod sparse;

use scene::{Turn, assert_close, assert_same, at, kept_and_recalled, numbers, plan_of, step_of, table_of, turns_of};

use super::*;
use crate::ops::reference::{Matrix, ReferenceBackend};
use crate::ops::{ColumnVector, LowRankPair, SlotEntries};

const NUMERICS: [Numerics; 2] = [Numerics::F32, Numerics::BF16];

fn backend(isa: Isa, numerics: Numerics, threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads, numerics, isa: Some(isa) }).unwrap()
}

/// One backend per path and numerics.
fn backends(threads: usize) -> impl Iterator<Item = CpuBackend> {
    let available = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    available.flat_map(move |isa| NUMERICS.into_iter().map(move |numerics| backend(isa, numerics, threads)))
}

fn buffer(cols: usize, data: &[f32]) -> Buffer {
    Buffer { cols, data: data.to_vec() }
}

fn matrix(cols: usize, data: &[f32]) -> Matrix {
    Matrix { cols, data: data.to_vec() }
}

/// A table with low-rank pairs by slot.
fn pairs_of<B: Backend>(backend: &B, entries: Vec<(u32, LowRankPair<B>)>) -> B::DeltaTable {
    table_of(backend, entries, |pairs| SlotEntries { low_rank: pairs, ..SlotEntries::default() })
}

/// A table with vectors by slot.
fn vectors_of<B: Backend>(backend: &B, entries: Vec<(u32, ColumnVector<B>)>) -> B::DeltaTable {
    table_of(backend, entries, |vectors| SlotEntries { vectors, ..SlotEntries::default() })
}

/// `rows` times `y = W x`.
fn multiply<B: Backend>(backend: &B, rows: usize, x: &B::Buffer, w: &B::Weight, y: &mut B::Buffer) {
    backend.gemm(&step_of(backend, vec![None; rows]), Rows::All, x, w, y);
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
fn f16_is_refused_whatever_is_to_be_kept_in_it() {
    let kept = [
        Numerics::F16,
        Numerics { weights: Numerics::F16.weights, ..Numerics::F32 },
        Numerics { compute: Numerics::F16.compute, ..Numerics::F32 },
        Numerics { kv: Numerics::F16.kv, ..Numerics::BF16 },
    ];
    for numerics in kept {
        let refused = CpuBackend::new(CpuOptions { threads: 1, numerics, isa: None });
        assert!(matches!(refused, Err(OpsError::Dtype { dtype: "f16", backend: "cpu" })), "{numerics:?}");
    }
}

#[test]
fn a_path_this_machine_lacks_is_refused() {
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
        let refused = CpuBackend::new(CpuOptions { threads: 1, numerics: Numerics::F32, isa: Some(isa) });
        assert!(matches!(refused, Err(OpsError::Isa { isa: name }) if name == isa.as_str()));
    }
}
