//! Scenes of attention: rotation, the paged KV cache, and what a backend must make of both.

use std::ops::Range;

use polydelta::ops::reference::ReferenceBackend;
use polydelta::ops::{AttentionSpec, Backend, KvShape, RopeTable, RowPlan, SequencePlan, StepPlan};

use super::{assert_close, assert_same, numbers, rows_of};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) block_size: usize,
    pub(crate) window: Option<u32>,
    pub(crate) softcap: Option<f32>,
}

const LAYER: usize = 1;
const BLOCKS: usize = 64;
const POSITIONS: usize = 640;

/// Some tokens of a sequence: q, k and v of all of them, which, and where its pages are.
pub(crate) type Stretch<'a> = (&'a [f32], Range<usize>, &'a [u32]);

pub(crate) fn scene(
    [heads, kv_heads, head_dim, block_size]: [usize; 4],
    window: Option<u32>,
    softcap: Option<f32>,
) -> Scene {
    Scene { heads, kv_heads, head_dim, block_size, window, softcap }
}

impl Scene {
    fn spec(&self) -> AttentionSpec {
        let scale = 3.0 / (self.head_dim as f32).sqrt();
        let Self { heads, kv_heads, head_dim, window, softcap, .. } = *self;
        AttentionSpec { heads, kv_heads, head_dim, scale, softcap, window }
    }

    pub(crate) fn shape(&self) -> KvShape {
        let Self { kv_heads, head_dim, block_size, .. } = *self;
        KvShape { layers: 2, blocks: BLOCKS, block_size, kv_heads, head_dim, kept: 0 }
    }

