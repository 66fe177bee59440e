//! What a batch of different adapters costs, as ratios measured within one run: `cargo bench --bench report -- --help`.
//!
//! Wall times on a shared machine mean little. Every ratio here is taken between calls that took turns in one loop,
//! and is the median of its rounds.

#[path = "../support/mod.rs"]
mod support;

mod classes;
mod decoder;
mod engine;
mod scaling;
mod shared;
mod timing;

use clap::Parser;
use support::Failure;
use support::model::Shape;

#[derive(Parser)]
#[command(about = "Ratios of mixed-adapter serving, measured on random models")]
struct Flags {
    /// Model of the decoder's ratios.
    #[arg(long, value_enum, default_value_t = Shape::Qwen05b)]
    shape: Shape,
    /// Model that is run through the whole engine, and with many rows and long contexts.
    #[arg(long, value_enum, default_value_t = Shape::Llama160m)]
    engine_shape: Shape,
    /// Compute threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Rank of the adapters.
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Rounds of every measurement.
    #[arg(long, default_value_t = 41)]
    rounds: usize,
    /// A quarter of the rounds.
    #[arg(long)]
    quick: bool,
    /// Only this part.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Decode,
    Prefill,
    Rows,
    Contexts,
    Engine,
    Shared,
    Classes,
}

fn main() -> Result<(), Failure> {
    let flags = Flags::parse();
    let rounds = if flags.quick { flags.rounds.div_ceil(4) } else { flags.rounds };
    let wanted = |part| flags.only.is_none_or(|only| only == part);
    if wanted(Part::Decode) || wanted(Part::Prefill) {
        let mut bench = decoder::DecoderBench::new(flags.shape, flags.threads, flags.rank)?;
        println!("{}", bench.heading());
        if wanted(Part::Decode) {
            bench.decode(rounds)?;
        }
        if wanted(Part::Prefill) {
            bench.prefill(rounds.div_ceil(8))?;
        }
    }
    if wanted(Part::Rows) || wanted(Part::Contexts) {
        let mut bench = scaling::ScalingBench::new(flags.engine_shape, flags.threads, flags.rank)?;
        println!("{}", bench.heading());
        if wanted(Part::Rows) {
            bench.rows(rounds.div_ceil(2))?;
        }
        if wanted(Part::Contexts) {
            bench.contexts(rounds.div_ceil(2))?;
        }
    }
    if wanted(Part::Engine) {
        engine::report(flags.engine_shape, flags.threads, flags.rank, rounds.div_ceil(6))?;
    }
    if wanted(Part::Classes) {
        classes::report(flags.engine_shape, flags.threads, flags.rank, rounds)?;
    }
    if wanted(Part::Shared) {
        shared::report(flags.engine_shape, flags.threads, flags.rank, rounds.div_ceil(20))?;
    }
    Ok(())
}
