//! Requests coming and going: what is refused, how one becomes sequences, how its KV is given back.

use std::sync::Arc;
use std::time::Instant;

use super::policy::Rank;
use super::queue::Flow;
use super::request::Request;
use super::sequence::{Sequence, SequenceSeed};
use super::virtual_pages::PagesKey;
use super::{Events, Scheduler, SchedulerError};
use crate::cache::PrefixScope;
use crate::types::{BlockId, EngineRequest, RequestFailure, RequestId, SequenceEvent, SequenceId};

fn num_virtual(request: &EngineRequest) -> usize {
    let tokens = request.adapter.and_then(|adapter| adapter.virtual_tokens);
    tokens.map_or(0, |tokens| tokens.count as usize)
}

impl Scheduler {
    fn check(&self, request: &EngineRequest) -> Result<(), SchedulerError> {
        let id = request.id;
        let pages = request.adapter.and_then(|adapter| PagesKey::of(&adapter));
        let empty = |field| Err(SchedulerError::EmptyField { id, field });
        if self.draining {
            return Err(SchedulerError::Draining);
        }
        if self.requests.contains_key(&id) {
            return Err(SchedulerError::DuplicateRequest { id });
        }
        if request.prompt.is_empty() {
            return empty("prompt");
        }
        if request.choices == 0 {
            return empty("choices");
        }
        if request.stopping.max_tokens == 0 && !request.sampling.reads_prompt() {
            return empty("max_tokens");
        }
        if pages.is_some_and(|pages| pages.count == 0) {
            return empty("virtual_tokens");
        }
        self.check_lengths(request)
    }

    fn check_lengths(&self, request: &EngineRequest) -> Result<(), SchedulerError> {
        let (virtual_tokens, prompt_tokens) = (num_virtual(request), request.prompt.len());
        let max_tokens = self.max_output(request);
        let max_model_len = self.config.max_model_len as usize;
        // Where the prompt is only read, it may fill the context.
        let fits = if request.stopping.max_tokens > 0 {
            max_tokens > 0
        } else {
            virtual_tokens.saturating_add(prompt_tokens) <= max_model_len
        };
        if !fits {
            return Err(SchedulerError::ContextTooLong { virtual_tokens, prompt_tokens, max_model_len });
        }
        // The last output token's KV is never computed. A partly filled virtual block is held twice: the shared
        // original and the copy at the head of the sequence's own blocks.
        let size = self.block_size;
        let table = size.blocks_for(virtual_tokens + prompt_tokens + max_tokens.saturating_sub(1));
        let needed_blocks = table + size.blocks_for(virtual_tokens) - size.full_blocks(virtual_tokens);
        let num_blocks = self.cache.num_blocks();
        if needed_blocks > num_blocks {
            return Err(SchedulerError::PoolTooSmall {
                virtual_tokens,
                prompt_tokens,
                max_tokens,
                needed_blocks,
                num_blocks,
                block_size: size.get(),
            });
        }
        Ok(())
    }

    /// Output tokens that may come: `max_tokens`, or what the context leaves.
    fn max_output(&self, request: &EngineRequest) -> usize {
        let used = num_virtual(request).saturating_add(request.prompt.len());
        let left = (self.config.max_model_len as usize).saturating_sub(used);
        left.min(request.stopping.max_tokens as usize)
    }

    pub(super) fn new_sequence_id(&mut self) -> SequenceId {
        self.next_sequence += 1;
        SequenceId(self.next_sequence)
    }

    /// Take a request: one waiting sequence per choice, whose ids are returned in order of choice.
    ///
    /// # Errors
    /// Every request variant of [`SchedulerError`], with the numbers; nothing is kept of a refused request.
    pub fn add(&mut self, request: EngineRequest) -> Result<Vec<SequenceId>, SchedulerError> {
        self.check(&request)?;
        let known = num_virtual(&request) + request.prompt.len();
        let scope = Arc::new(PrefixScope {
            tenant_salt: Arc::clone(&request.tenant_salt),
            base_digest: self.config.base_digest,
            version: request.adapter.map(|adapter| adapter.version),
            own_from: request.adapter.map_or(0, |adapter| adapter.kv_from),
            virtual_tokens: num_virtual(&request) as u32,
            long_rope: self.config.long_rope.is_some_and(|rope| rope.is_long(known)),
        });
        let shares_layers = self.config.shared_layers.is_some_and(|layers| {
            self.cache.shares_layers() && request.adapter.is_none_or(|adapter| adapter.base_layers >= layers)
        });
        let max_output = self.max_output(&request);
        let party = self.fair.join(request.party(), request.choices as usize);
        let mut live = Vec::with_capacity(request.choices as usize);
        for choice in 0..request.choices {
            let id = self.new_sequence_id();
            let (block_size, long_rope) = (self.block_size, self.config.long_rope);
            let (request, scope) = (&request, &scope);
            let seed =
                SequenceSeed { request, id, party, choice, scope, max_output, block_size, long_rope, shares_layers };
            let sequence = Sequence::new(seed);
            if let (Some(pages), Some(slot)) = (sequence.pages, sequence.slot) {
                self.pages.join(pages, sequence.rank, slot);
            }
            live.push(sequence.rank);
            self.waiting.insert(sequence.flow(), sequence.rank);
            self.sequences.insert(sequence);
        }
        if let Some(deadline) = request.deadline {
            self.deadlines.insert((deadline, request.id));
        }
        let ids = live.iter().map(|rank| rank.id()).collect();
        let deadline = request.deadline;
        self.requests.insert(
            request.id,
            Request {
                live,
                scope,
                deadline,
                party: request.party(),
                parked: false,
                started: false,
                prompt_computed: false,
            },
        );
        Ok(ids)
    }

