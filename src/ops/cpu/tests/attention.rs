use proptest::prelude::*;

use super::*;
use crate::ops::SequencePlan;

#[derive(Clone, Copy, Debug)]
struct Scene {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    window: Option<u32>,
    softcap: Option<f32>,
}

const LAYER: usize = 1;
const BLOCKS: usize = 64;
const POSITIONS: usize = 128;

impl Scene {
    fn spec(&self) -> AttentionSpec {
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let Self { heads, kv_heads, head_dim, window, softcap, .. } = *self;
        AttentionSpec { heads, kv_heads, head_dim, scale: 3.0 * scale, softcap, window }
    }

    fn shape(&self) -> KvShape {
        let Self { kv_heads, head_dim, block_size, .. } = *self;
        KvShape { layers: 2, blocks: BLOCKS, block_size, kv_heads, head_dim }
    }

    fn columns(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn rope(&self) -> RopeTable {
        let half = self.head_dim / 4;
        let angles = numbers(3, POSITIONS * half);
        let (cos, sin) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
        RopeTable { rotary_dim: 2 * half, cos, sin }
    }

    /// One pass over the given stretches of sequences: (q, k and v of all tokens of the sequence, tokens, blocks).
    fn pass<B: Backend>(
        &self,
        backend: &B,
        kv: &mut B::KvCache,
        stretches: &[(&[f32], std::ops::Range<usize>, &[u32])],
    ) -> Vec<f32> {
        let mut plan = StepPlan::default();
        let mut qkv = Vec::new();
        for (tokens, range, blocks) in stretches {
            let first = plan.positions.len();
            for index in range.clone() {
                plan.positions.push(index as u32);
                let block = blocks[index / self.block_size] as usize;
                plan.kv_slots.push((block * self.block_size + index % self.block_size) as u32);
                qkv.extend_from_slice(&tokens[index * self.columns()..][..self.columns()]);
            }
            let rows = first..plan.positions.len();
            plan.sequences.push(SequencePlan { rows, start: range.start as u32, blocks: blocks.to_vec().into() });
        }
        let rows = plan.positions.len();
        plan.ids = vec![None; rows];
        plan.rows = RowPlan::new(vec![None; rows]);
        let mut step = backend.step();
        backend.upload(&plan, &mut step).unwrap();
        let mut x = backend.buffer_of(self.columns(), &qkv).unwrap();
        let rope = backend.rope(&self.rope()).unwrap();
        backend.rope_and_cache(&step, &self.spec(), &rope, LAYER, &mut x, kv);
        let mut y = backend.buffer(rows, self.heads * self.head_dim).unwrap();
        backend.attention(&step, &self.spec(), LAYER, &x, kv, &mut y);
        (0..rows).flat_map(|row| backend.read_row(&y, row).into_owned()).collect()
    }

    fn whole<B: Backend>(&self, backend: &B, tokens: &[f32], blocks: &[u32]) -> Vec<f32> {
        let mut kv = backend.kv_cache(self.shape()).unwrap();
        self.pass(backend, &mut kv, &[(tokens, 0..tokens.len() / self.columns(), blocks)])
    }
}

fn scenes() -> Vec<Scene> {
    let scene = |heads, kv_heads, head_dim, block_size, window, softcap| Scene {
        heads,
        kv_heads,
        head_dim,
        block_size,
        window,
        softcap,
    };
    vec![
        scene(4, 4, 16, 16, None, None),
        scene(7, 1, 64, 16, None, None),
        scene(14, 2, 20, 32, Some(9), None),
        scene(4, 2, 8, 4, Some(40), Some(5.0)),
        scene(2, 1, 1, 20, None, Some(2.0)),
        scene(3, 3, 35, 8, Some(1), None),
        scene(40, 1, 12, 16, None, None),
    ]
}

#[test]
fn attention_agrees_with_the_definition() {
    for scene in scenes() {
        for cpu in backends(2) {
            let tokens = numbers(5, 70 * scene.columns());
            let blocks: Vec<u32> = (0..20).rev().collect();
            let want = scene.whole(&ReferenceBackend::new(cpu.numerics()), &tokens, &blocks);
            let got = scene.whole(&cpu, &tokens, &blocks);
            assert_close(&got, &want, 2e-5, &format!("{} {scene:?}", name(&cpu)));
        }
    }
}

#[test]
fn what_the_cache_keeps_is_chosen_apart_from_what_is_computed_in() {
    let scene = scenes().remove(2);
    let (tokens, blocks) = (numbers(5, 70 * scene.columns()), (0..20).collect::<Vec<u32>>());
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for [compute, kept] in [[Numerics::F32, Numerics::BF16], [Numerics::BF16, Numerics::F32]] {
            let cpu = backend(isa, Numerics { kv: kept.kv, ..compute }, 2);
            let got = scene.whole(&cpu, &tokens, &blocks);
            let alike = scene.whole(&backend(isa, kept, 2), &tokens, &blocks);
            // Attention reads nothing but q and the cache.
            assert_same(&got, &alike, &name(&cpu));
        }
    }
}

