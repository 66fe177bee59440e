//! What adapters add within experts.

use std::ops::Range;

use proptest::prelude::*;

use super::experts::{Layer, Taste, logits, spec, tolerance};
use super::*;
use crate::ops::{ExpertDeltas, ExpertPair, SiteId, SiteTable, SlotDelta};

const GATE_UP: SiteId = SiteId(2);
const DOWN: SiteId = SiteId(5);
/// Slots of a test's adapters; rows of others are the base's.
const SLOTS: u32 = 4;
const BASE: u32 = 99;

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

/// What the adapters of a test have: all experts, some, gate without up, up twice over gate and up, none.
fn pairs(layer: &Layer, seed: u64) -> Vec<Of> {
    let (experts, inner, hidden) = (layer.spec.experts as u32, layer.spec.intermediate_size, layer.hidden);
    let mut pairs = Vec::new();
    for expert in 0..experts {
        let mut add = |slot, site, rank, columns| {
            let seed = seed + 100 * u64::from(expert) + 10 * pairs.len() as u64;
            pairs.push(Of { slot, expert, site, rank, columns, seed });
        };
        add(0, GATE_UP, 3, 0..2 * inner);
        add(0, DOWN, 2, 0..hidden);
        if expert % 2 == 1 {
            add(1, GATE_UP, 1 + expert as usize % 5, 0..inner);
            add(3, DOWN, 17, 0..hidden);
        }
        add(3, GATE_UP, 2, inner..2 * inner);
        if expert % 3 == 0 {
            add(3, GATE_UP, 5, 0..2 * inner);
        }
    }
    // Tables find them by expert in whatever order they came.
    pairs.reverse();
    pairs
}

fn table<B: Backend>(backend: &B, layer: &Layer, pairs: &[Of]) -> B::DeltaTable {
    let mut table = backend.delta_table(16).unwrap();
    for slot in 0..SLOTS {
        let own = pairs.iter().filter(|pair| pair.slot == slot).map(|pair| {
            let input = if pair.site == DOWN { layer.spec.intermediate_size } else { layer.hidden };
            let (a, b) =
                (numbers(pair.seed, pair.rank * input), numbers(pair.seed + 1, pair.columns.len() * pair.rank));
            let b = backend.weight(&[HostMatrix::f32(pair.columns.len(), pair.rank, &b)]).unwrap();
            let a = backend.weight(&[HostMatrix::f32(pair.rank, input, &a)]).unwrap();
            let entry = LowRankPair { a, b, rank: pair.rank, scaling: 0.25, columns: pair.columns.clone() };
            (pair.site, ExpertPair { expert: pair.expert, pair: entry })
        });
        let entries = SlotEntries { expert_pairs: own.collect(), ..SlotEntries::default() };
        backend.set_slot(&mut table, AdapterSlot(slot), SlotDelta::new(backend, entries).unwrap());
    }
    table
}

/// y of rows of these slots, in work for so many rows.
fn run<B: Backend>(backend: &B, layer: &Layer, pairs: &[Of], slots: &[u32], logits: &[f32], x: &[f32]) -> Vec<f32> {
    let table = table(backend, layer, pairs);
    let at = |site| Some(SiteTable { table: &table, site });
    let deltas = ExpertDeltas { gate_up: at(GATE_UP), down: at(DOWN) };
    let step = step_of(backend, scene::slots(slots));
    let mut work = backend.experts_work(slots.len(), layer.hidden, Some(&layer.spec)).unwrap();
    let logits = backend.buffer_of(layer.spec.experts, logits).unwrap();
    let x = backend.buffer_of(layer.hidden, x).unwrap();
    let mut y = backend.buffer_of(layer.hidden, &vec![7.0; slots.len() * layer.hidden]).unwrap();
    let experts = layer.experts(backend);
    backend.experts(&step, Rows::All, &layer.spec, &logits, &experts, deltas, &x, &mut work, &mut y);
    scene::rows_of(backend, &y, slots.len())
}

fn slot_of(row: usize) -> u32 {
    [0, BASE, 3, 1, 2, 0, 3][row % 7]
}

