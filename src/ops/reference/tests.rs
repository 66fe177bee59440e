use super::*;
use crate::ops::{
    ColumnRotation, ColumnVector, LowRankPair, Rotation, RowPlan, SequencePlan, SiteId, SlotEntries, SparseColumns,
};
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
    let doubled = matrix(2, &[2.0, 20.0, -2.0, 1.0]);
    backend.gemm_segment(&step, Rows::All, &doubled, &w, 1, &mut y);
    assert_eq!(y.data, [21.0, 86.0, 130.0, 0.0, -2.0, -4.0]);
}

#[test]
fn inputs_are_scaled_then_turned_block_by_block_and_rotation_by_rotation() {
    let backend = ReferenceBackend::new(Numerics::F32);
    // Exchanges the two inputs of a block and takes one the other way round; two blocks, one for both.
    let turn = |interleaved| Rotation { blocks: vec![0.0, 1.0, -1.0, 0.0], is_shared: true, size: 2, interleaved };
    let scale = |values: &[f32]| ColumnVector { values: values.to_vec(), columns: 0..4 };
    let mut table = SlotTable::default();
    let mut set = |slot, vectors: Vec<ColumnVector<_>>, rotations: Vec<Rotation<_>>| {
        let entries = SlotEntries {
            vectors: vectors.into_iter().map(|vector| (SITE, vector)).collect(),
            rotations: rotations.into_iter().map(|rotation| (SITE, rotation)).collect(),
            ..SlotEntries::default()
        };
        table.set(AdapterSlot(slot), SlotDelta::new(&backend, entries).unwrap());
    };
    set(0, Vec::new(), vec![turn(1)]);
    set(1, Vec::new(), vec![turn(2)]);
    set(2, vec![scale(&[1.0, 10.0, 100.0, 1000.0])], vec![turn(1), turn(2)]);
    set(3, vec![scale(&[2.0; 4])], Vec::new());
    let slots = [Some(0), Some(1), Some(2), Some(3), None, Some(9)];
    let step = step_of(&backend, slots.map(|slot| slot.map(AdapterSlot)).to_vec());
    let x = matrix(4, &[1.0, 2.0, 3.0, 4.0].repeat(slots.len()));
    let at = || SiteTable { table: &table, site: SITE };
    let mut y = backend.buffer(slots.len(), 4).unwrap();
    backend.rotate_input(&step, Rows::All, Some(at()), at(), &x, &mut y);
    let expected = [
        [-2.0, 1.0, -4.0, 3.0],
        [-3.0, -4.0, 1.0, 2.0],
        [4000.0, -300.0, -20.0, 1.0],
        [2.0, 4.0, 6.0, 8.0],
        [1.0, 2.0, 3.0, 4.0],
        [1.0, 2.0, 3.0, 4.0],
    ];
    assert_eq!(y.data, expected.concat());
    backend.rotate_input(&step, Rows::All, None, at(), &x, &mut y);
    assert_eq!(y.row(2), [4.0, -3.0, -2.0, 1.0]);
    assert_eq!(y.row(3), x.row(3));
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
    table.set(AdapterSlot(3), SlotDelta::new(&backend, entries).unwrap());
    let step = step_of(&backend, vec![None, Some(AdapterSlot(3)), Some(AdapterSlot(0))]);
    let x = matrix(2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let mut y = matrix(2, &[0.0; 6]);
    backend.low_rank(&step, Rows::All, SiteTable { table: &table, site: SITE }, &x, &mut y);
    assert_eq!(y.data, [0.0, 0.0, 0.0, 7.0, 0.0, 0.0]);
}

#[test]
fn attention_reads_only_visible_places_through_the_block_table() {
    let backend = ReferenceBackend::new(Numerics::F32);
    let shape = KvShape { layers: 1, blocks: 3, block_size: 2, kv_heads: 1, head_dim: 1, kept: 0 };
    let mut kv = backend.kv_cache(shape).unwrap();
    // Indices 0 and 1 lie in block 2, index 2 in block 0.
    backend.write_pages(&mut kv, &[2, 0], 3, &[(matrix(1, &[0.0; 3]), matrix(1, &[1.0, 2.0, 6.0]))]);
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

#[test]
fn a_sparse_matrix_adds_where_it_holds_numbers_and_touches_nothing_else() {
    let backend = ReferenceBackend::new(Numerics::BF16);
    // 1.001 is 1 in bf16, as a number of S and as one of x.
    let host = HostSparse::new([2, 3], [(0, 2), (0, 0)].into_iter(), &[2.0, 1.001]).unwrap();
    let matrix_of = SparseColumns { matrix: backend.sparse_matrix(&host).unwrap(), columns: 1..3 };
    let mut table = SlotTable::default();
    let entries = SlotEntries { sparse: vec![(SITE, matrix_of)], ..SlotEntries::default() };
    table.set(AdapterSlot(3), SlotDelta::new(&backend, entries).unwrap());
    let step = step_of(&backend, vec![None, Some(AdapterSlot(3))]);
    let x = matrix(3, &[1.0, 2.0, 3.0, 1.001, 100.0, 0.5]);
    let mut y = matrix(4, &[-0.0; 8]);
    backend.sparse(&step, Rows::All, SiteTable { table: &table, site: SITE }, &x, &mut y);
    let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&y.data), bits(&[-0.0, -0.0, -0.0, -0.0, -0.0, 2.0, -0.0, -0.0]));
}

#[test]
fn halves_of_a_group_turn_together() {
    let backend = ReferenceBackend::new(Numerics::F32);
    let (c1, c2) = ([1.0, 2.0, 3.0, 4.0], [0.5, 0.25, -1.0, 2.0]);
    let rotation = ColumnRotation { c: [c1, c2].concat(), group: 4, columns: 1..5 };
    let mut table = SlotTable::default();
    let entries = SlotEntries { column_rotations: vec![(SITE, rotation)], ..SlotEntries::default() };
    table.set(AdapterSlot(0), SlotDelta::new(&backend, entries).unwrap());
    let step = step_of(&backend, vec![Some(AdapterSlot(0)), None]);
    let mut y = matrix(5, &[9.0, 1.0, 2.0, 3.0, 4.0, 9.0, 1.0, 2.0, 3.0, 4.0]);
    backend.rotate_outputs(&step, Rows::All, SiteTable { table: &table, site: SITE }, &mut y);
    // rot(1, 2, 3, 4) = (-3, -4, 1, 2).
    assert_eq!(y.data, [9.0, 1.0 - 1.5, 4.0 - 1.0, 9.0 - 1.0, 16.0 + 4.0, 9.0, 1.0, 2.0, 3.0, 4.0]);
}
