//! Bottlenecks of a site: tables of them, and their ops in the order of a step.

use polydelta::ops::{
    Activation, Backend, Blend, Bottleneck, ColumnVector, HostMatrix, LowRankPair, NonLinearity, Rows, SiteId,
    SiteTable, SlotDelta, SlotEntries, Wiring,
};
use polydelta::types::AdapterSlot;

use super::{numbers, rows_of, step_of};

const NETWORK: SiteId = SiteId(0);
const NORM_BEFORE: SiteId = SiteId(1);
const NORM_AFTER: SiteId = SiteId(3);
const EPS: f32 = 1e-5;

pub(crate) const NON_LINEARITIES: [NonLinearity; 14] = [
    NonLinearity::Gate(Activation::Silu),
    NonLinearity::Gate(Activation::GeluTanh),
    NonLinearity::Gate(Activation::Gelu),
    NonLinearity::Identity,
    NonLinearity::Relu,
    NonLinearity::Relu6,
    NonLinearity::SquaredRelu,
    NonLinearity::LeakyRelu { slope: 0.3 },
    NonLinearity::Sigmoid,
    NonLinearity::Tanh,
    NonLinearity::Mish,
    NonLinearity::QuickGelu,
    NonLinearity::ClippedGelu,
    NonLinearity::Laplace,
];

/// Behind a block, behind its residual connection, beside it; then those that norms and flags make of it.
const WIRINGS: [Wiring; 6] = [
    Wiring { reads: Blend::H, stream: Blend::X, branch: Blend::H },
    Wiring { reads: Blend::BOTH, stream: Blend::X, branch: Blend::H },
    Wiring { reads: Blend::X, stream: Blend::X, branch: Blend::H },
    Wiring { reads: Blend::BOTH, stream: Blend::BOTH, branch: Blend::NOTHING },
    Wiring { reads: Blend::H, stream: Blend::NOTHING, branch: Blend::BOTH },
    Wiring { reads: Blend::H, stream: Blend { of_x: 2.0, of_h: 0.0 }, branch: Blend::H },
];

/// A bottleneck of a slot in host terms, to be installed on any backend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) slot: u32,
    pub(crate) rank: usize,
    pub(crate) wiring: Wiring,
    pub(crate) non_linearity: NonLinearity,
    pub(crate) norms: [bool; 2],
}

/// One of every kind, in as many slots.
pub(crate) fn every_kind(rank: impl Fn(usize) -> usize) -> Vec<Entry> {
    let entry = |(at, non_linearity): (usize, NonLinearity)| Entry {
        slot: at as u32,
        rank: rank(at),
        wiring: WIRINGS[at % WIRINGS.len()],
        non_linearity,
        norms: [at % 4 == 1, at % 5 == 2],
    };
    NON_LINEARITIES.into_iter().enumerate().map(entry).collect()
}

impl Entry {
    fn entries<B: Backend>(&self, backend: &B, width: usize) -> SlotEntries<B> {
        let Self { slot, rank, wiring, non_linearity, norms } = *self;
        let seed = 20 * (u64::from(slot) + 1);
        // So that a sum of the inputs reaches where the non-linearity bends, and no further.
        let fitted = |seed, len: usize, inputs: usize| -> Vec<f32> {
            let factor = 4.0 * (inputs as f32).sqrt().recip();
            numbers(seed, len).iter().map(|number| number * factor).collect()
        };
        let (a, b) = (fitted(seed, rank * width, width), fitted(seed + 1, width * rank, rank));
        let matrices = [HostMatrix::f32(rank, width, &a), HostMatrix::f32(width, rank, &b)];
        let [a, b] = <[B::Weight; 2]>::try_from(backend.weight_group(&matrices).unwrap()).ok().unwrap();
        let vector = |seed, len| backend.vector(&numbers(seed, len)).unwrap();
        let entry =
            Bottleneck { wiring, non_linearity, down_bias: vector(seed + 2, rank), up_bias: vector(seed + 3, width) };
        let sites = [NORM_BEFORE, NORM_AFTER].into_iter().zip(norms).filter(|(_, has)| *has);
        let vectors = sites.flat_map(|(site, _)| {
            [4, 5].map(|part| (site, ColumnVector { values: vector(seed + part, width), columns: 0..width }))
        });
        SlotEntries {
            vectors: vectors.collect(),
            low_rank: vec![(NETWORK, LowRankPair { a, b, rank, scaling: 0.5, columns: 0..width })],
            bottlenecks: vec![(NETWORK, entry)],
            ..SlotEntries::default()
        }
    }
}

/// x and h behind all ops of a hidden site, on the rows of these slots.
pub(crate) fn run<B: Backend>(
    backend: &B,
    entries: &[Entry],
    slots: &[Option<AdapterSlot>],
    [x, h]: [&[f32]; 2],
) -> [Vec<f32>; 2] {
    let (rows, width) = (slots.len(), x.len() / slots.len());
    let mut table = backend.delta_table(32).unwrap();
    for entry in entries {
        let delta = SlotDelta::new(backend, entry.entries(backend, width)).unwrap();
        backend.set_slot(&mut table, AdapterSlot(entry.slot), delta);
    }
    let at = |site| SiteTable { table: &table, site };
    let step = step_of(backend, slots.to_vec());
    let [mut x, mut h] = [x, h].map(|numbers| backend.buffer_of(width, numbers).unwrap());
    let mut v = backend.input_buffer(rows, width).unwrap();
    backend.blend_rows(&step, Rows::All, at(NETWORK), &mut x, &mut h, &mut v);
    backend.layer_norm_rows(&step, Rows::All, at(NORM_BEFORE), EPS, &mut v);
    backend.bottleneck(&step, Rows::All, at(NETWORK), &v, &mut h);
    backend.layer_norm_rows(&step, Rows::All, at(NORM_AFTER), EPS, &mut h);
    [rows_of(backend, &x, rows), rows_of(backend, &h, rows)]
}
