//! What is measured, in order, and the document that is made of it.

mod alone;
mod copy;
mod model;
mod swap;
mod timing;

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use polydelta::ops::Numerics;
use polydelta::ops::cuda::probe::CudaProbe;
use polydelta::ops::cuda::{CudaBackend, CudaOptions};
use serde_json::{Value, json};

use crate::support::Failure;
use crate::support::model::Shape;
use alone::{Alone, Attention, Choice, Gemm, LowRank, Sample, Site};
use model::Bench;

/// Sizes and rounds.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    shape: Shape,
    /// Rows of the decode steps of the base, ascending; the last is that of the mixed ones.
    rows: Vec<usize>,
    /// Tokens that each sequence has when it decodes.
    context: usize,
    /// Numbers of adapters of rank 16 in a step of the most rows.
    distinct: Vec<usize>,
    /// Rank of those.
    rank: usize,
    /// Ranks that the mixed adapters have by turns, and how many of these adapters are in a step.
    ranks: Vec<usize>,
    mixed: Vec<usize>,
    /// Rows of a prefill, and sequences and adapters that share them.
    prefill: usize,
    prefill_sequences: usize,
    /// Adapters that come and go while sequences decode.
    swaps: usize,
    alone: Vec<Alone>,
    /// Bytes of the copies on the device.
    copied: usize,
    /// Rounds of a decode step; a prefill has a fourth.
    rounds: usize,
}

impl Plan {
    /// Llama-3.1-8B's sizes.
    pub(crate) fn whole() -> Self {
        let counts = || vec![1, 2, 4, 8, 16, 32, 64];
        Self {
            shape: Shape::Llama8b,
            rows: counts(),
            context: 512,
            distinct: vec![1, 8, 64],
            rank: 16,
            ranks: vec![8, 16, 32, 64],
            mixed: counts(),
            prefill: 4096,
            prefill_sequences: 8,
            swaps: 8,
            alone: of_llama8b(),
            copied: 2 << 30,
            rounds: 24,
        }
    }

    /// The same in small.
    pub(crate) fn tiny() -> Self {
        Self {
            shape: Shape::Tiny,
            rows: vec![1, 2],
            context: 32,
            distinct: vec![1, 2],
            rank: 4,
            ranks: vec![2, 4],
            mixed: vec![1, 2],
            prefill: 32,
            prefill_sequences: 2,
            swaps: 1,
            alone: vec![
                Alone::LowRank(LowRank { rows: 2, inputs: 64, outputs: 48, rank: 4, sites: 2 }),
                Alone::Gemm(Gemm { sequences: 2, tokens: 1, inputs: 64, outputs: 48, weights: 2 }),
                Alone::Attention(Attention { sequences: 2, tokens: 1, context: 16, layers: 2 }),
                Alone::Sample(Sample { rows: 2, vocabulary: 64, choice: Choice::Nucleus }),
            ],
            copied: 1 << 16,
            rounds: 2,
        }
    }

    fn most_rows(&self) -> usize {
        self.rows.last().copied().unwrap_or(1)
    }

    /// Adapters that are installed: those of one rank, then the mixed ones.
    fn installed(&self) -> Vec<usize> {
        let most = |counts: &[usize]| counts.iter().copied().max().unwrap_or(0);
        let mixed = most(&self.mixed);
        // One rank after the other: an adapter's numbers are made once for all of its rank.
        let of_turn = |index: usize| self.ranks[index * self.ranks.len() / mixed];
        (0..most(&self.distinct)).map(|_| self.rank).chain((0..mixed).map(of_turn)).collect()
    }
}

