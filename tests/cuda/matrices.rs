//! GEMM and low-rank pairs: the definition's numbers, and the same bits for a row whatever the rows beside it.

use polydelta::ops::reference::ReferenceBackend;
use polydelta::ops::{Backend, HostMatrix, LowRankPair, Numerics, Rows, SlotDelta, SlotEntries};
use polydelta::types::AdapterSlot;

use crate::device::{NUMERICS, cuda};
use crate::scene::{
    Full, Pair, SITE, all_kinds_of_full, assert_close, assert_same, at, column_rotations_of, dense, numbers, pairs_of,
    rows_of, slots, sparse, sparse_of, step_of,
};

/// Rows around every change of kernel.
const ROWS: [usize; 10] = [1, 3, 8, 9, 17, 33, 64, 65, 130, 200];

fn multiply<B: Backend>(backend: &B, inputs: usize, outputs: &[usize], rows: &[usize]) -> Vec<Vec<f32>> {
    let weights: Vec<Vec<f32>> = outputs.iter().map(|out| numbers(*out as u64, out * inputs)).collect();
    let segments: Vec<_> = weights.iter().zip(outputs).map(|(w, out)| HostMatrix::f32(*out, inputs, w)).collect();
    let w = backend.weight(&segments).unwrap();
    let width = outputs.iter().sum();
    let product = |rows: &usize| {
        let x = backend.buffer_of(inputs, &numbers(1, rows * inputs)).unwrap();
        let mut y = backend.buffer(*rows, width).unwrap();
        backend.gemm(&step_of(backend, vec![None; *rows]), Rows::All, &x, &w, &mut y);
        rows_of(backend, &y, *rows)
    };
    rows.iter().map(product).collect()
}

#[test]
fn products_agree_with_the_definition_and_a_row_has_the_same_bits_beside_any_others() {
    for numerics in NUMERICS {
        let cuda = cuda(numerics);
        for (inputs, outputs) in
            [(64, vec![48, 16]), (72, vec![100]), (13, vec![7]), (2048, vec![40]), (264, vec![130])]
        {
            let got = multiply(&cuda, inputs, &outputs, &ROWS);
            let most = ROWS[ROWS.len() - 1];
            let want = multiply(&ReferenceBackend::new(numerics), inputs, &outputs, &[most]);
            let what = format!("{numerics:?} {inputs} to {outputs:?}");
            assert_close(&got[ROWS.len() - 1], &want[0], 1e-4, &what);
            for (rows, product) in ROWS.iter().zip(&got) {
                assert_same(product, &got[ROWS.len() - 1][..product.len()], &format!("{what}, {rows} rows"));
            }
        }
    }
}

#[test]
fn an_input_that_f16_cannot_hold_makes_no_number_of_its_row_alone() {
    const INPUTS: usize = 72;
    let cuda = cuda(Numerics::F16);
    let w = cuda.weight(&[HostMatrix::f32(40, INPUTS, &numbers(3, 40 * INPUTS))]).unwrap();
    for rows in ROWS {
        let product = |x: &[f32]| {
            let (x, mut y) = (cuda.buffer_of(INPUTS, x).unwrap(), cuda.buffer(rows, 40).unwrap());
            let step = step_of(&cuda, vec![None; rows]);
            cuda.gemm(&step, Rows::All, &x, &w, &mut y);
            // Infinity would be finite behind this.
            cuda.softcap(&step, Rows::All, 30.0, &mut y);
            rows_of(&cuda, &y, rows)
        };
        let mut x = numbers(1, rows * INPUTS);
        let mut want = product(&x);
        let bad = rows / 2;
        x[bad * INPUTS + 5] = -70_000.0;
        want[bad * 40..][..40].fill(f32::NAN);
        let got = product(&x);
        assert_close(&got, &want, 0.0, &format!("{rows} rows"));
    }
}

