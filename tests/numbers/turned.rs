//! Changed inputs of projections: hand-made programs whose sites scale and turn what they read, alone or together, against the
//! same change folded into a pair over the base's weight.

use polydelta::delta::{
    BaseWeights, DeltaOp, DeltaProgram, InputRotate, InputScale, LayerSite, LowRank, RotateStage, Site,
};
use polydelta::ops::{Backend, HostTensor, Numerics, reference::ReferenceBackend};
use proptest::prelude::*;

use crate::device::{alone, cuda};
use crate::fixture::{Case, Family, Runner};
use crate::hidden::{case, cpu, furthest, logits, numbers, program};

/// Projections of a layer, most of them parts of a stack.
const SITES: [(LayerSite, &str); 7] = [
    (LayerSite::Q, "self_attn.q_proj"),
    (LayerSite::K, "self_attn.k_proj"),
    (LayerSite::V, "self_attn.v_proj"),
    (LayerSite::O, "self_attn.o_proj"),
    (LayerSite::Gate, "mlp.gate_proj"),
    (LayerSite::Up, "mlp.up_proj"),
    (LayerSite::Down, "mlp.down_proj"),
];

/// What one projection reads.
#[derive(Clone, Debug)]
struct Change {
    layer: u32,
    /// Index into [`SITES`].
    at: usize,
    is_scaled: bool,
    /// Which divisor of the width is the size of a block, whether blocks come in pairs, whether one is there for all.
    stages: Vec<(usize, bool, bool)>,
    seed: u64,
}

/// The inputs of each block: written down group by group, half by half.
fn inputs_of_blocks(width: usize, stage: &RotateStage) -> Vec<Vec<usize>> {
    let mut blocks = vec![Vec::new(); width / stage.size];
    let mut next = 0;
    for group in blocks.chunks_mut(stage.interleaved) {
        for half in [stage.size / 2, stage.size - stage.size / 2] {
            for block in group.iter_mut() {
                block.extend(next..next + half);
                next += half;
            }
        }
    }
    blocks
}

impl Change {
    fn weight(&self, family: &Family) -> HostTensor {
        let name = format!("model.layers.{}.{}.weight", self.layer, SITES[self.at].1);
        BaseWeights::tensor(&family.checkpoint, &name).unwrap().unwrap()
    }

    fn scale(&self, width: usize) -> Option<Vec<f32>> {
        let around_one = || numbers(self.seed, width, 0.5).iter().map(|number| 1.0 + number).collect();
        self.is_scaled.then(around_one)
    }

    fn stages(&self, width: usize) -> Vec<RotateStage> {
        let divisors: Vec<usize> = (1..=width).filter(|size| width.is_multiple_of(*size)).collect();
        let stage = |(at, (which, in_pairs, is_shared)): (usize, &(usize, bool, bool))| {
            let size = divisors[which % divisors.len()];
            let interleaved = if *in_pairs && width.is_multiple_of(2 * size) { 2 } else { 1 };
            let blocks = if *is_shared { 1 } else { width / size };
            // About as long as rows of a rotation.
            let largest = (3.0 / size as f32).sqrt();
            let numbers = numbers(self.seed + 10 + at as u64, blocks * size * size, largest);
            RotateStage { numbers, blocks, size, interleaved }
        };
        self.stages.iter().enumerate().map(stage).collect()
    }

    fn ops(&self, family: &Family) -> Vec<(Site, DeltaOp)> {
        let (site, width) = (Site::Layer(self.layer, SITES[self.at].0), self.weight(family).cols());
        let scale = self.scale(width).map(|g| (site, InputScale { g }.into()));
        let stages = self.stages(width);
        let rotate = (!stages.is_empty()).then(|| (site, InputRotate { stages }.into()));
        scale.into_iter().chain(rotate).collect()
    }

    /// A row of inputs as the projection reads it.
    fn read(&self, mut x: Vec<f32>) -> Vec<f32> {
        let width = x.len();
        if let Some(g) = self.scale(width) {
            x.iter_mut().zip(g).for_each(|(x, g)| *x *= g);
        }
        for stage in self.stages(width) {
            let before = x.clone();
            for (block, inputs) in inputs_of_blocks(width, &stage).iter().enumerate() {
                let numbers = &stage.numbers[block % stage.blocks * stage.size * stage.size..];
                for (column, out) in inputs.iter().enumerate() {
                    let term = |(row, input): (usize, &usize)| before[*input] * numbers[row * stage.size + column];
                    x[*out] = inputs.iter().enumerate().map(term).sum();
                }
            }
        }
        x
    }

