//! Adapters that come and go while sequences decode.

use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, sync_channel};
use std::time::Instant;

use polydelta::delta::PreparedDelta;
use polydelta::model::base_layout;
use polydelta::types::AdapterSlot;
use serde_json::{Value, json};

use super::model::Bench;
use super::timing::median;
use crate::support::Failure;

/// How long an adapter takes to come, and the steps beside it.
pub(super) fn while_decoding(bench: &mut Bench<'_>) -> Result<Value, Failure> {
    let plan = bench.plan;
    let slot = AdapterSlot(plan.installed().len() as u32);
    let layout = &base_layout(&plan.shape.spec()?);
    let input = bench.base_step();
    let mut undisturbed = Vec::new();
    for _ in 0..plan.rounds {
        undisturbed.push(timed(bench, &input)?);
    }
    let (mut loads, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..plan.swaps {
        let (program, backend) = (bench.another()?, Arc::clone(&bench.backend));
        let (sender, receiver) = sync_channel(1);
        let (seconds, delta) = std::thread::scope(|scope| -> Result<_, Failure> {
            scope.spawn(move || {
                let began = Instant::now();
                let prepared = PreparedDelta::new(backend.as_ref(), layout, program);
                // Nobody waits for it where a step has failed.
                sender.send((began.elapsed().as_secs_f64(), prepared)).ok();
            });
            loop {
                match receiver.try_recv() {
                    Ok((seconds, prepared)) => return Ok((seconds, prepared?)),
                    Err(TryRecvError::Empty) => beside.push(timed(bench, &input)?),
                    Err(TryRecvError::Disconnected) => return Err("the loader is gone".into()),
                }
            }
        })?;
        loads.push(seconds);
        bench.decoder.install(slot, delta);
        beside.push(timed(bench, &input)?);
        drop(bench.decoder.remove(slot));
    }
    let slowest = beside.iter().copied().fold(0.0, f64::max);
    let (step, beside) = (median(undisturbed), median(beside));
    Ok(json!({
        "rank": plan.rank, "rows": plan.rows.last(), "swaps": plan.swaps, "seconds": median(loads),
        "step_seconds": step, "step_seconds_beside": beside, "slowest_step_seconds": slowest, "slowest_to_step": slowest / step,
    }))
}

fn timed(bench: &mut Bench<'_>, input: &polydelta::model::ModelInput) -> Result<f64, Failure> {
    let began = Instant::now();
    bench.run(input)?;
    Ok(began.elapsed().as_secs_f64())
}
