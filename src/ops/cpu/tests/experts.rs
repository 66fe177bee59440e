use proptest::prelude::*;

use super::*;
use crate::ops::{ComputeDtype, Expert, ExpertDeltas, ExpertsSpec};

/// Experts of random weights, and rows with logits.
pub(super) struct Layer {
    pub(super) spec: ExpertsSpec,
    pub(super) hidden: usize,
    pub(super) gate_up: Vec<Vec<f32>>,
    pub(super) down: Vec<Vec<f32>>,
}

impl Layer {
    pub(super) fn new(hidden: usize, spec: ExpertsSpec, seed: u64) -> Self {
        let inner = spec.intermediate_size;
        let of_each =
            |salt: u64, len: usize| (0..spec.experts as u64).map(move |e| numbers(seed ^ salt ^ e << 20, len));
        let gate_up = of_each(1 << 10, 2 * inner * hidden).collect();
        Self { spec, hidden, gate_up, down: of_each(1 << 11, hidden * inner).collect() }
    }

    pub(super) fn experts<B: Backend>(&self, backend: &B) -> B::Experts {
        let inner = self.spec.intermediate_size;
        let expert = |(gate_up, down): (&Vec<f32>, &Vec<f32>)| {
            let (gate, up) = gate_up.split_at(inner * self.hidden);
            let segments = [gate, up].map(|half| HostMatrix::f32(inner, self.hidden, half));
            let down = backend.weight(&[HostMatrix::f32(self.hidden, inner, down)]).unwrap();
            Expert { gate_up: backend.weight(&segments).unwrap(), down }
        };
        backend.expert_table(self.gate_up.iter().zip(&self.down).map(expert).collect()).unwrap()
    }

    pub(super) fn inputs(&self, seed: u64, rows: usize) -> Vec<f32> {
        numbers(seed ^ 0xabc, rows * self.hidden)
    }

    /// y of some rows by the fast backend, with room for no more than these.
    fn run(&self, backend: &CpuBackend, logits: &[f32], x: &[f32]) -> Vec<f32> {
        let rows = x.len() / self.hidden;
        let mut work = backend.experts_work(rows, self.hidden, Some(&self.spec)).unwrap();
        self.run_in(backend, &mut work, logits, x)
    }

    fn run_in(&self, backend: &CpuBackend, work: &mut ExpertsWork, logits: &[f32], x: &[f32]) -> Vec<f32> {
        let rows = x.len() / self.hidden;
        let (logits, x) = (buffer(self.spec.experts, logits), buffer(self.hidden, x));
        let mut y = buffer(self.hidden, &vec![7.0; rows * self.hidden]);
        let (step, experts) = (step_of(backend, vec![None; rows]), self.experts(backend));
        backend.experts(&step, Rows::All, &self.spec, &logits, &experts, ExpertDeltas::NONE, &x, work, &mut y);
        y.data
    }

    fn reference(&self, numerics: Numerics, logits: &[f32], x: &[f32]) -> Vec<f32> {
        let backend = ReferenceBackend::new(numerics);
        let rows = x.len() / self.hidden;
        let (logits, x) = (matrix(self.spec.experts, logits), matrix(self.hidden, x));
        let mut y = matrix(self.hidden, &vec![7.0; rows * self.hidden]);
        let (step, experts) = (step_of(&backend, vec![None; rows]), self.experts(&backend));
        backend.experts(&step, Rows::All, &self.spec, &logits, &experts, ExpertDeltas::NONE, &x, &mut (), &mut y);
        y.data
    }
}

/// Which experts the rows of a test choose.
#[derive(Clone, Copy, Debug)]
pub(super) enum Taste {
    /// Each its own.
    Any,
    /// All the same.
    Same,
    /// Numbers of which many are equal.
    Equal,
}

pub(super) fn logits(taste: Taste, seed: u64, rows: usize, experts: usize) -> Vec<f32> {
    let of_rows = |rows: usize| numbers(seed ^ 0x5151, rows * experts);
    match taste {
        Taste::Any => of_rows(rows).iter().map(|number| 4.0 * number).collect(),
        Taste::Same => of_rows(1).repeat(rows),
        Taste::Equal => of_rows(rows).iter().map(|number| (1.5 * number).round()).collect(),
    }
}

/// Intermediate numbers that differ in their last bit may round to neighbours in bf16.
pub(super) fn tolerance(numerics: Numerics) -> f32 {
    if numerics.compute == ComputeDtype::Bf16 { 2e-2 } else { 1e-4 }
}

