//! Rows that become one, and the heads of adapters on them.

use std::sync::Arc;

use polydelta::ops::{Backend, PoolOutcome, PooledRows, PooledSpan, Rows, StepPlan};
use polydelta::types::SequenceFailure;

use super::{at, numbers, plan_of, slots, vectors_of};

/// Slots 0 and 1 have heads, slot 2 is empty, 99 is the base.
const PATTERN: [u32; 11] = [0, 99, 1, 1, 2, 99, 0, 1, 0, 0, 99];
/// Labels of the heads of slots 0 and 1.
const LABELS: [usize; 2] = [3, 41];
/// Columns that logits have room for.
const ROOM: usize = 50;

/// Every kind of span, on rows of one adapter each: a row and several, with and without a sum before, with and without a head.
fn spans(width: usize) -> Vec<PooledSpan> {
    let onto: Arc<[f32]> = numbers(9, width).into();
    let span = |rows, onto: Option<&Arc<[f32]>>, slot: Option<usize>| PooledSpan {
        rows,
        onto: onto.cloned(),
        labels: slot.map(|slot| LABELS[slot] as u32),
    };
    vec![
        span(0..1, None, Some(0)),
        span(1..2, None, None),
        span(2..4, None, Some(1)),
        span(4..5, Some(&onto), None),
        span(2..4, Some(&onto), None),
        span(7..8, None, Some(1)),
        span(8..10, Some(&onto), Some(0)),
        span(10..11, None, None),
    ]
}

/// What comes of so many spans of rows of `x`, `[11, width]`.
pub(crate) fn pool<B: Backend>(backend: &B, width: usize, count: usize, x: &[f32]) -> Vec<PoolOutcome> {
    let heads = [0, 1].map(|slot| (slot as u32, 0..LABELS[slot], numbers(3 + slot as u64, LABELS[slot] * width)));
    let table = vectors_of(backend, &heads);
    let mut spans: Vec<PooledSpan> = spans(width).into_iter().cycle().take(count).collect();
    let plan = plan_of(slots(&PATTERN));
    let plan = StepPlan { pooled: PooledRows::groups(&plan.rows, &mut spans), ..plan };
    let mut step = backend.step();
    backend.upload(&plan, &mut step).unwrap();
    let x = backend.buffer_of(width, x).unwrap();
    let mut hidden = backend.input_buffer(PooledRows::MOST, width).unwrap();
    let mut logits = backend.buffer(PooledRows::MOST, ROOM).unwrap();
    for group in 0..plan.pooled.len() {
        backend.pool_rows(&step, group, &x, &mut hidden);
        backend.head_rows(&step, Rows::Pooled(group), at(&table), &hidden, &mut logits);
        backend.collect(&mut step, group, &hidden, &logits);
    }
    let outcomes = backend.finish(&mut step).unwrap();
    assert!(outcomes.sampled.is_empty() && outcomes.pooled.len() == count);
    outcomes.pooled
}

/// The numbers of all outcomes.
pub(crate) fn numbers_of(outcomes: Vec<PoolOutcome>) -> Vec<f32> {
    outcomes.into_iter().flat_map(|outcome| outcome.unwrap().to_vec()).collect()
}

pub(crate) fn rows(width: usize) -> Vec<f32> {
    numbers(1, PATTERN.len() * width)
}

/// A vector that is not finite fails alone, a sum of numbers that are and one that is made of them by a head among them.
pub(crate) fn check_non_finite<B: Backend>(backend: &B) {
    const WIDTH: usize = 64;
    for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
        let mut x = rows(WIDTH);
        // Two of the largest are too many for one sum.
        (x[2 * WIDTH + 5], x[3 * WIDTH + 5]) = (bad, bad);
        let outcomes = pool(backend, WIDTH, 8, &x);
        let failed = |index: usize| outcomes[index] == Err(SequenceFailure::NonFinite);
        assert_eq!((0..8).filter(|index| failed(*index)).collect::<Vec<_>>(), [2, 4], "{bad}");
    }
    // What is left of a step is not in the next one.
    assert_eq!(pool(backend, WIDTH, 0, &rows(WIDTH)), []);
}