#[test]
fn what_a_adds_up_to_beyond_f16_makes_no_number_of_the_rows_of_its_adapter_alone() {
    const INPUTS: usize = 72;
    let cuda = cuda(Numerics::F16);
    let slots = [0, 99, 1, 0, 1].map(|slot| (slot < 99).then_some(AdapterSlot(slot)));
    let a = [vec![1.0; 8 * INPUTS], vec![0.01; 8 * INPUTS]];
    let b = numbers(4, 16 * 8);
    let mut table = cuda.delta_table(2).unwrap();
    for (slot, a) in a.iter().enumerate() {
        let matrices = [HostMatrix::f32(8, INPUTS, a), HostMatrix::f32(16, 8, &b)];
        let [a, b] = <[_; 2]>::try_from(cuda.weight_group(&matrices).unwrap()).unwrap();
        let pair = LowRankPair { a, b, rank: 8, scaling: 0.5, columns: 0..16 };
        let entries = SlotEntries { low_rank: vec![(SITE, pair)], ..SlotEntries::default() };
        cuda.set_slot(&mut table, AdapterSlot(slot as u32), SlotDelta::new(&cuda, entries).unwrap());
    }
    let x = cuda.buffer_of(INPUTS, &vec![3000.0; slots.len() * INPUTS]).unwrap();
    let mut y = cuda.buffer(slots.len(), 16).unwrap();
    cuda.low_rank(&step_of(&cuda, slots.to_vec()), Rows::All, at(&table), &x, &mut y);
    for (row, slot) in slots.iter().enumerate() {
        let spoilt = cuda.read_row(&y, row).iter().filter(|y| y.is_nan()).count();
        assert_eq!(spoilt, if *slot == Some(AdapterSlot(0)) { 16 } else { 0 }, "row {row}");
    }
}

fn pairs(outputs: usize) -> Vec<Pair> {
    let ranks = [(0, 1), (1, 16), (2, 3), (3, 24), (4, 64), (5, 128), (6, 8)];
    let mut pairs: Vec<Pair> =
        ranks.map(|(slot, rank)| Pair { slot, rank, columns: 0..outputs, seed: 10 * (u64::from(slot) + 1) }).to_vec();
    // A stack: columns of their own, and two pairs on the same ones.
    pairs.push(Pair { slot: 7, rank: 5, columns: 0..outputs / 3, seed: 200 });
    pairs.push(Pair { slot: 7, rank: 12, columns: outputs / 3..outputs, seed: 210 });
    pairs.push(Pair { slot: 7, rank: 4, columns: outputs / 2..outputs, seed: 220 });
    pairs
}

fn low_rank<B: Backend>(backend: &B, pattern: &[u32], (inputs, x): (usize, &[f32]), y: &[f32]) -> Vec<f32> {
    let outputs = y.len() / pattern.len();
    let table = pairs_of(backend, &pairs(outputs), inputs);
    let x = backend.buffer_of(inputs, x).unwrap();
    let mut y = backend.buffer_of(outputs, y).unwrap();
    backend.low_rank(&step_of(backend, slots(pattern)), Rows::All, at(&table), &x, &mut y);
    rows_of(backend, &y, pattern.len())
}

#[test]
fn low_rank_pairs_agree_with_the_definition_whatever_the_popularity() {
    let mixed: Vec<u32> = (0..40).map(|row| [0, 99, 1, 2, 3, 4, 5, 6, 7, 8][row % 10]).collect();
    let skewed: Vec<u32> = (0..100).map(|row| if row % 9 == 0 { 7 } else { 1 }).collect();
    for numerics in NUMERICS {
        let (cuda, reference) = (cuda(numerics), ReferenceBackend::new(numerics));
        for (inputs, outputs) in [(64, 48), (8 * 13, 300), (2048, 64)] {
            for pattern in [&mixed, &skewed, &vec![99; 5], &vec![4]] {
                let (x, y) = (numbers(1, pattern.len() * inputs), numbers(2, pattern.len() * outputs));
                let got = low_rank(&cuda, pattern, (inputs, &x), &y);
                let want = low_rank(&reference, pattern, (inputs, &x), &y);
                // In bf16 a last bit of A x may round the other way: 2^-9 of a product. In f32 sums of several planes round
                // otherwise than one sum, up to 2048 * 2^-24 of what they add up.
                let tolerance = if numerics == Numerics::F32 { 1e-4 } else { 2e-2 };
                assert_close(&got, &want, tolerance, &format!("{numerics:?} {inputs} to {outputs}, {pattern:?}"));
                for (row, slot) in pattern.iter().enumerate().step_by(3) {
                    let y = &y[row * outputs..][..outputs];
                    let alone = low_rank(&cuda, &[*slot], (inputs, &x[row * inputs..][..inputs]), y);
                    assert_same(&got[row * outputs..][..outputs], &alone, "a row alone");
                    if matches!(slot, 8 | 99) {
                        assert_same(&alone, y, "a row without pairs");
                    }
                }
            }
        }
    }
}

