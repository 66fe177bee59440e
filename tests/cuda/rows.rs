//! Ops over rows against the definition.

use std::ops::Range;

use polydelta::ops::reference::ReferenceBackend;
use polydelta::ops::{
    Activation, Backend, HeadColumns, HostMatrix, Norm, Numerics, OpsError, Rotation, RowPlan, Rows, SampledRows,
    SlotDelta, SlotEntries, StepPlan,
};

use crate::device::{NUMERICS, cuda};
use crate::scene::{
    Pair, SITE, Turn, assert_close, assert_same, at, kept_and_recalled, numbers, plan_of, rows_of, slots, step_of,
    turns_of, vectors_of,
};

/// Slots 0 and 1 have vectors, slot 2 is empty, 99 is the base.
const PATTERN: [u32; 11] = [0, 99, 1, 1, 2, 99, 0, 1, 0, 0, 99];

/// Widths that 16-byte accesses divide, and others.
const WIDTHS: [usize; 4] = [64, 72, 13, 1030];

/// What both backends make of the same rows.
fn compare(width: usize, tolerance: f32, what: &str, run: impl Fn(&dyn Run) -> Vec<f32>) {
    for numerics in NUMERICS {
        let (got, want) = (run(&On(cuda(numerics))), run(&On(ReferenceBackend::new(numerics))));
        assert_close(&got, &want, tolerance, &format!("{what}, {width} wide, {numerics:?}"));
    }
}

/// The ops that change one buffer, for any backend.
trait Run {
    fn vectors(&self, width: usize, op: VectorOp) -> Vec<f32>;
    fn norm(&self, width: usize, heads: Option<HeadColumns>) -> Vec<f32>;
    fn turned(&self, width: usize, pattern: &[u32], x: &[f32], scaled: bool) -> Vec<f32>;
    fn gated(&self, width: usize, activation: Activation) -> Vec<f32>;
    fn embed(&self, width: usize) -> Vec<f32>;
    fn moves(&self, width: usize) -> Vec<f32>;
}

#[derive(Clone, Copy, Debug)]
enum VectorOp {
    Scale,
    Bias,
    BaseBias,
    Softcap,
    ScaleInput,
}

struct On<B>(B);

impl<B: Backend> Run for On<B> {
    fn vectors(&self, width: usize, op: VectorOp) -> Vec<f32> {
        let backend = &self.0;
        let part: Range<usize> = width / 3..width;
        let whole = matches!(op, VectorOp::ScaleInput);
        let columns = if whole { 0..width } else { part };
        let vectors = [(0, 0..width, numbers(3, width)), (1, columns.clone(), numbers(4, columns.len()))];
        let table = vectors_of(backend, &vectors);
        let step = step_of(backend, slots(&PATTERN));
        let x = backend.buffer_of(width, &numbers(1, PATTERN.len() * width)).unwrap();
        let mut y = backend.buffer_of(width, &numbers(2, PATTERN.len() * width)).unwrap();
        match op {
            VectorOp::Scale => backend.scale_rows(&step, Rows::All, at(&table), &mut y),
            VectorOp::Bias => backend.bias_rows(&step, Rows::All, at(&table), &mut y),
            VectorOp::ScaleInput => backend.scale_input(&step, Rows::All, at(&table), &x, &mut y),
            VectorOp::BaseBias => {
                backend.add_bias(&step, Rows::All, &backend.vector(&numbers(5, width)).unwrap(), &mut y);
            }
            VectorOp::Softcap => backend.softcap(&step, Rows::All, 0.4, &mut y),
        }
        rows_of(backend, &y, PATTERN.len())
    }

    fn norm(&self, width: usize, heads: Option<HeadColumns>) -> Vec<f32> {
        let backend = &self.0;
        let normed = heads.map_or(width, |heads| heads.head_dim);
        let table = vectors_of(backend, &[(1, 0..normed, numbers(4, normed))]);
        let weight = backend.vector(&numbers(5, normed)).unwrap();
        let step = step_of(backend, slots(&PATTERN));
        let mut x = backend.buffer_of(width, &numbers(1, PATTERN.len() * width)).unwrap();
        let norm = Norm { weight: &weight, gains: Some(at(&table)), eps: 1e-5 };
        let Some(heads) = heads else {
            let mut y = backend.input_buffer(PATTERN.len(), width).unwrap();
            backend.rms_norm(&step, Rows::All, norm, &x, &mut y);
            return self.with_input(&step, y, width);
        };
        backend.rms_norm_heads(&step, Rows::All, norm, heads, &mut x);
        rows_of(backend, &x, PATTERN.len())
    }

