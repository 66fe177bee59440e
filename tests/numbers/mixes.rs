//! Mixes of programs of random numbers: what a step makes of one is what it makes of the weighted sum of the matrices and
//! biases that the parts are, worked out here and put in as one dense op for each site.

use polydelta::delta::{
    Bias, CompileLimits, DeltaError, DeltaOp, DeltaProgram, EmbeddingLowRank, LowRank, Module, ModuleKind, Site,
};
use polydelta::model::base_layout;
use polydelta::ops::cpu::{CpuBackend, CpuOptions};
use polydelta::ops::{Backend, HostTensor, Numerics, reference::ReferenceBackend};
use proptest::prelude::*;

use crate::fixture::{Case, Family, LIMITS, Runner};
use crate::hidden::program;

/// One module for each projection, and several in one.
pub(crate) const FAMILIES: [&str; 2] = ["llama", "phi3"];

/// Parts of a mix, and where their numbers come from.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    weights: Vec<f32>,
    seed: u64,
}

impl Scene {
    pub(crate) fn of(seed: u64) -> Self {
        Self { weights: vec![0.75, -1.5, 0.5], seed }
    }
}

/// Numbers in [-scale, scale), a function of the seed (SplitMix64).
fn numbers(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..len).map(|_| scale * ((next() >> 40) as f32 / (1 << 23) as f32 - 1.0)).collect()
}

/// What a part has at a module, if anything.
#[derive(Clone, Debug)]
struct Piece {
    rank: usize,
    scaling: f32,
    /// `[rank, in]`.
    a: Vec<f32>,
    /// `[out, rank]`.
    b: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Piece {
    fn of(seed: u64, module: &Module) -> Option<Self> {
        let [chosen, rank, biased] = <[f32; 3]>::try_from(numbers(seed, 3, 1.0)).unwrap();
        if chosen < 0.0 {
            return None;
        }
        let rank = 1 + (rank.abs() * 9.0) as usize;
        let is_linear = module.kind == ModuleKind::Linear;
        Some(Self {
            rank,
            scaling: 0.5 + rank as f32 / 8.0,
            a: numbers(seed + 1, rank * module.input, 0.3),
            b: numbers(seed + 2, rank * module.output, 0.1),
            bias: (is_linear && biased > 0.0).then(|| numbers(seed + 3, module.output, 0.2)),
        })
    }

    fn ops(self, module: &Module) -> Vec<(Site, DeltaOp)> {
        let bias = self.bias.map(|b| (module.site, Bias { b }.into()));
        let a = HostTensor::f32(&[self.rank, module.input], self.a);
        let b = HostTensor::f32(&[module.output, self.rank], self.b);
        let pair = (module.site, pair(module, a, b, self.scaling));
        std::iter::once(pair).chain(bias).collect()
    }

    /// Add `weight` times its change of the weight `[out, in]` and of the bias.
    fn add_to(&self, weight: f32, module: &Module, change: &mut [f64], bias: &mut [f64]) {
        let factor = f64::from(weight) * f64::from(self.scaling);
        for (at, sum) in change.iter_mut().enumerate() {
            let (out, input) = (at / module.input, at % module.input);
            let products = (0..self.rank)
                .map(|r| f64::from(self.b[out * self.rank + r]) * f64::from(self.a[r * module.input + input]));
            *sum += factor * products.sum::<f64>();
        }
        for (sum, b) in bias.iter_mut().zip(self.bias.iter().flatten()) {
            *sum += f64::from(weight) * f64::from(*b);
        }
    }
}

fn pair(module: &Module, a: HostTensor, b: HostTensor, scaling: f32) -> DeltaOp {
    match module.kind {
        ModuleKind::Embedding => EmbeddingLowRank { a, b, scaling }.into(),
        _ => LowRank { a, b, scaling }.into(),
    }
}

fn narrow(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|number| *number as f32).collect()
}

/// The whole change of a weight as a pair: `[out, in]` times the identity.
fn dense(module: &Module, change: &[f64]) -> DeltaOp {
    let identity = |at: usize| f32::from(at / module.input == at % module.input);
    let a = (0..module.input * module.input).map(identity).collect();
    let a = HostTensor::f32(&[module.input, module.input], a);
    pair(module, a, HostTensor::f32(&[module.output, module.input], narrow(change)), 1.0)
}

