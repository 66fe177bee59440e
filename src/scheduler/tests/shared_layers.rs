//! Prompts go once through the layers that adapters leave as they are. The fake cache knows of every place whose first layers
//! wrote what lies there.

use super::*;

const PROMPT: [u32; 13] = [0, 1, 2, 3, 3, 2, 1, 0, 1, 1, 0, 2, 3];

fn sharing() -> SchedulerConfig {
    SchedulerConfig { shared_layers: Some(2), ..config() }
}

/// Run a request to its end: how many rows it computed, and how many of them went on from the shared layers.
fn rows(harness: &mut Harness, id: u64, adapter: Option<AdapterBinding>) -> (usize, usize) {
    let before = (harness.fake.rows, harness.fake.from_shared);
    harness.add(EngineRequest { adapter, ..request(id, &PROMPT, 1) });
    harness.run();
    harness.assert_complete(id);
    (harness.fake.rows - before.0, harness.fake.from_shared - before.1)
}

#[test]
fn who_leaves_the_shared_layers_as_they_are_goes_on_from_what_anyone_has_computed() {
    // Whole blocks of 4 before the last token.
    let (all, shared, found) = ((13, 0), (13, 12), (1, 0));
    for first in [None, leaves(1, 2), leaves(2, 7)] {
        let mut harness = Harness::new(sharing());
        assert_eq!(rows(&mut harness, 0, first), all);
        for (id, then) in (1..).zip([leaves(3, 2), leaves(4, 3), None]) {
            let expected = if first.is_none() && then.is_none() { found } else { shared };
            assert_eq!(rows(&mut harness, id, then), expected, "{then:?} after {first:?}");
            assert_eq!(rows(&mut harness, 10 + id, then), found, "its own KV comes first");
        }
        let hits = if first.is_none() { 24 } else { 36 };
        assert_eq!(harness.scheduler.stats().shared_layer_hits, hits);
    }
}

#[test]
fn who_changes_a_shared_layer_shares_nothing_either_way() {
    for (first, then) in [(leaves(1, 1), None), (None, leaves(1, 1)), (leaves(1, 1), leaves(2, 2))] {
        let mut harness = Harness::new(sharing());
        assert_eq!([rows(&mut harness, 0, first), rows(&mut harness, 1, then)], [(13, 0); 2]);
    }
    let mut harness = Harness::new(config());
    assert_eq!([rows(&mut harness, 0, leaves(1, 2)), rows(&mut harness, 1, None)], [(13, 0); 2], "it is off");
}

#[test]
fn a_chunk_has_rows_of_one_kind_only() {
    let mut harness = Harness::new(SchedulerConfig { max_prefill_chunk: Some(5), ..sharing() });
    rows(&mut harness, 0, None);
    harness.add(EngineRequest { adapter: leaves(1, 2), ..request(1, &PROMPT, 1) });
    let mut chunks = Vec::new();
    while harness.scheduler.contains(RequestId(1)) {
        let step = harness.step();
        chunks.push((step.sequences[0].rows.len(), step.sequences[0].from_shared));
    }
    assert_eq!(chunks, [(5, true), (5, true), (2, true), (1, false)]);
}

#[test]
fn what_is_its_own_in_the_cache_comes_before_what_is_shared() {
    let mut harness = Harness::new(sharing());
    harness.add(EngineRequest { adapter: leaves(1, 2), ..request(0, &PROMPT[..9], 1) });
    harness.run();
    rows(&mut harness, 1, None);
    assert_eq!(rows(&mut harness, 2, leaves(1, 2)), (5, 4), "two blocks of its own, one of the base's");
}

#[test]
fn tenants_do_not_share() {
    let mut harness = Harness::new(sharing());
    rows(&mut harness, 0, None);
    let tenant_salt: std::sync::Arc<[u8]> = [7].into();
    harness.add(EngineRequest { adapter: leaves(1, 2), tenant_salt, ..request(1, &PROMPT, 1) });
    harness.run();
    assert_eq!(harness.fake.from_shared, 0);
}

/// 4 blocks for the sequence itself, and the 3 that it would copy from are not free besides.
#[test]
fn without_room_for_copies_it_computes_all_itself_at_once() {
    let mut harness = Harness::new(SchedulerConfig { num_blocks: 6, ..sharing() });
    assert_eq!(rows(&mut harness, 0, None), (13, 0));
    assert_eq!(rows(&mut harness, 1, leaves(1, 2)), (13, 0));
    let mut harness = Harness::new(SchedulerConfig { num_blocks: 7, ..sharing() });
    assert_eq!(rows(&mut harness, 0, None), (13, 0));
    assert_eq!(rows(&mut harness, 1, leaves(1, 2)), (13, 12));
}

#[test]
fn blocks_of_a_request_with_broken_numbers_are_not_gone_on_from() {
    let mut harness = Harness::new(sharing());
    let broken = SamplingParams { seed: crate::scheduler::testing::NON_FINITE_SEED, ..SamplingParams::greedy() };
    harness.add(EngineRequest { adapter: leaves(1, 2), sampling: broken.into(), ..request(0, &PROMPT, 1) });
    harness.run();
    assert_eq!(harness.log(0).failure, Some(RequestFailure::NonFinite));
    assert_eq!(rows(&mut harness, 1, leaves(2, 2)), (13, 0));
}
