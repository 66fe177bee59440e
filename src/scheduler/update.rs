//! Taking in the result of a step: progress, full blocks for the prefix index, tokens, failures.

use std::collections::HashMap;
use std::time::Instant;

use super::{Events, PROBE, Scheduler};
use crate::cache::PrefixScope;
use crate::types::{
    BlockId, FinishReason, JoinedSequence, LongRope, PooledVector, RequestFailure, RequestId, RowSource, SampledToken,
    SamplingParams, ScheduledBatch, ScheduledSequence, ScoredTokens, SequenceEvent, SequenceFailure, SequenceId,
    StepOutput, StoppingParams, TokenLogprob, Tokens,
};

/// What a step brought a sequence.
#[derive(Clone, Copy)]
struct Results<'a> {
    sampled: Option<&'a SampledToken>,
    /// Tokens of the prompt.
    scored: &'a [(u32, TokenLogprob)],
    /// Vectors of its prompt.
    pooled: &'a [PooledVector],
}

impl<'a> Results<'a> {
    fn of(
        sampled: Option<&'a Result<SampledToken, SequenceFailure>>,
        scored: Option<&'a Result<ScoredTokens, SequenceFailure>>,
        pooled: Option<&'a Result<Vec<PooledVector>, SequenceFailure>>,
    ) -> Result<Self, SequenceFailure> {
        let sampled = sampled.map(Result::as_ref).transpose().map_err(|failure| *failure)?;
        let scored = scored.map(Result::as_ref).transpose().map_err(|failure| *failure)?;
        let pooled = pooled.map(Result::as_ref).transpose().map_err(|failure| *failure)?;
        let (scored, pooled) = (scored.map_or(&[][..], Vec::as_slice), pooled.map_or(&[][..], Vec::as_slice));
        Ok(Self { sampled, scored, pooled })
    }
}

impl Scheduler {
    /// Take in the result of a step. Results of sequences that are gone are ignored; a non-finite row ends its
    /// request alone and takes the KV of its adapter version out of the prefix index. A sequence that was to be
    /// sampled, scored or pooled and has no result ends its request with `EngineFailed`.
    pub fn update(&mut self, batch: &ScheduledBatch, output: &StepOutput, now: Instant) -> Events {
        self.release_copied();
        let sampled: HashMap<_, _> = output.sampled.iter().map(|(id, result)| (*id, result)).collect();
        let scored: HashMap<_, _> = output.prompt_logprobs.iter().map(|(id, result)| (*id, result)).collect();
        let pooled: HashMap<_, _> = output.pooled.iter().map(|(id, result)| (*id, result)).collect();
        let mut events = Events::new();
        for scheduled in &batch.sequences {
            let id = &scheduled.id;
            match Results::of(sampled.get(id).copied(), scored.get(id).copied(), pooled.get(id).copied()) {
                Ok(results) => self.advance(scheduled, results, now, &mut events),
                Err(failure) => self.fail_sequence(scheduled.id, failure, &mut events),
            }
        }
        events
    }

    /// A step is over: nothing copies from these blocks any more.
    pub(super) fn release_copied(&mut self) {
        for block in std::mem::take(&mut self.copied) {
            self.cache.release(block);
        }
    }

    fn advance(&mut self, scheduled: &ScheduledSequence, results: Results<'_>, now: Instant, events: &mut Events) {
        let id = scheduled.id;
        if self.sequences.get(id).is_none() {
            // Aborted while the step ran, or the virtual tokens of an adapter.
            if let Some(key) = self.pages.key_of(id) {
                self.pages.advance(key, scheduled.count);
            }
            return;
        }
        let sequence = &mut self.sequences[id];
        sequence.num_computed_tokens += scheduled.count as usize;
        if self.cache.prefix_cache() {
            sequence.walk_new_shared_layers(|block, contents| self.cache.publish_shared_layers(block, contents));
            sequence.walk_new_full_blocks(|block, contents| self.cache.publish(block, contents));
        }
        let request = sequence.request;
        if sequence.num_computed_tokens >= sequence.tokens.prompt().len()
            && let Some(request) = self.requests.get_mut(&request)
        {
            request.prompt_computed = true;
        }
        if results.scored.len() != scheduled.scored.len() {
            return self.fail_request(request, RequestFailure::EngineFailed, events);
        }
        self.sequences[id].scored(results.scored.len());
        for (token, logprob) in results.scored {
            events.push((request, SequenceEvent::PromptLogprob { token: *token, logprob: logprob.clone() }));
        }
        let (vectors, said) = self.sequences[id].pooled(&scheduled.pooled);
        if results.pooled.len() != vectors {
            return self.fail_request(request, RequestFailure::EngineFailed, events);
        }
        if said {
            events.push((request, SequenceEvent::Pooled(results.pooled.to_vec())));
        }
        match results.sampled {
            _ if self.sequences[id].ends_with_prompt() => self.end_with_prompt(id, now, events),
            _ if !scheduled.sample => {}
            Some(sampled) => self.accept(id, sampled, now, events),
            None => self.fail_request(request, RequestFailure::EngineFailed, events),
        }
    }