    fn turned(&self, width: usize, pattern: &[u32], x: &[f32], scaled: bool) -> Vec<f32> {
        let backend = &self.0;
        let turn = |slot, size, interleaved, is_shared, seed| Turn { slot, size, interleaved, is_shared, seed };
        let half = width / 2 / 2 * 2;
        let mut turns = vec![turn(0, 1, 1, false, 10), turn(1, width, 1, false, 11), turn(5, width, 1, true, 12)];
        if width.is_multiple_of(8) {
            turns.extend([turn(3, 4, 1, false, 13), turn(3, 4, 2, false, 14), turn(3, half, 2, false, 15)]);
            turns.extend([turn(4, 8, 1, true, 16), turn(4, 2, 4, true, 17)]);
        }
        let table = turns_of(backend, width, &[(1, numbers(8, width)), (2, numbers(9, width))], &turns);
        let step = step_of(backend, slots(pattern));
        let x = backend.buffer_of(width, x).unwrap();
        let mut y = backend.input_buffer(pattern.len(), width).unwrap();
        backend.rotate_input(&step, Rows::All, scaled.then(|| at(&table)), at(&table), &x, &mut y);
        rows_of(backend, &y, pattern.len())
    }

    fn gated(&self, width: usize, activation: Activation) -> Vec<f32> {
        let backend = &self.0;
        let step = step_of(backend, slots(&PATTERN));
        let x = numbers(1, PATTERN.len() * 2 * width).iter().map(|x| 6.0 * x).collect::<Vec<f32>>();
        let x = backend.buffer_of(2 * width, &x).unwrap();
        let mut y = backend.input_buffer(PATTERN.len(), width).unwrap();
        backend.gated_activation(&step, Rows::All, activation, &x, &mut y);
        self.with_input(&step, y, width)
    }

    fn embed(&self, width: usize) -> Vec<f32> {
        const VOCAB: usize = 19;
        let backend = &self.0;
        let table = numbers(7, VOCAB * width);
        let table = backend.weight(&[HostMatrix::f32(VOCAB, width, &table)]).unwrap();
        // A is transposed: [vocab, rank].
        let a = numbers(8, VOCAB * 5);
        let pair = Pair { slot: 0, rank: 5, columns: 0..width, seed: 9 };
        let (_, mut pair) = pair.install(backend, VOCAB);
        pair.a = backend.weight(&[HostMatrix::f32(VOCAB, 5, &a)]).unwrap();
        let mut entries = polydelta::ops::SlotEntries::default();
        entries.low_rank.push((crate::scene::SITE, pair));
        let mut deltas = backend.delta_table(4).unwrap();
        let delta = polydelta::ops::SlotDelta::new(backend, entries).unwrap();
        backend.set_slot(&mut deltas, polydelta::types::AdapterSlot(0), delta);
        let mut plan = plan_of(slots(&PATTERN));
        plan.ids = (0..PATTERN.len()).map(|row| (row % 4 != 1).then_some((row * 5 % VOCAB) as u32)).collect();
        let mut step = backend.step();
        backend.upload(&plan, &mut step).unwrap();
        let mut y = backend.buffer_of(width, &numbers(2, PATTERN.len() * width)).unwrap();
        backend.embed(&step, &table, 1.5, &mut y);
        backend.embedding_low_rank(&step, at(&deltas), 1.5, &mut y);
        rows_of(backend, &y, PATTERN.len())
    }

    fn moves(&self, width: usize) -> Vec<f32> {
        let backend = &self.0;
        let rows = RowPlan::new(slots(&PATTERN));
        let sampled = SampledRows::groups(&rows, &[1, 2, 9]);
        let plan = StepPlan { sampled, ..plan_of(slots(&PATTERN)) };
        let mut step = backend.step();
        backend.upload(&plan, &mut step).unwrap();
        let mut x = backend.buffer_of(width, &numbers(1, PATTERN.len() * width)).unwrap();
        let y = backend.buffer_of(width, &numbers(2, PATTERN.len() * width)).unwrap();
        backend.add(&step, Rows::All, &mut x, &y);
        backend.copy_rows(&y, 3, 5..8, &mut x);
        let mut last = backend.buffer(3, width).unwrap();
        backend.gather_rows(&step, Rows::Sampled(0), &x, &mut last);
        let kept = kept_and_recalled(backend, PATTERN.len(), width);
        [rows_of(backend, &x, PATTERN.len()), rows_of(backend, &last, 3), kept].concat()
    }
}

