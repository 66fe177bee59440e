//! Starting what waits: the pages of its adapter, reused blocks, its own blocks, in that order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Instant;

use super::blocked::Blocked;
use super::fair_share::PartyId;
use super::policy::Rank;
use super::prompt_rows::Taker;
use super::queue::{Flow, Place};
use super::step::{NextStep, SeatHolders};
use super::virtual_pages::{PageSet, PagesKey, Prefill};
use super::{Events, Scheduler};
use crate::cache::BlockTable;
use crate::types::{AdapterSlot, BlockCopy, BlockId, PrefixWrite, SequenceEvent, SequenceId};

/// What became of an attempt to start a waiting sequence.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Admission {
    /// It runs.
    Started,
    /// It waits for something that is on its way; others may pass.
    NotYet,
    /// Its blocks do not fit. Nobody passes, or a large request would wait for ever.
    NoRoom,
}

/// A waiting sequence in line; the smallest goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    /// What its party has had, less its head start.
    level: i64,
    rank: Rank,
    party: PartyId,
    /// Of its flow in the line of its party.
    place: Place,
}

/// Sequences that were tried in this step and cannot start yet: the last one of each flow.
type Passed = BTreeMap<Flow, Rank>;

impl Scheduler {
    /// Start what waits, the least served party first. One of which nothing can start now is passed; one whose blocks
    /// do not fit is not.
    pub(super) fn admit_waiting(&mut self, now: Instant, mut holders: SeatHolders, step: &mut NextStep) {
        let mut passed = Passed::new();
        let mut turns: BinaryHeap<_> =
            self.waiting.parties().filter_map(|(party, ..)| self.turn(party, None, &passed)).collect();
        while !step.is_full()
            && let Some(Reverse(turn)) = turns.pop()
        {
            let Turn { party, rank, place, .. } = turn;
            // Levels only rise: one that has risen meanwhile goes back in line.
            if let Some(risen) = self.turn(party, Some(place), &passed).filter(|now| now.0 > turn) {
                turns.push(risen);
                continue;
            }
            let flow = self.sequences[rank.id()].flow();
            let room = self.room(Taker::Waiting(party), self.sequences[rank.id()].num_remaining(), step);
            if room == 0 || self.fair.allowance(party) == 0 || !self.may_take_a_seat(flow, &holders) {
                continue;
            }
            match self.try_start(rank, now, step) {
                Admission::Started => holders = self.seat_holders(),
                Admission::NotYet => drop(passed.insert(flow, rank)),
                Admission::NoRoom => return,
            }
            turns.extend(self.turn(party, Some(place), &passed));
        }
    }

    /// What may start in a step with so many `seats` and `rows` left, with its turn: the first that waits of each party, and
    /// of those behind it whoever is before others even with what came before it charged, as long as all fit whole.
    /// Rows kept for a party that is ahead must not be the reason why one that is behind stays there.
    pub(super) fn next_to_start(
        &self,
        holders: &SeatHolders,
        seats: usize,
        rows: usize,
    ) -> Vec<((i64, Rank), (Taker, usize))> {
        let mut left = (seats.min(self.config.max_num_seqs.saturating_sub(self.num_started())), rows);
        let mut turns: BinaryHeap<_> =
            self.waiting.parties().filter_map(|(party, ..)| self.turn(party, None, &Passed::new())).collect();
        let (mut passed, mut charged, mut next) = (Passed::new(), BTreeMap::<PartyId, i64>::new(), Vec::new());
        while let Some(Reverse(turn)) = turns.pop() {
            let Turn { level, rank, party, place } = turn;
            let (flow, want) = (self.sequences[rank.id()].flow(), self.sequences[rank.id()].num_wanted());
            let fits = left.0 > 0 && want <= left.1;
            let may_start = self.fair.allowance(party) > 0
                && self.may_take_a_seat(flow, holders)
                && !self.waits_for_first_choice(rank.id());
            if !may_start || charged.contains_key(&party) && !fits {
                continue;
            }
            next.push(((level, rank), (Taker::Waiting(party), want)));
            left = (left.0.saturating_sub(1), left.1.saturating_sub(want));
            passed.insert(flow, rank);
            let charged = charged.entry(party).or_default();
            *charged += 2 * self.fair.cost(want, 1);
            let behind = self.turn(party, Some(place), &passed);
            turns.extend(behind.map(|Reverse(turn)| Reverse(Turn { level: turn.level + *charged, ..turn })));
        }
        next
    }

