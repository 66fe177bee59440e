//! The CUDA backend on an emulated device (`tests/emulator`): the same oracle, the same invariance.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use polydelta::ops::Numerics;
use polydelta::ops::cuda::{CudaBackend, CudaOptions};
use polydelta::types::AdapterSlot;

use crate::adapterhub::check_mixed;
use crate::emulator::{Count, Memory, device};
use crate::engine::{config, hall_of};
use crate::fixture::{ADAPTERHUB, Case, FAMILIES, Family, Runner, Sequence};
use crate::golden::{BF16, F16, check_all, check_narrow};
use crate::heads;
use crate::invariance::check_invariance_in;
use crate::mixes::{Scene, check_mix};
use crate::shared_kv::check_shared_kv;
use crate::shared_layers::check_shared_layers;

/// The device is one, and so is what is counted of it: tests take turns.
static DEVICE: Mutex<()> = Mutex::new(());

pub(crate) fn alone() -> MutexGuard<'static, ()> {
    DEVICE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn cuda(numerics: Numerics) -> CudaBackend {
    device();
    CudaBackend::new(CudaOptions { ordinal: 0, numerics, memory_bytes: None, kernel_cache: None, library_gemm: None })
        .unwrap()
}

#[test]
fn every_family_and_adapter_agrees_with_peft_on_the_cuda_backend() {
    let _turn = alone();
    check_all(&FAMILIES, || cuda(Numerics::F32));
}

#[test]
fn every_dense_family_and_adapter_is_near_peft_in_16_bits_on_the_cuda_backend() {
    let _turn = alone();
    for narrow in [BF16, F16] {
        check_narrow(narrow, cuda);
    }
}

#[test]
fn every_bottleneck_agrees_with_adapterhub_on_the_cuda_backend() {
    let _turn = alone();
    check_all(&ADAPTERHUB, || cuda(Numerics::F32));
    check_mixed(|| cuda(Numerics::F32));
}

#[test]
fn the_cuda_backend_gives_a_request_with_a_bottleneck_the_same_bits_in_any_batch() {
    let _turn = alone();
    check_invariance_in(&ADAPTERHUB[..1], 16, || cuda(Numerics::BF16));
    check_invariance_in(&ADAPTERHUB[1..2], 4, || cuda(Numerics::F32));
}

#[test]
fn the_cuda_backend_gives_a_request_the_same_bits_in_any_batch() {
    let _turn = alone();
    check_invariance_in(&["llama", "gemma3", "mixtral", "qwen3_moe"], 16, || cuda(Numerics::BF16));
    check_invariance_in(&["qwen3"], 16, || cuda(Numerics::F16));
    check_invariance_in(&["phi3"], 4, || cuda(Numerics::F32));
}

#[test]
fn a_mix_of_random_programs_is_the_weighted_sum_of_what_they_are_on_the_cuda_backend() {
    let _turn = alone();
    for name in crate::mixes::FAMILIES {
        check_mix(&Family::open(name), &Scene::of(7), || cuda(Numerics::F32));
    }
}

#[test]
fn kv_that_is_the_bases_is_shared_with_it_to_the_bit_on_the_cuda_backend() {
    let _turn = alone();
    check_shared_kv(cuda(Numerics::F32));
}

#[test]
fn layers_are_shared_to_the_bit_on_the_cuda_backend() {
    let _turn = alone();
    check_shared_layers(cuda(Numerics::F32), &["layers_to_transform", "lora_r4"]);
}

