//! How a decode step and a prefill scale: with the number of rows, and with the length of the context.

use std::sync::Arc;
use std::time::Instant;

use polydelta::ops::Backend;
use polydelta::ops::cpu::CpuBackend;
use polydelta::types::AdapterSlot;

use super::support::Failure;
use super::support::model::Shape;
use super::support::step::{MAX_ROWS, Model, backend, decode, rows};
use super::timing::{median, take_turns};

/// Rows of the batched steps, each of a sequence of its own.
const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Tokens that each of those sequences has in the cache.
const POSITION: usize = 64;
/// Lengths of one context.
const CONTEXTS: [usize; 3] = [64, 1000, 4000];

pub(crate) struct ScalingBench {
    shape: Shape,
    backend: Arc<CpuBackend>,
    model: Model,
}

impl ScalingBench {
    pub(crate) fn new(shape: Shape, threads: usize, rank: usize) -> Result<Self, Failure> {
        let most = ROWS[ROWS.len() - 1];
        let backend = backend(threads)?;
        let model = Model::new(shape, &backend, most, most, rank)?;
        Ok(Self { shape, backend, model })
    }

    pub(crate) fn heading(&self) -> String {
        let info = self.backend.info();
        format!("\n{}, bf16, {} threads, {}: rows and contexts", self.shape.name(), info.threads, info.isa)
    }

    /// Steps of one token for each of several sequences, of the base and of different adapters.
    pub(crate) fn rows(&mut self, rounds: usize) -> Result<(), Failure> {
        for count in ROWS {
            let distinct: Vec<_> = (0..count as u32).map(|slot| Some(AdapterSlot(slot))).collect();
            let base = vec![None; count];
            let chunk = (MAX_ROWS / count).min(POSITION);
            for first in (0..POSITION).step_by(chunk) {
                self.model.run(&rows(&base, chunk, first))?;
            }
            let inputs = [decode(&base, POSITION), decode(&distinct, POSITION)];
            let [base, mixed] = take_turns(rounds, |index| self.model.run(&inputs[index]).map(drop))?;
            let of = |times: Vec<f64>| {
                let step = median(times);
                (1e3 * step, count as f64 / step)
            };
            let ((base_ms, base_rate), (mixed_ms, mixed_rate)) = (of(base), of(mixed));
            println!(
                "  {count:2} rows: {base_ms:7.2} ms, {base_rate:6.0} tokens/s; \
                 of as many adapters: {mixed_ms:7.2} ms, {mixed_rate:6.0} tokens/s"
            );
        }
        Ok(())
    }

    /// A prompt in chunks of a step's rows, and steps of one token behind it.
    pub(crate) fn contexts(&mut self, rounds: usize) -> Result<(), Failure> {
        for context in CONTEXTS {
            let start = Instant::now();
            for first in (0..context).step_by(MAX_ROWS) {
                self.model.run(&rows(&[None], MAX_ROWS.min(context - first), first))?;
            }
            let prefill = context as f64 / start.elapsed().as_secs_f64();
            let input = decode(&[None], context);
            let [step] = take_turns(rounds, |_| self.model.run(&input).map(drop))?;
            println!(
                "  context {context:4}: prefill {prefill:5.0} tokens/s, a decode step {:6.2} ms",
                1e3 * median(step)
            );
        }
        Ok(())
    }
}