    /// Whose turn it is in a party, from a place in its line on.
    fn turn(&self, party: PartyId, from: Option<Place>, passed: &Passed) -> Option<Reverse<Turn>> {
        let (place, rank) = self.waiting.next_after(party, from, |flow| passed.get(&flow).copied())?;
        Some(Reverse(Turn { level: self.fair.level(party) - rank.head_start(), rank, party, place }))
    }

    fn try_start(&mut self, rank: Rank, now: Instant, step: &mut NextStep) -> Admission {
        let id = rank.id();
        if self.waits_for_first_choice(id) {
            return Admission::NotYet;
        }
        let pages = self.sequences[id].pages;
        let set = pages.and_then(|key| self.pages.get(key));
        if set.is_some_and(|set| set.prefill.is_some()) {
            return Admission::NotYet;
        }
        let missing = if set.is_none() { pages } else { None };
        let reused = self.find_reusable(id);
        let mut sources = self.find_shared_layers(id, reused.len());
        // Those that are copied from are held beside the copies: where there is no room for both, it computes them itself.
        if !sources.is_empty() && self.fit(rank, [&reused, &sources], missing).is_err() {
            sources.clear();
        }
        if let Err(missing) = self.fit(rank, [&reused, &sources], missing) {
            self.blocked = Some(Blocked { rank, missing });
            return Admission::NoRoom;
        }
        let missing = missing.zip(self.sequences[id].slot);
        if let Some((key, slot)) = missing.filter(|(key, _)| !key.saved_kv) {
            self.make_pages(key, slot, step);
            self.schedule_pages(key, slot, step);
            return Admission::NotYet;
        }
        // Reused blocks are taken before any is allocated, or an allocation could overwrite one.
        for block in reused.iter().chain(&sources) {
            self.cache.share(*block);
        }
        if let Some((key, slot)) = missing {
            self.make_pages(key, slot, step);
        }
        self.start(rank, [&reused, &sources], step);
        self.copied.append(&mut sources);
        self.note_start(id, now, &mut step.events);
        self.push_sequence(rank, Taker::Waiting(self.sequences[id].party), step);
        Admission::Started
    }

    /// Choices after the first wait until its prompt is computed, to reuse those blocks; and where the prompt is read, so
    /// that all is said of the prompt before anything of what follows.
    fn waits_for_first_choice(&self, id: SequenceId) -> bool {
        let sequence = &self.sequences[id];
        let computed = self.requests.get(&sequence.request).is_some_and(|request| request.prompt_computed);
        sequence.choice > 0 && (self.cache.prefix_cache() || sequence.reads_prompt()) && !computed
    }

    /// The blocks that a start could reuse now. One that waits for room is tried in every step: what was found then and is
    /// still there is not looked up again.
    fn find_reusable(&mut self, id: SequenceId) -> Vec<BlockId> {
        let Self { cache, sequences, .. } = self;
        if !cache.prefix_cache() {
            return Vec::new();
        }
        let sequence = &mut sequences[id];
        let mut reusable = std::mem::take(&mut sequence.reusable);
        reusable.truncate(reusable.iter().take_while(|found| cache.still_has(**found)).count());
        sequence.walk_reusable(reusable.len(), |contents| {
            let found = cache.find(contents);
            reusable.extend(found);
            found.is_some()
        });
        let blocks = reusable.iter().map(|found| found.block).collect();
        sequence.reusable = reusable;
        blocks
    }

    /// Behind the first `reused` blocks, those in which somebody has computed what the shared layers make of the same tokens.
    fn find_shared_layers(&mut self, id: SequenceId, reused: usize) -> Vec<BlockId> {
        let Self { cache, sequences, .. } = self;
        let mut sources = Vec::new();
        sequences[id].walk_shared_layers(reused, |contents| {
            let found = cache.find_shared_layers(contents);
            sources.extend(found.map(|found| found.block));
            found.is_some()
        });
        sources
    }