impl<B: Backend> On<B> {
    /// The rows, and what a GEMM reads of them: their products with the unit matrix.
    fn with_input(&self, step: &B::Step, y: B::Buffer, width: usize) -> Vec<f32> {
        let backend = &self.0;
        let unit: Vec<f32> = (0..width * width).map(|at| f32::from(u8::from(at / width == at % width))).collect();
        let unit = backend.weight(&[HostMatrix::f32(width, width, &unit)]).unwrap();
        let mut read = backend.buffer(PATTERN.len(), width).unwrap();
        backend.gemm(step, Rows::All, &y, &unit, &mut read);
        [rows_of(backend, &y, PATTERN.len()), rows_of(backend, &read, PATTERN.len())].concat()
    }
}

#[test]
fn vectors_of_slots_change_their_rows_and_columns_alone() {
    for width in WIDTHS {
        for op in [VectorOp::Scale, VectorOp::Bias, VectorOp::BaseBias, VectorOp::Softcap, VectorOp::ScaleInput] {
            compare(width, 1e-6, &format!("{op:?}"), |on| on.vectors(width, op));
        }
    }
}

#[test]
fn norms_take_the_gain_of_a_slot_and_leave_what_gemms_read() {
    for width in WIDTHS {
        // A last bit of a number may round the other way in bf16.
        compare(width, 8e-3, "rms_norm", |on| on.norm(width, None));
    }
    let heads = HeadColumns { first: 16, heads: 3, head_dim: 16 };
    compare(96, 1e-5, "rms_norm_heads", |on| on.norm(96, Some(heads)));
}

#[test]
fn turned_inputs_agree_with_the_definition_and_have_the_same_bits_alone() {
    // More rows of one slot than read a block together.
    let pattern: Vec<u32> = (0..60).map(|row| [0, 99, 1, 1, 2, 3, 3, 3, 4, 5, 3, 6][row % 12]).collect();
    for width in [64, 72, 13, 520] {
        let x = numbers(1, pattern.len() * width);
        for scaled in [false, true] {
            compare(width, 2e-5, "rotate_input", |on| on.turned(width, &pattern, &x, scaled));
        }
        for numerics in NUMERICS {
            let on = On(cuda(numerics));
            let all = on.turned(width, &pattern, &x, true);
            for row in (0..pattern.len()).step_by(7) {
                let row_of = |numbers: &[f32]| numbers[row * width..][..width].to_vec();
                let alone = on.turned(width, &pattern[row..=row], &row_of(&x), true);
                assert_same(&alone, &row_of(&all), &format!("{numerics:?}, row {row}"));
            }
        }
    }
}

#[test]
fn a_block_that_no_kernel_holds_is_refused_when_it_comes() {
    let cuda = cuda(Numerics::F32);
    let rotation = Rotation { blocks: cuda.vector(&[0.0]).unwrap(), is_shared: true, size: 8193, interleaved: 1 };
    let entries = SlotEntries { rotations: vec![(SITE, rotation)], ..SlotEntries::default() };
    let refused = SlotDelta::new(&cuda, entries).map(drop).unwrap_err();
    assert!(matches!(refused, OpsError::Unsupported { found: 8193, .. }), "{refused}");
}

#[test]
fn activations_agree_with_the_definition() {
    for width in [64, 13] {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            compare(width, 8e-3, &format!("{activation:?}"), |on| on.gated(width, activation));
        }
    }
}

#[test]
fn tokens_become_rows_of_the_table_with_what_adapters_add() {
    for width in WIDTHS {
        compare(width, 1e-5, "embed", |on| on.embed(width));
    }
}

#[test]
fn rows_are_moved_and_added() {
    for width in WIDTHS {
        compare(width, 0.0, "moves", |on| on.moves(width));
    }
}

#[test]
fn a_norm_gives_a_row_the_same_bits_alone_and_among_others() {
    for numerics in NUMERICS {
        let backend = cuda(numerics);
        let width = 1030;
        let x = numbers(1, PATTERN.len() * width);
        let weight = backend.vector(&numbers(5, width)).unwrap();
        let normed = |rows: usize, x: &[f32]| {
            let x = backend.buffer_of(width, x).unwrap();
            let mut y = backend.input_buffer(rows, width).unwrap();
            let norm = Norm { weight: &weight, gains: None, eps: 1e-5 };
            backend.rms_norm(&step_of(&backend, vec![None; rows]), Rows::All, norm, &x, &mut y);
            rows_of(&backend, &y, rows)
        };
        let all = normed(PATTERN.len(), &x);
        assert_same(&normed(1, &x[4 * width..5 * width]), &all[4 * width..5 * width], "alone");
    }
}
