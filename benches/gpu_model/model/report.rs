//! Steps by rows and adapters, beside the base's own, and what stands out.

use std::collections::BTreeMap;
use std::path::Path;

use polydelta::model::base_layout;
use polydelta::types::AdapterSlot;
use serde_json::{Value, json};

use super::abi::Structs;
use super::costs::Class;
use super::device::Device;
use super::plan::Planner;
use super::tally::{Assumptions, Tally};
use crate::emulator::{Control, Launch};
use crate::support::Failure;
use crate::support::large::{Fill, Room, adapter, slots, step};
use crate::support::model::Shape;
use crate::support::step::BLOCK_SIZE;

/// Sequences that decode in one step.
const ROWS: [usize; 4] = [1, 8, 32, 64];
/// Adapters that they have between them.
const ADAPTERS: [usize; 4] = [0, 1, 8, 64];
/// Bytes per token that are worth a word, as a share of a step's.
const WORTH: f64 = 0.01;

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) shape: Shape,
    pub(crate) rank: usize,
    /// Tokens that each sequence has when it decodes.
    pub(crate) context: usize,
    /// Rows of a prefill, and sequences that share them.
    pub(crate) prefill: usize,
    pub(crate) prefill_sequences: usize,
    pub(crate) assumptions: Assumptions,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Decode { rows: usize, adapters: usize },
    Prefill { rows: usize, adapters: usize },
}

impl Step {
    /// The same without adapters.
    fn base(self) -> Self {
        match self {
            Self::Decode { rows, .. } => Self::Decode { rows, adapters: 0 },
            Self::Prefill { rows, .. } => Self::Prefill { rows, adapters: 0 },
        }
    }

    fn name(self) -> String {
        match self {
            Self::Decode { rows, adapters } => format!("decode {rows:2} rows, {adapters:2} adapters"),
            Self::Prefill { rows, adapters } => format!("prefill {rows}, {adapters} adapters"),
        }
    }
}

/// The launches of every step that is looked at, for devices that are launched on alike, each with what it costs there.
pub(crate) fn tallies(
    control: &'static Control,
    question: &Question,
    devices: &[Device],
    scratch: &Path,
) -> Result<Vec<BTreeMap<Step, Tally>>, Failure> {
    let structs = Structs::read()?;
    let Question { shape, rank, context, prefill, prefill_sequences, assumptions } = *question;
    let most = ROWS[ROWS.len() - 1];
    let (decoding, filling) = (context + BLOCK_SIZE, prefill / prefill_sequences);
    let room = Room {
        rows: prefill.max(most),
        places: most * decoding.max(filling).next_multiple_of(BLOCK_SIZE),
        context: decoding.max(filling),
        slots: most,
    };
    let first = devices.first().ok_or("no device is looked at")?;
    let mut planner = Planner::new(control, first, shape, room, scratch)?;
    let program = adapter(&base_layout(&shape.spec()?), rank, Fill::Zeros);
    for slot in 0..most {
        planner.install(AdapterSlot(slot as u32), program.clone())?;
    }
    let mut found = vec![BTreeMap::new(); devices.len()];
    let mut keep = |name: Step, launches: &[Launch]| -> Result<(), Failure> {
        for (device, found) in devices.iter().zip(&mut found) {
            found.insert(name, Tally::of(&structs, control, launches, device, assumptions)?);
        }
        Ok(())
    };
    for rows in ROWS {
        for adapters in ADAPTERS.into_iter().filter(|adapters| *adapters <= rows) {
            let launches = planner.launches(&step(&slots(rows, adapters), 1, context, decoding))?;
            keep(Step::Decode { rows, adapters }, &launches)?;
        }
    }
    for adapters in [0, prefill_sequences] {
        let launches = planner.launches(&step(&slots(prefill_sequences, adapters), filling, 0, filling))?;
        keep(Step::Prefill { rows: prefill, adapters }, &launches)?;
    }
    Ok(found)
}

/// What is aimed at: a step, and how much longer than the base's it may take at the most.
pub(crate) fn aims(question: &Question) -> [(Step, f64); 3] {
    [
        (Step::Decode { rows: 64, adapters: 64 }, 1.25),
        (Step::Decode { rows: 8, adapters: 8 }, 1.06),
        (Step::Prefill { rows: question.prefill, adapters: question.prefill_sequences }, 1.06),
    ]
}