    /// Make sure the blocks of a start are free, reclaiming pages if that is what it takes; the error is how many are
    /// missing. All blocks for the known tokens are counted, not only the first chunk's: a prefill under way never runs
    /// out.
    fn fit(&mut self, rank: Rank, [reused, sources]: [&[BlockId]; 2], missing: Option<PagesKey>) -> Result<(), usize> {
        let sequence = &self.sequences[rank.id()];
        let own = sequence.blocks_for(sequence.tokens.len()) - sequence.first_block() - reused.len();
        let revived = reused.iter().chain(sources).filter(|block| self.cache.is_free(**block)).count();
        let pages = missing.map_or(0, |key| Self::blocks_for_pages(self.block_size, key));
        // Running decodes take a new block once per block size; without that headroom what starts now is preempted
        // at once.
        let headroom = self.running.len().div_ceil(self.block_size.get());
        let needed = own + revived + pages + headroom;

        let free = self.cache.num_free();
        if free >= needed {
            return Ok(());
        }
        let reclaimable = self.reclaimable_pages(rank, sequence.pages);
        let available = free + reclaimable.iter().map(|(_, blocks)| blocks).sum::<usize>();
        if available < needed {
            return Err(needed - available);
        }
        for (key, _) in reclaimable {
            if self.cache.num_free() >= needed {
                break;
            }
            let blocks = self.pages.remove(key);
            self.release_pages(blocks);
        }
        Ok(())
    }

    /// Allocate the pages of an adapter; they are written in this step, or prefilled from this step on.
    fn make_pages(&mut self, key: PagesKey, slot: AdapterSlot, step: &mut NextStep) {
        let count = Self::blocks_for_pages(self.block_size, key);
        let blocks: Vec<_> = (0..count).map_while(|_| self.cache.allocate()).collect();
        let prefill = if key.saved_kv {
            step.batch.prefix_writes.push(PrefixWrite { slot, blocks: blocks.clone() });
            None
        } else {
            Some(Prefill { id: self.new_sequence_id(), num_computed: 0 })
        };
        self.pages.insert(key, PageSet { blocks, prefill, last_used: self.counters.steps });
    }

    /// Give a waiting sequence its table: its adapter's pages, the `reused` blocks it holds already, copies of the `sources`
    /// ones, new ones. `fit` has made sure of the blocks.
    fn start(&mut self, rank: Rank, [reused, sources]: [&[BlockId]; 2], step: &mut NextStep) {
        let sequence = &mut self.sequences[rank.id()];
        let pages = sequence.pages.and_then(|key| {
            self.pages.touch(key, self.counters.steps);
            self.pages.get(key)
        });
        let shared = pages.map_or(&[][..], |set| &set.blocks[..sequence.first_block()]);
        let tail = pages.and_then(|set| set.blocks.get(sequence.first_block()));

        let mut table = BlockTable::default();
        for block in shared {
            self.cache.share(*block);
            table.push(*block);
        }
        for block in reused {
            table.push(*block);
        }
        let total = sequence.blocks_for(sequence.tokens.len());
        while table.len() < total
            && let Some(block) = self.cache.allocate()
        {
            if reused.is_empty()
                && table.len() == sequence.first_block()
                && let Some(tail) = tail
            {
                step.batch.block_copies.push(BlockCopy { source: *tail, target: block });
            }
            if let Some(source) = sources.get(table.len() - sequence.first_block() - reused.len()) {
                step.batch.block_copies.push(BlockCopy { source: *source, target: block });
            }
            table.push(block);
        }
        assert_eq!(table.len(), total, "blocks ran out in a start that was checked to fit");
        sequence.start(table, reused.len(), sources.len());
        let flow = sequence.flow();
        self.waiting.remove(flow, rank);
        self.waiting.started(flow);
        self.running.insert(rank);
        self.fair.started(flow.party);
    }

    /// Statistics of a sequence's first start, and the `Started` event of its request's.
    fn note_start(&mut self, id: SequenceId, now: Instant, events: &mut Events) {
        let sequence = &mut self.sequences[id];
        let cached = sequence.num_computed_tokens.min(sequence.tokens.prompt().len());
        // One of whose prompt something is to be said from the first row on does not look there.
        let looked = self.cache.prefix_cache() && sequence.first_to_say() != Some(0);
        if !std::mem::replace(&mut sequence.counted, true) && looked {
            self.counters.prefix_queries += sequence.tokens.prompt().len() as u64;
            self.counters.prefix_hits += cached as u64;
            self.counters.shared_layer_hits += sequence.num_from_shared().unwrap_or(0) as u64;
        }
        if let Some(request) = self.requests.get_mut(&sequence.request)
            && !std::mem::replace(&mut request.started, true)
        {
            events.push((sequence.request, SequenceEvent::Started { at: now, cached_tokens: cached as u32 }));
        }
    }
}
