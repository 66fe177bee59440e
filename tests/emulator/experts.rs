//! What experts put on a device, counted: as many launches whatever rows choose, no allocation on their way, and the bytes
//! that are said to be kept.

use polydelta::ops::cuda::{CudaBackend, CudaOptions};
use polydelta::ops::{
    Activation, Backend, DeltaMemory, Expert, ExpertDeltas, ExpertPair, ExpertsSpec, HostMatrix, LowRankPair, Numerics,
    RowPlan, Rows, SiteId, SiteTable, SlotDelta, SlotEntries, StepPlan,
};
use polydelta::types::AdapterSlot;

use super::emulator::{Count, Memory};

const GATE_UP: SiteId = SiteId(1);
const DOWN: SiteId = SiteId(2);
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

/// Slots 0 to 7 with a pair for each expert at both sites.
fn adapters(backend: &CudaBackend, hidden: usize, spec: &ExpertsSpec) -> <CudaBackend as DeltaMemory>::DeltaTable {
    const RANK: usize = 3;
    let pair = |inputs: usize, outputs: usize| {
        let (a, b) = (numbers(RANK * inputs), numbers(outputs * RANK));
        let a = backend.weight(&[HostMatrix::f32(RANK, inputs, &a)]).unwrap();
        let b = backend.weight(&[HostMatrix::f32(outputs, RANK, &b)]).unwrap();
        LowRankPair { a, b, rank: RANK, scaling: 0.5, columns: 0..outputs }
    };
    let mut table = backend.delta_table(8).unwrap();
    for slot in 0..8 {
        let of_expert = |expert: u32| {
            let (inner, at) = (spec.intermediate_size, |site, pair| (site, ExpertPair { expert, pair }));
            [at(GATE_UP, pair(hidden, 2 * inner)), at(DOWN, pair(inner, hidden))]
        };
        let expert_pairs = (0..spec.experts as u32).flat_map(of_expert).collect();
        let entries = SlotEntries { expert_pairs, ..SlotEntries::default() };
        backend.set_slot(&mut table, AdapterSlot(slot), SlotDelta::new(backend, entries).unwrap());
    }
    table
}

#[test]
fn deltas_of_experts_take_three_launches_more_for_any_number_of_adapters_and_none_where_there_are_none() {
    const ROWS: usize = 8;
    const HIDDEN: usize = 40;
    let (_alone, control) = super::device();
    let spec = spec(16, 2, 24);
    for backend in NUMERICS.map(backend) {
        let (experts, table) = (experts(&backend, HIDDEN, &spec), adapters(&backend, HIDDEN, &spec));
        let mut work = backend.experts_work(ROWS, HIDDEN, Some(&spec)).unwrap();
        let x = backend.buffer_of(HIDDEN, &numbers(ROWS * HIDDEN)).unwrap();
        let logits = backend.buffer_of(16, &numbers(ROWS * 16)).unwrap();
        let mut y = backend.buffer(ROWS, HIDDEN).unwrap();
        let mut counted = |slots: [Option<AdapterSlot>; ROWS], sites: [Option<SiteId>; 2]| {
            let [gate_up, down] = sites.map(|site| site.map(|site| SiteTable { table: &table, site }));
            let mut step = backend.step();
            let (ids, positions, kv_slots) = (vec![None; ROWS], vec![0; ROWS], vec![0; ROWS]);
            let rows = RowPlan::new(slots.to_vec());
            backend.upload(&StepPlan { rows, ids, positions, kv_slots, ..StepPlan::default() }, &mut step).unwrap();
            backend.read_row(&x, 0);
            let before = (control.all_launches(), control.count(Count::Allocations));
            let deltas = ExpertDeltas { gate_up, down };
            backend.experts(&step, Rows::All, &spec, &logits, &experts, deltas, &x, &mut work, &mut y);
            let allocated = control.count(Count::Allocations) - before.1;
            backend.finish(&mut step).unwrap();
            (control.all_launches() - before.0, allocated)
        };
        let both = [Some(GATE_UP), Some(DOWN)];
        let each = std::array::from_fn(|row| Some(AdapterSlot(row as u32)));
        // What ops keep on their way has grown to its size behind the first.
        counted(each, both);
        let (without, _) = counted([None; ROWS], [None, None]);
        for slots in [each, [Some(AdapterSlot(3)); ROWS], [None; ROWS]] {
            assert_eq!(counted(slots, both), (without + 3, 0), "{:?}", backend.numerics());
            assert_eq!(counted(slots, [Some(GATE_UP), None]), (without + 2, 0), "{:?}", backend.numerics());
            assert_eq!(counted(slots, [None, Some(DOWN)]), (without + 2, 0), "{:?}", backend.numerics());
        }
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
