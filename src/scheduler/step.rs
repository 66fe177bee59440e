//! Deciding one step: running decodes, then running prefills, then what waits. Also who yields when blocks run out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet, VecDeque};
use std::time::Instant;

use super::fair_share::PartyId;
use super::policy::Rank;
use super::prompt_rows::{PromptRows, Taker};
use super::queue::Flow;
use super::virtual_pages::{PagesKey, Prefill};
use super::{Events, Scheduled, Scheduler};
use crate::cache::BlockSize;
use crate::types::{AdapterSlot, BlockId, JoinedSequence, RowSource, ScheduledBatch, ScheduledSequence, SequenceId};

/// The step being put together.
pub(super) struct NextStep {
    pub(super) batch: ScheduledBatch,
    pub(super) events: Events,
    /// Rows left.
    pub(super) budget: usize,
    /// Those of them that prompts may have.
    pub(super) prompts: PromptRows,
    /// Sequences that may still have rows.
    pub(super) seats: usize,
    /// Sequences that have joined for this step alone.
    passing: Vec<SequenceId>,
    /// Running sequences that may yet yield their blocks, the first to yield last.
    yielding: VecDeque<Rank>,
}

impl NextStep {
    pub(super) fn is_full(&self) -> bool {
        self.budget == 0 || self.seats == 0
    }

    fn push(&mut self, sequence: ScheduledSequence) {
        self.budget -= sequence.count as usize;
        self.seats -= 1;
        self.batch.sequences.push(sequence);
    }
}

/// Who has the seats.
pub(super) struct SeatHolders {
    /// Those with the most first.
    parties: Vec<PartyId>,
    /// Running sequences of the flow of each party that has the most.
    most_of_a_flow: BTreeMap<PartyId, usize>,
}

/// A running prefill.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PrefillWork {
    Pages(PagesKey, AdapterSlot),
    Sequence,
}

impl Scheduler {
    /// Decide the next step: drop what is past its deadline, then give tokens to running decodes, running prefills
    /// and waiting sequences, in this order and by fair share, within the budgets.
    ///
    /// Must be followed by [`Self::update`], [`Self::fail_step`] or [`Self::fail_all`] before it is called again.
    pub fn schedule(&mut self, now: Instant) -> Scheduled {
        self.counters.steps += 1;
        self.fair.begin_step();
        let blocked = self.blocked.is_some();
        self.make_way();
        let preemptions = self.counters.preemptions;
        let mut step = NextStep {
            batch: ScheduledBatch::default(),
            events: Events::new(),
            budget: self.config.max_num_batched_tokens,
            prompts: PromptRows::default(),
            seats: self.config.max_num_seqs,
            passing: Vec::new(),
            yielding: VecDeque::new(),
        };
        self.expire(now, &mut step.events);
        let order = self.yield_order();
        let seats = self.config.max_num_seqs.saturating_sub(self.pages.num_prefilling() + self.seats_to_give());
        let (chosen, passed_over) = self.choose(&order, seats.max(1));
        step.yielding = order.into();
        self.schedule_decodes(&chosen, &mut step);
        let prefills = self.prefills(&chosen);
        let holders = (self.waiting.len() > 0).then(|| self.seat_holders());
        // Where what was next did not fit the cache, hardly anything that waits starts.
        step.prompts = self.prompt_rows(&prefills, holders.as_ref().filter(|_| !blocked), &step);
        self.schedule_prefills(prefills, &mut step);
        // What was just preempted must not come back in the same step only to be preempted in the next one; but a
        // step is never empty while someone waits.
        if let Some(holders) = holders
            && (self.counters.preemptions == preemptions || step.batch.sequences.is_empty())
        {
            self.admit_waiting(now, holders, &mut step);
        }
        self.fill(&passed_over, &mut step);
        // Whoever left and came back in this step leaves first.
        step.batch.left = std::mem::replace(&mut self.left, step.passing);
        Scheduled { batch: step.batch, events: step.events }
    }

