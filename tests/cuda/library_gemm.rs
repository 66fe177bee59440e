//! Products by cuBLASLt: on the emulated device by an emulated library, which refuses what is described wrongly.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use polydelta::ops::cuda::{CublasLt, CudaBackend, CudaOptions, LibraryGemm};
use polydelta::ops::reference::ReferenceBackend;
use polydelta::ops::{Backend, HostMatrix, Numerics, RowPlan, Rows, SampledRows, SequencePlan, StepPlan};

use crate::device::NUMERICS;
use crate::emulator;
use crate::scene::{assert_close, numbers, plan_of, rows_of};

/// What the library counts is the process's: tests take turns.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A backend that leaves products of so many rows to the library; `None` on a GPU whose machine has none.
fn with_library(numerics: Numerics, from_rows: usize) -> Option<CudaBackend> {
    let library = match emulator::device() {
        Some(_) => CublasLt::open(&[emulator::cublaslt_folder()]).unwrap(),
        None => CublasLt::open(&[]).ok()?,
    };
    let library_gemm = Some(LibraryGemm { library: Arc::new(library), from_rows });
    let options = CudaOptions { ordinal: 0, numerics, memory_bytes: None, kernel_cache: None, library_gemm };
    Some(CudaBackend::new(options).unwrap())
}

/// Products asked for since; 0 on a GPU, whose library counts nothing.
fn products_of(compute: impl FnOnce()) -> u64 {
    let count = || emulator::device().map_or(0, |_| emulator::products().0);
    let before = count();
    compute();
    count() - before
}

/// A prompt of so many rows, or as many sequences that decode; every other row is sampled.
fn plan(rows: usize, is_prompt: bool) -> StepPlan {
    let each = if is_prompt { rows } else { 1 };
    let sequences = (0..rows / each).map(|index| SequencePlan {
        rows: index * each..(index + 1) * each,
        start: 0,
        blocks: vec![0; 32].into(),
    });
    let sampled: Vec<u32> = (0..rows as u32).step_by(2).collect();
    let all = RowPlan::new(vec![None; rows]);
    StepPlan {
        sequences: sequences.collect(),
        sampled: SampledRows::groups(&all, &sampled),
        ..plan_of(vec![None; rows])
    }
}

/// A product of an input that has its rounded form, and one of an input that has none, all rows and some.
fn multiply<B: Backend>(backend: &B, (inputs, outputs): (usize, usize), plan: &StepPlan) -> Vec<f32> {
    let rows = plan.ids.len();
    let matrix = numbers(7, outputs * inputs);
    let w = backend.weight(&[HostMatrix::f32(outputs, inputs, &matrix)]).unwrap();
    let mut step = backend.step();
    backend.upload(plan, &mut step).unwrap();
    let x = backend.buffer_of(inputs, &numbers(8, rows * inputs)).unwrap();
    let mut normed = backend.input_buffer(rows, inputs).unwrap();
    let weight = backend.vector(&vec![1.0; inputs]).unwrap();
    let norm = polydelta::ops::Norm { weight: &weight, gains: None, eps: 1e-5 };
    backend.rms_norm(&step, Rows::All, norm, &x, &mut normed);
    let product = |set: Rows, x: &B::Buffer, count: usize| {
        let mut y = backend.buffer(rows, outputs).unwrap();
        backend.gemm(&step, set, x, &w, &mut y);
        rows_of(backend, &y, count)
    };
    let some = plan.sampled[0].sources.len();
    [product(Rows::All, &x, rows), product(Rows::All, &normed, rows), product(Rows::Sampled(0), &x, some)].concat()
}

#[test]
fn the_librarys_products_agree_with_the_definition() {
    let _alone = alone();
    for numerics in NUMERICS {
        let Some(cuda) = with_library(numerics, 1) else { return };
        let reference = ReferenceBackend::new(numerics);
        // Inputs and outputs that are no multiples of a piece, rows that are no multiples of anything.
        for (shape, rows) in [((64, 48), 5), ((13, 7), 33), ((264, 130), 64), ((72, 100), 150)] {
            let plan = plan(rows, true);
            let (got, want) = (multiply(&cuda, shape, &plan), multiply(&reference, shape, &plan));
            // A norm that differs in its last bit may be rounded to its neighbour.
            let tolerance = if numerics == Numerics::F32 { 1e-4 } else { 1e-2 };
            assert_close(&got, &want, tolerance, &format!("{numerics:?} {shape:?} {rows} rows"));
        }
    }
}

#[test]
fn the_library_has_the_products_it_is_given_and_no_others() {
    let _alone = alone();
    let numerics = Numerics::BF16;
    let Some(all) = with_library(numerics, 1) else { return };
    let Some(large) = with_library(numerics, 65) else { return };
    if emulator::device().is_none() {
        return;
    }
    let own = crate::device::cuda(numerics);
    let shape = (64, 48);
    let same = |backend: &CudaBackend, plan: &StepPlan, by_library: u64| {
        let mut got = Vec::new();
        assert_eq!(products_of(|| got = multiply(backend, shape, plan)), by_library);
        assert_eq!(got == multiply(&own, shape, plan), by_library == 0, "the library adds in another order");
    };
    same(&all, &plan(70, true), 3);
    same(&all, &plan(70, false), 0);
    // The sampled rows are fewer.
    same(&large, &plan(70, true), 2);
    same(&large, &plan(64, true), 0);
    // A shape for which the emulated library has nothing.
    assert_eq!(products_of(|| drop(multiply(&all, (40, 48), &plan(70, true)))), 0);
}

#[test]
fn what_the_library_made_goes_with_the_backend() {
    if emulator::device().is_none() {
        return;
    }
    let _alone = alone();
    let before = emulator::products().1;
    let Some(cuda) = with_library(Numerics::F32, 1) else { return };
    multiply(&cuda, (64, 48), &plan(9, true));
    assert!(emulator::products().1 > before);
    drop(cuda);
    assert_eq!(emulator::products().1, before);
}
