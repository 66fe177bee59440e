//! Bottlenecks against the definition, and in other batches.

use polydelta::ops::reference::ReferenceBackend;
use polydelta::ops::{Backend, Numerics};

use crate::device::cuda;
use crate::scene::bottleneck::{every_kind, run};
use crate::scene::{assert_close, assert_same, numbers, slots};

const NUMERICS: [Numerics; 3] = [Numerics::F32, Numerics::BF16, Numerics::F16];

fn inputs(rows: usize, width: usize) -> [Vec<f32>; 2] {
    [1, 2].map(|seed| numbers(seed, rows * width))
}

#[test]
fn every_kind_of_bottleneck_agrees_with_the_definition() {
    let pattern: Vec<u32> = (0..37).map(|row| if row % 9 == 4 { 99 } else { row * 5 % 16 }).collect();
    // A width that threads take one by one, one of quads, and one of two planes of A x.
    for (width, rows) in [(45, pattern.len()), (64, 20), (4104, 5)] {
        let slots = slots(&pattern[..rows]);
        let [x, h] = inputs(rows, width);
        let entries = every_kind(|at| [1, 5, 16, 17, 40][at % 5]);
        for numerics in NUMERICS {
            let want = run(&ReferenceBackend::new(numerics), &entries, &slots, [&x, &h]);
            let got = run(&cuda(numerics), &entries, &slots, [&x, &h]);
            let tolerance = if numerics == Numerics::F32 { 5e-5 } else { 3e-2 };
            for (got, want) in got.iter().zip(&want) {
                assert_close(got, want, tolerance, &format!("{width} {:?}", numerics.compute));
            }
        }
    }
}

#[test]
fn a_row_with_a_bottleneck_has_the_same_bits_alone_and_mixed_and_others_keep_theirs() {
    let pattern: Vec<u32> = (0..70).map(|row| if row < 40 { 3 } else { row % 17 }).collect();
    let (all, width) = (slots(&pattern), 48);
    let [x, h] = inputs(pattern.len(), width);
    let entries = every_kind(|at| 3 + 4 * at);
    for numerics in NUMERICS {
        let backend = cuda(numerics);
        let whole = run(&backend, &entries, &all, [&x, &h]);
        for row in (0..pattern.len()).step_by(9) {
            let at = row * width..(row + 1) * width;
            let alone = run(&backend, &entries, &all[row..=row], [&x[at.clone()], &h[at.clone()]]);
            let what = format!("row {row} {}", backend.info().name);
            for ((alone, whole), before) in alone.iter().zip(&whole).zip([&x, &h]) {
                assert_same(alone, &whole[at.clone()], &what);
                if pattern[row] as usize >= entries.len() {
                    assert_same(alone, &before[at.clone()], "a row without a bottleneck");
                }
            }
        }
    }
}
