//! Steps of a whole decoder.

use std::path::Path;
use std::sync::Arc;

use polydelta::delta::{DeltaProgram, Module, ModuleKind};
use polydelta::model::{Decoder, EmbedRows, ModelInput, base_layout};
use polydelta::ops::cuda::CudaBackend;
use polydelta::types::AdapterSlot;
use serde_json::{Value, json};

use super::Plan;
use super::timing::medians;
use crate::support::Failure;
use crate::support::large::{self, Fill, Room, adapter, install, slots, step};
use crate::support::step::BLOCK_SIZE;

/// A decoder with all adapters, and sequences that have a context.
pub(super) struct Bench<'p> {
    pub(super) plan: &'p Plan,
    pub(super) backend: Arc<CudaBackend>,
    pub(super) decoder: Decoder<CudaBackend>,
    /// Places of each sequence that decodes.
    places: usize,
}

impl<'p> Bench<'p> {
    /// Load a model of random numbers, install its adapters, and fill the cache.
    pub(super) fn new(plan: &'p Plan, backend: &Arc<CudaBackend>, scratch: &Path) -> Result<Self, Failure> {
        let ranks = plan.installed();
        let places = (plan.context + 1).next_multiple_of(BLOCK_SIZE);
        let room = Room {
            rows: plan.prefill.max(plan.most_rows()),
            places: plan.prefill.max(plan.most_rows() * places),
            context: places.max(plan.prefill),
            // One more comes and goes.
            slots: ranks.len() + 1,
        };
        let mut decoder = large::decoder(plan.shape, backend, Fill::Repeated, room, scratch)?;
        install(&mut decoder, (plan.shape, backend.as_ref()), &ranks, Fill::Repeated)?;
        let mut bench = Self { plan, backend: Arc::clone(backend), decoder, places };
        bench.fill()?;
        Ok(bench)
    }

    /// Compute the context of every sequence, as many rows at a time as a prefill has.
    fn fill(&mut self) -> Result<(), Failure> {
        let (count, context) = (self.plan.most_rows(), self.plan.context);
        let each = (self.plan.prefill / count).max(1);
        for first in (0..context).step_by(each) {
            let input = step(&slots(count, 0), each.min(context - first), first, self.places);
            self.run(&input)?;
        }
        Ok(())
    }

    /// Run a step and wait for its tokens, which must be some.
    pub(super) fn run(&mut self, input: &ModelInput) -> Result<(), Failure> {
        for outcome in self.decoder.forward(input)?.sampled {
            outcome?;
        }
        Ok(())
    }

    /// One token of each of `rows` sequences with adapters in these slots.
    fn decoding(&self, rows: usize, adapters: usize, first: usize) -> ModelInput {
        let shifted = |slot: AdapterSlot| AdapterSlot(slot.0 + first as u32);
        let slots: Vec<_> = slots(rows, adapters).into_iter().map(|slot| slot.map(shifted)).collect();
        step(&slots, 1, self.plan.context, self.places)
    }

    /// A step of the most rows without adapters.
    pub(super) fn base_step(&self) -> ModelInput {
        self.decoding(self.plan.most_rows(), 0, 0)
    }

    /// Bytes of the matrices that every step reads.
    fn base_bytes(&self) -> Result<f64, Failure> {
        let spec = self.plan.shape.spec()?;
        let layout = base_layout(&spec);
        let linear = |module: &&Module| module.kind == ModuleKind::Linear;
        let of_layers: usize = layout.modules().filter(linear).map(|module| 2 * module.input * module.output).sum();
        Ok(of_layers as f64)
    }

