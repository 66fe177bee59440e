use super::*;
use crate::ops::SampledRows;

fn slot(index: u32) -> Option<AdapterSlot> {
    Some(AdapterSlot(index))
}

/// Run the same op of a step on both backends and compare the buffer it writes.
fn both(
    plan: &StepPlan,
    cols: usize,
    data: &[f32],
    tolerance: f32,
    cpu_op: impl Fn(&CpuBackend, &Step, &mut Buffer),
    reference_op: impl Fn(&ReferenceBackend, &<ReferenceBackend as Backend>::Step, &mut Matrix),
) {
    for cpu in backends(2) {
        let reference = ReferenceBackend::new(cpu.numerics());
        let (mut got, mut want) = (buffer(cols, data), matrix(cols, data));
        let (mut step, mut reference_step) = (cpu.step(), reference.step());
        cpu.upload(plan, &mut step).unwrap();
        reference.upload(plan, &mut reference_step).unwrap();
        cpu_op(&cpu, &step, &mut got);
        reference_op(&reference, &reference_step, &mut want);
        assert_close(&got.data, &want.data, tolerance, &name(&cpu));
    }
}

fn norm<'a, B: Backend>(weight: &'a B::Vector, gains: &'a B::DeltaTable) -> Norm<'a, B> {
    Norm { weight, gains: Some(at(gains)), eps: 1e-6 }
}

fn gains<B: Backend>(backend: &B, cols: usize) -> B::DeltaTable {
    let values = backend.vector(&numbers(9, cols)).unwrap();
    vectors_of(backend, vec![(1, ColumnVector { values, columns: 0..cols })])
}

#[test]
fn norms_agree_with_the_definition_and_use_the_gain_of_the_row() {
    let plan = plan_of(vec![None, slot(1), slot(0)]);
    for cols in [1, 7, 16, 33, 200] {
        let (x, weight) = (numbers(1, 3 * cols), numbers(2, cols));
        both(
            &plan,
            cols,
            &vec![0.0; 3 * cols],
            1e-5,
            |cpu, step, y| cpu.rms_norm(step, Rows::All, norm(&weight, &gains(cpu, cols)), &buffer(cols, &x), y),
            |reference, step, y| {
                reference.rms_norm(step, Rows::All, norm(&weight, &gains(reference, cols)), &matrix(cols, &x), y);
            },
        );
        let columns = HeadColumns { first: cols, heads: 2, head_dim: cols };
        both(
            &plan,
            4 * cols,
            &numbers(3, 3 * 4 * cols),
            1e-5,
            |cpu, step, x| cpu.rms_norm_heads(step, Rows::All, norm(&weight, &gains(cpu, cols)), columns, x),
            |reference, step, x| {
                let gains = gains(reference, cols);
                reference.rms_norm_heads(step, Rows::All, norm(&weight, &gains), columns, x);
            },
        );
    }
}

#[test]
fn a_norm_of_a_row_does_not_depend_on_the_batch() {
    for cpu in backends(3) {
        let (cols, rows) = (1000, 64);
        let (x, weight) = (numbers(1, rows * cols), numbers(2, cols));
        let mut whole = cpu.buffer(rows, cols).unwrap();
        let none = cpu.delta_table(0).unwrap();
        let step = step_of(&cpu, vec![None; rows]);
        cpu.rms_norm(&step, Rows::All, norm(&weight, &none), &buffer(cols, &x), &mut whole);
        for row in 0..rows {
            let mut alone = cpu.buffer(1, cols).unwrap();
            let x = buffer(cols, &x[row * cols..][..cols]);
            cpu.rms_norm(&step_of(&cpu, vec![None]), Rows::All, norm(&weight, &none), &x, &mut alone);
            assert_same(&alone.data, whole.row(row), &name(&cpu));
        }
    }
}

#[test]
fn activations_agree_with_the_definition_and_ignore_the_place_in_the_row() {
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        for cols in [1, 5, 37, 256] {
            let x: Vec<f32> = numbers(4, 3 * 2 * cols).iter().map(|x| x * 8.0).collect();
            both(
                &plan_of(vec![None; 3]),
                cols,
                &vec![0.0; 3 * cols],
                2e-6,
                |cpu, step, y| cpu.gated_activation(step, Rows::All, activation, &buffer(2 * cols, &x), y),
                |reference, step, y| {
                    reference.gated_activation(step, Rows::All, activation, &matrix(2 * cols, &x), y);
                },
            );
        }
        for cpu in backends(1) {
            let mut y = cpu.buffer(1, 41).unwrap();
            let step = step_of(&cpu, vec![None]);
            cpu.gated_activation(&step, Rows::All, activation, &buffer(82, &[0.77; 82]), &mut y);
            assert!(y.data.iter().all(|number| number.to_bits() == y.data[0].to_bits()));
        }
    }
}

