//! Hidden sites: ops on what a block of a layer adds to the residual stream. Where the block ends in a projection, the
//! same op folded into that projection is the oracle; where it ends in a norm (Gemma), the reference backend is.

use polydelta::delta::{BaseWeights, Bias, DeltaOp, DeltaProgram, LayerSite, LowRank, Site};
use polydelta::ops::cpu::{CpuBackend, CpuOptions};
use polydelta::ops::{Backend, HostTensor, Numerics, reference::ReferenceBackend};
use polydelta::types::AdapterTask;
use proptest::prelude::*;

use crate::fixture::{Case, Family, Runner};

/// Each with the projection before it.
const SITES: [(LayerSite, LayerSite, &str); 2] = [
    (LayerSite::AfterAttention, LayerSite::O, "self_attn.o_proj"),
    (LayerSite::AfterMlp, LayerSite::Down, "mlp.down_proj"),
];

pub(crate) fn cpu(numerics: Numerics) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: 2, numerics, isa: None }).unwrap()
}

/// Numbers in [-scale, scale), a function of the seed (SplitMix64).
pub(crate) fn numbers(seed: u64, len: usize, scale: f32) -> Vec<f32> {
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

/// `[rows of a, columns of w]`.
fn product(a: &HostTensor, w: &HostTensor) -> HostTensor {
    let (rows, inner, cols) = (a.rows(), a.cols(), w.cols());
    assert_eq!(inner, w.rows());
    let (a, w) = (a.to_f32(), w.to_f32());
    let cell = |at: usize| (0..inner).map(|k| a[at / cols * inner + k] * w[k * cols + at % cols]).sum();
    HostTensor::f32(&[rows, cols], (0..rows * cols).map(cell).collect())
}

/// What an adapter has at one hidden site.
#[derive(Clone, Debug)]
struct Op {
    layer: u32,
    /// Index into [`SITES`].
    at: usize,
    /// None is a bias.
    rank: Option<usize>,
    seed: u64,
}

impl Op {
    fn build(&self, hidden: usize) -> DeltaOp {
        match self.rank {
            Some(rank) => LowRank {
                a: HostTensor::f32(&[rank, hidden], numbers(self.seed, rank * hidden, 0.5)),
                b: HostTensor::f32(&[hidden, rank], numbers(self.seed + 1, hidden * rank, 0.5)),
                scaling: 0.5,
            }
            .into(),
            None => Bias { b: numbers(self.seed, hidden, 0.3) }.into(),
        }
    }
}

pub(crate) fn program(ops: Vec<(Site, DeltaOp)>) -> DeltaProgram {
    DeltaProgram {
        kind: "test".to_owned(),
        task: AdapterTask::default(),
        ops,
        invocation_tokens: Vec::new(),
        keeps_base_kv: false,
        base_layers: 0,
        vocab_size: None,
        unknown_fields: Vec::new(),
    }
}

fn at_hidden_sites(family: &Family, ops: &[Op]) -> DeltaProgram {
    let hidden = family.spec.hidden_size;
    program(ops.iter().map(|op| (Site::Layer(op.layer, SITES[op.at].0), op.build(hidden))).collect())
}

/// The same as ops of the projections: h = Wx, so that h + s·B(Ah) is Wx + s·B(AW)x.
fn folded(family: &Family, ops: &[Op]) -> DeltaProgram {
    let fold = |op: &Op| {
        let (_, projection, name) = SITES[op.at];
        let delta = match op.build(family.spec.hidden_size) {
            DeltaOp::LowRank(pair) => {
                let name = format!("model.layers.{}.{name}.weight", op.layer);
                let weight = BaseWeights::tensor(&family.checkpoint, &name).unwrap().unwrap();
                LowRank { a: product(&pair.a, &weight), ..pair }.into()
            }
            other => other,
        };
        (Site::Layer(op.layer, projection), delta)
    };
    program(ops.iter().map(fold).collect())
}

/// The logits behind each case's prompt.
pub(crate) fn logits<B: Backend>(runner: &mut Runner<B>, cases: &[&Case]) -> Vec<Vec<f32>> {
    let sequences = runner.generate(cases, usize::MAX);
    sequences.into_iter().map(|mut sequence| sequence.logits.swap_remove(0)).collect()
}

/// A prompt of the family for an adapter, as a case of one token.
pub(crate) fn case(family: &Family, which: usize, adapter: Option<&str>) -> Case {
    let of_base: Vec<&Case> = family.cases.iter().filter(|case| case.adapter.is_none()).collect();
    let from = of_base[which % of_base.len()];
    Case { adapter: adapter.map(str::to_owned), ids: from.ids[..1].to_vec(), ..from.clone() }
}

pub(crate) fn furthest(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| (one - other).abs() / (1.0 + other.abs())).fold(0.0, f32::max)
}

