//! Every kernel against the definition over a grid of dtypes, ranks, widths, popularities of adapters and numbers of rows: a
//! sample of it in every run, all of it behind `--ignored`. What ops overwrite holds NaN before, and so does what they keep
//! on their way.

use polydelta::ops::Numerics;
use polydelta::ops::cuda::CudaBackend;
use polydelta::ops::reference::ReferenceBackend;
use polydelta::types::AdapterSlot;
use proptest::prelude::*;
use proptest::sample::select;

use crate::device::{NUMERICS, cuda};
use crate::every_op::{Op, every_op, spoil};
use crate::sample::assert_alike;
use crate::scene::sample::{choose, outputs};
use crate::scene::{assert_close, numbers};

const RANKS: [usize; 7] = [1, 3, 8, 16, 24, 64, 128];
/// The middle one is an odd multiple of 8.
const WIDTHS: [usize; 3] = [64, 104, 2048];
/// Around every change of kernel.
const ROWS: [usize; 9] = [1, 7, 8, 9, 16, 33, 64, 65, 200];
/// Scenes of one run that is not asked for all.
const SAMPLED: u32 = 12;

/// Which adapters the rows of a step have.
#[derive(Clone, Copy, Debug)]
enum Popularity {
    /// All the same.
    One,
    /// Each its own.
    Distinct,
    /// The k-th of them 1/k as often as the first.
    Zipf,
    /// None.
    Base,
    /// One with entries, the base, an adapter without entries at the site, and a slot without an adapter, in turn.
    Empty,
}

const POPULARITIES: [Popularity; 5] =
    [Popularity::One, Popularity::Distinct, Popularity::Zipf, Popularity::Base, Popularity::Empty];

/// A point of the grid.
#[derive(Clone, Copy, Debug)]
struct Scene {
    rank: usize,
    width: usize,
    popularity: Popularity,
    rows: usize,
}

impl Scene {
    fn slots(&self) -> Vec<Option<AdapterSlot>> {
        const ZIPF: usize = 16;
        let shares: Vec<f32> = (1..=ZIPF).map(|k| 1.0 / k as f32).collect();
        let draws = numbers(self.rows as u64, self.rows);
        let slot = |row: usize| match self.popularity {
            Popularity::One => Some(3),
            Popularity::Distinct => Some(row as u32),
            Popularity::Zipf => {
                let mut left = (draws[row] + 1.0) / 2.0 * shares.iter().sum::<f32>();
                let at = shares.iter().position(|share| {
                    left -= share;
                    left < 0.0
                });
                Some(at.unwrap_or(0) as u32)
            }
            Popularity::Base => None,
            Popularity::Empty => [Some(0), None, Some(1), Some(2)][row % 4],
        };
        (0..self.rows).map(|row| slot(row).map(AdapterSlot)).collect()
    }

    /// Slots with entries at the sites that ops are asked for, and those with entries elsewhere alone.
    fn installed(&self) -> (Vec<AdapterSlot>, Vec<AdapterSlot>) {
        match self.popularity {
            Popularity::Empty => (vec![AdapterSlot(0)], vec![AdapterSlot(1)]),
            _ => {
                let mut slots: Vec<AdapterSlot> = self.slots().into_iter().flatten().collect();
                slots.sort_unstable();
                slots.dedup();
                (slots, Vec::new())
            }
        }
    }

    fn check(&self, numerics: Numerics, device: &CudaBackend) {
        let what = format!("{numerics:?} {self:?}");
        let (slots, (installed, elsewhere)) = (self.slots(), self.installed());
        let ops =
            Op { rank: self.rank, width: self.width, slots: &slots, installed: &installed, elsewhere: &elsewhere };
        spoil(device, self.width, &slots);
        let (got, want) = (every_op(device, &ops), every_op(&ReferenceBackend::new(numerics), &ops));
        assert_eq!(got.len(), want.len(), "{what}");
        for ((op, got), (_, want)) in got.iter().zip(&want) {
            assert_close(got, want, tolerance(op, numerics), &format!("{op}, {what}"));
        }
        let (outputs, vocab) = (outputs(self.rows), 997);
        let logits: Vec<f32> = numbers(7, self.rows * vocab).iter().map(|logit| logit * 9.0).collect();
        let got = choose(device, &outputs, vocab, &logits);
        for (got, want) in got.iter().zip(choose(&ReferenceBackend::new(numerics), &outputs, vocab, &logits)) {
            assert_alike(got, &want, &what);
        }
    }
}

/// Sums differ in their order, and where a number of 16 bits is made of one it may be the next. Attention rounds q and the
/// weights of the softmax as well, which the definition does not.
fn tolerance(op: &str, numerics: Numerics) -> f32 {
    let step = match numerics {
        Numerics::BF16 => 1.0 / 256.0,
        Numerics::F16 => 1.0 / 2048.0,
        _ => 0.0,
    };
    match op {
        "attention" => 2e-5 + 4.0 * step,
        "low_rank" | "rms_norm, read" | "gated_activation, read" | "rotate_input, read" => 2e-5 + step,
        _ => 2e-5,
    }
}

fn scenes() -> impl Strategy<Value = Scene> {
    let dimensions = (select(&RANKS[..]), select(&WIDTHS[..]), select(&POPULARITIES[..]), select(&ROWS[..]));
    dimensions.prop_map(|(rank, width, popularity, rows)| Scene { rank, width, popularity, rows })
}

#[test]
fn a_sample_of_the_grid_agrees_with_the_definition() {
    for numerics in NUMERICS {
        let device = cuda(numerics);
        let config = ProptestConfig {
            cases: SAMPLED,
            failure_persistence: None,
            max_shrink_iters: 8,
            ..ProptestConfig::default()
        };
        proptest!(config, |(scene in scenes())| scene.check(numerics, &device));
    }
}

#[test]
#[ignore = "all 2835 scenes take long: cargo test --release --test cuda grid -- --ignored"]
fn all_of_the_grid_agrees_with_the_definition() {
    for numerics in NUMERICS {
        let device = cuda(numerics);
        for (width, popularity) in WIDTHS.iter().flat_map(|width| POPULARITIES.map(|popularity| (*width, popularity))) {
            for (rank, rows) in RANKS.iter().flat_map(|rank| ROWS.map(|rows| (*rank, rows))) {
                Scene { rank, width, popularity, rows }.check(numerics, &device);
            }
            println!("{} {width} {popularity:?} agrees", numerics.compute.as_str());
        }
    }
}