#[test]
fn small_ops_agree_with_the_definition() {
    let (x, other, bias) = (numbers(1, 5 * 37), numbers(2, 5 * 37), numbers(3, 37));
    let x: Vec<f32> = x.iter().map(|x| x * 60.0).collect();
    let plan = plan_of(vec![None; 4]);
    let all = Rows::All;
    both(
        &plan,
        37,
        &x,
        0.0,
        |cpu, step, y| cpu.add(step, all, y, &buffer(37, &other)),
        |r, step, y| r.add(step, all, y, &matrix(37, &other)),
    );
    both(
        &plan,
        37,
        &x,
        0.0,
        |cpu, step, y| cpu.add_bias(step, all, &bias, y),
        |r, step, y| {
            r.add_bias(step, all, &bias, y);
        },
    );
    both(
        &plan,
        37,
        &x,
        2e-6,
        |cpu, step, y| cpu.softcap(step, all, 30.0, y),
        |r, step, y| {
            r.softcap(step, all, 30.0, y);
        },
    );
    both(
        &plan,
        37,
        &x,
        0.0,
        |cpu, _, y| cpu.copy_rows(&cpu.buffer_of(37, &other).unwrap(), 2, 1..4, y),
        |r, _, y| r.copy_rows(&r.buffer_of(37, &other).unwrap(), 2, 1..4, y),
    );
}

#[test]
fn rows_are_kept_at_their_places_and_copied_with_their_blocks() {
    for cpu in backends(2) {
        assert_eq!(kept_and_recalled(&cpu, 21, 37), numbers(11, 21 * 37), "{}", name(&cpu));
    }
    let reference = ReferenceBackend::new(Numerics::F32);
    assert_eq!(kept_and_recalled(&reference, 21, 37), numbers(11, 21 * 37));
}

#[test]
fn sampled_rows_are_gathered_with_their_adapters() {
    let mut plan = plan_of(vec![None, slot(1), None, slot(0), slot(1)]);
    plan.sampled = SampledRows::groups(&plan.rows, &[1, 2, 4]);
    let (x, weight) = (numbers(2, 5 * 37), numbers(3, 37));
    for rows in [Rows::All, Rows::Sampled(0)] {
        both(
            &plan,
            37,
            &numbers(1, 5 * 37),
            0.0,
            |cpu, step, y| cpu.gather_rows(step, rows, &buffer(37, &x), y),
            |r, step, y| r.gather_rows(step, rows, &matrix(37, &x), y),
        );
        both(
            &plan,
            37,
            &numbers(1, 5 * 37),
            1e-5,
            |cpu, step, y| cpu.rms_norm(step, rows, norm(&weight, &gains(cpu, 37)), &buffer(37, &x), y),
            |r, step, y| r.rms_norm(step, rows, norm(&weight, &gains(r, 37)), &matrix(37, &x), y),
        );
    }
}

#[test]
fn embeddings_are_rows_of_the_packed_table_and_absent_ids_leave_their_row() {
    for dim in [1, 6, 33] {
        let table = numbers(8, 40 * dim);
        let plan = StepPlan { ids: vec![Some(39), None, Some(16)], ..plan_of(vec![None; 3]) };
        let host = [HostMatrix::f32(40, dim, &table)];
        both(
            &plan,
            dim,
            &numbers(1, 3 * dim),
            0.0,
            |cpu, step, y| cpu.embed(step, &cpu.weight(&host).unwrap(), 2.5, y),
            |reference, step, y| reference.embed(step, &reference.weight(&host).unwrap(), 2.5, y),
        );
    }
}

#[test]
fn a_row_is_read_back_without_a_copy() {
    let cpu = backend(Isa::Portable, Numerics::F32, 1);
    let y = buffer(2, &[1.0, 2.0, 3.0, 4.0]);
    assert!(matches!(cpu.read_row(&y, 1), Cow::Borrowed([3.0, 4.0])));
}