    /// Rows that one with `remaining` to compute may have in this step.
    pub(super) fn room(&self, taker: Taker, remaining: usize, step: &NextStep) -> usize {
        let rows = match step.prompts.of(taker, remaining) {
            // The row of a decode is not a prompt's, and a step is never empty while someone waits.
            0 if remaining == 1 || step.batch.sequences.is_empty() => remaining,
            rows => rows,
        };
        rows.min(step.budget).min(self.config.max_prefill_chunk.unwrap_or(usize::MAX))
    }

    /// Take [`Self::room`].
    fn chunk(&self, taker: Taker, remaining: usize, step: &mut NextStep) -> usize {
        let rows = self.room(taker, remaining, step);
        step.prompts.take(taker, rows);
        rows
    }

    /// Put the next rows of a running sequence into the step: one of a decode, a chunk of a prefill, out of the rows of
    /// `taker`.
    pub(super) fn push_sequence(&mut self, rank: Rank, taker: Taker, step: &mut NextStep) {
        let party = self.sequences[rank.id()].party;
        // Whoever may have a row at all may have one, so that a chosen sequence always moves.
        let allowed = self.fair.allowance(party).max(1);
        let count = self.chunk(taker, self.sequences[rank.id()].num_wanted().min(allowed), step);
        let sequence = &mut self.sequences[rank.id()];
        step.batch.joined.extend(sequence.join());
        let scheduled = sequence.schedule(count);
        let outputs = usize::from(scheduled.sample);
        step.push(scheduled);
        sequence.last_step = self.counters.steps;
        let inputs = sequence.charge_inputs(count);
        self.fair.charge(party, self.fair.cost(inputs, outputs));
        self.fair.take_rows(party, count);
    }

    // --- who takes part -------------------------------------------------------------------------------------------

    /// What a sequence is compared by where blocks run out: the least served party keeps its blocks longest, and the
    /// most senior sequence of all for ever.
    fn yield_key(&self, rank: Rank) -> (bool, i64, Rank) {
        let party = self.sequences[rank.id()].party;
        (self.running.first() != Some(rank), self.fair.level(party), rank)
    }

    /// Running sequences, the last to yield first.
    pub(super) fn yield_order(&self) -> Vec<Rank> {
        let mut order: Vec<_> = self.running.iter().map(|rank| self.yield_key(rank)).collect();
        order.sort_unstable();
        order.into_iter().map(|(.., rank)| rank).collect()
    }

    /// Seats that running sequences leave to those who wait and have fewer.
    fn seats_to_give(&self) -> usize {
        let most = self.config.max_num_seqs / 2;
        if self.waiting.len() == 0 || most == 0 || self.has_free_seat() {
            return 0;
        }
        let holders = self.seat_holders();
        let takers = self.waiting.parties().filter_map(|(party, waiting, first)| {
            let among_parties = self.may_take_a_seat_of_others(party, &holders);
            // Of the party's own flows one at a time: how many would be more than their part is not known here.
            let seats = if among_parties { waiting.min(most / 4 + 1) } else { 1 };
            (among_parties || self.may_take_a_seat(first, &holders)).then_some(seats)
        });
        takers.take(most).sum::<usize>().min(most)
    }

    pub(super) fn num_started(&self) -> usize {
        self.running.len() + self.pages.num_prefilling()
    }

    fn has_free_seat(&self) -> bool {
        self.num_started() < self.config.max_num_seqs
    }

    pub(super) fn seat_holders(&self) -> SeatHolders {
        let mut flows: Vec<_> = self.running.iter().map(|rank| self.sequences[rank.id()].flow()).collect();
        flows.sort_unstable();
        flows.dedup();
        let mut most_of_a_flow: BTreeMap<PartyId, usize> = BTreeMap::new();
        for flow in flows {
            let most = most_of_a_flow.entry(flow.party).or_default();
            *most = self.waiting.running(flow).max(*most);
        }
        let mut parties: Vec<_> = most_of_a_flow.keys().copied().collect();
        parties.sort_by_key(|party| Reverse(self.fair.running(*party)));
        SeatHolders { parties, most_of_a_flow }
    }

