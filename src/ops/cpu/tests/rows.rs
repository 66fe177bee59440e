use super::*;
use crate::ops::ColumnVector;
use crate::types::AdapterSlot;

fn slot(index: u32) -> Option<AdapterSlot> {
    Some(AdapterSlot(index))
}

/// Run the same op on both backends and compare the buffer it writes.
fn both(
    cols: usize,
    data: &[f32],
    tolerance: f32,
    cpu_op: impl Fn(&CpuBackend, &mut Buffer),
    reference_op: impl Fn(&ReferenceBackend, &mut Matrix),
) {
    for cpu in backends(2) {
        let (mut got, mut want) = (buffer(cols, data), matrix(cols, data));
        cpu_op(&cpu, &mut got);
        reference_op(&ReferenceBackend::new(cpu.dtype()), &mut want);
        assert_close(&got.data, &want.data, tolerance, &name(&cpu));
    }
}

fn gains<B: Backend<Vector = Vec<f32>>>(cols: usize) -> SlotVectors<B> {
    let mut gains = SlotTable::default();
    gains.push(AdapterSlot(1), ColumnVector { values: numbers(9, cols), columns: 0..cols });
    gains
}

#[test]
fn norms_agree_with_the_definition_and_use_the_gain_of_the_row() {
    let plan = RowPlan::new(vec![None, slot(1), slot(0)]);
    for cols in [1, 7, 16, 33, 200] {
        let (x, weight) = (numbers(1, 3 * cols), numbers(2, cols));
        both(
            cols,
            &vec![0.0; 3 * cols],
            1e-5,
            |cpu, y| cpu.rms_norm(&plan, &buffer(cols, &x), &weight, &gains(cols), 1e-6, y),
            |reference, y| reference.rms_norm(&plan, &matrix(cols, &x), &weight, &gains(cols), 1e-6, y),
        );
        let columns = HeadColumns { first: cols, heads: 2, head_dim: cols };
        both(
            4 * cols,
            &numbers(3, 3 * 4 * cols),
            1e-5,
            |cpu, x| cpu.rms_norm_heads(&plan, x, columns, &weight, &gains(cols), 1e-6),
            |reference, x| reference.rms_norm_heads(&plan, x, columns, &weight, &gains(cols), 1e-6),
        );
    }
}

#[test]
fn a_norm_of_a_row_does_not_depend_on_the_batch() {
    for cpu in backends(3) {
        let (cols, rows) = (1000, 64);
        let (x, weight) = (numbers(1, rows * cols), numbers(2, cols));
        let mut whole = cpu.buffer(rows, cols).unwrap();
        let none = SlotVectors::default();
        cpu.rms_norm(&RowPlan::new(vec![None; rows]), &buffer(cols, &x), &weight, &none, 1e-5, &mut whole);
        for row in 0..rows {
            let mut alone = cpu.buffer(1, cols).unwrap();
            let x = buffer(cols, &x[row * cols..][..cols]);
            cpu.rms_norm(&RowPlan::new(vec![None]), &x, &weight, &none, 1e-5, &mut alone);
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
                cols,
                &vec![0.0; 3 * cols],
                2e-6,
                |cpu, y| cpu.gated_activation(3, activation, &buffer(2 * cols, &x), y),
                |reference, y| reference.gated_activation(3, activation, &matrix(2 * cols, &x), y),
            );
        }
        for cpu in backends(1) {
            let mut y = cpu.buffer(1, 41).unwrap();
            cpu.gated_activation(1, activation, &buffer(82, &[0.77; 82]), &mut y);
            assert!(y.data.iter().all(|number| number.to_bits() == y.data[0].to_bits()));
        }
    }
}

#[test]
fn small_ops_agree_with_the_definition() {
    let (x, other, bias) = (numbers(1, 5 * 37), numbers(2, 5 * 37), numbers(3, 37));
    let x: Vec<f32> = x.iter().map(|x| x * 60.0).collect();
    let rows = [4, 0, 2];
    both(37, &x, 0.0, |cpu, y| cpu.add(4, y, &buffer(37, &other)), |r, y| r.add(4, y, &matrix(37, &other)));
    both(37, &x, 0.0, |cpu, y| cpu.add_bias(4, &bias, y), |r, y| r.add_bias(4, &bias, y));
    both(37, &x, 2e-6, |cpu, y| cpu.softcap(4, 30.0, y), |r, y| r.softcap(4, 30.0, y));
    both(37, &x, 0.0, |cpu, y| cpu.write_rows(&rows, &other[..111], y), |r, y| r.write_rows(&rows, &other[..111], y));
    both(
        37,
        &x,
        0.0,
        |cpu, y| cpu.gather_rows(&buffer(37, &other), &rows, y),
        |r, y| r.gather_rows(&matrix(37, &other), &rows, y),
    );
    both(
        37,
        &x,
        0.0,
        |cpu, y| cpu.gather_scaled(&buffer(37, &other), &rows, &[&bias, &bias, &bias], y),
        |r, y| r.gather_scaled(&matrix(37, &other), &rows, &[&bias, &bias, &bias], y),
    );
}

#[test]
fn embeddings_are_rows_of_the_packed_table_and_absent_ids_leave_their_row() {
    for dim in [1, 6, 33] {
        let table = numbers(8, 40 * dim);
        let mut plan =
            StepPlan { rows: RowPlan::new(vec![None; 3]), ids: vec![Some(39), None, Some(16)], ..StepPlan::default() };
        plan.positions = vec![0; 3];
        plan.kv_slots = vec![0; 3];
        let host = [HostMatrix::f32(40, dim, &table)];
        both(
            dim,
            &numbers(1, 3 * dim),
            0.0,
            |cpu, y| {
                let mut step = cpu.step();
                cpu.upload(&plan, &mut step).unwrap();
                cpu.embed(&step, &cpu.weight(&host).unwrap(), 2.5, y);
            },
            |reference, y| {
                let mut step = reference.step();
                reference.upload(&plan, &mut step).unwrap();
                reference.embed(&step, &reference.weight(&host).unwrap(), 2.5, y);
            },
        );
    }
}

#[test]
fn a_row_is_read_back_without_a_copy() {
    let cpu = backend(Isa::Portable, Dtype::F32, 1);
    let y = buffer(2, &[1.0, 2.0, 3.0, 4.0]);
    assert!(matches!(cpu.read_row(&y, 1), Cow::Borrowed([3.0, 4.0])));
}
