//! Experts against the definition: the same choice, the definition's numbers, and the same bits for a row whatever other rows
//! chose.

use polydelta::ops::reference::ReferenceBackend;
use polydelta::ops::{
    Activation, Backend, ComputeDtype, Expert, ExpertDeltas, ExpertsSpec, HostMatrix, Numerics, Rows, cuda::CudaBackend,
};
use proptest::prelude::*;

use crate::device::{NUMERICS, cuda};
use crate::scene::{assert_close, assert_same, numbers, rows_of, step_of};

/// Experts of random weights.
pub(crate) struct Layer {
    pub(crate) spec: ExpertsSpec,
    pub(crate) hidden: usize,
    pub(crate) gate_up: Vec<Vec<f32>>,
    pub(crate) down: Vec<Vec<f32>>,
}

impl Layer {
    pub(crate) fn new(hidden: usize, spec: ExpertsSpec, seed: u64) -> Self {
        let inner = spec.intermediate_size;
        // Such that what comes of a layer is about as large as what goes in: one number that is rounded the other way, because
        // its sum differs in the last bit, does not show then.
        let of_each = |salt: u64, len: usize, inputs: usize| {
            let factor = (inputs as f32).sqrt().recip();
            let of_one =
                move |e: u64| numbers(seed ^ salt ^ e << 20, len).iter().map(|number| number * factor).collect();
            (0..spec.experts as u64).map(of_one)
        };
        let gate_up = of_each(1 << 10, 2 * inner * hidden, hidden).collect();
        Self { spec, hidden, gate_up, down: of_each(1 << 11, hidden * inner, inner).collect() }
    }

    pub(crate) fn experts<B: Backend>(&self, backend: &B) -> B::Experts {
        let inner = self.spec.intermediate_size;
        let expert = |(gate_up, down): (&Vec<f32>, &Vec<f32>)| {
            let (gate, up) = gate_up.split_at(inner * self.hidden);
            let segments = [gate, up].map(|half| HostMatrix::f32(inner, self.hidden, half));
            let down = backend.weight(&[HostMatrix::f32(self.hidden, inner, down)]).unwrap();
            Expert { gate_up: backend.weight(&segments).unwrap(), down }
        };
        backend.expert_table(self.gate_up.iter().zip(&self.down).map(expert).collect()).unwrap()
    }

    pub(crate) fn inputs(&self, seed: u64, rows: usize) -> Vec<f32> {
        numbers(seed ^ 0xabc, rows * self.hidden)
    }

    fn on<'a, B: Backend>(&'a self, backend: &'a B, most_rows: usize) -> On<'a, B> {
        let work = backend.experts_work(most_rows, self.hidden, Some(&self.spec)).unwrap();
        On { layer: self, backend, experts: self.experts(backend), work }
    }
}

/// A layer on a backend.
struct On<'a, B: Backend> {
    layer: &'a Layer,
    backend: &'a B,
    experts: B::Experts,
    work: B::ExpertsWork,
}

impl<B: Backend> On<'_, B> {
    /// y of some rows.
    fn run(&mut self, logits: &[f32], x: &[f32]) -> Vec<f32> {
        let Self { layer: Layer { spec, hidden, .. }, backend, experts, work } = self;
        let rows = x.len() / *hidden;
        let logits = backend.buffer_of(spec.experts, logits).unwrap();
        let x = backend.buffer_of(*hidden, x).unwrap();
        let mut y = backend.buffer_of(*hidden, &vec![7.0; rows * *hidden]).unwrap();
        let mut step = step_of(*backend, vec![None; rows]);
        backend.experts(&step, Rows::All, spec, &logits, experts, ExpertDeltas::NONE, &x, work, &mut y);
        let found = rows_of(*backend, &y, rows);
        backend.finish(&mut step).unwrap();
        found
    }
}

/// Which experts the rows of a test choose.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Taste {
    /// Each its own.
    Any,
    /// All the same.
    Same,
    /// Numbers of which many are equal.
    Equal,
}