    /// Of q, k and v.
    pub(crate) fn columns(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Of what comes out.
    pub(crate) fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn rope(&self) -> RopeTable {
        let half = self.head_dim / 4;
        let (cos, sin) = numbers(3, POSITIONS * half).iter().map(|angle| (angle.cos(), angle.sin())).unzip();
        RopeTable { rotary_dim: 2 * half, cos, sin }
    }

    /// One pass over the given stretches of sequences.
    pub(crate) fn pass<B: Backend>(&self, backend: &B, kv: &mut B::KvCache, stretches: &[Stretch<'_>]) -> Vec<f32> {
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
        let mut y = backend.input_buffer(rows, self.width()).unwrap();
        backend.attention(&step, &self.spec(), LAYER, &x, kv, &mut y);
        let got = rows_of(backend, &y, rows);
        backend.finish(&mut step).unwrap();
        got
    }

    /// All tokens at once, in a cache of their own.
    pub(crate) fn whole<B: Backend>(&self, backend: &B, tokens: &[f32], blocks: &[u32]) -> Vec<f32> {
        let mut kv = backend.kv_cache(self.shape()).unwrap();
        self.pass(backend, &mut kv, &[(tokens, 0..tokens.len() / self.columns(), blocks)])
    }

    /// The definition's numbers, in pages that lie backwards.
    pub(crate) fn check_agreement<B: Backend>(&self, backend: &B, tolerance: f32, what: &str) {
        let tokens = numbers(5, 70 * self.columns());
        let blocks: Vec<u32> = (0..20).rev().collect();
        let want = self.whole(&ReferenceBackend::new(backend.numerics()), &tokens, &blocks);
        let got = self.whole(backend, &tokens, &blocks);
        assert_close(&got, &want, tolerance, &format!("{what} {self:?}"));
    }

    /// Chunked, in other company, in other pages, over stale pages, on another backend of the same kind: always the same bits.
    pub(crate) fn check_invariance<B: Backend>(
        &self,
        [one, many]: [&B; 2],
        len: usize,
        cuts: &[usize],
        seed: u64,
        what: &str,
    ) {
        let what = format!("{what} {self:?}");
        let (tokens, other) = (numbers(seed, len * self.columns()), numbers(seed + 1, 50 * self.columns()));
        let (blocks, elsewhere): (Vec<u32>, Vec<u32>) = ((0..30).collect(), (0..30).map(|b| 63 - b).collect());
        let whole = self.whole(one, &tokens, &blocks);
        assert_same(&self.whole(many, &tokens, &elsewhere), &whole, &format!("{what}, elsewhere"));

        let mut kv = self.stale_cache(many);
        let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut % len).chain([0, len]).collect();
        bounds.sort_unstable();
        bounds.dedup();
        let (mut got, mut at) = (Vec::new(), 0);
        for chunk in bounds.windows(2) {
            let ours = (&*tokens, chunk[0]..chunk[1], &*blocks);
            let beside = (&*other, at..at + 5, &*elsewhere);
            at = (at + 5) % 45;
            let turn = chunk[0] % 2 == 0;
            let y = self.pass(many, &mut kv, &if turn { [ours, beside] } else { [beside, ours] });
            let first = if turn { 0 } else { 5 };
            let rows = chunk[1] - chunk[0];
            got.extend_from_slice(&y[first * self.width()..(first + rows) * self.width()]);
        }
        assert_same(&got, &whole, &format!("{what}, cut at {bounds:?}"));
    }

    /// A cache that holds what is no number.
    fn stale_cache<B: Backend>(&self, backend: &B) -> B::KvCache {
        let mut kv = backend.kv_cache(self.shape()).unwrap();
        let (all, places) = ((0..BLOCKS as u32).collect::<Vec<_>>(), BLOCKS * self.block_size);
        let dim = self.shape().kv_dim();
        let stale = || backend.buffer_of(dim, &vec![f32::NAN; places * dim]).unwrap();
        backend.write_pages(&mut kv, &all, places, &[(); LAYER + 1].map(|()| (stale(), stale())));
        kv
    }

    /// A sequence that is not a number leaves its neighbour alone.
    pub(crate) fn check_neighbours<B: Backend>(&self, backend: &B, what: &str) {
        let tokens = numbers(1, 20 * self.columns());
        let mut bad = tokens.clone();
        bad[7] = f32::NAN;
        let (ours, theirs): (Vec<u32>, Vec<u32>) = ((0..5).collect(), (5..10).collect());
        let whole = self.whole(backend, &tokens, &ours);
        let mut kv = backend.kv_cache(self.shape()).unwrap();
        let y = self.pass(backend, &mut kv, &[(&bad, 0..20, &theirs), (&tokens, 0..20, &ours)]);
        assert_same(&y[y.len() / 2..], &whole, what);
        assert!(y[..self.head_dim].iter().all(|y| y.is_nan()), "{what}");
    }

    /// A token sees nothing of later ones that are not numbers.
    pub(crate) fn check_causality<B: Backend>(&self, backend: &B, what: &str) {
        let columns = self.columns();
        let mut tokens = numbers(1, 20 * columns);
        let blocks: Vec<u32> = (0..5).collect();
        let clean = self.whole(backend, &tokens, &blocks);
        tokens[13 * columns..].fill(f32::NAN);
        let seen = 13 * self.width();
        assert_same(&self.whole(backend, &tokens, &blocks)[..seen], &clean[..seen], what);
    }

    /// Copied blocks are attended to like the originals.
    pub(crate) fn check_copies<B: Backend>(&self, backend: &B, what: &str) {
        let tokens = numbers(2, 40 * self.columns());
        let whole = self.whole(backend, &tokens, &[0, 1]);
        let mut kv = backend.kv_cache(self.shape()).unwrap();
        self.pass(backend, &mut kv, &[(&tokens, 0..39, &[0, 1])]);
        backend.copy_block(&mut kv, 0, 9);
        backend.copy_block(&mut kv, 1, 7);
        let last = self.pass(backend, &mut kv, &[(&tokens, 39..40, &[9, 7])]);
        assert_same(&last, &whole[39 * self.width()..], what);
    }
}
