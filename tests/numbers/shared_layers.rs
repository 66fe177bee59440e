//! What the first layers make of a prompt is shared between the base and all adapters that leave them as they are. What is
//! taken over changes no bit.

use std::sync::Arc;

use polydelta::ops::cpu::{CpuBackend, CpuOptions};
use polydelta::ops::{Backend, Numerics, reference::ReferenceBackend};
use polydelta::scheduler::SchedulerConfig;

use crate::engine::{Hall, config, hall_of};
use crate::fixture::{BLOCK_SIZE, Case, Family};
use crate::shared_kv::{Outcome, run};

/// Of two layers or more: those behind the first are each adapter's own.
const SHARED: u32 = 1;

fn sharing<B: Backend>(family: &Family, adapters: &[String], backend: &Arc<B>, blocks: u32) -> Hall {
    let config = SchedulerConfig { shared_layers: Some(SHARED), ..config(family, blocks) };
    hall_of(family, adapters, config, Arc::clone(backend), |executor| executor)
}

/// Everyone after everyone, over a prompt that spans several steps.
pub(crate) fn check_shared_layers<B: Backend>(backend: B, names: &[&str]) {
    let family = Family::open("llama");
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let backend = Arc::new(backend);
    let plain = |hall: &mut Hall, adapter| {
        hall.salt += 1;
        run(hall, &prompt(), adapter)
    };
    let mut unshared = hall_of(&family, &names, config(&family, 256), Arc::clone(&backend), |executor| executor);
    let mut hall = sharing(&family, &names, &backend, 256);
    let who: Vec<_> = names.iter().map(|name| Some(name.as_str())).chain([None]).collect();
    let expected: Vec<Outcome> = who.iter().map(|adapter| plain(&mut unshared, *adapter)).collect();
    let whole = ((prompt().len() - 1) / BLOCK_SIZE * BLOCK_SIZE) as u64;
    let shares = |name: Option<&str>| name.is_none_or(|name| family.compile(name).unwrap().base_layers >= SHARED);
    assert_eq!(who.iter().filter(|name| !shares(**name)).count(), 1, "all but one");
    for first in &who {
        for (then, expected) in who.iter().zip(&expected) {
            plain(&mut hall, *first);
            let before = hall.stats().shared_layer_hits;
            let found = run(&mut hall, &prompt(), *then);
            assert_eq!(found.tokens, expected.tokens, "{then:?} after {first:?}");
            let taken_over = hall.stats().shared_layer_hits - before;
            // Of the base's own KV, or of its own, nothing has to be computed.
            let computed = shares(*first) && shares(*then) && found.cached == 0;
            assert_eq!(taken_over, if computed { whole } else { 0 }, "{then:?} after {first:?}");
        }
    }
}

/// The last of them changes all layers.
const ADAPTERS: [&str; 4] = ["layers_to_transform", "oft_layer", "behind_kv", "lora_r4"];

fn prompt() -> Vec<u32> {
    (0..90).map(|at| 5 + at * 7 % 50).collect()
}

#[test]
fn layers_are_shared_to_the_bit_on_the_reference_backend() {
    check_shared_layers(ReferenceBackend::new(Numerics::F32), &ADAPTERS);
}

#[test]
fn layers_are_shared_to_the_bit_on_the_cpu_backend() {
    for numerics in [Numerics::F32, Numerics::BF16] {
        check_shared_layers(CpuBackend::new(CpuOptions { threads: 2, numerics, isa: None }).unwrap(), &ADAPTERS);
    }
}

#[test]
fn golden_requests_come_out_of_an_engine_that_shares_layers_with_and_without_room() {
    let backend = Arc::new(ReferenceBackend::new(Numerics::F32));
    for name in ["llama", "gemma3", "phi3"] {
        let family = Family::open(name);
        let cases: Vec<&Case> = family.cases.iter().collect();
        let mut adapters: Vec<String> = cases.iter().filter_map(|case| case.adapter.clone()).collect();
        adapters.sort();
        adapters.dedup();
        for num_blocks in [1024, 40] {
            let mut hall = sharing(&family, &adapters, &backend, num_blocks);
            hall.check(&family, &cases);
            hall.check(&family, &cases);
        }
    }
}