    /// Steps of the base by rows, and of the most rows by adapters of one rank and of mixed ranks: all in one loop, in turns.
    pub(super) fn decode(&mut self, copies: f64) -> Result<Value, Failure> {
        let (plan, most) = (self.plan, self.plan.most_rows());
        let of_base = plan.rows.iter().map(|rows| (*rows, 0, 0));
        let of_eight = [(most.min(8), most.min(8), 0)];
        let of_one_rank = plan.distinct.iter().map(|distinct| (most, *distinct, 0));
        // The first of them are of the lowest rank, so they are taken from all over.
        let mixed_from = plan.installed().len() - plan.mixed.iter().copied().max().unwrap_or(0);
        let cases: Vec<_> = of_base.chain(of_eight).chain(of_one_rank).collect();
        let mut inputs: Vec<_> =
            cases.iter().map(|(rows, adapters, first)| self.decoding(*rows, *adapters, *first)).collect();
        inputs.extend(plan.mixed.iter().map(|count| self.mixed(*count, mixed_from)));
        let seconds = medians(inputs.len(), plan.rounds, |index| self.run(&inputs[index]))?;
        let base_of =
            |rows: usize| cases.iter().position(|case| *case == (rows, 0, 0)).map_or(f64::NAN, |at| seconds[at]);
        let bytes = self.base_bytes()?;
        let uniform = cases.iter().zip(&seconds).map(|((rows, adapters, _), seconds)| {
            json!({
                "rows": rows, "adapters": adapters, "rank": plan.rank, "seconds": seconds,
                "to_base": seconds / base_of(*rows), "weights_of_copies": bytes / seconds / copies,
            })
        });
        let mixed = plan.mixed.iter().zip(&seconds[cases.len()..]).map(|(adapters, seconds)| {
            json!({
                "rows": most, "adapters": adapters, "ranks": plan.ranks, "seconds": seconds,
                "retention": base_of(most) / seconds,
            })
        });
        Ok(json!({ "weight_bytes": bytes, "steps": uniform.collect::<Vec<_>>(), "mixed": mixed.collect::<Vec<_>>() }))
    }

    /// A step of the most rows with `count` of the mixed adapters, of all ranks alike.
    fn mixed(&self, count: usize, first: usize) -> ModelInput {
        let all = self.plan.mixed.iter().copied().max().unwrap_or(count);
        let spread = |slot: AdapterSlot| AdapterSlot((first + slot.index() * all / count) as u32);
        let slots: Vec<_> = slots(self.plan.most_rows(), count).into_iter().map(|slot| slot.map(spread)).collect();
        step(&slots, 1, self.plan.context, self.places)
    }

    /// The same step replayed, and launched one by one.
    pub(super) fn replay_against_eager(&mut self) -> Result<Value, Failure> {
        let recorded = self.base_step();
        // A step with prompt embeddings is not recorded; these are none.
        let nothing = EmbedRows { slot: AdapterSlot(0), first: 0, rows: 0..0 };
        let eager = ModelInput { embeds: vec![nothing], ..recorded.clone() };
        let inputs = [recorded, eager];
        let seconds = medians(2, self.plan.rounds, |index| self.run(&inputs[index]))?;
        Ok(
            json!({ "replayed_seconds": seconds[0], "eager_seconds": seconds[1], "eager_to_replayed": seconds[1] / seconds[0] }),
        )
    }

    /// A prefill of the base beside one over adapters. It takes the place of the context of those who decode.
    pub(super) fn prefill(&mut self) -> Result<Value, Failure> {
        let Plan { prefill, prefill_sequences: sequences, rounds, .. } = self.plan;
        let each = prefill / sequences;
        let inputs = [0, *sequences].map(|adapters| step(&slots(*sequences, adapters), each, 0, each));
        let seconds = medians(2, rounds.div_ceil(4), |index| self.run(&inputs[index]))?;
        self.fill()?;
        Ok(json!({
            "rows": prefill, "adapters": sequences, "base_seconds": seconds[0], "seconds": seconds[1],
            "to_base": seconds[1] / seconds[0], "tokens_per_second": *prefill as f64 / seconds[0],
        }))
    }

    /// An adapter that is not installed.
    pub(super) fn another(&self) -> Result<DeltaProgram, Failure> {
        Ok(adapter(&base_layout(&self.plan.shape.spec()?), self.plan.rank, Fill::Repeated))
    }
}
