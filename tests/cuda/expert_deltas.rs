//! What adapters add within experts, against the definition: over dtypes, ranks, popularities and numbers of rows, and the same bits
//! for a row whatever adapters and choices the rows beside it have.

use std::ops::Range;

use polydelta::ops::reference::ReferenceBackend;
use polydelta::ops::{
    Backend, ExpertDeltas, ExpertPair, HostMatrix, LowRankPair, Rows, SiteId, SiteTable, SlotDelta, SlotEntries,
    cuda::CudaBackend,
};
use polydelta::types::AdapterSlot;
use proptest::prelude::*;

use crate::device::{NUMERICS, cuda};
use crate::experts::{Layer, Taste, backwards, logits, spec, tolerance};
use crate::scene::{assert_close, assert_same, numbers, rows_of, step_of};

const GATE_UP: SiteId = SiteId(2);
const DOWN: SiteId = SiteId(5);
/// Slots of adapters.
const SLOTS: u32 = 70;

/// A pair of an expert in host terms.
#[derive(Clone, Debug)]
struct Of {
    slot: u32,
    expert: u32,
    site: SiteId,
    rank: usize,
    columns: Range<usize>,
    seed: u64,
}

/// What adapters have, by their slot: all experts; some, and of these gate without up; up twice, over gate and up too; none.
fn pairs(layer: &Layer, rank: usize, slots: &[Option<AdapterSlot>], seed: u64) -> Vec<Of> {
    let (experts, inner, hidden) = (layer.spec.experts as u32, layer.spec.intermediate_size, layer.hidden);
    let mut installed: Vec<u32> = slots.iter().flatten().map(|slot| slot.0).collect();
    installed.sort_unstable();
    installed.dedup();
    let mut pairs = Vec::new();
    for (slot, expert) in installed.iter().flat_map(|slot| (0..experts).map(move |expert| (*slot, expert))) {
        let mut add = |site, rank, columns| {
            let seed = seed + 1000 * u64::from(slot) + 10 * u64::from(expert) + 100_000 * pairs.len() as u64;
            pairs.push(Of { slot, expert, site, rank, columns, seed });
        };
        match slot % 4 {
            0 => {
                add(GATE_UP, rank, 0..2 * inner);
                add(DOWN, rank, 0..hidden);
            }
            1 if expert % 2 == 1 => {
                add(GATE_UP, rank + expert as usize % 5, 0..inner);
                add(DOWN, 17, 0..hidden);
            }
            3 => {
                add(GATE_UP, rank, inner..2 * inner);
                if expert % 3 == 0 {
                    add(GATE_UP, 5, 0..2 * inner);
                }
            }
            _ => {}
        }
    }
    // Tables find them by expert in whatever order they came.
    pairs.reverse();
    pairs
}

/// A layer with adapters on a backend.
struct On<'a, B: Backend> {
    layer: &'a Layer,
    backend: &'a B,
    experts: B::Experts,
    table: B::DeltaTable,
    work: B::ExpertsWork,
}

impl<'a, B: Backend> On<'a, B> {
    fn new(backend: &'a B, layer: &'a Layer, pairs: &[Of], most_rows: usize) -> Self {
        let work = backend.experts_work(most_rows, layer.hidden, Some(&layer.spec)).unwrap();
        let mut table = backend.delta_table(SLOTS as usize).unwrap();
        for slot in 0..SLOTS {
            let own = pairs.iter().filter(|pair| pair.slot == slot).map(|pair| {
                let input = if pair.site == DOWN { layer.spec.intermediate_size } else { layer.hidden };
                let near_one = |count: usize| (count as f32).sqrt().recip();
                let scaled = |seed, len, by: f32| numbers(seed, len).iter().map(|number| number * by).collect();
                let a: Vec<f32> = scaled(pair.seed, pair.rank * input, near_one(input));
                let b: Vec<f32> = scaled(pair.seed + 1, pair.columns.len() * pair.rank, near_one(pair.rank));
                let b = backend.weight(&[HostMatrix::f32(pair.columns.len(), pair.rank, &b)]).unwrap();
                let a = backend.weight(&[HostMatrix::f32(pair.rank, input, &a)]).unwrap();
                let entry = LowRankPair { a, b, rank: pair.rank, scaling: 0.75, columns: pair.columns.clone() };
                (pair.site, ExpertPair { expert: pair.expert, pair: entry })
            });
            let entries = SlotEntries { expert_pairs: own.collect(), ..SlotEntries::default() };
            backend.set_slot(&mut table, AdapterSlot(slot), SlotDelta::new(backend, entries).unwrap());
        }
        Self { layer, backend, experts: layer.experts(backend), table, work }
    }

