//! Who runs in the next step: continuous batching, chunked prefill, preemption. Decides; never sees a tensor, never
//! waits, never reads a clock.
//!
//! The scheduler says who joins, who leaves, and for the others "sequence -> number of tokens this step" with the blocks
//! that are new; prefill, chunked prefill and decode are the same thing. The engine repeats
//!
//! 1. [`Scheduler::schedule`] for a [`ScheduledBatch`],
//! 2. execute it,
//! 3. [`Scheduler::update`] with the result, or [`Scheduler::fail_step`] where the step itself failed.
//!
//! One step is in flight at a time; [`Scheduler::add`] and [`Scheduler::abort`] may come at any moment between.
//!
//! Whose turn it is: the party that has had least (`fair_share`), and within a party the most senior sequence, by
//! arrival and priority (`policy`).
//!
//! Progress: the most senior running sequence never yields its KV to another and [`Scheduler::add`] refuses what would
//! not fit the cache alone, so it always ends, and then the next is most senior. A waiting one is passed only by
//! parties that have had less, and while it does not fit nobody passes, so it starts; those who hold more and have had no
//! less make way for it (`make_way`).

mod admit;
mod blocked;
mod config;
pub(crate) mod fair_share;
mod make_way;
mod park;
pub mod places;
mod policy;
mod prompt_rows;
mod queue;
mod request;
mod requests;
mod sequence;
mod shared_layers;
mod step;
mod update;
mod virtual_pages;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

pub use config::{SchedulerConfig, SchedulerError};
pub use fair_share::ShareConfig;
pub use sequence::SequenceState;

use crate::cache::{BlockSize, KvCacheManager};
use crate::types::{AdapterVersion, BlockId, RequestId, ScheduledBatch, SequenceEvent, SequenceId};
use blocked::Blocked;
use fair_share::FairShare;
use prompt_rows::StepCosts;
use queue::{PartyQueues, RankQueue};
use request::Request;
use sequence::SequenceMap;
use virtual_pages::VirtualPages;

/// The sequence of [`Scheduler::probe`]; no other has this id.
pub const PROBE: SequenceId = SequenceId(0);

/// Events in the order in which they must reach the requests' channels.
pub type Events = Vec<(RequestId, SequenceEvent)>;

/// What [`Scheduler::schedule`] decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scheduled {
    /// Work for the executor. Empty only where no sequence is left, as after deadlines, or all of them are parked.
    pub batch: ScheduledBatch,
    /// `Failed(DeadlineExceeded)` of requests that are gone now, and `Started` of those whose first row is in `batch`.
    pub events: Events,
}

/// The scheduler's share of the engine's statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences with KV on the device, virtual-token prefills included.
    pub running: usize,
    /// Sequences waiting for their first step or for KV after a preemption.
    pub waiting: usize,
    /// Sequences laid aside by [`Scheduler::park`].
    pub parked: usize,
    /// Blocks held by sequences and adapters' virtual tokens; cached but unreferenced blocks count as free.
    pub kv_blocks_used: usize,
    /// Blocks in all.
    pub kv_blocks_total: usize,
    /// Preemptions since start, of sequences and of virtual-token prefills.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix index since start; one that comes back after a preemption is not counted again.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Prompt tokens behind those of which the shared layers were found to be computed.
    pub shared_layer_hits: u64,
    /// Clients and adapters, by pairs, that have live sequences.
    pub parties: usize,
    /// Rows that running sequences did not get since start, because others had had less.
    pub held_back: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    steps: u64,
    preemptions: u64,
    prefix_queries: u64,
    prefix_hits: u64,
    shared_layer_hits: u64,
    held_back: u64,
}

/// Continuous batching over a paged KV cache.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    block_size: BlockSize,
    cache: KvCacheManager,
    pages: VirtualPages,
    requests: BTreeMap<RequestId, Request>,
    sequences: SequenceMap,
    waiting: PartyQueues,
    running: RankQueue,
    fair: FairShare,
    costs: StepCosts,
    deadlines: BTreeSet<(Instant, RequestId)>,
    /// Of the last step.
    blocked: Option<Blocked>,
    /// To be told with the next step: sequences that had joined and have no rows any more.
    left: Vec<SequenceId>,
    /// Blocks that the step under way copies from, held until it is over.
    copied: Vec<BlockId>,
    next_sequence: u64,
    num_parked: usize,
    draining: bool,
    counters: Counters,
}

impl Scheduler {
    /// A scheduler without requests over an empty cache.
    ///
    /// # Errors
    /// [`SchedulerError::ZeroSetting`] and [`SchedulerError::BudgetBelowSequences`].
    pub fn new(config: SchedulerConfig) -> Result<Self, SchedulerError> {
        config.check()?;
        let block_size =
            BlockSize::new(config.block_size).ok_or(SchedulerError::ZeroSetting { setting: "block_size" })?;
        Ok(Self {
            cache: KvCacheManager::new(config.num_blocks, config.prefix_cache, config.shared_layers.is_some()),
            block_size,
            pages: VirtualPages::default(),
            requests: BTreeMap::new(),
            sequences: SequenceMap::default(),
            waiting: PartyQueues::default(),
            running: RankQueue::default(),
            fair: FairShare::new(config.share),
            costs: StepCosts::default(),
            deadlines: BTreeSet::new(),
            blocked: None,
            left: Vec::new(),
            copied: Vec::new(),
            next_sequence: 0,
            num_parked: 0,
            draining: false,
            counters: Counters::default(),
            config,
        })
    }

    /// True where no request is live; [`Self::schedule`] would have nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether [`Self::schedule`] could make a step: false where every live request is parked.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.num_parked < self.sequences.len() || self.pages.num_prefilling() > 0
    }

    /// Whether this request still has a sequence. False once its last event has been returned, or after an abort.
    #[must_use]
    pub fn contains(&self, id: RequestId) -> bool {
        self.requests.contains_key(&id)
    }

    /// Where a sequence is in its life; `None` once it has ended.
    #[must_use]
    pub fn state(&self, id: SequenceId) -> Option<SequenceState> {
        self.sequences.get(id).map(|sequence| sequence.state)
    }

    /// The earliest deadline of a live request: [`Self::schedule`] must run by then.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Counts as of now.
    #[must_use]
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            running: self.running.len() + self.pages.num_prefilling(),
            waiting: self.waiting.len(),
            parked: self.num_parked,
            kv_blocks_used: self.cache.num_used(),
            kv_blocks_total: self.cache.num_blocks(),
            preemptions: self.counters.preemptions,
            prefix_queries: self.counters.prefix_queries,
            prefix_hits: self.counters.prefix_hits,
            shared_layer_hits: self.counters.shared_layer_hits,
            parties: self.fair.num_parties(),
            held_back: self.counters.held_back,
        }
    }

    /// A step took so long. What past steps took bounds the rows of prompts beside those who stream (`prompt_rows`).
    pub fn learn(&mut self, batch: &ScheduledBatch, took: Duration) {
        let prompts = batch.sequences.iter().any(|sequence| sequence.count > 1);
        self.costs.learn(batch.num_tokens(), prompts, took);
    }

    /// These versions are gone for good: their virtual tokens give their blocks back, and nothing computed with them is
    /// found any more. Requests that run on one all the same go on.
    pub fn forget(&mut self, versions: &BTreeSet<AdapterVersion>) {
        let pages = self.pages.remove_unwanted(versions);
        self.release_pages(pages);
        self.cache.forget_versions(versions);
    }
}
