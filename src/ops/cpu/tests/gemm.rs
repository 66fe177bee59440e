use proptest::prelude::*;

use super::*;
use crate::ops::{ComputeDtype, WeightFormat};

struct Stacked {
    depth: usize,
    parts: Vec<(usize, Vec<f32>)>,
}

impl Stacked {
    fn new(seed: u64, depth: usize, outs: &[usize]) -> Self {
        let parts = outs.iter().enumerate().map(|(i, out)| (*out, numbers(seed + i as u64, out * depth))).collect();
        Self { depth, parts }
    }

    fn segments(&self) -> Vec<HostMatrix<'_>> {
        self.parts.iter().map(|(out, data)| HostMatrix::f32(*out, self.depth, data)).collect()
    }

    fn columns(&self) -> usize {
        self.parts.iter().map(|(out, _)| out).sum()
    }
}

fn gemm(backend: &CpuBackend, stacked: &Stacked, x: &[f32]) -> Vec<f32> {
    let rows = x.len() / stacked.depth;
    let w = backend.weight(&stacked.segments()).unwrap();
    let mut y = backend.buffer(rows, stacked.columns()).unwrap();
    multiply(backend, rows, &buffer(stacked.depth, x), &w, &mut y);
    y.data
}

fn reference(numerics: Numerics, stacked: &Stacked, x: &[f32]) -> Vec<f32> {
    let backend = ReferenceBackend::new(numerics);
    let rows = x.len() / stacked.depth;
    let w = backend.weight(&stacked.segments()).unwrap();
    let mut y = backend.buffer(rows, stacked.columns()).unwrap();
    multiply(&backend, rows, &matrix(stacked.depth, x), &w, &mut y);
    y.data
}

#[test]
fn a_gemm_agrees_with_the_definition_at_odd_shapes() {
    for backend in backends(2) {
        for depth in [1, 2, 3, 17, 64, 301, 600] {
            for out in [1, 15, 16, 33, 70] {
                for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 30] {
                    let stacked = Stacked::new(depth as u64, depth, &[out]);
                    let x = numbers(99, rows * depth);
                    let what = format!("{} {rows}x{depth}x{out}", name(&backend));
                    let want = reference(backend.numerics(), &stacked, &x);
                    assert_close(&gemm(&backend, &stacked, &x), &want, 1e-4, &what);
                }
            }
        }
    }
}

#[test]
fn the_format_of_weights_and_the_dtype_of_inputs_are_chosen_apart() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for weights in [WeightFormat::F32, WeightFormat::Bf16] {
            for compute in [ComputeDtype::F32, ComputeDtype::Bf16] {
                let numerics = Numerics { weights, compute, ..Numerics::F32 };
                let backend = backend(isa, numerics, 2);
                for (rows, depth) in [(1, 17), (3, 301), (30, 64)] {
                    let (stacked, x) = (Stacked::new(7, depth, &[33, 16]), numbers(8, rows * depth));
                    let want = reference(numerics, &stacked, &x);
                    assert_close(&gemm(&backend, &stacked, &x), &want, 1e-4, &name(&backend));
                }
            }
        }
    }
}

/// Every row alone, by any number of threads, and every segment alone, against the whole.
fn check_invariance(isa: Isa, numerics: Numerics, rows: usize, depth: usize, outs: &[usize], seed: u64) {
    let stacked = Stacked::new(seed, depth, outs);
    let x = numbers(seed ^ 77, rows * depth);
    let columns = stacked.columns();
    let one = backend(isa, numerics, 1);
    let whole = gemm(&one, &stacked, &x);
    for threads in [2, 3] {
        let many = backend(isa, numerics, threads);
        assert_same(&gemm(&many, &stacked, &x), &whole, &format!("{}, whole", name(&many)));
    }
    let w = one.weight(&stacked.segments()).unwrap();
    for row in (0..rows).step_by(rows.div_ceil(9)) {
        let mut y = one.buffer(1, columns).unwrap();
        multiply(&one, 1, &buffer(depth, &x[row * depth..][..depth]), &w, &mut y);
        assert_same(&y.data, &whole[row * columns..][..columns], &format!("{} row {row} alone", name(&one)));
    }
    let (step, x) = (step_of(&one, vec![None; rows]), buffer(depth, &x));
    let mut y = one.buffer(rows, columns).unwrap();
    for segment in 0..outs.len() {
        one.gemm_segment(&step, Rows::All, &x, &w, segment, &mut y);
    }
    assert_same(&y.data, &whole, &format!("{} by segments", name(&one)));
}

#[test]
fn long_prompts_in_blocks_give_the_bits_of_single_rows() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for numerics in NUMERICS {
            check_invariance(isa, numerics, 211, 1099, &[40, 3, 16], 5);
            check_invariance(isa, numerics, 23, 513, &[97], 6);
            check_invariance(isa, numerics, 8, 1030, &[97, 64], 7);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_row_gives_the_same_bits_in_any_batch(
        rows in 1_usize..40,
        depth in 1_usize..70,
        outs in proptest::collection::vec(1_usize..50, 1..4),
        seed in 0_u64..1000,
    ) {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for numerics in NUMERICS {
                check_invariance(isa, numerics, rows, depth, &outs, seed);
            }
        }
    }
}

#[test]
fn a_row_that_is_not_a_number_stays_alone() {
    for backend in backends(2) {
        for rows in [2, 7, 40] {
            let stacked = Stacked::new(1, 300, &[35]);
            let mut x = numbers(2, rows * 300);
            let clean = gemm(&backend, &stacked, &x);
            x[300 + 7] = f32::NAN;
            x[300 + 8] = f32::INFINITY;
            let got = gemm(&backend, &stacked, &x);
            assert!(got[35..70].iter().all(|y| y.is_nan()));
            assert_same(&got[..35], &clean[..35], &name(&backend));
            assert_same(&got[70..], &clean[70..], &name(&backend));
        }
    }
}

#[test]
fn rows_beyond_those_in_use_are_left_alone() {
    for backend in backends(1) {
        let stacked = Stacked::new(1, 20, &[17]);
        let w = backend.weight(&stacked.segments()).unwrap();
        let mut y = buffer(17, &[7.0; 17 * 3]);
        multiply(&backend, 2, &buffer(20, &numbers(3, 60)), &w, &mut y);
        assert_eq!(y.data[34..], [7.0; 17]);
        assert!(y.data[..34].iter().all(|y| *y != 7.0));
        let (step, x) = (step_of(&backend, vec![None; 2]), buffer(20, &numbers(3, 60)));
        backend.gemm_segment(&step, Rows::All, &x, &w, 0, &mut y);
        assert_eq!(y.data[34..], [7.0; 17]);
    }
}

#[test]
fn weights_stored_in_bf16_and_in_f32_of_the_same_values_are_one() {
    for backend in backends(1) {
        let short: Vec<half::bf16> = numbers(4, 19 * 33).into_iter().map(half::bf16::from_f32).collect();
        let long: Vec<f32> = short.iter().map(|x| x.to_f32()).collect();
        let x = buffer(33, &numbers(5, 33 * 2));
        let mut results = [HostMatrix::bf16(19, 33, &short), HostMatrix::f32(19, 33, &long)].map(|host| {
            let mut y = backend.buffer(2, 19).unwrap();
            multiply(&backend, 2, &x, &backend.weight(&[host]).unwrap(), &mut y);
            y.data
        });
        assert_same(&std::mem::take(&mut results[0]), &results[1], &name(&backend));
    }
}