    /// Take a sequence out of whichever queue it is in.
    pub(super) fn unqueue(&mut self, flow: Flow, rank: Rank) {
        if self.running.remove(rank) {
            self.waiting.stopped(flow);
            self.fair.stopped(flow.party);
        } else {
            self.waiting.remove(flow, rank);
        }
    }

    /// Take a sequence out of everything and free its KV. Its request goes with its last sequence.
    pub(super) fn finish_sequence(&mut self, id: SequenceId) {
        let Some(mut sequence) = self.sequences.remove(id) else { return };
        self.left.extend(sequence.leave());
        let parked = self.requests.get(&sequence.request).is_some_and(|request| request.parked);
        self.num_parked -= usize::from(parked);
        if !parked {
            self.unqueue(sequence.flow(), sequence.rank);
            self.fair.leave(sequence.party);
        }
        self.cache.release_table(&mut sequence.table);
        if let Some(pages) = sequence.pages {
            let unwanted = self.pages.leave(pages, sequence.rank);
            self.release_pages(unwanted);
        }
        if let Some(request) = self.requests.get_mut(&sequence.request) {
            request.live.retain(|rank| *rank != sequence.rank);
            if request.live.is_empty() {
                let deadline = request.deadline;
                self.requests.remove(&sequence.request);
                if let Some(deadline) = deadline {
                    self.deadlines.remove(&(deadline, sequence.request));
                }
            }
        }
    }

    /// End a request without an event; its KV is free on return. False where it is not here (any more).
    pub fn abort(&mut self, id: RequestId) -> bool {
        let Some(request) = self.requests.get(&id) else { return false };
        for rank in request.live.clone() {
            self.finish_sequence(rank.id());
        }
        true
    }

    /// End one choice of a request without an event, as after a stop string; its KV is free on return. False where it
    /// is not here (any more).
    pub fn finish_choice(&mut self, id: RequestId, choice: u32) -> bool {
        let Some(request) = self.requests.get_mut(&id) else { return false };
        let is_choice = |rank: &&Rank| self.sequences.get(rank.id()).is_some_and(|sequence| sequence.choice == choice);
        let Some(rank) = request.live.iter().find(is_choice).copied() else { return false };
        request.prompt_computed |= choice == 0;
        self.finish_sequence(rank.id());
        true
    }

    /// End a request with an event; nothing where it is gone already.
    pub(super) fn fail_request(&mut self, id: RequestId, failure: RequestFailure, events: &mut Events) {
        if self.abort(id) {
            events.push((id, SequenceEvent::Failed(failure)));
        }
    }

    pub(super) fn release_pages(&mut self, blocks: Vec<BlockId>) {
        for block in blocks {
            self.cache.release(block);
        }
    }

    /// End every request whose deadline has come, whatever its phase.
    pub(super) fn expire(&mut self, now: Instant, events: &mut Events) {
        while let Some((deadline, id)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.remove(&(deadline, id));
            self.fail_request(id, RequestFailure::DeadlineExceeded, events);
        }
    }

    /// Refuse new requests from now on and end those that have not started with `Draining`; the others run on.
    pub fn drain(&mut self) -> Events {
        self.draining = true;
        let unstarted: Vec<_> =
            self.requests.iter().filter(|(_, request)| !request.started).map(|(id, _)| *id).collect();
        let mut events = Events::new();
        for id in unstarted {
            self.fail_request(id, RequestFailure::Draining, &mut events);
        }
        events
    }

    /// End every request with `failure` and trust nothing in the KV cache any more.
    pub fn fail_all(&mut self, failure: RequestFailure) -> Events {
        let ids: Vec<_> = self.requests.keys().copied().collect();
        let mut events = Events::new();
        for id in ids {
            self.fail_request(id, failure, &mut events);
        }
        self.release_copied();
        let pages = self.pages.remove_all();
        self.release_pages(pages);
        self.cache.forget_all();
        events
    }
}
