//! What the host does for a decode step besides computing it: deciding, preparing, handing the plan over, taking the
//! result in. Printed, never asserted: `cargo test --lib host_time -- --ignored --nocapture`.

use crate::engine::prepare::PassInput;
use crate::ops::StepPlan;
use crate::types::ScheduledSequence;

use super::*;

const CONTEXT: u32 = 1000;
const STEPS: usize = 64;
const BLOCK_SIZE: u32 = 16;

/// A step on a device that computes nothing.
fn step(scheduler: &mut Scheduler, sequences: &mut InputBatch, pass: &mut PassInput, uploaded: &mut StepPlan) -> usize {
    let batch = scheduler.schedule(Instant::now()).batch;
    sequences.apply(&batch);
    pass.prepare(&StepInput::new(&batch, sequences), BLOCK_SIZE, None, false);
    uploaded.clone_from(&pass.input.plan);
    uploaded.release();
    pass.input.plan.release();
    let sampled = batch.sequences.iter().filter(|sequence| sequence.sample);
    let token = |sequence: &ScheduledSequence| (sequence.id, Ok(SampledToken { token: 7, logprob: None }));
    let output = StepOutput { sampled: sampled.map(token).collect(), ..StepOutput::default() };
    sequences.advance(&batch, &output);
    scheduler.update(&batch, &output, Instant::now());
    batch.num_tokens()
}

#[test]
#[ignore = "a measurement"]
fn host_time_of_a_decode_step() {
    for rows in [1, 64, 256] {
        let config = SchedulerConfig {
            block_size: BLOCK_SIZE,
            num_blocks: 32768,
            max_num_seqs: 256,
            max_num_batched_tokens: 4096,
            max_model_len: 4096,
            ..bench_config()
        };
        let mut scheduler = Scheduler::new(config).unwrap();
        for id in 0..rows as u64 {
            let prompt = (0..CONTEXT).map(|at| (id as u32 * 37 + at * 11) % 4096).collect();
            scheduler.add(EngineRequest { prompt, ..request(id, 1000) }).unwrap();
        }
        let (mut sequences, mut pass, mut uploaded) = Default::default();
        while step(&mut scheduler, &mut sequences, &mut pass, &mut uploaded) != rows {}
        let mut times: Vec<f64> = (0..STEPS)
            .map(|_| {
                let started = Instant::now();
                assert_eq!(step(&mut scheduler, &mut sequences, &mut pass, &mut uploaded), rows);
                started.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        times.sort_by(f64::total_cmp);
        println!("{rows:4} rows: {:8.1} µs, median of {STEPS} steps", times[STEPS / 2]);
    }
}
