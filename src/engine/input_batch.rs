//! The sequences that have rows in steps, kept from step to step: their ids, block tables and what their sampling needs.
//! The scheduler says who joins and leaves and which blocks are new; nothing else of a sequence crosses the border twice.
//!
//! A step does not change what is kept here before its result is taken in ([`InputBatch::advance`]), so it can be tried
//! again, whole or in parts. Decides nothing: whether a sequence goes on is the scheduler's to say.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::types::{
    AdapterSlot, JoinedSequence, Output, PoolRows, PoolSpec, PooledVector, RowSource, SampleSpec, SamplingParams,
    ScheduledBatch, ScheduledSequence, SequenceId, StepOutput, StoppingParams, TokenCounts, Tokens,
};

/// All sequences that have joined and have not left.
#[derive(Debug, Default)]
pub struct InputBatch(HashMap<SequenceId, InputSequence>);

/// What is kept of one sequence.
#[derive(Debug)]
struct InputSequence {
    slot: Option<AdapterSlot>,
    active_from: u32,
    /// `None` for the prompt embeddings of its adapter.
    request: Option<RequestInput>,
    /// KV index of its next row.
    start: u32,
    /// The plan of a step shares it while the step runs, so that no step copies it.
    blocks: Arc<Vec<u32>>,
    long_from: u32,
}

/// Ids of a request's choice, and how the next one is chosen.
#[derive(Debug)]
struct RequestInput {
    tokens: Tokens,
    /// KV index of the first of them.
    first: u32,
    choice: u32,
    sampling: Arc<SamplingParams>,
    stopping: Arc<StoppingParams>,
    /// Of the rows of the prompt that have been computed; only where they are summed.
    sum: Option<PooledVector>,
    /// Of `tokens`; only where penalties need them. Shared with a running step as the blocks are.
    counts: Option<Arc<TokenCounts>>,
}

impl InputBatch {
    /// Take in what has changed before a step: who leaves, who joins, which blocks are new.
    ///
    /// # Panics
    /// If a sequence has blocks that has not joined: the scheduler and this would be of two minds about who holds what.
    pub fn apply(&mut self, batch: &ScheduledBatch) {
        for id in &batch.left {
            self.0.remove(id);
        }
        for joined in &batch.joined {
            self.0.insert(joined.id, InputSequence::new(joined));
        }
        for ScheduledSequence { id, new_blocks, .. } in &batch.sequences {
            if new_blocks.is_empty() {
                continue;
            }
            let Some(sequence) = self.0.get_mut(id) else { panic!("sequence {} has not joined", id.0) };
            Arc::make_mut(&mut sequence.blocks).extend(new_blocks.iter().map(|block| block.0));
        }
    }

    /// Take in the result of a step: its rows are in the cache, what was sampled is appended, and sums are kept. Of a sequence that has
    /// ended by it that is never read.
    pub fn advance(&mut self, batch: &ScheduledBatch, output: &StepOutput) {
        for share in &batch.sequences {
            if let Some(sequence) = self.0.get_mut(&share.id) {
                sequence.start += share.count;
            }
        }
        for (id, sampled) in &output.sampled {
            if let Some(InputSequence { request: Some(request), .. }) = self.0.get_mut(id)
                && let Ok(sampled) = sampled
            {
                request.push(sampled.token);
            }
        }
        for (id, pooled) in &output.pooled {
            if let Some(InputSequence { request: Some(request), .. }) = self.0.get_mut(id)
                && let Ok(pooled) = pooled
                && request.sampling.pool.is_some_and(|pool| pool.rows == PoolRows::Sum)
            {
                request.sum = pooled.last().cloned();
            }
        }
    }

    /// One sequence's share of a step.
    ///
    /// # Panics
    /// If it has not joined.
    fn share<'a>(&'a self, share: &'a ScheduledSequence) -> SequenceInput<'a> {
        let Some(sequence) = self.0.get(&share.id) else { panic!("sequence {} has not joined", share.id.0) };
        SequenceInput {
            id: share.id,
            slot: sequence.slot,
            active_from: sequence.active_from,
            start: sequence.start,
            count: share.count,
            blocks: &sequence.blocks,
            long_from: sequence.long_from,
            request: sequence.request.as_ref(),
            from_shared: share.from_shared,
            scored: &share.scored,
            pooled: &share.pooled,
            sample: share.sample,
        }
    }
}

impl InputSequence {
    fn new(joined: &JoinedSequence) -> Self {
        let request = match &joined.source {
            RowSource::Tokens { tokens, first, choice, sampling, stopping } => Some(RequestInput {
                tokens: tokens.clone(),
                first: *first,
                choice: *choice,
                sampling: Arc::clone(sampling),
                stopping: Arc::clone(stopping),
                sum: None,
                counts: sampling.needs_counts().then(|| Arc::new(TokenCounts::of(tokens))),
            }),
            RowSource::PromptEmbeds => None,
        };
        Self {
            slot: joined.slot,
            active_from: joined.active_from,
            request,
            start: joined.start,
            blocks: Arc::new(joined.blocks.iter().map(|block| block.0).collect()),
            long_from: joined.long_from,
        }
    }
}

