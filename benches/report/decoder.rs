//! The decoder alone: decode steps against each other and against memory, prefill against candle's matmul.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use polydelta::delta::{Module, ModuleKind, Site};
use polydelta::model::{DecoderSpec, base_layout};
use polydelta::ops::cpu::CpuBackend;
use polydelta::ops::{Backend, DeltaMemory, HostMatrix, RowPlan, Rows, WeightFormat};
use polydelta::types::AdapterSlot;

use super::support::Failure;
use super::support::adapters::lora;
use super::support::model::Shape;
use super::support::numbers::weights;
use super::support::step::{Model, backend, decode, rows, step_of};
use super::timing::{Bandwidth, median, ratio, take_turns};

/// Rows of the batched steps.
const BATCH: usize = 8;
/// Tokens that each sequence has in the cache.
const POSITION: usize = 64;
/// Tokens of a prefill.
const PREFILL: usize = 512;
/// Turns of multiply-adds beside a prefill, some tens of milliseconds of them.
const MULTIPLY_ADD_TURNS: usize = 1 << 20;

pub(crate) struct DecoderBench {
    shape: Shape,
    rank: usize,
    backend: Arc<CpuBackend>,
    spec: DecoderSpec,
    model: Model,
    /// Bytes of the matrices that every step reads.
    base_bytes: usize,
    /// Bytes of one adapter.
    adapter_bytes: usize,
}

impl DecoderBench {
    pub(crate) fn new(shape: Shape, threads: usize, rank: usize) -> Result<Self, Failure> {
        let (backend, spec) = (backend(threads)?, shape.spec()?);
        let model = Model::new(shape, &backend, BATCH, BATCH, rank)?;
        let layout = base_layout(&spec);
        let linear = |module: &&Module| module.kind == ModuleKind::Linear;
        let base_bytes = layout.modules().filter(linear).map(|module| 2 * module.input * module.output).sum();
        let adapter_bytes = lora(&layout, rank, 0).facts(WeightFormat::Bf16).device_bytes as usize;
        Ok(Self { shape, rank, backend, spec, model, base_bytes, adapter_bytes })
    }

    pub(crate) fn heading(&self) -> String {
        let info = self.backend.info();
        format!(
            "\n{}, bf16, {} threads, {}: {:.0} MB of weights a step, {:.1} MB per adapter of rank {}",
            self.shape.name(),
            info.threads,
            info.isa,
            self.base_bytes as f64 / 1e6,
            self.adapter_bytes as f64 / 1e6,
            self.rank
        )
    }

    pub(crate) fn decode(&mut self, rounds: usize) -> Result<(), Failure> {
        let distinct: Vec<_> = (0..BATCH as u32).map(|slot| Some(AdapterSlot(slot))).collect();
        let one_adapter = [Some(AdapterSlot(0)); BATCH];
        let inputs = [
            decode(&[None], POSITION),
            decode(&[None; BATCH], POSITION),
            decode(&one_adapter, POSITION),
            decode(&distinct, POSITION),
        ];
        self.model.run(&rows(&[None; BATCH], POSITION, 0))?;
        let memory = Bandwidth::new(self.backend.info().threads)?;
        let [one, base, same, mixed, read] = take_turns(rounds, |index| {
            if let Some(input) = inputs.get(index) {
                self.model.run(input)?;
            } else {
                memory.read();
            }
            Ok(())
        })?;
        let floor = self.base_bytes as f64 / (self.base_bytes + BATCH * self.adapter_bytes) as f64;
        let per_byte = memory.bytes() as f64 / self.base_bytes as f64;
        let bandwidth = memory.bytes() as f64 / median(read.clone()) / 1e9;
        let milliseconds = |times: &[f64]| 1e3 * median(times.to_vec());
        println!(
            "  decode step, ms: 1 row {:.2}, 8 rows {:.2}, 8 rows of one adapter {:.2}, of 8 adapters {:.2}",
            milliseconds(&one),
            milliseconds(&base),
            milliseconds(&same),
            milliseconds(&mixed)
        );
        println!("  throughput, 8 adapters : base      {:.3}  (bytes alone: {floor:.3})", ratio(&base, &mixed));
        println!("  throughput, 1 adapter : base       {:.3}", ratio(&base, &same));
        println!("  step time, 8 rows : 1 row          {:.3}", ratio(&base, &one));
        let share: Vec<f64> = read.iter().zip(&one).map(|(read, one)| read / one / per_byte).collect();
        println!("  1 row, share of memory bandwidth   {:.3}  (reading alone: {bandwidth:.1} GB/s)", median(share));
        Ok(())
    }