/// For people.
pub(crate) fn print(question: &Question, device: &Device, tallies: &BTreeMap<Step, Tally>) {
    let Question { shape, rank, context, assumptions, .. } = question;
    println!(
        "\n{}, bf16, adapters of rank {rank}, context {context}; {} as published: {:.2} TB/s, {:.0} TFLOP/s, {:.0} MiB of L2",
        shape.name(),
        device.name,
        device.bandwidth / 1e12,
        device.flops / 1e12,
        device.l2 / 1_048_576.0
    );
    println!(
        "  estimates assume {:.1} us between launches, and a processor's bandwidth up to {:.0} times its share",
        assumptions.gap * 1e6,
        assumptions.share
    );
    println!(
        "  {:26} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10} {:>7} {:>10} {:>7}",
        "MB moved", "launches", "weights", "adapters", "kv", "activ.", "floor us", ": base", "estimate", ": base"
    );
    for (step, tally) in tallies {
        let base = tallies.get(&step.base()).unwrap_or(tally);
        let moved = |class| tally.bytes.get(&class).map_or(0.0, |bytes| bytes.moved) / 1e6;
        println!(
            "  {:26} {:8} {:8.0} {:8.0} {:8.0} {:8.0} {:10.0} {:7.3} {:10.0} {:7.3}",
            step.name(),
            tally.launches,
            moved(Class::Weights),
            moved(Class::Adapters),
            moved(Class::Kv),
            moved(Class::Activations),
            tally.floor * 1e6,
            tally.floor / base.floor,
            tally.estimate * 1e6,
            tally.estimate / base.estimate
        );
    }
    for (step, most) in aims(question) {
        let (Some(tally), Some(base)) = (tallies.get(&step), tallies.get(&step.base())) else { continue };
        let (floor, estimate) = (tally.floor / base.floor, tally.estimate / base.estimate);
        let verdict = if floor > most {
            "out of reach by bytes alone"
        } else if estimate > most {
            "missed by the estimate"
        } else {
            "within reach"
        };
        println!("  aim {:24} at most {most:.2}: floor {floor:.3}, estimate {estimate:.3}: {verdict}", step.name());
        print_kernels(tally, base);
    }
}

/// Where a step's time beyond the base's is, what it fetches again, and where processors are idle.
fn print_kernels(tally: &Tally, base: &Tally) {
    let more = |name: &String, time: f64| time - base.kernels.get(name).map_or(0.0, |kernel| kernel.estimate);
    let mut kernels: Vec<_> = tally.kernels.iter().collect();
    kernels.sort_by(|a, b| more(b.0, b.1.estimate).total_cmp(&more(a.0, a.1.estimate)));
    for (name, kernel) in
        kernels.into_iter().filter(|(name, kernel)| more(name, kernel.estimate) > WORTH * tally.estimate)
    {
        let idle = match kernel.idle_launches {
            0 => String::new(),
            idle => format!(", {idle} launches leave up to {:.0} % of the processors idle", 100.0 * kernel.idle),
        };
        println!(
            "    {name}: {:.0} us more, of which its bytes and sums take {:.0}{idle}",
            1e6 * more(name, kernel.estimate),
            1e6 * kernel.floor
        );
    }
    for (name, kernel) in &tally.kernels {
        for (class, bytes) in &kernel.bytes {
            let again = bytes.moved - bytes.once;
            if again > WORTH * tally.bytes.values().map(|bytes| bytes.moved).sum::<f64>() {
                println!(
                    "    {name}: {class:?} come from memory {:.1} times ({:.0} MB too many)",
                    bytes.moved / bytes.once,
                    again / 1e6
                );
            }
        }
    }
}

/// For programs.
pub(crate) fn json(question: &Question, device: &Device, tallies: &BTreeMap<Step, Tally>) -> Value {
    let steps: Vec<Value> = tallies
        .iter()
        .map(|(step, tally)| {
            let base = tallies.get(&step.base()).unwrap_or(tally);
            let (kind, rows, adapters) = match *step {
                Step::Decode { rows, adapters } => ("decode", rows, adapters),
                Step::Prefill { rows, adapters } => ("prefill", rows, adapters),
            };
            json!({
                "kind": kind, "rows": rows, "adapters": adapters,
                "floor_ratio": tally.floor / base.floor, "estimate_ratio": tally.estimate / base.estimate, "tally": tally,
            })
        })
        .collect();
    let published = json!({
        "bandwidth": device.bandwidth, "flops": device.flops, "l2": device.l2, "processors": device.processors,
    });
    json!({
        "shape": question.shape.name(), "rank": question.rank, "context": question.context, "dtype": "bf16",
        "device": device.name, "published": published, "assumptions": question.assumptions, "steps": steps,
    })
}