    /// y = Wx' as y = Wx + ΔW x: what a unit row becomes is a row of the change.
    fn folded(&self, family: &Family) -> (Site, DeltaOp) {
        let weight = self.weight(family);
        let (out, width, w) = (weight.rows(), weight.cols(), weight.to_f32());
        let unit = |at: usize| self.read((0..width).map(|other| f32::from(u8::from(other == at))).collect());
        let rows: Vec<Vec<f32>> = (0..width).map(unit).collect();
        let cell = |at: usize| {
            let (w, row) = (&w[at / width * width..][..width], &rows[at % width]);
            w.iter().zip(row).map(|(w, x)| w * x).sum::<f32>() - w[at % width]
        };
        let a = HostTensor::f32(&[out, width], (0..out * width).map(cell).collect());
        let b = (0..out * out).map(|at| f32::from(u8::from(at / out == at % out))).collect();
        let pair = LowRank { a, b: HostTensor::f32(&[out, out], b), scaling: 1.0 };
        (Site::Layer(self.layer, SITES[self.at].0), pair.into())
    }
}

fn as_they_are(family: &Family, changes: &[Change]) -> DeltaProgram {
    program(changes.iter().flat_map(|change| change.ops(family)).collect())
}

fn changes(layers: u32) -> impl Strategy<Value = Vec<Change>> {
    let stages = proptest::collection::vec((0_usize..100, any::<bool>(), any::<bool>()), 1..4);
    let change = (0..layers, 0..SITES.len(), any::<bool>(), stages, 0_u64..1000);
    let change = change.prop_map(|(layer, at, is_scaled, stages, seed)| Change { layer, at, is_scaled, stages, seed });
    // A compiler attaches one op of a class to a site.
    proptest::collection::vec(change, 1..6).prop_map(|mut changes| {
        changes.sort_by_key(|change| (change.layer, change.at));
        changes.dedup_by_key(|change| (change.layer, change.at));
        changes
    })
}

/// Against the fold, and bit for bit alone and beside others: the base, a pair on the same sites, a scale of one of them.
fn check<B: Backend>(make: impl Fn() -> B, family: &Family, changes: &[Change], tolerance: f32) {
    let mut runner =
        Runner::with_blocks_of(16, make(), family, family.spec.context_length, &["lora_all_r8".to_owned()]);
    runner.install("turned", as_they_are(family, changes));
    runner.install("folded", program(changes.iter().map(|change| change.folded(family)).collect()));
    let scale = Change { is_scaled: true, stages: Vec::new(), ..changes[0].clone() };
    runner.install("scaled", as_they_are(family, &[scale]));
    let adapters = [Some("turned"), None, Some("folded"), Some("lora_all_r8"), Some("scaled"), Some("turned")];
    let cases: Vec<Case> =
        adapters.iter().enumerate().map(|(at, adapter)| case(family, if at == 2 { 0 } else { at }, *adapter)).collect();
    let mixed = logits(&mut runner, &cases.iter().collect::<Vec<_>>());
    let distance = furthest(&mixed[0], &mixed[2]);
    assert!(distance < tolerance, "{distance}: {changes:?}");
    for (case, mixed) in cases.iter().zip(&mixed) {
        let alone = logits(&mut runner, &[case]);
        assert!(alone[0].iter().zip(mixed).all(|(a, b)| a.to_bits() == b.to_bits()), "{:?}: {changes:?}", case.adapter);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_turned_input_is_the_change_folded_into_the_projection_and_stays_with_its_rows(changes in changes(2)) {
        let family = Family::open("llama");
        check(|| ReferenceBackend::new(Numerics::F32), &family, &changes, 1e-3);
        check(|| cpu(Numerics::F32), &family, &changes, 1e-3);
        check(|| cpu(Numerics::BF16), &family, &changes, f32::INFINITY);
    }
}

#[test]
fn a_turned_input_is_the_same_on_the_cuda_backend() {
    let _turn = alone();
    let family = Family::open("llama");
    let change = |at, is_scaled, stages: &[(usize, bool, bool)]| Change {
        layer: at as u32 % 2,
        at,
        is_scaled,
        stages: stages.to_vec(),
        seed: 7 + at as u64,
    };
    let changes = [
        change(0, true, &[(3, false, false), (2, true, true)]),
        change(2, false, &[(5, false, false)]),
        change(3, false, &[(2, true, false)]),
        change(5, true, &[(1, false, true)]),
        change(6, true, &[(8, true, false), (4, false, false), (1, true, true)]),
    ];
    check(|| cuda(Numerics::F32), &family, &changes, 1e-3);
    check(|| cuda(Numerics::BF16), &family, &changes, f32::INFINITY);
}
