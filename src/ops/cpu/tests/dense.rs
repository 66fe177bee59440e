use proptest::prelude::*;

use super::scene::{Full, all_kinds_of_full, dense, full_of};
use super::*;

const INPUTS: usize = 45;
const OUTPUTS: usize = 60;

fn run(backend: &CpuBackend, pattern: &[u32], x: &[f32], y: &[f32]) -> Vec<f32> {
    dense(backend, &all_kinds_of_full(OUTPUTS), pattern, (INPUTS, x), y)
}

#[test]
fn full_matrices_agree_with_the_definition_and_leave_other_rows_and_columns() {
    let pattern = [99, 0, 1, 2, 3, 4, 1, 2, 2, 2, 2, 2, 2, 2, 0, 99];
    let (x, y) = (numbers(1, pattern.len() * INPUTS), numbers(2, pattern.len() * OUTPUTS));
    for cpu in backends(2) {
        let got = run(&cpu, &pattern, &x, &y);
        let reference = ReferenceBackend::new(cpu.numerics());
        let want = dense(&reference, &all_kinds_of_full(OUTPUTS), &pattern, (INPUTS, &x), &y);
        assert_close(&got, &want, 2e-5, &name(&cpu));
        for row in [0, 4, 15] {
            assert_same(&got[row * OUTPUTS..][..OUTPUTS], &y[row * OUTPUTS..][..OUTPUTS], "a row without entries");
        }
        for row in [3, 7, 13] {
            assert_same(&got[row * OUTPUTS..][17..20], &y[row * OUTPUTS..][17..20], "columns between entries");
        }
    }
}

#[test]
fn what_replaces_the_base_has_the_bits_of_a_base() {
    let (rows, inputs, outputs) = (37, 700, 333);
    let (x, y) = (numbers(1, rows * inputs), numbers(2, rows * outputs));
    let full = [Full { slot: 0, columns: 0..outputs, replaces: true, seed: 3 }];
    for cpu in backends(2) {
        let weight = numbers(3, outputs * inputs);
        let w = cpu.weight(&[HostMatrix::f32(outputs, inputs, &weight)]).unwrap();
        let mut base = buffer(outputs, &y);
        multiply(&cpu, rows, &buffer(inputs, &x), &w, &mut base);
        assert_same(&dense(&cpu, &full, &vec![0; rows], (inputs, &x), &y), &base.data, &name(&cpu));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn a_row_gives_the_same_bits_alone_and_mixed_on_any_number_of_threads(
        pattern in proptest::collection::vec(0_u32..6, 1..60),
        seed in 0_u64..1000,
    ) {
        let (x, y) = (numbers(seed, pattern.len() * INPUTS), numbers(seed + 1, pattern.len() * OUTPUTS));
        for one in backends(1) {
            let whole = run(&one, &pattern, &x, &y);
            for threads in [2, 3] {
                assert_same(&run(&backend(one.isa.get(), one.numerics(), threads), &pattern, &x, &y), &whole, &name(&one));
            }
            for row in (0..pattern.len()).step_by(pattern.len().div_ceil(8)) {
                let (x, y) = (&x[row * INPUTS..][..INPUTS], &y[row * OUTPUTS..][..OUTPUTS]);
                assert_same(&run(&one, &pattern[row..=row], x, y), &whole[row * OUTPUTS..][..OUTPUTS], &name(&one));
            }
        }
    }
}

#[test]
#[should_panic(expected = "full matrices on the same columns")]
fn matrices_that_share_columns_are_refused_before_anything_is_written() {
    let cpu = backend(Isa::Portable, Numerics::F32, 1);
    let full = |columns, seed| Full { slot: 0, columns, replaces: false, seed };
    let table = full_of(&cpu, &[full(0..40, 1), full(39..60, 2)], INPUTS);
    let mut y = buffer(OUTPUTS, &[0.0; OUTPUTS]);
    let step = step_of(&cpu, vec![Some(AdapterSlot(0))]);
    cpu.dense(&step, Rows::All, at(&table), &buffer(INPUTS, &[0.0; INPUTS]), &mut y);
}