/// The ops of Llama-3.1-8B's layers: by rows at its narrowest and its widest product, a prefill's, and what else takes time.
fn of_llama8b() -> Vec<Alone> {
    // Shrinking 64 inputs is next to nothing beside the last one's expand.
    let pairs = [(64, 4096, 4096, 16, 16), (8, 4096, 4096, 16, 64), (8, 64, 2304, 64, 96)]
        .map(|(rows, inputs, outputs, rank, sites)| Alone::LowRank(LowRank { rows, inputs, outputs, rank, sites }));
    let shapes = [(4096, 4096, 16), (4096, 28_672, 3), (14_336, 4096, 6)];
    let gemm = |sequences, tokens| {
        shapes.map(|(inputs, outputs, weights)| Alone::Gemm(Gemm { sequences, tokens, inputs, outputs, weights }))
    };
    let gemms = [1, 8, 16, 32, 64].into_iter().flat_map(|rows| gemm(rows, 1)).chain(gemm(8, 16)).chain(gemm(8, 512));
    let attention = [(64, 1, 512), (8, 1, 4000), (8, 512, 0), (1, 4096, 0)].map(|(sequences, tokens, context)| {
        Alone::Attention(Attention { sequences, tokens, context, layers: if tokens == 1 { 16 } else { 2 } })
    });
    let samples = [Choice::Greedy, Choice::Nucleus, Choice::Likeliest]
        .map(|choice| Alone::Sample(Sample { rows: 64, vocabulary: 128_256, choice }));
    pairs.into_iter().chain(gemms).chain(attention).chain(samples).collect()
}

/// Measure everything on a device that the probe has found. What is known is said on standard error at once.
pub(crate) fn run(plan: &Plan, probe: &CudaProbe, ordinal: u32, scratch: &Path) -> Result<Value, Failure> {
    let began = Instant::now();
    let device = probe.choose(Some(ordinal))?;
    let copies = copy::bandwidth(ordinal, plan.copied, plan.rounds)?;
    let numerics = Numerics::BF16;
    let options = CudaOptions { ordinal, numerics, memory_bytes: None, kernel_cache: None, library_gemm: None };
    let backend = Arc::new(CudaBackend::new(options)?);
    let opened = began.elapsed().as_secs_f64();
    let site = Site { backend: &backend, copies, rounds: plan.rounds };
    let alone = plan.alone.iter().map(|one| said("alone", one.measure(site)?)).collect::<Result<Vec<_>, _>>()?;
    let loading = Instant::now();
    let mut bench = Bench::new(plan, &backend, scratch)?;
    let loaded = loading.elapsed().as_secs_f64();
    let decode = said("decode", bench.decode(copies)?)?;
    let replay = said("replay", bench.replay_against_eager()?)?;
    let prefill = said("prefill", bench.prefill()?)?;
    let swaps = said("swaps", swap::while_decoding(&mut bench)?)?;
    Ok(json!({
        "device": {
            "name": device.name, "compute": device.compute.to_string(), "processors": device.multiprocessors,
            "memory_bytes": device.memory_bytes, "driver": probe.module, "cuda": probe.cuda.map(|cuda| cuda.to_string()),
        },
        "commit": commit(), "date": jiff::Timestamp::now().to_string(), "version": env!("CARGO_PKG_VERSION"),
        "model": plan.shape.name(), "dtype": "bf16", "context": plan.context, "rounds": plan.rounds,
        "copy_bytes_per_second": copies, "seconds_to_open": opened, "seconds_to_load": loaded,
        "decode": decode, "replay": replay, "prefill": prefill, "alone": alone, "swaps": swaps,
        "seconds": began.elapsed().as_secs_f64(),
    }))
}

/// A figure, which is said on standard error as well: it stays where a later one fails.
fn said(name: &str, figure: Value) -> Result<Value, Failure> {
    writeln!(std::io::stderr(), "{name}: {figure}")?;
    Ok(figure)
}

/// Of which commit this is: as `COMMIT` says, else as git says; null where neither does.
fn commit() -> Option<String> {
    std::env::var("COMMIT").ok().or_else(|| {
        let said = Command::new("git").args(["rev-parse", "HEAD"]).output().ok()?;
        said.status.success().then(|| String::from_utf8_lossy(&said.stdout).trim().to_owned())
    })
}
