//! Figures to tune by; run with `cargo test --release --lib ops::cpu -- --ignored --nocapture`. Each is the best of
//! many short calls, so that a busy machine disturbs it least; compare figures of one run only.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::*;
use crate::ops::SequencePlan;

const DEPTH: usize = 896;
const OUT: usize = 4864;
/// So many matrices that together they exceed the last cache.
const MATRICES: usize = 12;

fn best(times: usize, mut call: impl FnMut(usize)) -> Duration {
    (0..times)
        .map(|index| {
            let start = Instant::now();
            call(index);
            start.elapsed()
        })
        .min()
        .unwrap_or_default()
}

fn gigabytes(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

/// Best read of 8 MiB out of 256 MiB.
fn read_bandwidth(threads: usize) -> f64 {
    const BLOCK: usize = 1 << 20;
    let pool = Pool::new(threads).unwrap();
    let data = vec![1_u64; 32 * BLOCK];
    let time = best(400, |index| {
        let part = &data[index % 32 * BLOCK..][..BLOCK];
        pool.run(usize::MAX, 64, |chunk| {
            let sums = part[chunk * BLOCK / 64..][..BLOCK / 64].as_chunks::<16>().0.iter().fold(
                [0_u64; 16],
                |mut sums, line| {
                    sums.iter_mut().zip(line).for_each(|(sum, x)| *sum = sum.wrapping_add(*x));
                    sums
                },
            );
            black_box(sums);
        });
    });
    gigabytes(8 * BLOCK, time)
}

fn report_gemm(threads: usize, numerics: Numerics) {
    let cpu = CpuBackend::new(CpuOptions { threads, numerics, isa: None }).unwrap();
    let data = numbers(1, DEPTH * OUT);
    let weights: Vec<PackedWeight> =
        (0..MATRICES).map(|_| cpu.weight(&[HostMatrix::f32(OUT, DEPTH, &data)]).unwrap()).collect();
    let bytes = DEPTH * OUT * numerics.weights.size();
    let mut times = Vec::new();
    for rows in [1, 2, 3, 4, 6, 8, 12, 16, 32, 128, 512] {
        let x = buffer(DEPTH, &numbers(2, rows * DEPTH));
        let mut y = cpu.buffer(rows, OUT).unwrap();
        let step = step_of(&cpu, vec![None; rows]);
        let time = best(if rows > 100 { 24 } else { 200 }, |index| {
            cpu.gemm(&step, Rows::All, &x, &weights[index % MATRICES], &mut y);
        });
        times.push(time);
        println!(
            "{} {rows:4} rows: {:8.1} us {:6.1} GB/s {:6.1} GFLOP/s, {:.2} of 1 row",
            name(&cpu),
            time.as_secs_f64() * 1e6,
            gigabytes(bytes, time),
            2e-9 * (rows * DEPTH * OUT) as f64 / time.as_secs_f64(),
            time.as_secs_f64() / times[0].as_secs_f64()
        );
    }
}

fn report_low_rank(threads: usize) {
    let cpu = CpuBackend::new(CpuOptions { threads, numerics: Numerics::BF16, isa: None }).unwrap();
    let (a, b) = (numbers(1, 16 * DEPTH), numbers(2, 16 * OUT));
    let entry = |slot| {
        let entry = LowRankPair {
            a: cpu.weight(&[HostMatrix::f32(16, DEPTH, &a)]).unwrap(),
            b: cpu.weight(&[HostMatrix::f32(OUT, 16, &b)]).unwrap(),
            rank: 16,
            scaling: 1.0,
            columns: 0..OUT,
        };
        (slot, entry)
    };
    let table = pairs_of(&cpu, (0..64).map(entry).collect());
    let slots = |first: u32| (0..8).map(|row| Some(AdapterSlot(first + row))).collect();
    let steps: Vec<Step> = (0..8).map(|index| step_of(&cpu, slots(index * 8))).collect();
    let x = buffer(DEPTH, &numbers(3, 8 * DEPTH));
    let mut y = cpu.buffer(8, OUT).unwrap();
    let time = best(400, |index| cpu.low_rank(&steps[index % 8], Rows::All, at(&table), &x, &mut y));
    let bytes = 8 * 16 * 2 * (DEPTH + OUT);
    println!(
        "{} low rank 8 x r16: {:8.1} us {:6.1} GB/s",
        name(&cpu),
        time.as_secs_f64() * 1e6,
        gigabytes(bytes, time)
    );
}

fn report_attention(threads: usize, (heads, kv_heads, head_dim): (usize, usize, usize)) {
    let cpu = CpuBackend::new(CpuOptions { threads, numerics: Numerics::BF16, isa: None }).unwrap();
    let shape = KvShape { layers: 1, blocks: 64, block_size: 16, kv_heads, head_dim, kept: 0 };
    let spec = AttentionSpec { heads, kv_heads, head_dim, scale: 0.1, softcap: None, window: None };
    let kv = cpu.kv_cache(shape).unwrap();
    for (rows, start) in [(1, 1000), (512, 0)] {
        let plan = StepPlan {
            rows: RowPlan::new(vec![None; rows]),
            ids: vec![None; rows],
            positions: (start..start + rows as u32).collect(),
            kv_slots: (start..start + rows as u32).collect(),
            sequences: vec![SequencePlan { rows: 0..rows, start, blocks: std::sync::Arc::new((0..64).collect()) }],
            ..StepPlan::default()
        };
        let mut step = cpu.step();
        cpu.upload(&plan, &mut step).unwrap();
        let cols = (heads + 2 * kv_heads) * head_dim;
        let qkv = buffer(cols, &numbers(1, rows * cols));
        let mut y = cpu.buffer(rows, heads * head_dim).unwrap();
        let time = best(if rows == 1 { 400 } else { 20 }, |_| cpu.attention(&step, &spec, 0, &qkv, &kv, &mut y));
        let flops: usize = plan.positions.iter().map(|p| 4 * (*p as usize + 1) * heads * head_dim).sum();
        println!(
            "{} attention {heads}/{kv_heads}x{head_dim}, {rows} rows from {start}: {:8.1} us {:6.1} GFLOP/s",
            name(&cpu),
            time.as_secs_f64() * 1e6,
            1e-9 * flops as f64 / time.as_secs_f64()
        );
    }
}

fn report_small(threads: usize) {
    let cpu = CpuBackend::new(CpuOptions { threads, numerics: Numerics::BF16, isa: None }).unwrap();
    let x = buffer(2 * OUT, &numbers(1, 8 * 2 * OUT));
    let mut y = cpu.buffer(8, OUT).unwrap();
    for rows in [1, 8] {
        let step = step_of(&cpu, vec![None; rows]);
        let time = best(200, |_| cpu.gated_activation(&step, Rows::All, Activation::Silu, &x, &mut y));
        println!("{} silu of {rows} x {OUT}: {:.1} us", name(&cpu), time.as_secs_f64() * 1e6);
    }
    let join = best(2000, |_| {
        cpu.pool.run(usize::MAX, threads, |chunk| {
            black_box(chunk);
        })
    });
    println!("{} fork and join: {:.2} us", name(&cpu), join.as_secs_f64() * 1e6);
}

#[test]
#[ignore = "a measurement, not a check"]
fn figures() {
    for threads in [1, 2] {
        println!("read, {threads} threads: {:.1} GB/s", read_bandwidth(threads));
        for numerics in [Numerics::BF16, Numerics::F32] {
            report_gemm(threads, numerics);
        }
        report_low_rank(threads);
        report_attention(threads, (14, 2, 64));
        report_attention(threads, (12, 12, 64));
        report_small(threads);
    }
}
