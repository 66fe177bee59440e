use std::ops::Range;

use proptest::prelude::*;

use super::*;

/// An entry in host terms, to be installed on any backend.
#[derive(Clone, Debug)]
struct Entry {
    slot: u32,
    rank: usize,
    columns: Range<usize>,
    seed: u64,
}

const INPUTS: usize = 45;
const OUTPUTS: usize = 60;

impl Entry {
    fn install<B: Backend>(&self, backend: &B, inputs: usize) -> (u32, LowRankPair<B>) {
        let (a, b) = (numbers(self.seed, self.rank * inputs), numbers(self.seed + 1, self.columns.len() * self.rank));
        let entry = LowRankPair {
            a: backend.weight(&[HostMatrix::f32(self.rank, inputs, &a)]).unwrap(),
            b: backend.weight(&[HostMatrix::f32(self.columns.len(), self.rank, &b)]).unwrap(),
            rank: self.rank,
            scaling: 0.5,
            columns: self.columns.clone(),
        };
        (self.slot, entry)
    }
}

fn table<B: Backend>(backend: &B, entries: &[Entry]) -> B::DeltaTable {
    pairs_of(backend, entries.iter().map(|entry| entry.install(backend, INPUTS)).collect())
}

fn entries() -> Vec<Entry> {
    let entry = |slot, rank, columns: Range<usize>, seed| Entry { slot, rank, columns, seed };
    vec![
        entry(0, 1, 0..60, 10),
        entry(1, 16, 0..20, 20),
        entry(1, 5, 20..37, 30),
        entry(1, 8, 37..60, 40),
        entry(3, 65, 3..60, 50),
        // Two entries on the same columns, as a mix of two adapters has.
        entry(4, 4, 0..40, 60),
        entry(4, 17, 16..50, 70),
    ]
}

fn slots(pattern: &[u8]) -> Vec<Option<AdapterSlot>> {
    pattern.iter().map(|slot| (*slot < 6).then_some(AdapterSlot(u32::from(*slot)))).collect()
}

fn run(backend: &CpuBackend, table: &SlotTable<CpuBackend>, pattern: &[u8], x: &[f32], y: &[f32]) -> Vec<f32> {
    let mut y = buffer(OUTPUTS, y);
    backend.low_rank(&step_of(backend, slots(pattern)), Rows::All, at(table), &buffer(INPUTS, x), &mut y);
    y.data
}

#[test]
fn low_rank_agrees_with_the_definition_at_every_kind_of_entry() {
    let pattern = [9, 0, 1, 3, 4, 1, 9, 5, 4, 4, 4, 4, 4, 4, 4, 3];
    let (x, y) = (numbers(1, pattern.len() * INPUTS), numbers(2, pattern.len() * OUTPUTS));
    for cpu in backends(2) {
        let reference = ReferenceBackend::new(cpu.numerics());
        let mut want = matrix(OUTPUTS, &y);
        let step = step_of(&reference, slots(&pattern));
        reference.low_rank(&step, Rows::All, at(&table(&reference, &entries())), &matrix(INPUTS, &x), &mut want);
        let got = run(&cpu, &table(&cpu, &entries()), &pattern, &x, &y);
        // In bf16 a last bit of A x may round the other way: 2^-9 of a product.
        let tolerance = if cpu.numerics() == Numerics::F32 { 2e-5 } else { 2e-2 };
        assert_close(&got, &want.data, tolerance, &name(&cpu));
        for row in [0, 6, 7] {
            assert_same(&got[row * OUTPUTS..][..OUTPUTS], &y[row * OUTPUTS..][..OUTPUTS], "a row without entries");
        }
    }
}