/// Against the definition, and every row alone, backwards and by other numbers of threads.
fn check(layer: &Layer, taste: Taste, rows: usize, seed: u64) {
    let (hidden, experts) = (layer.hidden, layer.spec.experts);
    let (logits, x) = (logits(taste, seed, rows, experts), layer.inputs(seed, rows));
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for numerics in NUMERICS {
            let one = backend(isa, numerics, 1);
            let what = format!("{}, {:?}, {taste:?}, {rows} rows", name(&one), layer.spec);
            let whole = layer.run(&one, &logits, &x);
            assert_close(&whole, &layer.reference(numerics, &logits, &x), tolerance(numerics), &what);
            assert_same(&layer.run(&backend(isa, numerics, 3), &logits, &x), &whole, &what);
            let mut work = one.experts_work(rows, hidden, Some(&layer.spec)).unwrap();
            for row in (0..rows).step_by(rows.div_ceil(7).max(1)) {
                let (logits, x) = (&logits[row * experts..][..experts], &x[row * hidden..][..hidden]);
                let alone = layer.run_in(&one, &mut work, logits, x);
                assert_same(&alone, &whole[row * hidden..][..hidden], &format!("{what}: row {row} alone"));
            }
            let backwards = |numbers: &[f32], width: usize| -> Vec<f32> {
                numbers.chunks_exact(width).rev().flatten().copied().collect()
            };
            let found = layer.run_in(&one, &mut work, &backwards(&logits, experts), &backwards(&x, hidden));
            assert_same(&backwards(&found, hidden), &whole, &format!("{what}: backwards"));
        }
    }
}

pub(super) fn spec(experts: usize, experts_per_token: usize, intermediate_size: usize) -> ExpertsSpec {
    ExpertsSpec { experts, experts_per_token, intermediate_size, activation: Activation::Silu, renormalise: true }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn experts_agree_with_the_definition_and_with_themselves_in_any_batch(
        rows in 0_usize..40,
        hidden in 1_usize..70,
        inner in 1_usize..50,
        (experts, each) in (1_usize..10).prop_flat_map(|experts| (Just(experts), 1..=experts)),
        taste in prop_oneof![Just(Taste::Any), Just(Taste::Same), Just(Taste::Equal)],
        activation in prop_oneof![Just(Activation::Silu), Just(Activation::Gelu), Just(Activation::GeluTanh)],
        renormalise in any::<bool>(),
        seed in 0_u64..1000,
    ) {
        let spec = ExpertsSpec { activation, renormalise, ..spec(experts, each, inner) };
        check(&Layer::new(hidden, spec, seed), taste, rows, seed);
    }
}

#[test]
fn a_step_without_rows_asks_no_expert() {
    for taste in [Taste::Any, Taste::Same, Taste::Equal] {
        check(&Layer::new(5, spec(3, 2, 4), 1), taste, 0, 1);
    }
}

/// More pairs than are computed at a time, in several groups of experts and in one of a single expert.
#[test]
fn long_prompts_come_in_groups_of_experts_and_give_the_bits_of_single_rows() {
    check(&Layer::new(33, spec(12, 3, 9), 5), Taste::Any, 700, 5);
    check(&Layer::new(33, spec(5, 2, 9), 6), Taste::Same, 1300, 6);
}

#[test]
fn what_a_row_chooses_is_weighted_by_its_share_and_others_are_not_looked_at() {
    // One number wide: expert e gives silu(x) * x * (e + 1); the third has no number and nobody chooses it.
    let one = Activation::Silu;
    let spec = ExpertsSpec { activation: one, renormalise: false, ..spec(3, 2, 1) };
    let gate_up = vec![vec![1.0, 1.0]; 3];
    let layer = Layer { spec, hidden: 1, gate_up, down: vec![vec![1.0], vec![2.0], vec![f32::NAN]] };
    let logits = [3.0_f32.ln(), 2.0_f32.ln(), 1.0_f32.ln()];
    let given = 1.0 / (1.0 + (-1.0_f32).exp());
    for backend in backends(1) {
        let found = layer.run(&backend, &logits, &[1.0]);
        assert_close(&found, &[given * (3.0 / 6.0 + 2.0 * 2.0 / 6.0)], tolerance(backend.numerics()), "shares of all");
        let renormalised = Layer {
            spec: ExpertsSpec { renormalise: true, ..layer.spec },
            gate_up: layer.gate_up.clone(),
            down: layer.down.clone(),
            ..layer
        };
        let found = renormalised.run(&backend, &logits, &[1.0]);
        assert_close(&found, &[given * (3.0 / 5.0 + 2.0 * 2.0 / 5.0)], tolerance(backend.numerics()), "of the two");
    }
}

#[test]
fn a_row_that_is_not_a_number_stays_alone_among_experts() {
    let layer = Layer::new(24, spec(4, 2, 17), 3);
    let (mut logits, mut x) = (logits(Taste::Any, 3, 5, 4), layer.inputs(3, 5));
    for backend in backends(2) {
        let clean = layer.run(&backend, &logits, &x);
        let (before, number) = (logits.clone(), x[24]);
        logits[4..8].fill(f32::NAN);
        x[24] = f32::INFINITY;
        let found = layer.run(&backend, &logits, &x);
        assert!(found[24..48].iter().all(|y| y.is_nan()), "{}", name(&backend));
        assert_same(&found[..24], &clean[..24], &name(&backend));
        assert_same(&found[48..], &clean[48..], &name(&backend));
        (logits, x[24]) = (before, number);
    }
}

#[test]
fn a_model_without_experts_keeps_no_room_for_them() {
    let backend = backend(Isa::Portable, Numerics::F32, 1);
    assert_eq!(format!("{:?}", backend.experts_work(512, 64, None).unwrap()), format!("{:?}", ExpertsWork::default()));
}
