//! Vocabularies of adapters that are not the base's: more tokens or fewer, beside each other and the base.

use std::sync::Arc;

use polydelta::ops::reference::ReferenceBackend;
use polydelta::ops::{
    Backend, HostMatrix, LowRankPair, OwnVocabularies, ReplacedRows, SampleOutcome, SampledRows, SiteId, SiteTable,
    SlotDelta, SlotEntries, StepPlan,
};
use polydelta::types::{AdapterSlot, Output};

use crate::device::{NUMERICS, cuda};
use crate::sample::assert_alike;
use crate::scene::sample::outputs;
use crate::scene::{assert_close, numbers, plan_of, rows_of, slots};

const VOCAB: usize = 997;
/// Most tokens that may be added.
const ADDED: usize = 1024;
/// Of the adapter in each slot, where it is not the base's.
const VOCABULARIES: [Option<usize>; 5] = [Some(VOCAB + 5), Some(900), None, Some(VOCAB + ADDED), Some(95)];
/// Slots of rows, in turn; 99 is the base.
const PATTERN: [u32; 7] = [0, 99, 1, 3, 2, 4, 0];

fn pattern(rows: usize) -> Vec<u32> {
    (0..rows).map(|row| PATTERN[row % PATTERN.len()]).collect()
}

fn size_of_row(slot: u32) -> usize {
    VOCABULARIES.get(slot as usize).copied().flatten().unwrap_or(VOCAB)
}

/// Rows of logits: the base's, and those of added tokens, behind which nothing is a number.
struct Logits {
    base: Vec<f32>,
    added: Vec<f32>,
}

impl Logits {
    fn new(pattern: &[u32]) -> Self {
        let scaled = |seed, len| numbers(seed, len).iter().map(|logit| logit * 9.0).collect();
        let mut added: Vec<f32> = scaled(8, pattern.len() * ADDED);
        for (row, slot) in pattern.iter().enumerate() {
            added[row * ADDED..][..ADDED][size_of_row(*slot).saturating_sub(VOCAB)..].fill(f32::NAN);
        }
        Self { base: scaled(7, pattern.len() * VOCAB), added }
    }

    fn row(&self, row: usize) -> Self {
        Self { base: self.base[row * VOCAB..][..VOCAB].to_vec(), added: self.added[row * ADDED..][..ADDED].to_vec() }
    }
}

fn choose<B: Backend>(
    backend: &B,
    pattern: &[u32],
    outputs: &[Output],
    logits: &Logits,
    has_own: bool,
) -> Vec<SampleOutcome> {
    let mut table = backend.delta_table(8).unwrap();
    for (slot, vocab_size) in VOCABULARIES.into_iter().enumerate() {
        let entries = SlotEntries { vocab_size, ..SlotEntries::default() };
        backend.set_slot(&mut table, AdapterSlot(slot as u32), SlotDelta::new(backend, entries).unwrap());
    }
    let mut plan = plan_of(slots(pattern));
    plan.sampled = SampledRows::groups(&plan.rows, &(0..pattern.len() as u32).collect::<Vec<_>>());
    plan.outputs = outputs.to_vec();
    let mut step = backend.step();
    backend.upload(&plan, &mut step).unwrap();
    let parts = pattern.chunks(SampledRows::MOST).zip(logits.base.chunks(SampledRows::MOST * VOCAB));
    for (group, ((slots, base), added)) in parts.zip(logits.added.chunks(SampledRows::MOST * ADDED)).enumerate() {
        let (base, added) = (backend.buffer_of(VOCAB, base).unwrap(), backend.buffer_of(ADDED, added).unwrap());
        let sizes: Vec<usize> = slots.iter().map(|slot| size_of_row(*slot)).collect();
        let own = OwnVocabularies { added: &added, sizes: &sizes, table: &table };
        backend.sample(&mut step, group, &base, has_own.then_some(own));
    }
    backend.finish(&mut step).unwrap().sampled
}

