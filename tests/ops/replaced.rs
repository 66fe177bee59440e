//! Rows in place of those of the embedding and the head, on any backend.

use polydelta::ops::reference::ReferenceBackend;
use polydelta::ops::{Backend, HostMatrix, Rows, StepPlan};

use super::{assert_close, assert_same, at, numbers, plan_of, replaced_of, rows_of, slots, step_of};

/// Rows of the matrix.
const VOCAB: usize = 133;
const INPUTS: usize = 45;

/// Slot 1 has nothing; slot 2 has every row, slot 4 more rows than any tile, slots 0 and 5 have one and the last.
fn entries() -> Vec<(u32, Vec<u32>, u64)> {
    vec![
        (0, vec![132], 10),
        (2, (0..VOCAB as u32).collect(), 20),
        (3, vec![0, 1, 16, 17, 63, 64, 130], 30),
        (4, (0..VOCAB as u32).filter(|id| id % 3 != 1).collect(), 40),
        (5, vec![0], 50),
    ]
}

/// Rows of every slot, many of slot 4.
fn pattern() -> Vec<u32> {
    let few = [99, 0, 4, 3, 1, 4, 2, 99, 5, 2, 3];
    (0..71).map(|row| few.get(row).copied().unwrap_or(if row % 5 == 0 { 3 } else { 4 })).collect()
}

fn embed<B: Backend>(backend: &B, pattern: &[u32], ids: &[Option<u32>], y: &[f32]) -> Vec<f32> {
    let table = replaced_of(backend, &entries(), INPUTS);
    let plan = StepPlan { ids: ids.to_vec(), ..plan_of(slots(pattern)) };
    let mut step = backend.step();
    backend.upload(&plan, &mut step).unwrap();
    let mut y = backend.buffer_of(INPUTS, y).unwrap();
    backend.replace_embeddings(&step, at(&table), 1.5, &mut y);
    rows_of(backend, &y, pattern.len())
}

fn multiply<B: Backend>(backend: &B, pattern: &[u32], x: &[f32], y: &[f32]) -> Vec<f32> {
    let table = replaced_of(backend, &entries(), INPUTS);
    let step = step_of(backend, slots(pattern));
    let (x, mut y) = (backend.buffer_of(INPUTS, x).unwrap(), backend.buffer_of(VOCAB, y).unwrap());
    backend.replace_columns(&step, Rows::All, at(&table), &x, &mut y);
    rows_of(backend, &y, pattern.len())
}

/// Whether a slot has a row of its own for an id.
fn has(slot: u32, id: usize) -> bool {
    entries().iter().any(|(of, ids, _)| *of == slot && ids.binary_search(&(id as u32)).is_ok())
}

/// Tokens become their rows, exactly; what has none is left as it is.
pub(crate) fn check_embeddings<B: Backend>(backend: &B, what: &str) {
    let pattern = pattern();
    let ids: Vec<_> = (0..pattern.len()).map(|row| (row % 7 != 4).then_some((row * 31 % VOCAB) as u32)).collect();
    let y = numbers(6, pattern.len() * INPUTS);
    let got = embed(backend, &pattern, &ids, &y);
    assert_same(&got, &embed(&ReferenceBackend::new(backend.numerics()), &pattern, &ids, &y), what);
    let replaced = |row: usize| ids[row].is_some_and(|id| has(pattern[row], id as usize));
    assert!((0..pattern.len()).any(|row| pattern[row] == 4 && replaced(row)), "the ids meet some of theirs");
    for row in (0..pattern.len()).filter(|row| !replaced(*row)) {
        assert_same(&got[row * INPUTS..][..INPUTS], &y[row * INPUTS..][..INPUTS], what);
    }
}

/// Columns become products with their rows; all others are left as they are.
pub(crate) fn check_columns<B: Backend>(backend: &B, tolerance: f32, what: &str) {
    let pattern = pattern();
    let (x, y) = (numbers(1, pattern.len() * INPUTS), numbers(2, pattern.len() * VOCAB));
    let got = multiply(backend, &pattern, &x, &y);
    let want = multiply(&ReferenceBackend::new(backend.numerics()), &pattern, &x, &y);
    assert_close(&got, &want, tolerance, what);
    for (index, number) in y.iter().enumerate() {
        if !has(pattern[index / VOCAB], index % VOCAB) {
            assert_eq!(got[index].to_bits(), number.to_bits(), "{what}: number {index} was touched");
        }
    }
}

/// A row has the same bits alone as among others, and those that the whole matrix with these rows in it gives.
pub(crate) fn check_bits<B: Backend>(backend: &B, what: &str) {
    let pattern = pattern();
    let (x, y) = (numbers(1, pattern.len() * INPUTS), numbers(2, pattern.len() * VOCAB));
    let all = multiply(backend, &pattern, &x, &y);
    let of = |data: &[f32], row: usize, width: usize| data[row * width..][..width].to_vec();
    for row in [1, 2, 3, 6, 8, 40, 70] {
        let alone = multiply(backend, &pattern[row..=row], &of(&x, row, INPUTS), &of(&y, row, VOCAB));
        assert_same(&alone, &of(&all, row, VOCAB), &format!("{what}: row {row} alone"));
    }
    // Slot 2 has all rows.
    let whole = backend.weight(&[HostMatrix::f32(VOCAB, INPUTS, &numbers(20, VOCAB * INPUTS))]).unwrap();
    let (x, mut y) = (backend.buffer_of(INPUTS, &x).unwrap(), backend.buffer_of(VOCAB, &y).unwrap());
    backend.gemm(&step_of(backend, vec![None; pattern.len()]), Rows::All, &x, &whole, &mut y);
    let product = rows_of(backend, &y, pattern.len());
    for row in (0..pattern.len()).filter(|row| pattern[*row] == 2) {
        assert_same(&of(&all, row, VOCAB), &of(&product, row, VOCAB), &format!("{what}: row {row} of a whole matrix"));
    }
}
