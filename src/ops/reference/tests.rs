use super::*;
use crate::ops::{ColumnVector, LowRankPair, RowPlan, SequencePlan, SiteId, SlotEntries};
use crate::types::AdapterSlot;

const SITE: SiteId = SiteId(0);

fn step_of(backend: &ReferenceBackend, slots: Vec<Option<AdapterSlot>>) -> Step {
    let mut step = backend.step();
    backend.upload(&StepPlan { rows: RowPlan::new(slots), ..StepPlan::default() }, &mut step).unwrap();
    step
}

fn matrix(cols: usize, data: &[f32]) -> Matrix {
    Matrix { cols, data: data.to_vec() }
}

#[test]
fn a_gemm_is_rows_times_the_transposed_weight() {
    let backend = ReferenceBackend::new(Numerics::F32);
    let stacked = [HostMatrix::f32(1, 2, &[1.0, 2.0]), HostMatrix::f32(2, 2, &[3.0, 4.0, 5.0, 6.0])];
    let w = backend.weight(&stacked).unwrap();
    let x = matrix(2, &[1.0, 10.0, -1.0, 0.5]);
    let mut y = backend.buffer(2, 3).unwrap();
    let step = step_of(&backend, vec![None, Some(AdapterSlot(0))]);
    backend.gemm(&step, Rows::All, &x, &w, &mut y);
    assert_eq!(y.data, [21.0, 43.0, 65.0, 0.0, -1.0, -2.0]);
    let mut twice = SlotTable::default();
    let twofold = ColumnVector { values: vec![2.0, 2.0], columns: 0..2 };
    let entries = SlotEntries { vectors: vec![(SITE, twofold)], ..SlotEntries::default() };
    twice.set(AdapterSlot(0), SlotDelta::new(entries));
    let mut scaled = backend.buffer(2, 2).unwrap();
    backend.gemm_scaled_segment(
        &step,
        Rows::All,
        SiteTable { table: &twice, site: SITE },
        &x,
        &w,
        1,
        &mut scaled,
        &mut y,
    );
    assert_eq!(y.data, [21.0, 43.0, 65.0, 0.0, -2.0, -4.0]);
}

#[test]
fn low_rank_touches_only_its_columns_and_rows() {
    let backend = ReferenceBackend::new(Numerics::F32);
    let mut table = SlotTable::default();
    let entry = LowRankPair {
        a: backend.weight(&[HostMatrix::f32(1, 2, &[1.0, 1.0])]).unwrap(),
        b: backend.weight(&[HostMatrix::f32(1, 1, &[2.0])]).unwrap(),
        rank: 1,
        scaling: 0.5,
        columns: 1..2,
    };
    let entries = SlotEntries { low_rank: vec![(SITE, entry)], ..SlotEntries::default() };
    table.set(AdapterSlot(3), SlotDelta::new(entries));
    let step = step_of(&backend, vec![None, Some(AdapterSlot(3)), Some(AdapterSlot(0))]);
    let x = matrix(2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let mut y = matrix(2, &[0.0; 6]);
    backend.low_rank(&step, Rows::All, SiteTable { table: &table, site: SITE }, &x, &mut y);
    assert_eq!(y.data, [0.0, 0.0, 0.0, 7.0, 0.0, 0.0]);
}

#[test]
fn attention_reads_only_visible_places_through_the_block_table() {
    let backend = ReferenceBackend::new(Numerics::F32);
    let shape = KvShape { layers: 1, blocks: 3, block_size: 2, kv_heads: 1, head_dim: 1 };
    let mut kv = backend.kv_cache(shape).unwrap();
    // Indices 0 and 1 lie in block 2, index 2 in block 0.
    backend.write_pages(&mut kv, 0, &[2, 0], 3, &matrix(1, &[0.0; 3]), &matrix(1, &[1.0, 2.0, 6.0]));
    let mut step = backend.step();
    step.plan.rows = RowPlan::new(vec![None]);
    step.plan.positions = vec![2];
    step.plan.sequences = vec![SequencePlan { rows: 0..1, start: 2, blocks: vec![2, 0].into() }];
    let spec = AttentionSpec { heads: 1, kv_heads: 1, head_dim: 1, scale: 1.0, softcap: None, window: None };
    let qkv = matrix(3, &[1.0, 0.0, 0.0]);
    let mut y = matrix(1, &[0.0]);
    backend.attention(&step, &spec, 0, &qkv, &kv, &mut y);
    assert_eq!(y.data, [3.0]);
    backend.attention(&step, &AttentionSpec { window: Some(2), ..spec }, 0, &qkv, &kv, &mut y);
    assert_eq!(y.data, [4.0]);
}
