//! What experts put on a device, counted: as many launches whatever rows choose, no allocation on their way, and the bytes
//! that are said to be kept.

use polydelta::ops::cuda::{CudaBackend, CudaOptions};
use polydelta::ops::{
    Activation, Backend, Expert, ExpertDeltas, ExpertsSpec, HostMatrix, Numerics, RowPlan, Rows, StepPlan,
};

use super::emulator::{Count, Memory};

const NUMERICS: [Numerics; 3] = [Numerics::F32, Numerics::BF16, Numerics::F16];

fn backend(numerics: Numerics) -> CudaBackend {
    CudaBackend::new(CudaOptions { ordinal: 0, numerics, memory_bytes: None, kernel_cache: None, library_gemm: None })
        .unwrap()
}

fn spec(experts: usize, experts_per_token: usize, intermediate_size: usize) -> ExpertsSpec {
    ExpertsSpec { experts, experts_per_token, intermediate_size, activation: Activation::Silu, renormalise: true }
}

/// Numbers between -1 and 1.
fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|at| (at * 37 % 64) as f32 / 32.0 - 1.0).collect()
}

fn experts(backend: &CudaBackend, hidden: usize, spec: &ExpertsSpec) -> <CudaBackend as Backend>::Experts {
    let inner = spec.intermediate_size;
    let (half, down) = (numbers(inner * hidden), numbers(hidden * inner));
    let expert = || {
        let halves = [HostMatrix::f32(inner, hidden, &half); 2];
        let down = backend.weight(&[HostMatrix::f32(hidden, inner, &down)]).unwrap();
        Expert { gate_up: backend.weight(&halves).unwrap(), down }
    };
    backend.expert_table((0..spec.experts).map(|_| expert()).collect()).unwrap()
}

#[test]
fn launches_do_not_depend_on_the_choice_and_nothing_is_allocated_on_their_way() {
    const ROWS: usize = 8;
    const HIDDEN: usize = 40;
    let (_alone, control) = super::device();
    let spec = spec(16, 2, 24);
    for backend in NUMERICS.map(backend) {
        let table = experts(&backend, HIDDEN, &spec);
        let mut work = backend.experts_work(ROWS, HIDDEN, Some(&spec)).unwrap();
        let x = backend.buffer_of(HIDDEN, &numbers(ROWS * HIDDEN)).unwrap();
        let mut y = backend.buffer(ROWS, HIDDEN).unwrap();
        // Every row another pair of experts, and all the same.
        let any =
            |row: usize, expert: usize| if (row * 5) % 16 == expert { 3.0 } else { (expert * 7 % 16) as f32 / 16.0 };
        let same = |_: usize, expert: usize| expert as f32;
        let choices: [&dyn Fn(usize, usize) -> f32; 3] = [&any, &any, &same];
        let counted = choices.map(|choice| {
            let logits: Vec<f32> = (0..ROWS * 16).map(|at| choice(at / 16, at % 16)).collect();
            let logits = backend.buffer_of(16, &logits).unwrap();
            let mut step = backend.step();
            let rows = RowPlan::new(vec![None; ROWS]);
            let (ids, positions, kv_slots) = (vec![None; ROWS], vec![0; ROWS], vec![0; ROWS]);
            backend.upload(&StepPlan { rows, ids, positions, kv_slots, ..StepPlan::default() }, &mut step).unwrap();
            backend.read_row(&x, 0);
            let before = (control.all_launches(), control.count(Count::Allocations));
            backend.experts(&step, Rows::All, &spec, &logits, &table, ExpertDeltas::NONE, &x, &mut work, &mut y);
            let allocated = control.count(Count::Allocations) - before.1;
            backend.finish(&mut step).unwrap();
            (control.all_launches() - before.0, allocated)
        });
        // What ops keep on their way has grown to its size by the second.
        assert_eq!(counted[1], counted[2], "{:?}", backend.numerics());
        assert_eq!(counted[2].1, 0, "{:?}", backend.numerics());
        assert!(counted[2].0 >= 5, "{counted:?}");
    }
}

#[test]
fn what_is_kept_between_the_kernels_is_counted_to_the_byte() {
    let (_alone, control) = super::device();
    for backend in NUMERICS.map(backend) {
        for (rows, hidden, spec) in [(1, 8, spec(1, 1, 1)), (100, 24, spec(4, 2, 17)), (33, 512, spec(128, 8, 96))] {
            let before = control.live(Memory::Device);
            let work = backend.experts_work(rows, hidden, Some(&spec)).unwrap();
            assert_eq!(control.live(Memory::Device) - before, backend.experts_bytes(rows, hidden, &spec), "{spec:?}");
            drop(work);
        }
        let before = control.live(Memory::Device);
        let _none = backend.experts_work(512, 64, None).unwrap();
        assert!(control.live(Memory::Device) - before <= 4096, "a model without experts keeps no room for them");
    }
}
