//! How a decode step and a prefill scale: with the number of rows, and with the length of the context.

use std::sync::Arc;
use std::time::Instant;

use polydelta::delta::ModuleKind;
use polydelta::model::base_layout;
use polydelta::ops::Backend;
use polydelta::ops::cpu::CpuBackend;
use polydelta::types::AdapterSlot;

use super::support::Failure;
use super::support::model::Shape;
use super::support::step::{MAX_ROWS, Model, backend, decode, rows};
use super::timing::{median, ratio, take_turns};

/// Rows of the batched steps, each of a sequence of its own.
const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Tokens that each of those sequences has in the cache.
const POSITION: usize = 64;
/// Lengths of one context.
const CONTEXTS: [usize; 4] = [64, 500, 1000, 4000];
/// Turns of multiply-adds beside a step, some milliseconds of them.
const MULTIPLY_ADD_TURNS: usize = 1 << 16;

pub(crate) struct ScalingBench {
    shape: Shape,
    backend: Arc<CpuBackend>,
    model: Model,
    /// Numbers of the matrices that a row of a decode step goes through.
    weights: usize,
    /// Numbers of K and V of a token, in all layers.
    kv: usize,
}

impl ScalingBench {
    pub(crate) fn new(shape: Shape, threads: usize, rank: usize) -> Result<Self, Failure> {
        let most = ROWS[ROWS.len() - 1];
        let backend = backend(threads)?;
        let model = Model::new(shape, &backend, most, most, rank)?;
        let spec = shape.spec()?;
        let layout = base_layout(&spec);
        let linear = layout.modules().filter(|module| module.kind == ModuleKind::Linear);
        let experts = spec.experts().map_or(0, |experts| {
            3 * spec.layers.len() * experts.experts_per_token * experts.intermediate_size * spec.hidden_size
        });
        let weights = experts + linear.map(|module| module.input * module.output).sum::<usize>();
        let kv = 2 * spec.layers.len() * spec.kv_heads * spec.head_dim;
        Ok(Self { shape, backend, model, weights, kv })
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
            let mut ceiling = 0;
            let [base, mixed, multiply_add] = take_turns(rounds, |index| {
                match inputs.get(index) {
                    Some(input) => drop(self.model.run(input)?),
                    None => ceiling = self.backend.multiply_add(MULTIPLY_ADD_TURNS),
                }
                Ok(())
            })?;
            let share = (count * self.weights) as f64 / ceiling as f64 * ratio(&multiply_add, &base);
            let of = |times: Vec<f64>| {
                let step = median(times);
                (1e3 * step, count as f64 / step)
            };
            let ((base_ms, base_rate), (mixed_ms, mixed_rate)) = (of(base), of(mixed));
            println!(
                "  {count:2} rows: {base_ms:7.2} ms, {base_rate:6.0} tokens/s, {share:.2} of multiply-add alone; \
                 of as many adapters: {mixed_ms:7.2} ms, {mixed_rate:6.0} tokens/s"
            );
        }
        Ok(())
    }

    /// A prompt in chunks of a step's rows, and steps of one token behind it, beside what would be the length of a step if
    /// only bytes counted: those of the weights, and of K and V of the context.
    pub(crate) fn contexts(&mut self, rounds: usize) -> Result<(), Failure> {
        let mut first = None;
        for context in CONTEXTS {
            let start = Instant::now();
            for first in (0..context).step_by(MAX_ROWS) {
                self.model.run(&rows(&[None], MAX_ROWS.min(context - first), first))?;
            }
            let prefill = context as f64 / start.elapsed().as_secs_f64();
            let input = decode(&[None], context);
            let [step] = take_turns(rounds, |_| self.model.run(&input).map(drop))?;
            let (step, bytes) = (median(step), self.weights + context * self.kv);
            let (first_step, first_bytes) = *first.get_or_insert((step, bytes));
            println!(
                "  context {context:4}: prefill {prefill:5.0} tokens/s, a decode step {:6.2} ms, {:.2} times the first \
                 (bytes alone: {:.2})",
                1e3 * step,
                step / first_step,
                bytes as f64 / first_bytes as f64,
            );
        }
        Ok(())
    }
}
