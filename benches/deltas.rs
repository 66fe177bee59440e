//! Batched deltas at one site and in a decode step, under criterion: `cargo bench --bench deltas`.
//!
//! Popularity says which adapters the rows of a batch ask for, as punica's benches do: `base` none, `identical` all
//! the same, `distinct` all different, `uniform` and `zipf` drawn from all that are installed.

#[path = "support/mod.rs"]
mod support;

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use polydelta::delta::apply::{LinearSite, linear};
use polydelta::delta::rows::StepRows;
use polydelta::delta::{DeltaTable, PreparedDelta};
use polydelta::model::base_layout;
use polydelta::ops::cpu::CpuBackend;
use polydelta::ops::{Backend, HostMatrix, RowPlan, Rows, SiteSet};
use polydelta::types::AdapterSlot;
use support::Failure;
use support::adapters::lora;
use support::model::Shape;
use support::numbers::{Random, weights};
use support::step::{Model, backend, decode, step_of};

/// Adapters installed at once.
const INSTALLED: u32 = 64;
/// Batches made beforehand, so that successive calls read other adapters.
const BATCHES: usize = 32;
const THREADS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Popularity {
    Base,
    Identical,
    Distinct,
    Uniform,
    Zipf,
}

impl Popularity {
    const ALL: [Self; 5] = [Self::Base, Self::Identical, Self::Distinct, Self::Uniform, Self::Zipf];

    /// The adapters of the `index`-th batch.
    fn slots(self, index: usize, rows: usize, random: &mut Random) -> Vec<Option<AdapterSlot>> {
        let row = |row: usize| match self {
            Self::Base => None,
            Self::Identical => Some(index as u32 % INSTALLED),
            Self::Distinct => Some((index * rows + row) as u32 % INSTALLED),
            Self::Uniform => Some((random.next() % u64::from(INSTALLED)) as u32),
            Self::Zipf => Some(zipf(random)),
        };
        (0..rows).map(row).map(|slot| slot.map(AdapterSlot)).collect()
    }
}

/// A draw from the distribution p(k) ∝ k^-1.5.
fn zipf(random: &mut Random) -> u32 {
    let unit = (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
    let weight = |slot: u32| f64::from(slot + 1).powf(-1.5);
    let mut left = unit * (0..INSTALLED).map(weight).sum::<f64>();
    (0..INSTALLED - 1)
        .find(|slot| {
            left -= weight(*slot);
            left < 0.0
        })
        .unwrap_or(INSTALLED - 1)
}

/// The gate and up projection of Qwen2.5-0.5B, base GEMM included.
fn site(criterion: &mut Criterion) -> Result<(), Failure> {
    let cpu = backend(THREADS)?;
    let cpu = cpu.as_ref();
    let mut spec = Shape::Qwen05b.spec()?;
    spec.layers.truncate(1);
    let layout = base_layout(&spec);
    let (depth, out) = (spec.hidden_size, 2 * spec.dense_size());
    let weight = cpu.weight(&[HostMatrix::bf16(out, depth, &weights(1, depth * out, 0.035))])?;
    for rank in [8, 16, 64] {
        let mut deltas = DeltaTable::<CpuBackend>::new(cpu, &layout, INSTALLED as usize)?;
        for slot in 0..INSTALLED {
            let program = lora(&layout, rank, u64::from(slot) + 1);
            deltas.install(cpu, AdapterSlot(slot), PreparedDelta::new(cpu, &layout, program)?);
        }
        let mut group = criterion.benchmark_group(format!("gate_up/rank{rank}"));
        for rows in [1, 8, 32] {
            let (x, mut scaled, mut y) = (cpu.buffer(rows, depth)?, cpu.buffer(rows, depth)?, cpu.buffer(rows, out)?);
            for popularity in Popularity::ALL {
                let mut random = Random::new(7);
                let plans: Vec<RowPlan> =
                    (0..BATCHES).map(|index| RowPlan::new(popularity.slots(index, rows, &mut random))).collect();
                let held = plans.iter().map(|plan| {
                    let mut held = SiteSet::default();
                    deltas.held(cpu, plan.segments.iter().map(|segment| segment.slot), &mut held);
                    held
                });
                let held: Vec<SiteSet> = held.collect();
                let steps: Vec<_> = plans.iter().map(|plan| step_of(cpu, plan.clone())).collect::<Result<_, _>>()?;
                let mut turn = 0;
                group.throughput(Throughput::Elements(rows as u64));
                group.bench_function(BenchmarkId::new(format!("{popularity:?}").to_lowercase(), rows), |bencher| {
                    bencher.iter(|| {
                        turn += 1;
                        let base = LinearSite { weight: &weight, bias: None };
                        let (held, step) = (&held[turn % BATCHES], &steps[turn % BATCHES]);
                        let on = StepRows { backend: cpu, deltas: &deltas, step, rows: Rows::All, held };
                        linear(&on, base, &deltas.sites.layers[0].gate_up, &x, &mut scaled, &mut y);
                    });
                });
            }
        }
        group.finish();
    }
    Ok(())
}

/// A whole decode step of a small model.
fn step(criterion: &mut Criterion) -> Result<(), Failure> {
    let mut group = criterion.benchmark_group(format!("decode_step/{}", Shape::Tiny.name()));
    for rows in [1, 8, 32] {
        let mut model = Model::new(Shape::Tiny, &backend(THREADS)?, rows, INSTALLED as usize, 16)?;
        for popularity in Popularity::ALL {
            let mut random = Random::new(7);
            let inputs: Vec<_> =
                (0..BATCHES).map(|index| decode(&popularity.slots(index, rows, &mut random), 64)).collect();
            let mut turn = 0;
            group.throughput(Throughput::Elements(rows as u64));
            group.bench_function(BenchmarkId::new(format!("{popularity:?}").to_lowercase(), rows), |bencher| {
                bencher.iter(|| {
                    turn += 1;
                    // A step fails only where a plan and its model disagree, which a bench cannot mend.
                    model.run(&inputs[turn % BATCHES]).ok()
                });
            });
        }
    }
    group.finish();
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(20)
        .configure_from_args();
    site(&mut criterion)?;
    step(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