    pub(crate) fn prefill(&mut self, rounds: usize) -> Result<(), Failure> {
        let input = rows(&[None], PREFILL, 0);
        let mut gemm = Gemm::new(&self.backend, &self.spec)?;
        let mut ceiling = 0;
        let [ours, own_gemm, candle_f32, candle_bf16, multiply_add] = take_turns(rounds, |index| {
            match index {
                0 => drop(self.model.run(&input)?),
                1 => gemm.run(&self.backend),
                2 => gemm.candle(DType::F32)?,
                3 => gemm.candle(DType::BF16)?,
                _ => ceiling = self.backend.multiply_add(MULTIPLY_ADD_TURNS),
            }
            Ok(())
        })?;
        let layout = base_layout(&self.spec);
        let in_layers = |module: &&Module| module.kind == ModuleKind::Linear && matches!(module.site, Site::Layer(..));
        let multiplied: usize = layout.modules().filter(in_layers).map(|module| module.input * module.output).sum();
        let gigaflops =
            |multiplied: usize, times: &[f64]| 2e-9 * (PREFILL * multiplied) as f64 / median(times.to_vec());
        println!("  prefill of {PREFILL} tokens, GFLOP/s of its linear layers: {:.0}", gigaflops(multiplied, &ours));
        let one = gemm.depth * gemm.out;
        println!(
            "  GEMM {PREFILL} x {} x {}, GFLOP/s: ours {:.0}, candle f32 {:.0}, candle bf16 {:.0}",
            gemm.depth,
            gemm.out,
            gigaflops(one, &own_gemm),
            gigaflops(one, &candle_f32),
            gigaflops(one, &candle_bf16)
        );
        println!(
            "  prefill GEMM, ours : candle         {:.2} of its f32, {:.2} of its bf16",
            ratio(&candle_f32, &own_gemm),
            ratio(&candle_bf16, &own_gemm)
        );
        let own_share = (PREFILL * one) as f64 / ceiling as f64;
        println!(
            "  multiply-add in f32 alone, GFLOP/s: {:.0}; the GEMM has {:.2} of it",
            2e-9 * ceiling as f64 / median(multiply_add.clone()),
            own_share * ratio(&multiply_add, &own_gemm)
        );
        Ok(())
    }
}

/// The gate and up projection of one layer, here and in candle.
struct Gemm {
    depth: usize,
    out: usize,
    weight: <CpuBackend as DeltaMemory>::Weight,
    x: <CpuBackend as Backend>::Buffer,
    y: <CpuBackend as Backend>::Buffer,
    step: <CpuBackend as Backend>::Step,
    tensors: [(Tensor, Tensor); 2],
}

impl Gemm {
    fn new(backend: &CpuBackend, spec: &DecoderSpec) -> Result<Self, Failure> {
        let inner = spec.experts().map_or(spec.dense_size(), |experts| experts.intermediate_size);
        let (depth, out) = (spec.hidden_size, 2 * inner);
        let numbers = weights(1, depth * out, 0.035);
        let weight = backend.weight(&[HostMatrix::bf16(out, depth, &numbers)])?;
        let inputs: Vec<f32> = weights(2, PREFILL * depth, 1.0).into_iter().map(bf16::to_f32).collect();
        let (x, y) = (backend.buffer_of(depth, &inputs)?, backend.buffer(PREFILL, out)?);
        let w = Tensor::from_vec(numbers, (out, depth), &Device::Cpu)?;
        let inputs = Tensor::from_vec(inputs, (PREFILL, depth), &Device::Cpu)?;
        let pair = |dtype| Ok::<_, candle_core::Error>((inputs.to_dtype(dtype)?, w.to_dtype(dtype)?.t()?));
        let tensors = [pair(DType::F32)?, pair(DType::BF16)?];
        let step = step_of(backend, RowPlan::new(vec![None; PREFILL]))?;
        Ok(Self { depth, out, weight, x, y, step, tensors })
    }

    fn run(&mut self, backend: &CpuBackend) {
        backend.gemm(&self.step, Rows::All, &self.x, &self.weight, &mut self.y);
    }

    fn candle(&self, dtype: DType) -> Result<(), Failure> {
        let (x, w) = &self.tensors[usize::from(dtype == DType::BF16)];
        std::hint::black_box(x.matmul(w)?);
        Ok(())
    }
}
