//! Deciding one step: running decodes, then running prefills, then what waits. Also who yields when blocks run out.

use std::time::Instant;

use super::policy::Rank;
use super::virtual_pages::{PagesKey, Prefill};
use super::{Events, Scheduled, Scheduler};
use crate::cache::BlockSize;
use crate::types::{AdapterSlot, BlockId, ScheduledBatch, ScheduledSequence, TokenSource};

/// The step being put together.
pub(super) struct StepPlan {
    pub(super) batch: ScheduledBatch,
    pub(super) events: Events,
    /// Rows left.
    pub(super) budget: usize,
}

impl StepPlan {
    pub(super) fn push(&mut self, sequence: ScheduledSequence) {
        self.budget -= sequence.tokens.len();
        self.batch.sequences.push(sequence);
    }
}

/// A running prefill.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PrefillWork {
    Pages(PagesKey, AdapterSlot),
    Sequence,
}

impl Scheduler {
    pub(super) fn plan_step(&mut self, now: Instant) -> Scheduled {
        self.counters.steps += 1;
        let preemptions = self.counters.preemptions;
        let budget = self.config.max_num_batched_tokens;
        let mut plan = StepPlan { batch: ScheduledBatch::default(), events: Events::new(), budget };
        self.expire(now, &mut plan.events);
        self.schedule_decodes(&mut plan);
        self.schedule_prefills(&mut plan);
        // What was just preempted must not come back in the same step only to be preempted in the next one; but a
        // step is never empty while someone waits.
        if self.counters.preemptions == preemptions || plan.batch.sequences.is_empty() {
            self.admit_waiting(now, &mut plan);
        }
        Scheduled { batch: plan.batch, events: plan.events }
    }

    /// Rows a prefill with `remaining` rows gets in this step.
    pub(super) fn chunk(&self, remaining: usize, plan: &StepPlan) -> usize {
        remaining.min(plan.budget).min(self.config.max_prefill_chunk.unwrap_or(usize::MAX))
    }

    fn schedule_decodes(&mut self, plan: &mut StepPlan) {
        let mut previous = None;
        while let Some(rank) = self.running.next_after(previous) {
            previous = Some(rank);
            if self.sequences[rank.id()].num_remaining() == 1 && self.make_room(rank) {
                plan.push(self.sequences[rank.id()].schedule(1));
            }
        }
    }

    fn schedule_prefills(&mut self, plan: &mut StepPlan) {
        let sequences = self.running.iter().filter(|rank| self.sequences[rank.id()].num_remaining() > 1);
        let pages = self.pages.prefilling().map(|(rank, slot, key, _)| (rank, PrefillWork::Pages(key, slot)));
        let mut work: Vec<_> = sequences.map(|rank| (rank, PrefillWork::Sequence)).chain(pages).collect();
        work.sort_unstable();
        for (rank, work) in work {
            if plan.budget == 0 {
                return;
            }
            match work {
                PrefillWork::Pages(key, slot) => self.schedule_pages(key, slot, plan),
                PrefillWork::Sequence => {
                    let sequence = &self.sequences[rank.id()];
                    plan.push(sequence.schedule(self.chunk(sequence.num_remaining(), plan)));
                }
            }
        }
    }

    /// The next rows of an adapter's prompt embeddings.
    pub(super) fn schedule_pages(&self, key: PagesKey, slot: AdapterSlot, plan: &mut StepPlan) {
        let Some(set) = self.pages.get(key) else { return };
        let Some(Prefill { id, num_computed: first }) = set.prefill else { return };
        let count = self.chunk((key.count - first) as usize, plan);
        let covered = self.block_size.blocks_for(first as usize + count);
        plan.push(ScheduledSequence {
            id,
            slot: Some(slot),
            start: first,
            tokens: TokenSource::PromptEmbeds { first, count: count as u32 },
            blocks: set.blocks[..covered].to_vec(),
            sample: None,
        });
    }

    /// Extend the table of a running sequence by one token, at the cost of more junior ones. False where it had to
    /// yield itself.
    fn make_room(&mut self, rank: Rank) -> bool {
        loop {
            let sequence = &self.sequences[rank.id()];
            if sequence.table.len() >= sequence.blocks_for(sequence.num_computed_tokens + 1) {
                return true;
            }
            match self.take_block(rank) {
                Some(block) => self.sequences[rank.id()].table.push(block),
                None => return false,
            }
        }
    }

    fn take_block(&mut self, rank: Rank) -> Option<BlockId> {
        loop {
            if let Some(block) = self.cache.allocate() {
                return Some(block);
            }
            if let Some((key, _)) = self.reclaimable_pages(rank, None).first() {
                let blocks = self.pages.remove(*key);
                self.release_pages(blocks);
                continue;
            }
            let prefill = self.pages.prefilling().map(|(rank, _, key, _)| (rank, key)).max();
            let junior = self.running.most_junior()?;
            match prefill {
                Some((wanted_by, key)) if !wanted_by.is_senior_to(junior) => {
                    self.counters.preemptions += 1;
                    let blocks = self.pages.remove(key);
                    self.release_pages(blocks);
                }
                _ => {
                    self.preempt(junior);
                    if junior == rank {
                        return None;
                    }
                }
            }
        }
    }

    /// Put a running sequence back into the queue; it recomputes all it has, output included, when it returns.
    fn preempt(&mut self, rank: Rank) {
        self.counters.preemptions += 1;
        let mut table = self.sequences[rank.id()].preempt();
        self.cache.release_table(&mut table);
        self.running.remove(rank);
        self.waiting.insert(rank);
    }

    /// Page sets that a sequence of this rank may take the blocks of: finished, under no running sequence, not its
    /// `own`.
    pub(super) fn reclaimable_pages(&self, rank: Rank, own: Option<PagesKey>) -> Vec<(PagesKey, usize)> {
        let in_use: Vec<_> = self.running.iter().filter_map(|rank| self.sequences[rank.id()].pages).collect();
        self.pages.reclaimable(rank, |key| own == Some(*key) || in_use.contains(key))
    }

    pub(super) fn blocks_for_pages(size: BlockSize, key: PagesKey) -> usize {
        size.blocks_for(key.count as usize)
    }
}