#[test]
fn a_segment_has_the_bits_of_the_stack_and_leaves_the_other_columns() {
    const INPUTS: usize = 72;
    const WIDTHS: [usize; 3] = [20, 33, 8];
    let outputs: usize = WIDTHS.iter().sum();
    let weights = WIDTHS.map(|out| numbers(out as u64, out * INPUTS));
    let segments = [0, 1, 2].map(|part| HostMatrix::f32(WIDTHS[part], INPUTS, &weights[part]));
    for numerics in NUMERICS {
        let cuda = cuda(numerics);
        let w = cuda.weight(&segments).unwrap();
        for rows in ROWS {
            let step = step_of(&cuda, vec![None; rows]);
            let x = cuda.buffer_of(INPUTS, &numbers(1, rows * INPUTS)).unwrap();
            let (mut whole, y) = (cuda.buffer(rows, outputs).unwrap(), numbers(2, rows * outputs));
            cuda.gemm(&step, Rows::All, &x, &w, &mut whole);
            let mut part = cuda.buffer_of(outputs, &y).unwrap();
            cuda.gemm_segment(&step, Rows::All, &x, &w, 1, &mut part);
            let mut want = y;
            for (row, want) in want.chunks_exact_mut(outputs).enumerate() {
                want[20..53].copy_from_slice(&cuda.read_row(&whole, row)[20..53]);
            }
            assert_same(&rows_of(&cuda, &part, rows), &want, &format!("{numerics:?}, {rows} rows"));
        }
    }
}

/// What becomes of rows of y, each of the slot that it has in `pattern`.
fn changed<B: Backend>(
    backend: &B,
    (inputs, outputs): (usize, usize),
    pattern: &[u32],
    op: impl Fn(&B::Step, &B::Buffer, &mut B::Buffer),
) -> Vec<f32> {
    let rows = pattern.len();
    let x = backend.buffer_of(inputs, &numbers(1, rows * inputs)).unwrap();
    let mut y = backend.buffer_of(outputs, &numbers(2, rows * outputs)).unwrap();
    op(&step_of(backend, slots(pattern)), &x, &mut y);
    rows_of(backend, &y, rows)
}

/// Rows of two adapters, of a slot without one, and of the base, groups of more than 64 among them.
fn patterns() -> [Vec<u32>; 3] {
    let of = |rows: u32| (0..rows).map(|row| [0, 99, 1, 0, 2, 0][row as usize % 6]).collect();
    [of(5), of(40), of(200)]
}