#[test]
fn the_base_with_its_deltas_in_one_call_gives_the_bits_of_two() {
    let entry = |slot, rank, columns: Range<usize>, seed| Entry { slot, rank, columns, seed };
    // Slots 0, 1 and 4 end where panels of the base do on one stack or the other, slot 4 twice; slots 2 and 3 never.
    let list = [
        entry(0, 7, 0..60, 10),
        entry(1, 16, 0..20, 20),
        entry(1, 33, 20..60, 30),
        entry(2, 5, 0..32, 40),
        entry(2, 5, 37..60, 45),
        entry(3, 20, 3..60, 50),
        entry(4, 4, 0..32, 60),
        entry(4, 17, 0..32, 70),
    ];
    let few = vec![3, 0, 9, 1];
    let many: Vec<u8> = (0..70).map(|row| row % 7).collect();
    for cpu in backends(1).chain(backends(3)) {
        let table = table(&cpu, &list);
        for pattern in [&few, &many] {
            for widths in [[32, 28], [20, 40]] {
                let parts = widths.map(|out| numbers(out as u64, out * INPUTS));
                let segments = [0, 1].map(|part| HostMatrix::f32(widths[part], INPUTS, &parts[part]));
                let w = cpu.weight(&segments).unwrap();
                let (step, x) = (step_of(&cpu, slots(pattern)), buffer(INPUTS, &numbers(1, pattern.len() * INPUTS)));
                let (mut one, mut two) = (buffer(OUTPUTS, &[]), buffer(OUTPUTS, &[]));
                for y in [&mut one, &mut two] {
                    y.data = vec![7.0; pattern.len() * OUTPUTS];
                }
                cpu.gemm_low_rank(&step, Rows::All, at(&table), &x, &w, &mut one);
                cpu.gemm(&step, Rows::All, &x, &w, &mut two);
                cpu.low_rank(&step, Rows::All, at(&table), &x, &mut two);
                assert_same(&one.data, &two.data, &format!("{} {widths:?}", name(&cpu)));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_row_of_an_adapter_gives_the_same_bits_alone_and_mixed(
        pattern in proptest::collection::vec(0_u8..8, 1..60),
        seed in 0_u64..1000,
    ) {
        let (x, y) = (numbers(seed, pattern.len() * INPUTS), numbers(seed + 1, pattern.len() * OUTPUTS));
        for one in backends(1) {
            let whole = run(&one, &table(&one, &entries()), &pattern, &x, &y);
            for threads in [2, 3] {
                let many = backend(one.isa.get(), one.numerics(), threads);
                assert_same(&run(&many, &table(&many, &entries()), &pattern, &x, &y), &whole, &name(&many));
            }
            let table = table(&one, &entries());
            for row in (0..pattern.len()).step_by(pattern.len().div_ceil(8)) {
                let (x, y) = (&x[row * INPUTS..][..INPUTS], &y[row * OUTPUTS..][..OUTPUTS]);
                let alone = run(&one, &table, &pattern[row..=row], x, y);
                assert_same(&alone, &whole[row * OUTPUTS..][..OUTPUTS], &name(&one));
            }
        }
    }
}

#[test]
fn every_rank_from_1_to_65_agrees_with_the_definition() {
    for cpu in backends(1) {
        let reference = ReferenceBackend::new(cpu.numerics());
        for rank in 1..=65 {
            let entry = [Entry { slot: 0, rank, columns: 5..OUTPUTS, seed: rank as u64 }];
            let (x, y) = (numbers(3, 3 * INPUTS), numbers(4, 3 * OUTPUTS));
            let mut want = matrix(OUTPUTS, &y);
            let step = step_of(&reference, slots(&[0, 9, 0]));
            reference.low_rank(&step, Rows::All, at(&table(&reference, &entry)), &matrix(INPUTS, &x), &mut want);
            let got = run(&cpu, &table(&cpu, &entry), &[0, 9, 0], &x, &y);
            let tolerance = if cpu.numerics() == Numerics::F32 { 2e-5 } else { 2e-2 };
            assert_close(&got, &want.data, tolerance, &format!("{} rank {rank}", name(&cpu)));
        }
    }
}

#[test]
fn a_wide_adapter_over_many_rows_is_cut_into_tasks_that_change_nothing() {
    let (inputs, outputs, rows) = (700, 900, 70);
    let entry = Entry { slot: 2, rank: 40, columns: 0..outputs, seed: 5 };
    let (x, y) = (numbers(1, rows * inputs), numbers(2, rows * outputs));
    for one in backends(1) {
        let results: Vec<Vec<f32>> = [1, 2, 3]
            .map(|threads| {
                let many = backend(one.isa.get(), one.numerics(), threads);
                let table = pairs_of(&many, vec![entry.install(&many, inputs)]);
                let mut y = buffer(outputs, &y);
                let step = step_of(&many, vec![Some(AdapterSlot(2)); rows]);
                many.low_rank(&step, Rows::All, at(&table), &buffer(inputs, &x), &mut y);
                y.data
            })
            .into();
        assert_same(&results[1], &results[0], &name(&one));
        assert_same(&results[2], &results[0], &name(&one));
        let table = pairs_of(&one, vec![entry.install(&one, inputs)]);
        let mut alone = buffer(outputs, &y[37 * outputs..][..outputs]);
        let step = step_of(&one, vec![Some(AdapterSlot(2))]);
        one.low_rank(&step, Rows::All, at(&table), &buffer(inputs, &x[37 * inputs..][..inputs]), &mut alone);
        assert_same(&alone.data, &results[0][37 * outputs..][..outputs], &name(&one));
    }
}

#[test]
fn an_embedding_delta_adds_the_column_of_each_id() {
    let (vocab, hidden) = (50, 40);
    let ids = vec![Some(49), Some(3), None, Some(7), Some(20)];
    let plan = StepPlan { ids, ..plan_of(slots(&[1, 9, 1, 2, 1])) };
    fn install<B: Backend>(backend: &B, vocab: usize, hidden: usize) -> B::DeltaTable {
        let entry = |(slot, rank): (u32, usize)| {
            let seed = u64::from(slot);
            let (a, b) = (numbers(seed, vocab * rank), numbers(seed + 5, hidden * rank));
            let entry = LowRankPair {
                a: backend.weight(&[HostMatrix::f32(vocab, rank, &a)]).unwrap(),
                b: backend.weight(&[HostMatrix::f32(hidden, rank, &b)]).unwrap(),
                rank,
                scaling: 2.0,
                columns: 0..hidden,
            };
            (slot, entry)
        };
        pairs_of(backend, [(1, 7), (2, 33)].map(entry).into())
    }
    let y = numbers(6, 5 * hidden);
    for cpu in backends(2) {
        let reference = ReferenceBackend::new(cpu.numerics());
        let (mut got, mut want) = (buffer(hidden, &y), matrix(hidden, &y));
        let mut step = cpu.step();
        cpu.upload(&plan, &mut step).unwrap();
        let mut reference_step = reference.step();
        reference.upload(&plan, &mut reference_step).unwrap();
        cpu.embedding_low_rank(&step, at(&install(&cpu, vocab, hidden)), 3.0, &mut got);
        reference.embedding_low_rank(&reference_step, at(&install(&reference, vocab, hidden)), 3.0, &mut want);
        assert_close(&got.data, &want.data, 2e-5, &name(&cpu));
        assert_same(got.row(1), &y[hidden..2 * hidden], "a row of the base");
        assert_same(got.row(2), &y[2 * hidden..3 * hidden], "a row without an id");
    }
}

#[test]
fn vectors_touch_only_their_columns_and_rows() {
    fn vectors<B: Backend>(backend: &B) -> B::DeltaTable {
        let entry = |(slot, columns): (u32, Range<usize>)| {
            let values = backend.vector(&numbers(u64::from(slot), columns.len())).unwrap();
            (slot, ColumnVector { values, columns })
        };
        vectors_of(backend, [(0, 0..5), (0, 9..30), (2, 30..33)].map(entry).into())
    }
    let pattern = [0, 9, 2, 1, 0];
    let y = numbers(1, 5 * 33);
    for cpu in backends(2) {
        let reference = ReferenceBackend::new(cpu.numerics());
        let (mut got, mut want) = (buffer(33, &y), matrix(33, &y));
        let (step, reference_step) = (step_of(&cpu, slots(&pattern)), step_of(&reference, slots(&pattern)));
        cpu.scale_rows(&step, Rows::All, at(&vectors(&cpu)), &mut got);
        reference.scale_rows(&reference_step, Rows::All, at(&vectors(&reference)), &mut want);
        cpu.bias_rows(&step, Rows::All, at(&vectors(&cpu)), &mut got);
        reference.bias_rows(&reference_step, Rows::All, at(&vectors(&reference)), &mut want);
        assert_same(&got.data, &want.data, &name(&cpu));
    }
}

#[test]
fn scaled_inputs_are_those_of_their_rows_alone() {
    fn scales<B: Backend>(backend: &B) -> B::DeltaTable {
        let entry = |slot: u32| {
            let values = backend.vector(&numbers(u64::from(slot) + 8, INPUTS)).unwrap();
            (slot, ColumnVector { values, columns: 0..INPUTS })
        };
        vectors_of(backend, [0, 3].map(entry).into())
    }
    let pattern = [0, 9, 3, 1, 0, 0];
    let x = numbers(1, 6 * INPUTS);
    for cpu in backends(2) {
        let reference = ReferenceBackend::new(cpu.numerics());
        let (step, reference_step) = (step_of(&cpu, slots(&pattern)), step_of(&reference, slots(&pattern)));
        let (mut scaled, mut want) = (cpu.buffer(6, INPUTS).unwrap(), reference.buffer(6, INPUTS).unwrap());
        cpu.scale_input(&step, Rows::All, at(&scales(&cpu)), &buffer(INPUTS, &x), &mut scaled);
        reference.scale_input(&reference_step, Rows::All, at(&scales(&reference)), &matrix(INPUTS, &x), &mut want);
        assert_same(&scaled.data, &want.data, &name(&cpu));
    }
}

/// What slots do to inputs of so many columns: one rotation, several, a scale before them, a scale alone.
fn turns(sizes: &[usize], inputs: usize) -> (Vec<(u32, Vec<f32>)>, Vec<Turn>) {
    let fitting = |size: &&usize| inputs.is_multiple_of(**size);
    let turn = |(seed, slot, size, interleaved, is_shared)| Turn { slot, size, interleaved, is_shared, seed };
    let mut list = Vec::new();
    for (at, size) in sizes.iter().filter(fitting).enumerate() {
        let pairs = if inputs.is_multiple_of(2 * size) { 2 } else { 1 };
        let slot = at as u32 % 4;
        list.push(turn((10 + at as u64, slot, *size, pairs, false)));
        list.push(turn((30 + at as u64, slot + 4, *size, 1, at % 2 == 0)));
    }
    (vec![(1, numbers(8, inputs)), (3, numbers(9, inputs)), (8, numbers(7, inputs))], list)
}

fn turned(backend: &CpuBackend, inputs: usize, sizes: &[usize], pattern: &[u32], x: &[f32]) -> Vec<f32> {
    let (scales, list) = turns(sizes, inputs);
    let table = turns_of(backend, inputs, &scales, &list);
    let mut y = buffer(inputs, &vec![f32::NAN; x.len()]);
    let step = step_of(backend, scene::slots(pattern));
    backend.rotate_input(&step, Rows::All, Some(at(&table)), at(&table), &buffer(inputs, x), &mut y);
    y.data
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn turned_inputs_agree_with_the_definition_and_have_the_same_bits_alone_and_mixed(
        inputs in prop::sample::select(vec![32_usize, 45, 72, 288, 520]),
        pattern in proptest::collection::vec(prop_oneof![0_u32..10, Just(99)], 1..30),
        seed in 0_u64..1000,
    ) {
        const SIZES: [usize; 12] = [1, 2, 3, 4, 5, 8, 9, 12, 16, 36, 65, 260];
        let x = numbers(seed, pattern.len() * inputs);
        for one in backends(1) {
            let whole = turned(&one, inputs, &SIZES, &pattern, &x);
            let reference = ReferenceBackend::new(one.numerics());
            let (scales, list) = turns(&SIZES, inputs);
            let table = turns_of(&reference, inputs, &scales, &list);
            let mut want = matrix(inputs, &x);
            let step = step_of(&reference, scene::slots(&pattern));
            reference.rotate_input(&step, Rows::All, Some(at(&table)), at(&table), &matrix(inputs, &x), &mut want);
            assert_close(&whole, &want.data, 2e-5, &name(&one));
            for threads in [2, 3] {
                let many = backend(one.isa.get(), one.numerics(), threads);
                assert_same(&turned(&many, inputs, &SIZES, &pattern, &x), &whole, &name(&many));
            }
            for row in (0..pattern.len()).step_by(pattern.len().div_ceil(5)) {
                let alone = turned(&one, inputs, &SIZES, &pattern[row..=row], &x[row * inputs..][..inputs]);
                assert_same(&alone, &whole[row * inputs..][..inputs], &name(&one));
                if matches!(pattern[row], 9 | 99) {
                    assert_same(&alone, &x[row * inputs..][..inputs], "a row that nothing turns");
                }
            }
        }
    }
}

#[test]
fn long_prompts_are_turned_by_many_threads_to_the_same_bits() {
    let (inputs, rows) = (512, 130);
    let pattern: Vec<u32> = (0..rows).map(|row| if row % 50 < 40 { 2 } else { 99 }).collect();
    let x = numbers(1, rows as usize * inputs);
    for one in backends(1) {
        let whole = turned(&one, inputs, &[4, 8, 16, 256], &pattern, &x);
        for threads in [2, 3] {
            let many = backend(one.isa.get(), one.numerics(), threads);
            assert_same(&turned(&many, inputs, &[4, 8, 16, 256], &pattern, &x), &whole, &name(&many));
        }
        let row = 77 * inputs..78 * inputs;
        assert_same(&turned(&one, inputs, &[4, 8, 16, 256], &pattern[77..78], &x[row.clone()]), &whole[row], "alone");
    }
}

#[test]
#[should_panic(expected = "rows of a segment out of order")]
fn a_plan_that_lists_a_row_twice_is_refused_before_anything_is_written() {
    let cpu = backend(Isa::Portable, Numerics::F32, 1);
    let mut plan = plan_of(slots(&[0, 0]));
    plan.rows.order = vec![0, 0];
    let mut step = cpu.step();
    cpu.upload(&plan, &mut step).unwrap();
    let mut y = buffer(OUTPUTS, &[0.0; 2 * OUTPUTS]);
    cpu.low_rank(&step, Rows::All, at(&table(&cpu, &entries())), &buffer(INPUTS, &[0.0; 2 * INPUTS]), &mut y);
}
