use super::scene::bottleneck::{NON_LINEARITIES, every_kind, run};
use super::scene::slots;
use super::*;

const WIDTH: usize = 45;

fn inputs(rows: usize, seed: u64) -> [Vec<f32>; 2] {
    [seed, seed + 1].map(|seed| numbers(seed, rows * WIDTH))
}

#[test]
fn every_kind_of_bottleneck_agrees_with_the_definition_and_other_rows_are_left_alone() {
    let pattern: Vec<u32> = (0..40).map(|row| if row % 9 == 4 { 99 } else { row % 16 }).collect();
    let slots = slots(&pattern);
    let [x, h] = inputs(pattern.len(), 1);
    let entries = every_kind(|at| [1, 5, 16, 17, 33][at % 5]);
    for cpu in backends(2) {
        let reference = ReferenceBackend::new(cpu.numerics());
        let want = run(&reference, &entries, &slots, [&x, &h]);
        let got = run(&cpu, &entries, &slots, [&x, &h]);
        // In bf16 a last bit of f may round the other way.
        let tolerance = if cpu.numerics() == Numerics::F32 { 2e-5 } else { 3e-2 };
        for ((got, want), before) in got.iter().zip(&want).zip([&x, &h]) {
            assert_close(got, want, tolerance, &name(&cpu));
            for (row, _) in pattern.iter().enumerate().filter(|(_, slot)| **slot as usize >= NON_LINEARITIES.len()) {
                let row = row * WIDTH..(row + 1) * WIDTH;
                assert_same(&got[row.clone()], &before[row], "a row without a bottleneck");
            }
        }
    }
}

#[test]
fn a_row_with_a_bottleneck_has_the_same_bits_alone_and_mixed_on_any_number_of_threads() {
    let pattern: Vec<u32> = (0..50).map(|row| row * 7 % 18).collect();
    let all = slots(&pattern);
    let [x, h] = inputs(pattern.len(), 5);
    let entries = every_kind(|at| 3 + 4 * at);
    for one in backends(1) {
        let whole = run(&one, &entries, &all, [&x, &h]);
        let many = backend(one.isa.get(), one.numerics(), 3);
        assert_eq!(run(&many, &entries, &all, [&x, &h]), whole, "{}", name(&many));
        for row in (0..pattern.len()).step_by(3) {
            let at = row * WIDTH..(row + 1) * WIDTH;
            let alone = run(&one, &entries, &all[row..=row], [&x[at.clone()], &h[at.clone()]]);
            for (alone, whole) in alone.iter().zip(&whole) {
                assert_same(alone, &whole[at.clone()], &name(&one));
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_none() {
    let entries = every_kind(|_| 8);
    let row = [f32::NAN; WIDTH];
    for cpu in backends(1) {
        let reference = ReferenceBackend::new(cpu.numerics());
        for slot in 0..NON_LINEARITIES.len() as u32 {
            for found in [
                run(&cpu, &entries, &slots(&[slot]), [&row, &row]),
                run(&reference, &entries, &slots(&[slot]), [&row, &row]),
            ] {
                assert!(found[1].iter().all(|number| number.is_nan()), "{} slot {slot}", name(&cpu));
            }
        }
    }
}