    fn end_with_prompt(&mut self, id: SequenceId, now: Instant, events: &mut Events) {
        let (request, choice) = (self.sequences[id].request, self.sequences[id].choice);
        let finish = Some((FinishReason::Length, None));
        events.push((request, SequenceEvent::Token { choice, token: None, logprob: None, finish, at: now }));
        self.finish_sequence(id);
    }

    fn accept(&mut self, id: SequenceId, sampled: &SampledToken, now: Instant, events: &mut Events) {
        let sequence = &mut self.sequences[id];
        let accepted = sequence.accept(sampled.token);
        let event = SequenceEvent::Token {
            choice: sequence.choice,
            token: accepted.token,
            logprob: accepted.token.and(sampled.logprob.clone()),
            finish: accepted.finish,
            at: now,
        };
        events.push((sequence.request, event));
        let (rank, outgrown) = (sequence.rank, sequence.outgrows_short_rope());
        if accepted.finish.is_some() {
            self.finish_sequence(id);
        } else if outgrown {
            self.preempt(rank);
            self.sequences[id].turn_long();
        }
    }

    /// A sequence failed alone. What it computed may be poisoned, and so may all KV of the same origin: none of that
    /// is reused, and of the base's, where that of an adapter begins with it, none that the request ran on. Sequences that
    /// run on it go on and are judged by their own rows.
    fn fail_sequence(&mut self, id: SequenceId, failure: SequenceFailure, events: &mut Events) {
        let SequenceFailure::NonFinite = failure;
        for request in self.requests_behind(id) {
            let Some(scope) = self.requests.get(&request).map(|request| request.scope.clone()) else { continue };
            let blocks = self.blocks_of(request);
            self.fail_request(request, RequestFailure::NonFinite, events);
            match scope.version {
                None => {
                    for long_rope in [false, true] {
                        self.cache.forget_scope(&PrefixScope { long_rope, ..PrefixScope::clone(&scope) });
                    }
                }
                Some(version) => {
                    self.cache.forget_version(version);
                    self.cache.forget_blocks(&blocks);
                    let pages = self.pages.remove_version(version);
                    self.release_pages(pages);
                }
            }
        }
    }

    /// All blocks in the tables of a request's choices.
    fn blocks_of(&self, request: RequestId) -> Vec<BlockId> {
        let live = self.requests.get(&request).into_iter().flat_map(|request| &request.live);
        live.flat_map(|rank| self.sequences[rank.id()].table.blocks()).copied().collect()
    }

    /// The requests that end with this sequence: its own, or all that want the virtual tokens it prefills.
    fn requests_behind(&self, id: SequenceId) -> Vec<RequestId> {
        if let Some(sequence) = self.sequences.get(id) {
            return vec![sequence.request];
        }
        let Some(key) = self.pages.key_of(id) else { return Vec::new() };
        let mut requests: Vec<_> =
            self.pages.wanted_by(key).into_iter().map(|rank| self.sequences[rank.id()].request).collect();
        requests.dedup();
        requests
    }

    /// A step that depends on nobody: one row of the base on a block that nobody holds, as the sequence
    /// [`PROBE`]. `None` where every block is held. It must be run, if at all, before anything else is asked of the
    /// scheduler.
    pub fn probe(&mut self) -> Option<ScheduledBatch> {
        // Taken and given back: what it held before is not findable any more, and nobody has it until the probe has run.
        let block = self.cache.allocate()?;
        self.cache.release(block);
        let row = JoinedSequence {
            id: PROBE,
            slot: None,
            active_from: 0,
            source: RowSource::Tokens {
                tokens: Tokens::new([0].into()),
                first: 0,
                choice: 0,
                sampling: SamplingParams::greedy().into(),
                stopping: StoppingParams { max_tokens: 1, min_tokens: 0, stop_token_ids: Vec::new() }.into(),
            },
            start: 0,
            blocks: vec![block],
            long_from: LongRope::NEVER,
        };
        let new_blocks = Vec::new();
        let share = ScheduledSequence {
            id: PROBE,
            count: 1,
            new_blocks,
            from_shared: false,
            scored: 0..0,
            pooled: 0..0,
            sample: true,
        };
        Some(ScheduledBatch { joined: vec![row], sequences: vec![share], ..ScheduledBatch::default() })
    }

    /// The step failed as a whole: every request with a part in it ends with `failure`; the others go on.
    pub fn fail_step(&mut self, batch: &ScheduledBatch, failure: RequestFailure) -> Events {
        self.release_copied();
        let mut events = Events::new();
        for scheduled in &batch.sequences {
            for request in self.requests_behind(scheduled.id) {
                self.fail_request(request, failure, &mut events);
            }
        }
        for write in &batch.prefix_writes {
            let pages = self.pages.remove_written(&write.blocks);
            self.release_pages(pages);
        }
        events
    }
}
