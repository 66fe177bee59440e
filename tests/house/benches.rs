//! The benches of the GPU, as far as a machine without one can have them run: on the emulated device.
#![cfg(target_os = "linux")]

use std::sync::{Mutex, PoisonError};

use polydelta::delta::{DeltaProgram, EmbeddingRows, Site};
use polydelta::ops::HostTensor;
use polydelta::ops::cuda::probe::CudaProbe;
use polydelta::types::{AdapterSlot, AdapterTask};
use serde_json::Value;

use super::emulator::{self, Product};
use super::gpu_bench::{self, Plan};
use super::gpu_model::abi::Structs;
use super::gpu_model::costs::Class;
use super::gpu_model::device::DEVICES;
use super::gpu_model::plan::Planner;
use super::gpu_model::report::{self, Question, Step};
use super::gpu_model::tally::{Assumptions, Tally};
use super::support::large::{Room, slots, step};
use super::support::model::Shape;

/// What a device does, it does for all of the process.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn every_launch_of_a_step_has_a_cost_and_decoding_reads_weights_and_adapters_once() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let control = emulator::load(Product::Driver);
    let question = Question {
        shape: Shape::Tiny,
        rank: 16,
        context: 300,
        prefill: 256,
        prefill_sequences: 8,
        assumptions: Assumptions { gap: 1e-6, share: 3.0 },
    };
    let scratch = tempfile::tempdir().unwrap();
    let found = report::tallies(control, &question, &DEVICES[..1], scratch.path());
    control.set_dry(None);
    let tallies = &found.unwrap()[0];
    let read = |rows, adapters, class: &str| {
        let tally = serde_json::to_value(&tallies[&Step::Decode { rows, adapters }]).unwrap();
        tally["bytes"][class]["moved"].as_f64().unwrap_or(0.0)
    };
    // Two layers and the head in bf16; beside them rows of the embedding, gains, and rotary tables.
    let (hidden, inner, kv, vocab) = (256.0, 768.0, 128.0, 4096.0);
    let matrices = 2.0 * (2.0 * hidden * (2.0 * hidden + 2.0 * kv + 3.0 * inner) + hidden * vocab);
    for rows in [1, 64] {
        let beside = read(rows, 0, "weights") - matrices;
        assert!(beside > 0.0 && beside < 0.1 * matrices, "{rows} rows: {beside} of {matrices}");
    }
    let adapter = 2.0 * 2.0 * 16.0 * ((4.0 * hidden + 2.0 * (hidden + kv)) + 3.0 * (hidden + inner));
    assert_eq!(
        [(1, 1), (8, 8), (64, 64)].map(|(rows, adapters)| read(rows, adapters, "adapters") / adapter),
        [1.0, 8.0, 64.0]
    );
    assert_eq!(read(64, 0, "adapters"), 0.0);
    // Two layers of K and V in bf16, of what each sequence has and of its new token twice: written, and read.
    assert_eq!(read(8, 0, "kv"), 2.0 * 2.0 * 2.0 * kv * 8.0 * 302.0);
}

#[test]
fn rows_of_the_vocabulary_cost_two_launches_and_are_read_once_for_an_adapter() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let control = emulator::load(Product::Driver);
    let (scratch, structs) = (tempfile::tempdir().unwrap(), Structs::read().unwrap());
    let (rows, context) = (8, 320);
    let room = Room { rows, places: rows * context, context, slots: rows };
    let mut planner = Planner::new(control, &DEVICES[0], Shape::Tiny, room, scratch.path()).unwrap();
    let (tokens, hidden) = (100, 256);
    let own = EmbeddingRows {
        ids: (0..tokens as u32).collect(),
        rows: HostTensor::f32(&[tokens, hidden], vec![0.0; tokens * hidden]),
        tied: true,
    };
    let program = DeltaProgram {
        kind: String::new(),
        task: AdapterTask::default(),
        ops: vec![(Site::Embed, own.into())],
        invocation_tokens: Vec::new(),
        keeps_base_kv: false,
        base_layers: 0,
        vocab_size: None,
        unknown_fields: Vec::new(),
    };
    for slot in 0..2 {
        planner.install(AdapterSlot(slot), program.clone()).unwrap();
    }
    let assumptions = Assumptions { gap: 1e-6, share: 3.0 };
    let mut costs = [0, 1, 2].map(|adapters| {
        let launches = planner.launches(&step(&slots(rows, adapters), 1, context - 20, context)).unwrap();
        let tally = Tally::of(&structs, control, &launches, &DEVICES[0], assumptions).unwrap();
        (tally.launches, tally.bytes.get(&Class::Adapters).map_or(0.0, |bytes| bytes.moved))
    });
    control.set_dry(None);
    let none = costs[0].0;
    costs.iter_mut().for_each(|(launches, _)| *launches -= none);
    let (embedded, multiplied) = (2 * rows * hidden, tokens * (2 * hidden + 4));
    assert_eq!(costs, [(0, 0.0), (2, (embedded + multiplied) as f64), (2, (embedded + 2 * multiplied) as f64)]);
}

#[test]
fn the_bench_of_a_gpu_runs() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let control = emulator::load(Product::Driver);
    control.set_memory(1 << 30);
    let scratch = tempfile::tempdir().unwrap();
    let document = gpu_bench::run(&Plan::tiny(), &CudaProbe::of_machine(&[emulator::folder()]), 0, scratch.path());
    let document = document.unwrap_or_else(|error| panic!("{error}: {}", control.last_error()));
    let is_time = |at: &str| document.pointer(at).and_then(Value::as_f64).is_some_and(|seconds| seconds > 0.0);
    for at in [
        "/copy_bytes_per_second",
        "/decode/steps/0/to_base",
        "/decode/mixed/1/retention",
        "/replay/eager_to_replayed",
        "/prefill/to_base",
        "/alone/0/of_copies",
        "/swaps/slowest_step_seconds",
    ] {
        assert!(is_time(at), "{at} of {document:#}");
    }
}