    fn run(&mut self, slots: &[Option<AdapterSlot>], logits: &[f32], x: &[f32]) -> Vec<f32> {
        self.run_at([GATE_UP, DOWN].map(Some), slots, logits, x)
    }

    /// y of rows of these slots, with deltas at the sites that are given.
    fn run_at(
        &mut self,
        sites: [Option<SiteId>; 2],
        slots: &[Option<AdapterSlot>],
        logits: &[f32],
        x: &[f32],
    ) -> Vec<f32> {
        let Self { layer: Layer { spec, hidden, .. }, backend, experts, table, work } = self;
        let [gate_up, down] = sites.map(|site| site.map(|site| SiteTable { table: &*table, site }));
        let mut step = step_of(*backend, slots.to_vec());
        let logits = backend.buffer_of(spec.experts, logits).unwrap();
        let x = backend.buffer_of(*hidden, x).unwrap();
        let mut y = backend.buffer_of(*hidden, &vec![7.0; slots.len() * *hidden]).unwrap();
        backend.experts(&step, Rows::All, spec, &logits, experts, ExpertDeltas { gate_up, down }, &x, work, &mut y);
        let found = rows_of(*backend, &y, slots.len());
        backend.finish(&mut step).unwrap();
        found
    }
}

/// Which adapters the rows of a test have.
#[derive(Clone, Copy, Debug)]
enum Popularity {
    One,
    Distinct,
    /// All kinds and the base in turn.
    Mixed,
    Base,
}

const POPULARITIES: [Popularity; 4] = [Popularity::One, Popularity::Distinct, Popularity::Mixed, Popularity::Base];

fn slots(popularity: Popularity, rows: usize) -> Vec<Option<AdapterSlot>> {
    let slot = |row: usize| match popularity {
        Popularity::One => Some(4),
        Popularity::Distinct => Some(row as u32 % SLOTS),
        Popularity::Mixed => [Some(0), None, Some(3), Some(1), Some(2), Some(0), Some(3)][row % 7],
        Popularity::Base => None,
    };
    (0..rows).map(|row| slot(row).map(AdapterSlot)).collect()
}

/// Against the definition, some rows alone in memory that others have used, and all of them backwards; rows without anything to
/// add have the bits of a step without deltas.
fn check(cuda: &CudaBackend, layer: &Layer, popularity: Popularity, taste: Taste, rows: usize, rank: usize) {
    let (hidden, experts, numerics) = (layer.hidden, layer.spec.experts, cuda.numerics());
    let (seed, slots) = (rows as u64, slots(popularity, rows));
    let (logits, x, pairs) =
        (logits(taste, seed, rows, experts), layer.inputs(seed, rows), pairs(layer, rank, &slots, seed));
    let what =
        format!("{numerics:?}, {popularity:?}, {taste:?}, rank {rank}, {rows} rows of {hidden}, {:?}", layer.spec);
    let mut on_device = On::new(cuda, layer, &pairs, rows);
    // What is kept between kernels holds NaN then.
    on_device.run(&slots, &logits, &vec![f32::NAN; x.len()]);
    let whole = on_device.run(&slots, &logits, &x);
    let wanted = On::new(&ReferenceBackend::new(numerics), layer, &pairs, rows).run(&slots, &logits, &x);
    assert_close(&whole, &wanted, tolerance(numerics), &what);
    let without = on_device.run_at([None, None], &slots, &logits, &x);
    let differs = |row: usize| whole[row * hidden..][..hidden] != without[row * hidden..][..hidden];
    for row in 0..rows {
        let has_none = slots[row].is_none_or(|slot| slot.0 % 4 == 2);
        assert!(!(has_none && differs(row)), "{what}: row {row} has nothing added");
        assert!(
            differs(row) || !matches!(slots[row], Some(slot) if slot.0 % 4 == 0),
            "{what}: row {row} has something"
        );
    }
    for row in (0..rows).step_by(rows.div_ceil(3).max(1)) {
        let (logits, x) = (&logits[row * experts..][..experts], &x[row * hidden..][..hidden]);
        let alone = on_device.run(&slots[row..=row], logits, x);
        assert_same(&alone, &whole[row * hidden..][..hidden], &format!("{what}: row {row} alone"));
    }
    let reversed: Vec<_> = slots.iter().rev().copied().collect();
    let found = on_device.run(&reversed, &backwards(&logits, experts), &backwards(&x, hidden));
    assert_same(&backwards(&found, hidden), &whole, &format!("{what}: backwards"));
}

#[test]
fn deltas_of_experts_agree_with_the_definition_and_with_themselves_in_any_batch() {
    for backend in NUMERICS.map(cuda) {
        for (index, popularity) in POPULARITIES.into_iter().enumerate() {
            for (rank, rows) in [1, 3, 16].into_iter().flat_map(|rank| [1, 9, 65].map(|rows| (rank, rows))) {
                let taste = [Taste::Any, Taste::Same, Taste::Equal][(rank + rows + index) % 3];
                check(&backend, &Layer::new(72, spec(5, 2, 40), 5), popularity, taste, rows, rank);
            }
        }
    }
}