/// Against the definition, by other numbers of threads, and every row alone and backwards.
fn check(layer: &Layer, taste: Taste, rows: usize, seed: u64) {
    let (hidden, experts) = (layer.hidden, layer.spec.experts);
    let (logits, x, pairs) = (logits(taste, seed, rows, experts), layer.inputs(seed, rows), pairs(layer, seed));
    let slots: Vec<u32> = (0..rows).map(slot_of).collect();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for numerics in NUMERICS {
            let one = backend(isa, numerics, 1);
            let what = format!("{}, {:?}, {taste:?}, {rows} rows", name(&one), layer.spec);
            let whole = run(&one, layer, &pairs, &slots, &logits, &x);
            let definition = run(&ReferenceBackend::new(numerics), layer, &pairs, &slots, &logits, &x);
            assert_close(&whole, &definition, tolerance(numerics), &what);
            assert_same(&run(&backend(isa, numerics, 3), layer, &pairs, &slots, &logits, &x), &whole, &what);
            let without = run(&one, layer, &[], &slots, &logits, &x);
            for row in (0..rows).step_by(rows.div_ceil(9).max(1)) {
                let of_row = |numbers: &[f32], width: usize| numbers[row * width..][..width].to_vec();
                let what = format!("{what}: row {row} of slot {}", slots[row]);
                let alone = run(&one, layer, &pairs, &slots[row..=row], &of_row(&logits, experts), &of_row(&x, hidden));
                assert_same(&alone, &of_row(&whole, hidden), &what);
                if matches!(slots[row], 2 | BASE) {
                    assert_same(&alone, &of_row(&without, hidden), &format!("{what} has nothing added"));
                }
            }
            let backwards = |numbers: &[f32], width: usize| -> Vec<f32> {
                numbers.chunks_exact(width).rev().flatten().copied().collect()
            };
            let slots: Vec<u32> = slots.iter().rev().copied().collect();
            let found = run(&one, layer, &pairs, &slots, &backwards(&logits, experts), &backwards(&x, hidden));
            assert_same(&backwards(&found, hidden), &whole, &format!("{what}: backwards"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn deltas_of_experts_agree_with_the_definition_and_with_themselves_in_any_batch(
        rows in 0_usize..40,
        hidden in 1_usize..50,
        inner in 1_usize..40,
        (experts, each) in (1_usize..8).prop_flat_map(|experts| (Just(experts), 1..=experts)),
        taste in prop_oneof![Just(Taste::Any), Just(Taste::Same), Just(Taste::Equal)],
        seed in 0_u64..1000,
    ) {
        check(&Layer::new(hidden, spec(experts, each, inner), seed), taste, rows, seed);
    }
}

/// More pairs than are computed at a time.
#[test]
fn deltas_of_long_prompts_give_the_bits_of_single_rows() {
    check(&Layer::new(18, spec(6, 2, 9), 5), Taste::Any, 700, 5);
}

#[test]
fn a_delta_is_added_before_the_activation_and_to_what_down_gives() {
    // One number wide, of experts whose gate and up are 0 and whose down is 1: silu(g)·u with what is added to both, once and
    // what the pair of down makes of it.
    let spec = spec(2, 1, 1);
    let layer = Layer { spec, hidden: 1, gate_up: vec![vec![0.0; 2]; 2], down: vec![vec![1.0]; 2] };
    let of = |site, columns, seed| Of { slot: 0, expert: 0, site, rank: 1, columns, seed };
    let pairs = [of(GATE_UP, 0..2, 20), of(DOWN, 0..1, 40)];
    let product = |seed, column: usize| 0.25 * numbers(seed, 1)[0] * numbers(seed + 1, 2)[column];
    let (gate, up) = (product(20, 0), product(20, 1));
    let inner = gate / (1.0 + (-gate).exp()) * up;
    for backend in backends(1) {
        let run = |logits: [f32; 2]| run(&backend, &layer, &pairs, &[0], &logits, &[1.0]);
        let want = inner * (1.0 + product(40, 0));
        assert!(want.abs() > 1e-3);
        assert_close(&run([1.0, 0.0]), &[want], tolerance(backend.numerics()) * want.abs(), &name(&backend));
        assert_same(&run([0.0, 1.0]), &[0.0], "the other expert has no pair");
    }
}

#[test]
fn pairs_of_experts_that_no_row_of_the_adapter_chose_change_nothing() {
    // The row of slot 0 chooses expert 0, that of the base expert 1.
    let layer = Layer::new(8, spec(2, 1, 5), 3);
    let (logits, x) = ([1.0, 0.0, 0.0, 1.0], layer.inputs(3, 2));
    for backend in backends(2) {
        let of = |expert, seed| Of { slot: 0, expert, site: GATE_UP, rank: 2, columns: 0..10, seed };
        let run = |first, last| run(&backend, &layer, &[of(0, first), of(1, last)], &[0, BASE], &logits, &x);
        assert_same(&run(5, 70), &run(5, 80), &name(&backend));
        assert_ne!(run(5, 70), run(6, 70), "{}", name(&backend));
    }
}