    /// Whether a sequence of this flow may start: there is a seat, or one of the `holders` who has more gives one up
    /// from step to step. That one keeps its KV, so there are at most twice as many running sequences as seats.
    pub(super) fn may_take_a_seat(&self, flow: Flow, holders: &SeatHolders) -> bool {
        let most = holders.most_of_a_flow.get(&flow.party).copied().unwrap_or(0);
        self.has_free_seat()
            || self.may_take_a_seat_of_others(flow.party, holders)
            || self.may_sit_in_turn() && most > self.waiting.running(flow) + 1
    }

    /// As [`Self::may_take_a_seat`], of another party.
    fn may_take_a_seat_of_others(&self, party: PartyId, holders: &SeatHolders) -> bool {
        let running = self.fair.running(party);
        let mut with_more = holders.parties.iter().take_while(|holder| self.fair.running(**holder) > running + 1);
        self.may_sit_in_turn() && with_more.any(|holder| self.fair.gives_way(*holder, party))
    }

    /// Whether one more sequence may run than there are seats.
    fn may_sit_in_turn(&self) -> bool {
        self.num_started() < 2 * self.config.max_num_seqs
    }

    /// Who of the running takes part in the step, and who is passed over. Parties take turns, the least served first;
    /// within a party its flows do, and within a flow whoever has waited longest for a row.
    fn choose(&self, order: &[Rank], seats: usize) -> (Vec<Rank>, Vec<Rank>) {
        let party_of = |rank: &Rank| self.sequences[rank.id()].party;
        if order.len() <= seats && !self.fair.holds_back(order.iter().map(party_of)) {
            return (order.to_vec(), Vec::new());
        }
        let mut flows: BTreeMap<Flow, BTreeSet<(u64, Rank)>> = BTreeMap::new();
        for rank in order {
            let sequence = &self.sequences[rank.id()];
            flows.entry(sequence.flow()).or_default().insert((sequence.last_step, *rank));
        }
        let mut queues: BTreeMap<PartyId, BinaryHeap<_>> = BTreeMap::new();
        for (flow, waits) in flows {
            let round_by_round =
                waits.into_iter().enumerate().map(|(round, (last, rank))| Reverse((round, last, rank)));
            queues.entry(flow.party).or_default().extend(round_by_round);
        }
        let mut turns: BinaryHeap<_> = queues.keys().map(|party| Reverse((self.fair.level(*party), *party))).collect();
        let mut draft = self.fair.draft(queues.keys().copied());
        let mut chosen = HashSet::new();
        while chosen.len() < seats
            && let Some(Reverse((level, party))) = turns.pop()
        {
            if let Some(queue) = queues.get_mut(&party)
                && let Some(Reverse((.., rank))) = queue.pop()
                && draft.take(party)
            {
                chosen.insert(rank);
                turns.push(Reverse((level + 2 * self.fair.cost(0, 1), party)));
            }
        }
        order.iter().partition(|rank| chosen.contains(*rank))
    }

    /// Give seats that nobody took to those passed over, as far as it costs nobody anything; where the chosen all had to
    /// yield, at their cost, for a step is never empty.
    fn fill(&mut self, passed_over: &[Rank], step: &mut NextStep) {
        for rank in passed_over {
            // Preempted meanwhile, and perhaps back already.
            if !self.running.contains(*rank) || self.sequences[rank.id()].last_step == self.counters.steps {
                continue;
            }
            let sequence = &self.sequences[rank.id()];
            let fits = sequence.table.len() >= sequence.blocks_for(sequence.num_computed_tokens + 1);
            let taker = Taker::Running(rank.id());
            let room = step.seats > 0 && self.room(taker, sequence.num_remaining(), step) > 0;
            let allowed = room && self.fair.allowance(sequence.party) > 0;
            if allowed && (fits || step.batch.sequences.is_empty() && self.make_room(*rank, step)) {
                self.push_sequence(*rank, taker, step);
            } else {
                self.counters.held_back += 1;
            }
        }
    }