#[test]
fn sparse_products_agree_with_the_definition_and_a_row_has_the_same_bits_beside_any_others() {
    fn product<B: Backend>(backend: &B, inputs: usize, outputs: usize, pattern: &[u32]) -> Vec<f32> {
        let third = outputs / 3;
        let matrices = [
            (0, 0..outputs, sparse(3, [outputs, inputs], 40)),
            (1, 0..third, sparse(5, [third, inputs], 2)),
            (1, third..outputs, sparse(7, [outputs - third, inputs], 9)),
        ];
        let table = sparse_of(backend, &matrices);
        changed(backend, (inputs, outputs), pattern, |step, x, y| backend.sparse(step, Rows::All, at(&table), x, y))
    }
    for numerics in NUMERICS {
        let (cuda, reference) = (cuda(numerics), ReferenceBackend::new(numerics));
        for (inputs, outputs) in [(64, 40), (13, 7), (1030, 130)] {
            let longest = product(&cuda, inputs, outputs, &patterns()[2]);
            for pattern in patterns() {
                let got = product(&cuda, inputs, outputs, &pattern);
                let what = format!("{numerics:?} {inputs} to {outputs}, {} rows", pattern.len());
                assert_close(&got, &product(&reference, inputs, outputs, &pattern), 1e-5, &what);
                assert_same(&got, &longest[..got.len()], &what);
            }
        }
    }
}

#[test]
fn outputs_turn_with_the_bits_of_the_definition() {
    fn turned<B: Backend>(backend: &B, pattern: &[u32]) -> Vec<f32> {
        const OUTPUTS: usize = 90;
        let column_rotations = [
            (0, 0..OUTPUTS, 30, numbers(3, 2 * OUTPUTS)),
            (1, 4..24, 10, numbers(4, 40)),
            (1, 30..38, 2, numbers(5, 16)),
            (1, 38..82, 44, numbers(6, 88)),
        ];
        let table = column_rotations_of(backend, &column_rotations);
        changed(backend, (8, OUTPUTS), pattern, |step, _, y| backend.rotate_outputs(step, Rows::All, at(&table), y))
    }
    for numerics in NUMERICS {
        for pattern in patterns() {
            let got = turned(&cuda(numerics), &pattern);
            assert_same(&got, &turned(&ReferenceBackend::new(numerics), &pattern), &format!("{numerics:?}"));
        }
    }
}

#[test]
fn full_matrices_agree_with_the_definition_and_have_the_bits_of_a_row_alone() {
    let few: Vec<u32> = vec![1, 99, 0, 2, 2, 3, 4, 1];
    let skewed: Vec<u32> = (0..120).map(|row| if row % 9 == 0 { 2 } else { row % 2 }).collect();
    for numerics in NUMERICS {
        let (cuda, reference) = (cuda(numerics), ReferenceBackend::new(numerics));
        for (inputs, outputs) in [(64, 48), (8 * 13, 300), (45, 60), (2048, 64)] {
            let full = all_kinds_of_full(outputs);
            for pattern in [&few, &skewed, &vec![99; 5]] {
                let (x, y) = (numbers(1, pattern.len() * inputs), numbers(2, pattern.len() * outputs));
                let got = dense(&cuda, &full, pattern, (inputs, &x), &y);
                let want = dense(&reference, &full, pattern, (inputs, &x), &y);
                assert_close(&got, &want, 1e-4, &format!("{numerics:?} {inputs} to {outputs}, {pattern:?}"));
                for (row, slot) in pattern.iter().enumerate().step_by(5) {
                    let y = &y[row * outputs..][..outputs];
                    let alone = dense(&cuda, &full, &[*slot], (inputs, &x[row * inputs..][..inputs]), y);
                    assert_same(&got[row * outputs..][..outputs], &alone, "a row alone");
                    if matches!(slot, 3 | 99) {
                        assert_same(&alone, y, "a row without entries");
                    }
                }
            }
        }
    }
}

#[test]
fn what_replaces_the_base_has_the_bits_of_a_base() {
    let (rows, inputs, outputs) = (37, 264, 130);
    let full = [Full { slot: 0, columns: 0..outputs, replaces: true, seed: outputs as u64 }];
    for numerics in NUMERICS {
        let cuda = cuda(numerics);
        let base = multiply(&cuda, inputs, &[outputs], &[rows]).remove(0);
        let (x, y) = (numbers(1, rows * inputs), numbers(2, rows * outputs));
        assert_same(&dense(&cuda, &full, &vec![0; rows], (inputs, &x), &y), &base, &format!("{numerics:?}"));
    }
}