pub(crate) fn logits(taste: Taste, seed: u64, rows: usize, experts: usize) -> Vec<f32> {
    let of_rows = |rows: usize| numbers(seed ^ 0x5151, rows * experts);
    match taste {
        Taste::Any => of_rows(rows).iter().map(|number| 4.0 * number).collect(),
        Taste::Same => of_rows(1).repeat(rows),
        Taste::Equal => of_rows(rows).iter().map(|number| (1.5 * number).round()).collect(),
    }
}

/// Intermediate numbers that differ in their last bit may round to neighbours in bf16.
pub(crate) fn tolerance(numerics: Numerics) -> f32 {
    if numerics.compute == ComputeDtype::F32 { 1e-4 } else { 2e-2 }
}

pub(crate) fn backwards(numbers: &[f32], width: usize) -> Vec<f32> {
    numbers.chunks_exact(width).rev().flatten().copied().collect()
}

/// Against the definition, some rows alone, and all of them backwards.
fn check(cuda: &CudaBackend, layer: &Layer, taste: Taste, rows: usize, seed: u64) {
    let (hidden, experts, numerics) = (layer.hidden, layer.spec.experts, cuda.numerics());
    let (logits, x) = (logits(taste, seed, rows, experts), layer.inputs(seed, rows));
    let what = format!("{numerics:?}, {taste:?}, {rows} rows of {hidden}, {:?}", layer.spec);
    let mut on_device = layer.on(cuda, rows);
    let whole = on_device.run(&logits, &x);
    let wanted = layer.on(&ReferenceBackend::new(numerics), rows).run(&logits, &x);
    assert_close(&whole, &wanted, tolerance(numerics), &what);
    for row in (0..rows).step_by(rows.div_ceil(3).max(1)) {
        let alone = on_device.run(&logits[row * experts..][..experts], &x[row * hidden..][..hidden]);
        assert_same(&alone, &whole[row * hidden..][..hidden], &format!("{what}: row {row} alone"));
    }
    let found = on_device.run(&backwards(&logits, experts), &backwards(&x, hidden));
    assert_same(&backwards(&found, hidden), &whole, &format!("{what}: backwards"));
}

pub(crate) fn spec(experts: usize, experts_per_token: usize, intermediate_size: usize) -> ExpertsSpec {
    ExpertsSpec { experts, experts_per_token, intermediate_size, activation: Activation::Silu, renormalise: true }
}

#[test]
fn experts_agree_with_the_definition_and_with_themselves_in_any_batch() {
    let backends = NUMERICS.map(cuda);
    let tastes = prop_oneof![Just(Taste::Any), Just(Taste::Same), Just(Taste::Equal)];
    let activations = prop_oneof![Just(Activation::Silu), Just(Activation::Gelu), Just(Activation::GeluTanh)];
    let choices = (1_usize..40).prop_flat_map(|experts| (Just(experts), 1..=experts.min(9)));
    let shapes = (0_usize..40, 1_usize..70, 1_usize..50);
    proptest!(ProptestConfig::with_cases(12), |(
        (rows, hidden, inner) in shapes,
        (experts, each) in choices,
        taste in tastes,
        activation in activations,
        renormalise in any::<bool>(),
        seed in 0_u64..1000,
    )| {
        let spec = ExpertsSpec { activation, renormalise, ..spec(experts, each, inner) };
        for backend in &backends {
            check(backend, &Layer::new(hidden, spec, seed), taste, rows, seed);
        }
    });
}

/// Rows around every change of kernel, in groups that are full and in others, widths that tiles divide and others.
#[test]
fn every_form_of_the_products_gives_the_bits_of_single_rows() {
    for backend in NUMERICS.map(cuda) {
        for (rows, experts, each) in [(16, 3, 2), (17, 1, 1), (64, 2, 1), (65, 1, 1), (70, 2, 2), (300, 4, 2)] {
            for (hidden, inner, taste) in [(264, 72, Taste::Any), (40, 130, Taste::Same)] {
                check(&backend, &Layer::new(hidden, spec(experts, each, inner), 5), taste, rows, 5);
            }
        }
    }
}