#[test]
fn rows_are_sampled_from_the_tokens_that_they_have_alone_and_mixed() {
    const ROWS: usize = 154;
    let (pattern, outputs) = (pattern(ROWS), outputs(ROWS));
    let logits = Logits::new(&pattern);
    for numerics in NUMERICS {
        let cuda = cuda(numerics);
        let want = choose(&ReferenceBackend::new(numerics), &pattern, &outputs, &logits, true);
        let got = choose(&cuda, &pattern, &outputs, &logits, true);
        assert_eq!(got.len(), ROWS);
        for (row, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_alike(got, want, &format!("{numerics:?} row {row} of {}: {:?}", pattern[row], outputs[row]));
        }
        let tokens = |slot: u32| {
            let of_slot = got.iter().zip(&pattern).filter(move |(_, of)| **of == slot);
            of_slot.map(|(got, _)| got.as_ref().unwrap().token as usize)
        };
        assert!(tokens(3).any(|token| token >= VOCAB), "added tokens are chosen");
        // All rows of the base have what they have in a step without such adapters.
        let without = choose(&cuda, &pattern, &outputs, &logits, false);
        for row in 0..ROWS {
            if matches!(pattern[row], 2 | 99) {
                assert_eq!(got[row], without[row], "row {row}");
            }
            if row % 5 == 0 {
                let alone = choose(&cuda, &pattern[row..=row], &outputs[row..=row], &logits.row(row), true);
                assert_eq!(alone, got[row..=row], "row {row} alone");
            }
        }
    }
}

#[test]
fn what_is_no_number_counts_where_a_row_has_the_token() {
    let pattern = [0, 1, 99, 3];
    let outputs = outputs(4);
    let cuda = cuda(NUMERICS[0]);
    let spoilt = |base: Option<usize>, added: Option<usize>| {
        let mut logits = Logits::new(&pattern);
        (0..4).for_each(|row| {
            base.iter().for_each(|at| logits.base[row * VOCAB + at] = f32::NAN);
            added.iter().for_each(|at| logits.added[row * ADDED + at] = f32::INFINITY);
        });
        let chosen = choose(&cuda, &pattern, &outputs, &logits, true);
        chosen.iter().map(Result::is_ok).collect::<Vec<_>>()
    };
    assert_eq!(spoilt(None, None), [true; 4]);
    assert_eq!(spoilt(Some(950), None), [false, true, false, false]);
    assert_eq!(spoilt(None, Some(4)), [false, true, true, false]);
    assert_eq!(spoilt(None, Some(5)), [true, true, true, false]);
}

/// Ids that the base does not have are read nowhere but among the rows of the adapter.
#[test]
fn tokens_that_the_base_lacks_are_embedded_by_the_rows_of_their_adapter_alone() {
    const WIDTH: usize = 40;
    const BASE: usize = 30;
    const RANK: usize = 3;
    const EMBED: SiteId = SiteId(3);
    fn embed<B: Backend>(backend: &B, slots: &[u32], ids: &[Option<u32>]) -> Vec<f32> {
        let weight =
            |seed, rows, cols| backend.weight(&[HostMatrix::f32(rows, cols, &numbers(seed, rows * cols))]).unwrap();
        let mut table = backend.delta_table(4).unwrap();
        let (a, b) = (weight(2, BASE, RANK), weight(3, WIDTH, RANK));
        let pair = LowRankPair { a, b, rank: RANK, scaling: 0.5, columns: 0..WIDTH };
        let rows = ReplacedRows { ids: vec![1, BASE as u32, BASE as u32 + 2], rows: weight(4, 3, WIDTH) };
        let entries = SlotEntries {
            low_rank: vec![(EMBED, pair)],
            replaced: vec![(EMBED, Arc::new(rows))],
            vocab_size: Some(BASE + 3),
            ..SlotEntries::default()
        };
        backend.set_slot(&mut table, AdapterSlot(0), SlotDelta::new(backend, entries).unwrap());
        let mut step = backend.step();
        let plan = StepPlan { ids: ids.to_vec(), ..plan_of(crate::scene::slots(slots)) };
        backend.upload(&plan, &mut step).unwrap();
        let mut y = backend.buffer_of(WIDTH, &numbers(5, slots.len() * WIDTH)).unwrap();
        backend.embed(&step, &weight(1, BASE, WIDTH), 1.5, &mut y);
        let deltas = SiteTable { table: &table, site: EMBED };
        backend.replace_embeddings(&step, deltas, 1.5, &mut y);
        backend.embedding_low_rank(&step, deltas, 1.5, &mut y);
        rows_of(backend, &y, slots.len())
    }
    let slots: Vec<u32> = (0..40).map(|row| if row % 3 == 1 { 99 } else { 0 }).collect();
    let base = BASE as u32;
    let known = [Some(1), Some(base), Some(base + 2), Some(base - 1), None, Some(base + 1), Some(base + 4000)];
    let ids: Vec<Option<u32>> = (0..40).map(|row| known[row % known.len()]).collect();
    for numerics in NUMERICS {
        let (got, want) = (embed(&cuda(numerics), &slots, &ids), embed(&ReferenceBackend::new(numerics), &slots, &ids));
        assert_close(&got, &want, 1e-5, &format!("{numerics:?}"));
    }
}