#[test]
fn a_request_with_numbers_that_f16_cannot_hold_has_no_logits_and_its_neighbours_keep_theirs() {
    let _turn = alone();
    // The second hides infinity in two places.
    for (name, adapter) in [("llama", "lora_r4"), ("gemma2", "lora_all_r4")] {
        let family = Family::open(name);
        let cases: Vec<&Case> = family.cases.iter().filter(|case| case.adapter.is_none()).collect();
        let mut runner = Runner::with_blocks_of(16, cuda(Numerics::F16), &family, family.spec.context_length, &[]);
        let loud = family.compile_as(adapter, |config| config["lora_alpha"] = 1e9.into()).unwrap();
        runner.install("loud", loud);
        let bits = |sequence: &Sequence| -> Vec<u32> { sequence.logits.concat().iter().map(|x| x.to_bits()).collect() };
        let alone: Vec<_> = cases.iter().map(|case| bits(&runner.generate(&[case], usize::MAX)[0])).collect();
        let loud = Case { adapter: Some("loud".to_owned()), ..cases[0].clone() };
        let mut all = vec![&loud];
        all.extend(&cases);
        let sequences = runner.generate(&all, 7);
        let (theirs, ours) = sequences.split_first().unwrap();
        assert!(theirs.logits.iter().all(|logits| logits.iter().any(|logit| !logit.is_finite())), "{name}");
        for (case, (sequence, alone)) in cases.iter().zip(ours.iter().zip(&alone)) {
            assert!(bits(sequence) == *alone, "{name} {}", case.name);
        }
    }
}

#[test]
fn golden_requests_come_out_of_an_engine_on_the_device_with_and_without_room() {
    let _turn = alone();
    let device = device();
    for name in ["llama", "gemma3", "mixtral"] {
        let family = Family::open(name);
        let cases: Vec<&Case> = family.cases.iter().collect();
        let mut adapters: Vec<String> = cases.iter().filter_map(|case| case.adapter.clone()).collect();
        adapters.sort();
        adapters.dedup();
        for num_blocks in [1024, 40] {
            let replayed = device.map(|device| device.count(Count::GraphLaunches));
            let backend = Arc::new(cuda(Numerics::F32));
            let mut hall = hall_of(&family, &adapters, config(&family, num_blocks), backend, |executor| executor);
            hall.check(&family, &cases);
            // Again, with the prompts' blocks in the prefix cache and the steps recorded.
            hall.check(&family, &cases);
            let stats = hall.stats();
            assert_eq!(stats.preemptions > 0, num_blocks == 40, "{name}: {stats:?}");
            let replays = device.map(|device| device.count(Count::GraphLaunches));
            assert!(replays.is_none() || replays > replayed, "{name}: steps that decode are recorded");
        }
    }
}

#[test]
fn texts_are_read_on_the_cuda_backend_as_peft_reads_them_and_with_the_same_bits_in_any_batch() {
    let _turn = alone();
    for name in heads::READ {
        heads::check(name, || cuda(Numerics::F32));
    }
    heads::check_bits("llama", 16, || cuda(Numerics::BF16));
}

#[test]
fn two_hundred_swaps_beside_a_sequence_change_no_bit_of_it_and_leave_nothing_behind() {
    let _turn = alone();
    let device = device();
    let family = Family::open("llama");
    let cases: Vec<&Case> = family.cases.iter().filter(|case| case.adapter.is_some()).collect();
    let case = cases[0];
    let others: Vec<&str> = cases[1..].iter().filter_map(|case| case.adapter.as_deref()).collect();
    let adapter = case.adapter.clone().unwrap();
    let context = family.spec.context_length;
    let mut runner = Runner::with_blocks_of(16, cuda(Numerics::BF16), &family, context, &[adapter]);
    let logits = |sequence: &Sequence| sequence.logits.concat().iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
    let alone = logits(&runner.generate(&[case], usize::MAX)[0]);
    let (slot, mut before) = (AdapterSlot(9), None);
    for round in 0..200 / case.ids.len() + 1 {
        runner.free_all();
        let mut sequence = runner.start(case);
        while sequence.output().len() < case.ids.len() {
            let name = others[(round + sequence.output().len()) % others.len()];
            runner.install_at(slot, family.compile(name).unwrap());
            runner.step(&mut [&mut sequence], usize::MAX);
            drop(runner.decoder.remove(slot));
        }
        assert!(logits(&sequence) == alone, "round {round}");
        // What was given up is freed behind the steps before: one more has waited for it.
        let mut last = runner.start(case);
        runner.step(&mut [&mut last], usize::MAX);
        // By now every adapter has been there, and what ops keep on their way is as large as it gets.
        if let Some(device) = device
            && round * case.ids.len() >= others.len()
        {
            let live = device.live(Memory::Device);
            assert_eq!(*before.get_or_insert(live), live, "round {round}: bytes on the device");
        }
    }
}
