//! What mixed-adapter serving costs on the GPU of this machine: `cargo bench --bench gpu -- --help`, or the built binary alone
//! (`tools/gpu/run.sh`). One JSON document; every ratio in it is of one run.
//!
//! Where there is no GPU it says so and ends well.

mod bench;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;

use bench::{Plan, run};
use clap::Parser;
use polydelta::ops::cuda::probe::CudaProbe;
use support::Failure;

#[derive(Parser)]
#[command(about = "Measures base and mixed-adapter steps on a GPU")]
struct Flags {
    /// Write the JSON there; else to standard output.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Which device, as the driver counts them.
    #[arg(long, default_value_t = 0)]
    device: u32,
    /// A model of two layers and a few rounds: whether it runs, not how fast.
    #[arg(long)]
    tiny: bool,
    /// Where the checkpoint lies while it is read: 16 GB.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Failure> {
    let flags = Flags::parse();
    let probe = CudaProbe::of_machine(&[]);
    if let Err(unusable) = probe.choose(Some(flags.device)) {
        println!("nothing is measured: {unusable}");
        return Ok(());
    }
    let plan = if flags.tiny { Plan::tiny() } else { Plan::whole() };
    let document = serde_json::to_string_pretty(&run(&plan, &probe, flags.device, &flags.scratch)?)?;
    match flags.out {
        Some(path) => std::fs::write(path, document + "\n")?,
        None => println!("{document}"),
    }
    Ok(())
}