impl RequestInput {
    fn push(&mut self, token: u32) {
        self.tokens.push(token);
        if let Some(counts) = &mut self.counts {
            // The step that shared them is over: nothing is copied.
            Arc::make_mut(counts).add_output(token);
        }
    }

    /// How the token after the last known one is chosen.
    fn sample(&self) -> SampleSpec {
        let output = self.tokens.output().len();
        SampleSpec {
            params: Arc::clone(&self.sampling),
            choice: self.choice,
            output_position: output as u32,
            banned: self.stopping.banned_after(output).to_vec(),
            counts: self.counts.clone(),
        }
    }
}

/// A step as an executor sees it: what is to be done, and all it needs to know of the sequences that it is done for.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    batch: &'a ScheduledBatch,
    sequences: &'a InputBatch,
    base_alone: bool,
}

impl<'a> StepInput<'a> {
    /// A step of sequences that have joined.
    #[must_use]
    pub fn new(batch: &'a ScheduledBatch, sequences: &'a InputBatch) -> Self {
        Self { batch, sequences, base_alone: false }
    }

    /// The same rows on the base, without their adapters.
    #[must_use]
    pub fn base_alone(self) -> Self {
        Self { base_alone: true, ..self }
    }

    /// Prefix writes, block copies, and how many rows there are of whom.
    #[must_use]
    pub fn batch(&self) -> &'a ScheduledBatch {
        self.batch
    }

    /// The sequences of the pass, in order.
    pub fn sequences(&self) -> impl Iterator<Item = SequenceInput<'a>> {
        let Self { batch, sequences, base_alone } = *self;
        batch.sequences.iter().map(move |share| {
            let input = sequences.share(share);
            SequenceInput { slot: input.slot.filter(|_| !base_alone), ..input }
        })
    }
}

/// One sequence's share of a step, with what is known of the sequence.
#[derive(Clone, Copy, Debug)]
pub struct SequenceInput<'a> {
    /// Which sequence.
    pub id: SequenceId,
    /// Adapter of its rows; `None` is the base.
    pub slot: Option<AdapterSlot>,
    /// First KV index whose row has it; rows before are the base's.
    pub active_from: u32,
    /// KV index, and rope position, of the first row: everything before it is in the cache already.
    pub start: u32,
    /// Rows.
    pub count: u32,
    /// Block table: block `i` holds KV indices `i * block_size ..`. Covers `start + count` places, and may go on.
    pub blocks: &'a Arc<Vec<u32>>,
    /// First KV index that is rotated by the long frequencies.
    pub long_from: u32,
    /// Its rows go on from behind the shared layers.
    pub from_shared: bool,
    request: Option<&'a RequestInput>,
    scored: &'a Range<u32>,
    pooled: &'a Range<u32>,
    sample: bool,
}

impl<'a> SequenceInput<'a> {
    /// KV indices of the rows.
    #[must_use]
    pub fn places(&self) -> Range<u32> {
        self.start..self.start + self.count
    }

    /// Adapter of each row.
    pub fn slots(&self) -> impl Iterator<Item = Option<AdapterSlot>> {
        let Self { slot, active_from, .. } = *self;
        self.places().map(move |place| slot.filter(|_| place >= active_from))
    }

    /// Ids of the rows; `None` where they are the prompt embeddings of the adapter in the slot, from row `start` of them
    /// on.
    #[must_use]
    pub fn ids(&self) -> Option<impl Iterator<Item = u32> + 'a> {
        let RequestInput { tokens, first, .. } = self.request?;
        let Range { start, end } = self.places();
        let slices = tokens.slices((start - first) as usize..(end - first) as usize);
        Some(slices.into_iter().flatten().copied())
    }

    /// Rows that are scored, counted from the first, in order, and what is wanted of each: what the prompt's next token is
    /// worth.
    pub fn scored(&self) -> impl Iterator<Item = (u32, Output)> + 'a {
        let Self { request, scored, start, .. } = *self;
        let of = move |request: &'a RequestInput| {
            let top = request.sampling.prompt_logprobs.unwrap_or(0);
            let next = request.tokens.prompt()[(start - request.first) as usize..].iter().skip(1);
            let next = next.skip(scored.start as usize).take(scored.len());
            scored.clone().zip(next).map(move |(row, target)| (row, Output::PromptLogprobs { target: *target, top }))
        };
        request.filter(|_| !scored.is_empty()).into_iter().flat_map(of)
    }

    /// Rows that are pooled, counted from the first, and what is wanted of them.
    #[must_use]
    pub fn pooled(&self) -> Option<(Range<u32>, PoolSpec)> {
        let pool = self.request?.sampling.pool?;
        (!self.pooled.is_empty()).then(|| (self.pooled.clone(), pool))
    }

    /// The sum of the rows before, onto which those of this share are added.
    #[must_use]
    pub fn sum(&self) -> Option<&'a PooledVector> {
        self.request?.sum.as_ref()
    }

    /// How to choose from the logits of the last row; `None` where nothing is chosen.
    #[must_use]
    pub fn sample(&self) -> Option<SampleSpec> {
        self.request.filter(|_| self.sample).map(RequestInput::sample)
    }
}

#[cfg(test)]
mod tests;