/// Chunked, in other company, in other pages, on other threads, over stale pages: always the same bits.
fn check_invariance(scene: Scene, isa: Isa, numerics: Numerics, len: usize, cuts: &[usize], seed: u64) {
    let one = backend(isa, numerics, 1);
    let many = backend(isa, numerics, 3);
    let what = format!("{} {scene:?}", name(&one));
    let columns = scene.columns();
    let tokens = numbers(seed, len * columns);
    let other = numbers(seed + 1, 50 * columns);
    let (blocks, elsewhere): (Vec<u32>, Vec<u32>) = ((0..30).collect(), (0..30).map(|b| 63 - b).collect());
    let whole = scene.whole(&one, &tokens, &blocks);
    assert_same(&scene.whole(&many, &tokens, &elsewhere), &whole, &format!("{what}, other pages and threads"));

    let mut kv = many.kv_cache(scene.shape()).unwrap();
    let (all, places) = ((0..BLOCKS as u32).collect::<Vec<_>>(), BLOCKS * scene.block_size);
    let dim = scene.shape().kv_dim();
    let stale = many.buffer_of(dim, &vec![f32::NAN; places * dim]).unwrap();
    many.write_pages(&mut kv, LAYER, &all, places, &stale, &stale);
    let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut % len).chain([0, len]).collect();
    bounds.sort_unstable();
    bounds.dedup();
    let (mut got, mut at) = (Vec::new(), 0);
    let width = scene.heads * scene.head_dim;
    for chunk in bounds.windows(2) {
        let ours = (&*tokens, chunk[0]..chunk[1], &*blocks);
        let beside = (&*other, at..at + 5, &*elsewhere);
        at = (at + 5) % 45;
        let turn = chunk[0] % 2 == 0;
        let rows = chunk[1] - chunk[0];
        let y = scene.pass(&many, &mut kv, &if turn { [ours, beside] } else { [beside, ours] });
        let first = if turn { 0 } else { 5 };
        got.extend_from_slice(&y[first * width..(first + rows) * width]);
    }
    assert_same(&got, &whole, &format!("{what}, cut at {bounds:?}"));
}

#[test]
fn chunks_company_pages_and_threads_change_no_bit() {
    for scene in scenes() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for numerics in NUMERICS {
                check_invariance(scene, isa, numerics, 110, &[1, 2, 17, 40, 41, 63, 64, 65, 100, 101], 3);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_cut_of_a_prompt_gives_the_same_bits(
        index in 0_usize..7,
        len in 1_usize..90,
        cuts in proptest::collection::vec(0_usize..90, 0..8),
        seed in 0_u64..1000,
    ) {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for numerics in NUMERICS {
                check_invariance(scenes()[index], isa, numerics, len, &cuts, seed);
            }
        }
    }
}

#[test]
fn a_sequence_that_is_not_a_number_leaves_its_neighbour_alone() {
    let scene = scenes()[1];
    for cpu in backends(2) {
        let tokens = numbers(1, 20 * scene.columns());
        let mut bad = tokens.clone();
        bad[7] = f32::NAN;
        let (ours, theirs): (Vec<u32>, Vec<u32>) = ((0..5).collect(), (5..10).collect());
        let whole = scene.whole(&cpu, &tokens, &ours);
        let mut kv = cpu.kv_cache(scene.shape()).unwrap();
        let y = scene.pass(&cpu, &mut kv, &[(&bad, 0..20, &theirs), (&tokens, 0..20, &ours)]);
        assert_same(&y[y.len() / 2..], &whole, &name(&cpu));
        assert!(y[..scene.head_dim].iter().all(|y| y.is_nan()));
    }
}

#[test]
fn a_token_sees_nothing_of_later_ones_that_are_not_numbers() {
    let scene = scenes()[0];
    for cpu in backends(2) {
        let columns = scene.columns();
        let mut tokens = numbers(1, 20 * columns);
        let blocks: Vec<u32> = (0..5).collect();
        let clean = scene.whole(&cpu, &tokens, &blocks);
        tokens[13 * columns..].fill(f32::NAN);
        let width = scene.heads * scene.head_dim;
        assert_same(&scene.whole(&cpu, &tokens, &blocks)[..13 * width], &clean[..13 * width], &name(&cpu));
    }
}

#[test]
fn copied_blocks_and_written_pages_are_attended_to_like_the_originals() {
    let scene = scenes()[2];
    for cpu in backends(1) {
        let tokens = numbers(2, 40 * scene.columns());
        let whole = scene.whole(&cpu, &tokens, &[0, 1]);
        let mut kv = cpu.kv_cache(scene.shape()).unwrap();
        scene.pass(&cpu, &mut kv, &[(&tokens, 0..39, &[0, 1])]);
        cpu.copy_block(&mut kv, 0, 9);
        cpu.copy_block(&mut kv, 1, 7);
        let last = scene.pass(&cpu, &mut kv, &[(&tokens, 39..40, &[9, 7])]);
        assert_same(&last, &whole[39 * scene.heads * scene.head_dim..], &name(&cpu));
    }
}
