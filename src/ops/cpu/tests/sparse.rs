use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::ops::HostSparse;

const INPUTS: usize = 45;
const OUTPUTS: usize = 150;

fn matrices() -> Vec<(u32, Range<usize>, HostSparse)> {
    let matrix = |slot, columns: Range<usize>, seed, each| {
        let shape = [columns.len(), INPUTS];
        (slot, columns, scene::sparse(seed, shape, each))
    };
    vec![
        matrix(0, 0..OUTPUTS, 10, 3),
        matrix(1, 0..20, 20, 1),
        matrix(1, 20..37, 30, 9),
        matrix(1, 60..OUTPUTS, 40, 40),
        matrix(3, 7..9, 50, 5),
        // Two on the same columns, as a mix of two adapters has.
        matrix(4, 0..100, 60, 4),
        matrix(4, 16..130, 70, 6),
        // One without a number.
        (5, 3..40, HostSparse::new([37, INPUTS], std::iter::empty(), &[]).unwrap()),
    ]
}

fn slots(pattern: &[u8]) -> Vec<Option<AdapterSlot>> {
    pattern.iter().map(|slot| (*slot < 7).then_some(AdapterSlot(u32::from(*slot)))).collect()
}

fn run(backend: &CpuBackend, table: &SlotTable<CpuBackend>, pattern: &[u8], x: &[f32], y: &[f32]) -> Vec<f32> {
    let mut y = buffer(OUTPUTS, y);
    backend.sparse(&step_of(backend, slots(pattern)), Rows::All, at(table), &buffer(INPUTS, x), &mut y);
    y.data
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn sparse_products_agree_with_the_definition_and_a_row_has_the_same_bits_alone_and_mixed(
        pattern in proptest::collection::vec(0_u8..9, 1..70),
        seed in 0_u64..1000,
    ) {
        let (x, mut y) = (numbers(seed, pattern.len() * INPUTS), numbers(seed + 1, pattern.len() * OUTPUTS));
        // What is not touched keeps even the sign of a zero.
        y.iter_mut().step_by(3).for_each(|y| *y = -0.0);
        for one in backends(1) {
            let reference = ReferenceBackend::new(one.numerics());
            let mut want = matrix(OUTPUTS, &y);
            let (step, table) = (step_of(&reference, slots(&pattern)), scene::sparse_of(&reference, &matrices()));
            reference.sparse(&step, Rows::All, at(&table), &matrix(INPUTS, &x), &mut want);
            let table = scene::sparse_of(&one, &matrices());
            let whole = run(&one, &table, &pattern, &x, &y);
            // Products are fused here and not there; what is rounded to bf16 before is the same.
            assert_close(&whole, &want.data, 1e-5, &name(&one));
            for (at, (got, before)) in whole.iter().zip(&y).enumerate() {
                let is_same = got.to_bits() == before.to_bits();
                prop_assert!(is_same || want.data[at].to_bits() != before.to_bits(), "number {at} is touched");
            }
            for threads in [2, 3] {
                let many = backend(one.isa.get(), one.numerics(), threads);
                let table = scene::sparse_of(&many, &matrices());
                assert_same(&run(&many, &table, &pattern, &x, &y), &whole, &name(&many));
            }
            for row in (0..pattern.len()).step_by(pattern.len().div_ceil(8)) {
                let (x, y) = (&x[row * INPUTS..][..INPUTS], &y[row * OUTPUTS..][..OUTPUTS]);
                let alone = run(&one, &table, &pattern[row..=row], x, y);
                assert_same(&alone, &whole[row * OUTPUTS..][..OUTPUTS], &name(&one));
            }
        }
    }
}

#[test]
fn a_large_matrix_over_many_rows_is_cut_into_tasks_that_change_nothing() {
    let (inputs, outputs, rows) = (300, 700, 50);
    let host = scene::sparse(5, [outputs, inputs], 60);
    let (x, y) = (numbers(1, rows * inputs), numbers(2, rows * outputs));
    for one in backends(1) {
        let of = |threads: usize, rows: Range<usize>| {
            let many = backend(one.isa.get(), one.numerics(), threads);
            let table = scene::sparse_of(&many, &[(2, 0..outputs, host.clone())]);
            let (x, mut y) = (&x[rows.start * inputs..], buffer(outputs, &y[rows.start * outputs..rows.end * outputs]));
            let (step, x) = (step_of(&many, vec![Some(AdapterSlot(2)); rows.len()]), buffer(inputs, x));
            many.sparse(&step, Rows::All, at(&table), &x, &mut y);
            y.data
        };
        let whole = of(1, 0..rows);
        assert_same(&of(2, 0..rows), &whole, &name(&one));
        assert_same(&of(3, 0..rows), &whole, &name(&one));
        assert_same(&of(2, 37..38), &whole[37 * outputs..38 * outputs], "alone");
        assert_same(&of(2, 20..23), &whole[20 * outputs..23 * outputs], "three");
    }
}

#[test]
fn a_number_that_is_none_stays_within_its_row() {
    let pattern = [0; 20];
    let (mut x, y) = (numbers(1, 20 * INPUTS), vec![0.0; 20 * OUTPUTS]);
    for cpu in backends(2) {
        let table = scene::sparse_of(&cpu, &matrices());
        let mut want = run(&cpu, &table, &pattern, &x, &y);
        x[6 * INPUTS..7 * INPUTS].fill(f32::INFINITY);
        let got = run(&cpu, &table, &pattern, &x, &y);
        let row = 6 * OUTPUTS..7 * OUTPUTS;
        assert!(got[row.clone()].iter().any(|y| !y.is_finite()));
        want[row.clone()].copy_from_slice(&got[row]);
        assert_same(&got, &want, &name(&cpu));
        x = numbers(1, 20 * INPUTS);
    }
}

#[test]
fn outputs_turn_within_their_groups_and_entries_with_the_bits_of_the_definition() {
    let rotation = |slot, columns: Range<usize>, group, seed| {
        let c = numbers(seed, 2 * columns.len());
        (slot, columns, group, c)
    };
    let column_rotations = [
        rotation(0, 0..OUTPUTS, 50, 1),
        rotation(1, 0..24, 8, 2),
        rotation(1, 30..62, 2, 3),
        rotation(1, 62..150, 44, 4),
        rotation(3, 5..11, 6, 5),
    ];
    let pattern = [0, 9, 1, 3, 2, 1, 0, 9, 1];
    let y = numbers(6, pattern.len() * OUTPUTS);
    for cpu in backends(1).chain(backends(3)) {
        let reference = ReferenceBackend::new(cpu.numerics());
        let (mut got, mut want) = (buffer(OUTPUTS, &y), matrix(OUTPUTS, &y));
        let table = scene::column_rotations_of(&cpu, &column_rotations);
        cpu.rotate_outputs(&step_of(&cpu, slots(&pattern)), Rows::All, at(&table), &mut got);
        let table = scene::column_rotations_of(&reference, &column_rotations);
        reference.rotate_outputs(&step_of(&reference, slots(&pattern)), Rows::All, at(&table), &mut want);
        assert_same(&got.data, &want.data, &name(&cpu));
        for row in [1, 4, 7] {
            assert_same(got.row(row), &y[row * OUTPUTS..][..OUTPUTS], "a row without entries");
        }
    }
}