/// A bias and whatever else: a pair alone may happen to be nearly orthogonal to the one row it is given.
fn ops(layers: u32) -> impl Strategy<Value = Vec<Op>> {
    let op = move |rank| {
        let op = (0..layers, 0..SITES.len(), rank, 0_u64..1000);
        op.prop_map(|(layer, at, rank, seed)| Op { layer, at, rank, seed })
    };
    let any = op(proptest::option::weighted(0.7, 1_usize..6).boxed());
    // A compiler attaches one op of a class to a site.
    (op(Just(None).boxed()), proptest::collection::vec(any, 0..5)).prop_map(|(bias, mut ops)| {
        ops.push(bias);
        ops.sort_by_key(|op| (op.layer, op.at, op.rank.is_some()));
        ops.dedup_by_key(|op| (op.layer, op.at, op.rank.is_some()));
        ops
    })
}

fn check_folded<B: Backend>(backend: B, family: &Family, ops: &[Op], prompt: usize) {
    let mut runner = Runner::new(backend, family, family.spec.context_length, &[]);
    runner.install("hidden", at_hidden_sites(family, ops));
    runner.install("folded", folded(family, ops));
    let cases = [None, Some("hidden"), Some("folded")].map(|adapter| case(family, prompt, adapter));
    let found = logits(&mut runner, &cases.each_ref());
    assert!(furthest(&found[1], &found[2]) < 1e-3, "{} {ops:?}", furthest(&found[1], &found[2]));
    assert!(furthest(&found[1], &found[0]) > 1e-3, "{ops:?} change nothing");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_op_at_a_hidden_site_is_the_one_folded_into_the_projection_before_it(ops in ops(2), prompt in 0_usize..8) {
        let family = Family::open("llama");
        check_folded(ReferenceBackend::new(Numerics::F32), &family, &ops, prompt);
        check_folded(cpu(Numerics::F32), &family, &ops, prompt);
    }
}

/// Ops at every hidden site of the first two layers.
fn everywhere() -> Vec<Op> {
    let op = |index: u64| {
        let rank = index.is_multiple_of(2).then_some(3 + index as usize);
        Op { layer: (index / 4) as u32, at: (index / 2 % 2) as usize, rank, seed: 50 + 2 * index }
    };
    (0..8).map(op).collect()
}

#[test]
fn pairs_alone_at_hidden_sites_are_those_folded_into_the_projections() {
    let family = Family::open("llama");
    let pairs: Vec<Op> = everywhere().into_iter().filter(|op| op.rank.is_some()).collect();
    for pairs in [&pairs[..], &pairs[..1], &pairs[1..2]] {
        check_folded(ReferenceBackend::new(Numerics::F32), &family, pairs, 0);
        check_folded(cpu(Numerics::F32), &family, pairs, 0);
    }
}

#[test]
fn a_block_that_ends_in_a_norm_has_its_hidden_site_behind_it() {
    let family = Family::open("gemma3");
    let cases = [None, Some("hidden")].map(|adapter| case(&family, 0, adapter));
    fn run<B: Backend>(backend: B, family: &Family, cases: &[&Case]) -> Vec<Vec<f32>> {
        let mut runner = Runner::new(backend, family, family.spec.context_length, &[]);
        runner.install("hidden", at_hidden_sites(family, &everywhere()));
        logits(&mut runner, cases)
    }
    let want = run(ReferenceBackend::new(Numerics::F32), &family, &cases.each_ref());
    let got = run(cpu(Numerics::F32), &family, &cases.each_ref());
    assert!(furthest(&got[1], &want[1]) < 1e-3 && furthest(&got[0], &want[0]) < 1e-3);
    assert!(furthest(&want[1], &want[0]) > 1e-2);
}

#[test]
fn rows_of_hidden_sites_give_the_same_bits_alone_and_mixed_and_leave_others_alone() {
    for name in ["llama", "gemma3"] {
        let family = Family::open(name);
        for numerics in [Numerics::F32, Numerics::BF16] {
            let mut bare = Runner::new(cpu(numerics), &family, family.spec.context_length, &[]);
            let mut runner = Runner::new(cpu(numerics), &family, family.spec.context_length, &[]);
            runner.install("hidden", at_hidden_sites(&family, &everywhere()));
            runner.install("other", at_hidden_sites(&family, &everywhere()[3..5]));
            let adapters = [Some("hidden"), None, Some("other"), Some("hidden"), None];
            let cases: Vec<Case> =
                adapters.iter().enumerate().map(|(index, adapter)| case(&family, index, *adapter)).collect();
            let mixed = logits(&mut runner, &cases.iter().collect::<Vec<_>>());
            for (case, mixed) in cases.iter().zip(&mixed) {
                let alone = match case.adapter {
                    Some(_) => logits(&mut runner, &[case]),
                    None => logits(&mut bare, &[case]),
                };
                assert!(
                    alone[0].iter().zip(mixed).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{name} {:?}",
                    case.adapter
                );
            }
        }
    }
}