/// The mix, and the sum worked out.
fn programs(family: &Family, scene: &Scene) -> (DeltaProgram, DeltaProgram) {
    let layout = base_layout(&family.spec);
    let mut parts = vec![Vec::new(); scene.weights.len()];
    let mut sum = Vec::new();
    let modules = layout.modules().filter(|module| module.kind != ModuleKind::Norm);
    for (module, at) in modules.zip(0_u64..) {
        let (mut change, mut bias) = (vec![0.0; module.output * module.input], vec![0.0; module.output]);
        for ((part, weight), index) in parts.iter_mut().zip(&scene.weights).zip(0_u64..) {
            if let Some(piece) = Piece::of(scene.seed + 1000 * (at * 8 + index), module) {
                piece.add_to(*weight, module, &mut change, &mut bias);
                part.extend(piece.ops(module));
            }
        }
        sum.push((module.site, dense(module, &change)));
        if module.kind == ModuleKind::Linear {
            sum.push((module.site, Bias { b: narrow(&bias) }.into()));
        }
    }
    let weighted = parts.into_iter().zip(&scene.weights).map(|(ops, weight)| program(ops).weighted(*weight).unwrap());
    (DeltaProgram::sum(weighted.collect(), LIMITS).unwrap(), program(sum))
}

fn furthest(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| (one - other).abs() / (1.0 + other.abs())).fold(0.0, f32::max)
}

pub(crate) fn check_mix<B: Backend>(family: &Family, scene: &Scene, make: impl Fn() -> B) {
    let (mix, sum) = programs(family, scene);
    let mut runner = Runner::new(make(), family, family.spec.context_length, &[]);
    runner.install("mix", mix);
    runner.install("sum", sum);
    let prompt = family.cases.iter().find(|case| case.name == "base/long").unwrap();
    let case = |adapter: Option<&str>| Case {
        adapter: adapter.map(str::to_owned),
        ids: prompt.ids[..1].to_vec(),
        ..prompt.clone()
    };
    let cases = [case(Some("mix")), case(None), case(Some("sum")), case(Some("mix"))];
    let logits: Vec<Vec<f32>> = runner
        .generate(&cases.iter().collect::<Vec<_>>(), 7)
        .into_iter()
        .map(|mut sequence| sequence.logits.swap_remove(0))
        .collect();
    let what = format!("{} {scene:?}", family.name);
    assert!(furthest(&logits[0], &logits[2]) < 1e-3, "{what}: {}", furthest(&logits[0], &logits[2]));
    assert!(furthest(&logits[0], &logits[1]) > 1e-2, "{what}: it changes nothing");
    assert_eq!(logits[0], logits[3], "{what}");
}

fn cpu() -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::F32, isa: None }).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mix_of_random_programs_is_the_weighted_sum_of_what_they_are(
        weights in proptest::collection::vec(-2.0_f32..2.0, 2..5),
        seed in 0_u64..1_000_000,
    ) {
        let scene = Scene { weights, seed };
        for name in FAMILIES {
            let family = Family::open(name);
            check_mix(&family, &scene, || ReferenceBackend::new(Numerics::F32));
            check_mix(&family, &scene, cpu);
        }
    }
}

#[test]
fn what_is_not_linear_is_refused_by_class_and_site() {
    let family = Family::open("llama");
    let reasons = [
        ("dora", "OutputScale of layer 0 q multiplies what others add"),
        ("ia3", "OutputScale of"),
        ("ia3_up_input", "InputScale of layer 0 up multiplies what the base and others read"),
        ("ln_tuning", "Gain of"),
        ("prefix_tuning", "Prefix of"),
        ("prompt_tuning", "PromptEmbeds of"),
    ];
    for (adapter, reason) in reasons {
        let refused = family.compile(adapter).unwrap().weighted(1.0).unwrap_err();
        assert!(matches!(refused, DeltaError::NotLinear { .. }), "{adapter}: {refused}");
        assert!(refused.to_string().contains(reason), "{adapter}: {refused}");
    }
}

#[test]
fn ranks_of_a_site_count_together_and_weights_may_not_overflow() {
    let family = Family::open("llama");
    let part = |name: &str, weight| family.compile(name).unwrap().weighted(weight);
    let limits = |max_rank| CompileLimits { max_rank, ..LIMITS };
    // Rank 4 of q and v, rank 8 of all, rank 3 of k, o and up.
    let sum = |max_rank| {
        let parts = ["lora_r4", "lora_all_r8", "lora_odd_r3"].map(|name| part(name, 1.0).unwrap());
        DeltaProgram::sum(parts.into(), limits(max_rank))
    };
    assert!(sum(12).is_ok());
    assert!(matches!(sum(11), Err(DeltaError::Rank { rank: 12, max: 11, .. })));
    let loud = part("lora_r4", 3e38).unwrap_err();
    assert!(matches!(&loud, DeltaError::NonFinite { tensor, .. } if tensor.starts_with("the scaling of")), "{loud}");
}