    // --- what they compute ----------------------------------------------------------------------------------------

    fn schedule_decodes(&mut self, chosen: &[Rank], step: &mut NextStep) {
        for rank in chosen {
            // Preempted by one before it.
            if !self.running.contains(*rank) || self.sequences[rank.id()].num_remaining() > 1 {
                continue;
            }
            if self.make_room(*rank, step) {
                self.push_sequence(*rank, Taker::Running(rank.id()), step);
            }
        }
    }

    /// Running prefills, in the order of their turns.
    fn prefills(&self, chosen: &[Rank]) -> Vec<((i64, Rank), PrefillWork)> {
        let runs = |rank: &Rank| self.running.contains(*rank) && self.sequences[rank.id()].num_remaining() > 1;
        let sequences = chosen.iter().copied().filter(runs).map(|rank| (rank, PrefillWork::Sequence));
        let pages = self.pages.prefilling().map(|(rank, slot, key, _)| (rank, PrefillWork::Pages(key, slot)));
        let mut prefills: Vec<_> = sequences.chain(pages).map(|(rank, work)| (self.turn_key(rank), work)).collect();
        prefills.sort_unstable();
        prefills
    }

    /// Rows for prompts beside the decodes of a step, dealt to those that run and, where somebody may start beside the
    /// `holders`, to the parties that wait, as [`Self::next_to_start`] has their turns. A sequence that has only just begun
    /// to answer does not stream yet: of prompts that come together one is always first.
    fn prompt_rows(
        &self,
        prefills: &[((i64, Rank), PrefillWork)],
        holders: Option<&SeatHolders>,
        step: &NextStep,
    ) -> PromptRows {
        let decodes = &step.batch.sequences;
        let streams = decodes.iter().any(|decode| self.sequences[decode.id].tokens.output().len() > 1);
        let beside = if streams { self.costs.rows_beside(decodes.len()) } else { None };
        let rows = beside.unwrap_or(usize::MAX).min(step.budget);
        let mut wanted: Vec<_> =
            prefills.iter().filter_map(|(turn, work)| Some((*turn, self.wanted(turn.1, *work)?))).collect();
        let running = wanted.iter().map(|(_, (_, want))| want).sum();
        if let Some(holders) = holders {
            wanted.extend(self.next_to_start(holders, step.seats, rows.saturating_sub(running)));
        }
        wanted.sort_unstable();
        let wanted: Vec<_> = wanted.into_iter().map(|(_, wanted)| wanted).collect();
        PromptRows::deal(rows, &wanted)
    }

    /// Rows that a running prefill would have if it had all.
    fn wanted(&self, rank: Rank, work: PrefillWork) -> Option<(Taker, usize)> {
        match work {
            PrefillWork::Sequence => Some((Taker::Running(rank.id()), self.sequences[rank.id()].num_wanted())),
            PrefillWork::Pages(key, _) => {
                let prefill = self.pages.get(key).and_then(|set| set.prefill)?;
                Some((Taker::Running(prefill.id), prefill.num_remaining(key)))
            }
        }
    }

    fn schedule_prefills(&mut self, prefills: Vec<((i64, Rank), PrefillWork)>, step: &mut NextStep) {
        for ((_, rank), work) in prefills {
            if step.is_full() {
                return;
            }
            match work {
                PrefillWork::Pages(key, slot) => self.schedule_pages(key, slot, step),
                PrefillWork::Sequence => {
                    let taker = Taker::Running(rank.id());
                    if self.room(taker, usize::MAX, step) > 0 {
                        self.push_sequence(rank, taker, step);
                    }
                }
            }
        }
    }

    /// What a sequence is compared by where turns are given: the least served party first, by rank within.
    pub(super) fn turn_key(&self, rank: Rank) -> (i64, Rank) {
        (self.fair.level(self.sequences[rank.id()].party), rank)
    }

