//! In which dtype a server computes.

use std::time::Instant;

use super::base::OpenedBase;
use super::error::AppError;
use crate::config::{DtypeChoice, ServeConfig};
use crate::ops::cpu::{CpuBackend, CpuOptions};
use crate::ops::{Backend, DeltaMemory, HostMatrix, Numerics, OpsError, RowPlan, Rows, StepPlan};

/// Inputs and outputs of the matrix that is measured.
const SIDE: usize = 1024;
/// Rows of a decode step and of a chunk of a prompt.
const ROWS: [usize; 2] = [8, 64];
/// Calls of each, of which the shortest counts: whatever else runs on the machine only ever adds to one.
const ROUNDS: usize = 21;
/// How much longer than f32 bf16 may take before it is given up: it needs half the memory, for weights and KV cache.
const MARGIN: f64 = 1.1;

/// The dtype that the configuration means for a base on the CPU. Where it leaves the choice and the checkpoint has 16 bits,
/// a few products are measured in bf16 and in f32; a checkpoint of 32 bits is never narrowed.
///
/// # Errors
/// Threads or memory that the system refuses.
pub(super) fn choose(config: &ServeConfig, base: &OpenedBase) -> Result<Numerics, AppError> {
    let numerics = of_checkpoint(config.dtype, base);
    if config.dtype != DtypeChoice::Auto || numerics == Numerics::F32 {
        return Ok(numerics);
    }
    let [decode, prefill] = time_of_bf16()?;
    let numerics = faster(decode, prefill);
    tracing::info!(
        dtype = numerics.compute.as_str(),
        decode = format_args!("{decode:.2}"),
        prefill = format_args!("{prefill:.2}"),
        "chose the dtype by the time of bf16 as a multiple of f32's"
    );
    Ok(numerics)
}

/// The same on a GPU, which computes in all of them: where the configuration leaves the choice, in what the checkpoint has.
pub(super) fn of_checkpoint(choice: DtypeChoice, base: &OpenedBase) -> Numerics {
    match choice {
        DtypeChoice::F32 => Numerics::F32,
        DtypeChoice::Bf16 => Numerics::BF16,
        DtypeChoice::F16 => Numerics::F16,
        DtypeChoice::Auto => base.own_numerics(),
    }
}

/// bf16, unless it takes longer than f32 by more than [`MARGIN`] on the geometric mean.
fn faster(decode: f64, prefill: f64) -> Numerics {
    if decode * prefill > MARGIN * MARGIN { Numerics::F32 } else { Numerics::BF16 }
}

/// Time of a product in bf16 over that in f32, for each of [`ROWS`]. The calls take turns and one thread, which waits for
/// no other: a machine that was busy at one start and idle at the next has the same ratio, and a server the same dtype.
fn time_of_bf16() -> Result<[f64; 2], OpsError> {
    let numbers: Vec<f32> = (0..SIDE * SIDE).map(|at| (at % 251) as f32 / 251.0 - 0.5).collect();
    let mut products = [Product::new(Numerics::F32, &numbers)?, Product::new(Numerics::BF16, &numbers)?];
    Ok(std::array::from_fn(|rows| {
        let mut shortest = [f64::INFINITY; 2];
        for _ in 0..ROUNDS {
            for (product, shortest) in products.iter_mut().zip(&mut shortest) {
                let start = Instant::now();
                product.run(rows);
                *shortest = shortest.min(start.elapsed().as_secs_f64());
            }
        }
        let [f32, bf16] = shortest;
        bf16 / f32
    }))
}

/// A square matrix and what it is multiplied with.
struct Product {
    backend: CpuBackend,
    weight: <CpuBackend as DeltaMemory>::Weight,
    x: <CpuBackend as Backend>::Buffer,
    y: <CpuBackend as Backend>::Buffer,
    /// One for each of [`ROWS`].
    steps: [<CpuBackend as Backend>::Step; ROWS.len()],
}

impl Product {
    fn new(numerics: Numerics, numbers: &[f32]) -> Result<Self, OpsError> {
        let backend = CpuBackend::new(CpuOptions { threads: 1, numerics, isa: None })?;
        let weight = backend.weight(&[HostMatrix::f32(SIDE, SIDE, numbers)])?;
        let most = ROWS[1];
        let (x, y) = (backend.buffer_of(SIDE, &numbers[..most * SIDE])?, backend.buffer(most, SIDE)?);
        let mut steps = [backend.step(), backend.step()];
        for (rows, step) in ROWS.into_iter().zip(&mut steps) {
            backend.upload(&rows_alone(rows), step)?;
        }
        Ok(Self { backend, weight, x, y, steps })
    }

    /// The product of so many rows as [`ROWS`] has in this place.
    fn run(&mut self, rows: usize) {
        self.backend.gemm(&self.steps[rows], Rows::All, &self.x, &self.weight, &mut self.y);
    }
}

/// A step of rows that are no tokens of anything.
fn rows_alone(rows: usize) -> StepPlan {
    StepPlan {
        rows: RowPlan::new(vec![None; rows]),
        ids: vec![None; rows],
        positions: vec![0; rows],
        kv_slots: vec![0; rows],
        ..StepPlan::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_kept_until_it_costs_more_than_its_memory_is_worth() {
        assert_eq!(faster(0.5, 1.0), Numerics::BF16);
        assert_eq!(faster(1.0, 1.2), Numerics::BF16);
        assert_eq!(faster(0.6, 1.5), Numerics::BF16);
        assert_eq!(faster(1.2, 1.1), Numerics::F32);
    }

    #[test]
    fn a_measurement_is_a_positive_ratio_for_each_number_of_rows() {
        let ratios = time_of_bf16().unwrap();
        assert!(ratios.iter().all(|ratio| ratio.is_finite() && *ratio > 0.0), "{ratios:?}");
    }
}