#[test]
fn deltas_of_random_layers_agree_with_the_definition() {
    let backends = NUMERICS.map(cuda);
    let tastes = prop_oneof![Just(Taste::Any), Just(Taste::Same), Just(Taste::Equal)];
    let popularities = proptest::sample::select(&POPULARITIES[..]);
    let choices = (1_usize..20).prop_flat_map(|experts| (Just(experts), 1..=experts.min(9)));
    let shapes = (0_usize..30, 1_usize..70, 1_usize..50, 1_usize..40);
    proptest!(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() }, |(
        (rows, hidden, inner, rank) in shapes,
        (experts, each) in choices,
        (taste, popularity) in (tastes, popularities),
    )| {
        for backend in &backends {
            check(backend, &Layer::new(hidden, spec(experts, each, inner), 7), popularity, taste, rows, rank);
        }
    });
}

/// Rows around every change of kernel, widths that tiles divide and others, and more ranks than an item takes.
#[test]
fn every_form_of_the_products_adds_deltas_with_the_bits_of_single_rows() {
    for backend in NUMERICS.map(cuda) {
        for (rows, experts, each, rank) in [(17, 1, 1, 70), (65, 1, 1, 16), (70, 2, 2, 8), (300, 4, 2, 33)] {
            for (hidden, inner, popularity) in [(264, 72, Popularity::Mixed), (40, 130, Popularity::One)] {
                check(&backend, &Layer::new(hidden, spec(experts, each, inner), 5), popularity, Taste::Any, rows, rank);
            }
        }
    }
}

/// Deltas of gate and up alone leave down to the kernel without, and the other way round.
#[test]
fn deltas_at_one_of_the_sites_are_added_there() {
    let layer = Layer::new(24, spec(3, 2, 17), 3);
    let (rows, slots) = (12, slots(Popularity::Mixed, 12));
    let (logits, x, pairs) = (logits(Taste::Any, 3, rows, 3), layer.inputs(3, rows), pairs(&layer, 4, &slots, 3));
    for backend in NUMERICS.map(cuda) {
        let reference = ReferenceBackend::new(backend.numerics());
        let mut on_device = On::new(&backend, &layer, &pairs, rows);
        let mut definition = On::new(&reference, &layer, &pairs, rows);
        let mut seen = Vec::new();
        for sites in [[None, None], [Some(GATE_UP), None], [None, Some(DOWN)], [Some(GATE_UP), Some(DOWN)]] {
            let found = on_device.run_at(sites, &slots, &logits, &x);
            let wanted = definition.run_at(sites, &slots, &logits, &x);
            assert_close(
                &found,
                &wanted,
                tolerance(backend.numerics()),
                &format!("{:?} {sites:?}", backend.numerics()),
            );
            assert!(!seen.contains(&found), "{sites:?} changes something");
            seen.push(found);
        }
    }
}

#[test]
fn a_row_that_is_not_a_number_stays_alone_among_deltas_of_experts() {
    let layer = Layer::new(24, spec(2, 1, 17), 3);
    let slots: Vec<_> = (0..20).map(|row| [Some(AdapterSlot(0)), Some(AdapterSlot(4)), None][row % 3]).collect();
    let (logits, x) = (logits(Taste::Any, 3, 20, 2), layer.inputs(3, 20));
    let clean = pairs(&layer, 3, &slots, 3);
    for backend in NUMERICS.map(cuda) {
        let wanted = On::new(&backend, &layer, &clean, 20).run(&slots, &logits, &x);
        // Rows of slot 0 that chose expert 1 have a row of x that is no number.
        let chose = |row: usize| usize::from(logits[2 * row + 1] > logits[2 * row]);
        let is_spoilt = |row: usize| slots[row] == Some(AdapterSlot(0)) && chose(row) == 1;
        let mut spoilt = x.clone();
        (0..20).filter(|row| is_spoilt(*row)).for_each(|row| spoilt[24 * row + 5] = f32::NAN);
        let found = On::new(&backend, &layer, &clean, 20).run(&slots, &logits, &spoilt);
        assert!((0..20).any(is_spoilt) && !(0..20).all(is_spoilt));
        for row in 0..20 {
            let (found, wanted) = (&found[24 * row..][..24], &wanted[24 * row..][..24]);
            match is_spoilt(row) {
                true => assert!(found.iter().all(|y| y.is_nan()), "row {row}"),
                false => assert_same(found, wanted, &format!("row {row}")),
            }
        }
    }
}
