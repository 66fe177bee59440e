//! What steps cost on a GPU, before there is one: bytes, launches, and the least time they take, of the launches that the real
//! backend makes for a real decoder. `cargo bench --bench gpu_model -- --help`.
//!
//! A decoder of any size runs on the emulated device (`tests/emulator`), which writes its launches down instead of running them. A
//! formula for every kernel (`model/costs`) makes bytes and sums of their arguments, and a device's published figures make a time
//! of those: a floor, which nothing measured stands behind.

#[path = "../../tests/emulator/mod.rs"]
#[allow(clippy::unwrap_used)] // As in tests: it works, or there is nothing to be seen.
mod emulator;
mod model;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;

use clap::Parser;
use emulator::Product;
use model::device::{DEVICES, Device};
use model::report::{self, Question};
use model::tally::Assumptions;
use serde_json::Value;
use support::Failure;
use support::model::Shape;

#[derive(Parser)]
#[command(about = "Bytes, launches and the least time of steps on a GPU, of the launches that the backend makes")]
struct Flags {
    /// Models.
    #[arg(long, value_enum, default_values_t = [Shape::Llama8b, Shape::Qwen05b])]
    shape: Vec<Shape>,
    /// Devices, all where none is named.
    #[arg(long, value_parser = DEVICES.map(|device| device.name))]
    device: Vec<String>,
    /// Rank of the adapters.
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Tokens that each sequence has when it decodes.
    #[arg(long, default_value_t = 1024)]
    context: usize,
    /// Rows of a prefill, of eight sequences.
    #[arg(long, default_value_t = 4096)]
    prefill: usize,
    /// Microseconds between two launches of a recorded step. An assumption.
    #[arg(long, default_value_t = 1.0)]
    gap_us: f64,
    /// How much more than its share of the bandwidth a processor moves while others are idle. An assumption.
    #[arg(long, default_value_t = 3.0)]
    share: f64,
    /// One JSON document.
    #[arg(long)]
    json: bool,
    /// Where the checkpoint lies while it is read; a file of zeros, which takes no space.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Failure> {
    let flags = Flags::parse();
    let control = emulator::load(Product::Driver);
    let wanted = |device: &Device| flags.device.is_empty() || flags.device.iter().any(|name| name == device.name);
    let devices: Vec<Device> = DEVICES.into_iter().filter(wanted).collect();
    let mut documents = Vec::new();
    for shape in &flags.shape {
        let question = Question {
            shape: *shape,
            rank: flags.rank,
            context: flags.context,
            prefill: flags.prefill,
            prefill_sequences: 8,
            assumptions: Assumptions { gap: flags.gap_us * 1e-6, share: flags.share },
        };
        // Devices of one kind are launched on alike.
        let alike = |a: &Device, b: &Device| (a.capability, a.processors) == (b.capability, b.processors);
        for devices in devices.chunk_by(alike) {
            let found = report::tallies(control, &question, devices, &flags.scratch)?;
            for (device, tallies) in devices.iter().zip(&found) {
                if flags.json {
                    documents.push(report::json(&question, device, tallies));
                } else {
                    report::print(&question, device, tallies);
                }
            }
        }
    }
    if flags.json {
        println!("{}", serde_json::to_string_pretty(&Value::from(documents))?);
    }
    Ok(())
}