    /// The next rows of an adapter's prompt embeddings. Nobody is charged for what all its requests share. They join for
    /// a step at a time: their pages are few, and who wants them may have another slot in the next one.
    pub(super) fn schedule_pages(&self, key: PagesKey, slot: AdapterSlot, step: &mut NextStep) {
        let Some(set) = self.pages.get(key) else { return };
        let Some(prefill) = set.prefill else { return };
        let Prefill { id, num_computed: start } = prefill;
        let count = self.chunk(Taker::Running(id), prefill.num_remaining(key), step);
        if count == 0 {
            return;
        }
        let covered = self.block_size.blocks_for(start as usize + count);
        step.passing.push(id);
        step.batch.joined.push(JoinedSequence {
            id,
            slot: Some(slot),
            active_from: 0,
            source: RowSource::PromptEmbeds,
            start,
            blocks: set.blocks[..covered].to_vec(),
            long_from: key.long_from(),
        });
        let (count, new_blocks) = (count as u32, Vec::new());
        step.push(ScheduledSequence {
            id,
            count,
            new_blocks,
            from_shared: false,
            scored: 0..0,
            pooled: 0..0,
            sample: false,
        });
    }

    // --- blocks ---------------------------------------------------------------------------------------------------

    /// Extend the table of a running sequence by one token, at the cost of those that yield before it. False where it
    /// had to yield itself.
    fn make_room(&mut self, rank: Rank, step: &mut NextStep) -> bool {
        loop {
            let sequence = &self.sequences[rank.id()];
            if sequence.table.len() >= sequence.blocks_for(sequence.num_computed_tokens + 1) {
                return true;
            }
            match self.take_block(rank, step) {
                Some(block) => self.sequences[rank.id()].table.push(block),
                None => return false,
            }
        }
    }

    fn take_block(&mut self, rank: Rank, step: &mut NextStep) -> Option<BlockId> {
        loop {
            if let Some(block) = self.cache.allocate() {
                return Some(block);
            }
            if let Some((key, _)) = self.reclaimable_pages(rank, None).first() {
                let blocks = self.pages.remove(*key);
                self.release_pages(blocks);
                continue;
            }
            let prefill = self.pages.prefilling().map(|(rank, _, key, _)| (self.turn_key(rank), key)).max();
            let first_to_yield = *step.yielding.back()?;
            match prefill {
                Some((wanted_by, key)) if wanted_by > self.turn_key(first_to_yield) => {
                    self.counters.preemptions += 1;
                    let blocks = self.pages.remove(key);
                    self.release_pages(blocks);
                }
                _ => {
                    step.yielding.pop_back();
                    self.preempt(first_to_yield);
                    if first_to_yield == rank {
                        return None;
                    }
                }
            }
        }
    }

    /// Put a running sequence back into the queue; it recomputes all it has, output included, when it returns.
    pub(super) fn preempt(&mut self, rank: Rank) {
        self.counters.preemptions += 1;
        let sequence = &mut self.sequences[rank.id()];
        self.left.extend(sequence.leave());
        let (mut table, flow) = (sequence.preempt(), sequence.flow());
        self.cache.release_table(&mut table);
        self.unqueue(flow, rank);
        self.waiting.insert(flow, rank);
    }

    /// Page sets that a sequence of this rank may take the blocks of: finished, under no running sequence, not its
    /// `own`.
    pub(super) fn reclaimable_pages(&self, rank: Rank, own: Option<PagesKey>) -> Vec<(PagesKey, usize)> {
        let in_use: Vec<_> = self.running.iter().filter_map(|rank| self.sequences[rank.id()].pages).collect();
        // Where nothing runs, nothing would ever give those up that a more senior sequence waits for.
        let alone = self.running.is_empty() && self.pages.num_prefilling() == 0;
        self.pages.reclaimable(rank, alone, |key| own == Some(*key) || in_use.contains(key))
    }

    pub(super) fn blocks_for_pages(size: BlockSize, key: PagesKey) -> usize {
        size.blocks_for(key.count as usize)
    }
}