/// Shows the choice: expert e gives 2^e times a number that all share.
fn chosen(backend: &CudaBackend, logits: &[f32], each: usize) -> f32 {
    let spec = ExpertsSpec { renormalise: false, ..spec(logits.len(), each, 1) };
    let down = (0..logits.len()).map(|expert| vec![(1 << expert) as f32]).collect();
    let layer = Layer { spec, hidden: 1, gate_up: vec![vec![1.0, 1.0]; logits.len()], down };
    layer.on(backend, 1).run(logits, &[1.0])[0]
}

#[test]
fn of_equal_logits_the_lower_index_is_chosen_first() {
    let given = 1.0 / (1.0 + (-1.0_f32).exp());
    for backend in NUMERICS.map(cuda) {
        for (logits, each, wanted) in [
            (&[1.0, 2.0, 2.0, 2.0][..], 2, &[1, 2][..]),
            (&[0.0, -0.0, 0.0], 2, &[0, 1]),
            (&[-0.0, 0.0, -1.0], 1, &[0]),
            (&[3.0, 1.0, 4.0, 1.0, 5.0], 3, &[0, 2, 4]),
            (&[1.0, 0.0, 1.0], 3, &[0, 1, 2]),
            (&[f32::NEG_INFINITY, -3.0, f32::NEG_INFINITY], 2, &[0, 1]),
        ] {
            let powers: Vec<f32> = logits.iter().map(|logit: &f32| logit.exp()).collect();
            let share = |expert: &usize| powers[*expert] / powers.iter().sum::<f32>() * (1 << expert) as f32;
            let wanted: f32 = wanted.iter().map(share).sum::<f32>() * given;
            let found = chosen(&backend, logits, each);
            assert_close(&[found], &[wanted], tolerance(backend.numerics()), &format!("{each} of {logits:?}"));
        }
    }
}

#[test]
fn a_row_that_is_not_a_number_stays_alone_among_experts() {
    let layer = Layer::new(24, spec(4, 2, 17), 3);
    let spoilt = [[f32::NAN; 4], [f32::INFINITY; 4], [f32::NEG_INFINITY; 4], [1.0, f32::NAN, 7.0, f32::NEG_INFINITY]];
    for backend in NUMERICS.map(cuda) {
        let mut on_device = layer.on(&backend, 100);
        for rows in [5, 100] {
            let (logits, x) = (logits(Taste::Any, 3, rows, 4), layer.inputs(3, rows));
            let clean = on_device.run(&logits, &x);
            let alone = |found: &[f32], what: &str| {
                assert!(found[24..48].iter().all(|y| y.is_nan()), "{what}: {:?}", &found[24..48]);
                assert_same(&found[..24], &clean[..24], what);
                assert_same(&found[48..], &clean[48..], what);
            };
            for spoilt in spoilt {
                let mut logits = logits.clone();
                logits[4..8].copy_from_slice(&spoilt);
                alone(&on_device.run(&logits, &x), &format!("{:?}, {rows} rows, {spoilt:?}", backend.numerics()));
            }
            for number in [f32::INFINITY, f32::NAN] {
                let mut x = x.clone();
                x[24] = number;
                alone(&on_device.run(&logits, &x), &format!("{:?}, {rows} rows, {number}", backend.numerics()));
            }
        }
    }
}

#[test]
fn a_step_without_rows_asks_no_expert() {
    for backend in NUMERICS.map(cuda) {
        for most in [0, 3] {
            let found = Layer::new(5, spec(3, 2, 4), 1).on(&backend, most).run(&[], &[]);
            assert!(found.is_empty());
        }
    }
}
