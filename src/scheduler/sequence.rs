//! One choice of one request: its tokens, how far they are computed, and the blocks that hold them.
//!
//! Two countings meet here. *Tokens* are the request's own, prompt then output, from 0. *Places* are KV indices: the
//! adapter's virtual tokens lie in places `0..num_virtual`, token `i` lies in place `num_virtual + i`.

use std::collections::HashMap;
use std::ops::{Index, IndexMut, Range};
use std::sync::Arc;

use super::fair_share::PartyId;
use super::policy::Rank;
use super::queue::Flow;
use super::shared_layers::SharedLayers;
use super::virtual_pages::PagesKey;
use crate::cache::{BlockKey, BlockSize, BlockTable, FoundBlock, PrefixBlock, PrefixScope};
use crate::types::{
    AdapterSlot, BlockId, ConnectionId, EngineRequest, FinishReason, JoinedSequence, LongRope, MAX_SCORED_ROWS,
    PoolRows, RequestId, RowSource, SamplingParams, ScheduledSequence, SequenceId, StoppingParams, Tokens,
};

/// Life of a sequence. A finished one is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceState {
    /// Has never had KV.
    Waiting,
    /// Has KV; takes part in steps.
    Running,
    /// Had KV and gave it up; waits to compute all its tokens, prompt and output, anew.
    Preempted,
}

/// What a sampled id meant for its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    /// The id, unless it was a stop id.
    pub(super) token: Option<u32>,
    /// Set on the last one.
    pub(super) finish: Option<(FinishReason, Option<u32>)>,
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) rank: Rank,
    /// Who is charged for it.
    pub(super) party: PartyId,
    connection: ConnectionId,
    pub(super) request: RequestId,
    pub(super) choice: u32,
    pub(super) state: SequenceState,
    pub(super) slot: Option<AdapterSlot>,
    /// First place whose row has the adapter.
    active_from: u32,
    /// The virtual pages it starts with.
    pub(super) pages: Option<PagesKey>,
    pub(super) scope: Arc<PrefixScope>,
    /// Prompt, then output.
    pub(super) tokens: Tokens,
    /// Output tokens that end it: `max_tokens`, or fewer where the context ends before; 0 where only its prompt is scored.
    pub(super) max_output: usize,
    sampling: Arc<SamplingParams>,
    stopping: Arc<StoppingParams>,
    /// Tokens whose KV is in the cache.
    pub(super) num_computed_tokens: usize,
    /// Rows of the prompt of which all has been said that is wanted, for good: a preemption computes them again and says
    /// nothing of them. The first choice speaks for all. Rows that are summed are said with the last one.
    num_said: usize,
    pub(super) table: BlockTable,
    /// Blocks of the table that whoever computes it knows; `None` where that one does not know the sequence.
    num_told_blocks: Option<usize>,
    /// Its first start is in the statistics.
    pub(super) counted: bool,
    /// Tokens that have been charged, computed or found in the cache: what a preemption makes it compute again is
    /// charged once.
    num_charged_tokens: usize,
    /// The last step it had a row in.
    pub(super) last_step: u64,
    /// Leading blocks of the table that have been offered to the prefix index, or came from it.
    num_published_blocks: usize,
    /// Keys of the full blocks from `first_block` on; they stay true through a preemption.
    keys: Vec<BlockKey>,
    /// `None` where its adapter changes what the shared layers compute, or none are shared.
    pub(super) shared: Option<SharedLayers>,
    /// Blocks that its start could reuse, as far as they were found when it was last tried.
    pub(super) reusable: Vec<FoundBlock>,
    block_size: BlockSize,
    /// First place that is rotated by the long frequencies.
    long_from: u32,
    /// Tokens beyond which it computes everything anew, by the long frequencies.
    short_context: Option<usize>,
}

/// What [`Sequence::new`] needs besides what a request shares among its choices.
pub(super) struct SequenceSeed<'a> {
    pub(super) request: &'a EngineRequest,
    pub(super) id: SequenceId,
    pub(super) party: PartyId,
    pub(super) choice: u32,
    pub(super) scope: &'a Arc<PrefixScope>,
    pub(super) max_output: usize,
    pub(super) block_size: BlockSize,
    pub(super) long_rope: Option<LongRope>,
    pub(super) shares_layers: bool,
}

impl Sequence {
    pub(super) fn new(seed: SequenceSeed<'_>) -> Self {
        let SequenceSeed { request, id, party, choice, scope, max_output, block_size, long_rope, shares_layers } = seed;
        let virtual_tokens = scope.virtual_tokens as usize;
        let first_long = |rope: LongRope| rope.first_long(virtual_tokens + request.prompt.len(), virtual_tokens);
        let recomputes = |rope: &LongRope| !scope.long_rope && rope.recomputes(virtual_tokens);
        Self {
            rank: Rank::new(request.priority, id),
            party,
            connection: request.connection,
            request: request.id,
            choice,
            state: SequenceState::Waiting,
            slot: request.adapter.map(|adapter| adapter.slot),
            active_from: request.adapter.map_or(0, |adapter| adapter.active_from.saturating_add(scope.virtual_tokens)),
            pages: request.adapter.and_then(|adapter| PagesKey::of(&adapter)).map(|key| key.rotated(scope.long_rope)),
            scope: Arc::clone(scope),
            tokens: Tokens::new(Arc::clone(&request.prompt)),
            max_output,
            sampling: Arc::clone(&request.sampling),
            stopping: Arc::clone(&request.stopping),
            num_computed_tokens: 0,
            num_said: 0,
            table: BlockTable::default(),
            num_told_blocks: None,
            counted: false,
            num_charged_tokens: 0,
            last_step: 0,
            num_published_blocks: 0,
            keys: Vec::new(),
            shared: shares_layers.then(SharedLayers::default),
            reusable: Vec::new(),
            block_size,
            long_from: long_rope.map_or(LongRope::NEVER, first_long),
            short_context: long_rope.filter(recomputes).map(|rope| rope.original_context as usize),
        }
    }

    /// Where it waits.
    pub(super) fn flow(&self) -> Flow {
        Flow { party: self.party, connection: self.connection }
    }

    pub(super) fn num_virtual(&self) -> usize {
        self.scope.virtual_tokens as usize
    }

    /// The first block of the table that is its own: the ones before hold virtual tokens only.
    pub(super) fn first_block(&self) -> usize {
        self.block_size.full_blocks(self.num_virtual())
    }

    /// Known tokens without KV.
    pub(super) fn num_remaining(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }

    /// Blocks that hold everything up to token `num_tokens`.
    pub(super) fn blocks_for(&self, num_tokens: usize) -> usize {
        self.block_size.blocks_for(self.num_virtual() + num_tokens)
    }

    /// The real tokens in block `block` of the table; the block must be full.
    fn block_tokens(&self, block: usize) -> Vec<u32> {
        let size = self.block_size.get();
        let token = |place: usize| place.saturating_sub(self.num_virtual());
        self.tokens.slices(token(block * size)..token((block + 1) * size)).concat()
    }

    /// Call `visit` with the contents of full blocks `range` in order, until it returns false.
    fn walk_blocks(&mut self, range: Range<usize>, visit: impl FnMut(usize, &PrefixBlock<'_>) -> bool) {
        let (first, size, own) = (self.first_block(), self.block_size.get(), Arc::clone(&self.scope));
        let base = own.of_base();
        let scope_of = |block: usize| if (block + 1) * size <= own.own_from as usize { &base } else { &*own };
        let mut keys = std::mem::take(&mut self.keys);
        walk_chain(&mut keys, (first, range), scope_of, |block| self.block_tokens(block), visit);
        self.keys = keys;
    }

    /// Rows of its prompt whose next token is still to be scored.
    fn rows_to_score(&self) -> Range<usize> {
        let wanted = self.choice == 0 && self.sampling.prompt_logprobs.is_some();
        // Nothing follows the last row of the prompt.
        if wanted { self.num_said..self.tokens.prompt().len() - 1 } else { 0..0 }
    }

    /// Rows of its prompt whose hidden states are still to be read.
    fn rows_to_pool(&self) -> Range<usize> {
        let Some(pool) = self.sampling.pool.filter(|_| self.choice == 0) else { return 0..0 };
        let Range { start, end } = pool.rows.of(self.tokens.prompt().len());
        start.max(self.num_said)..end
    }

    /// The first row of which something is still wanted beside what follows the last one.
    pub(super) fn first_to_say(&self) -> Option<usize> {
        let wanted = [self.rows_to_score(), self.rows_to_pool()];
        wanted.into_iter().filter(|rows| !rows.is_empty()).map(|rows| rows.start).min()
    }

    /// Whether something is said of its request's prompt, by whichever choice.
    pub(super) fn reads_prompt(&self) -> bool {
        self.sampling.reads_prompt()
    }

    /// Rows that it would have in a step without other bounds: those that remain, as far as something may be said of each at
    /// once, and as far as their shared layers are all there or all not.
    pub(super) fn num_wanted(&self) -> usize {
        let each = self.sampling.pool.is_some_and(|pool| pool.rows == PoolRows::Each);
        let says_each = !self.rows_to_score().is_empty() || each && !self.rows_to_pool().is_empty();
        let most = if says_each { self.num_said - self.num_computed_tokens + MAX_SCORED_ROWS } else { usize::MAX };
        self.num_remaining().min(most).min(self.num_from_shared().unwrap_or(usize::MAX))
    }

    /// Visit the blocks that a new start could reuse, in order, until `visit` returns false. The first `known` of them
    /// have been visited before and are passed over. Rows are left out that are needed: those of which something is to be
    /// said, and the last known one.
    pub(super) fn walk_reusable(&mut self, known: usize, mut visit: impl FnMut(&PrefixBlock<'_>) -> bool) {
        let end = self.end_of_reusable();
        self.walk_blocks(self.first_block() + known..end, |_, contents| visit(contents));
    }

    /// Blocks before this one hold no row that is needed.
    pub(super) fn end_of_reusable(&self) -> usize {
        let needed_from = self.first_to_say().unwrap_or(usize::MAX).min(self.tokens.len() - 1);
        self.block_size.full_blocks(self.num_virtual() + needed_from)
    }

    /// Blocks that have become full since the last call of [`Self::walk_new_full_blocks`].
    pub(super) fn new_full_blocks(&self) -> Range<usize> {
        let end = self.block_size.full_blocks(self.num_virtual() + self.num_computed_tokens);
        self.num_published_blocks.max(self.first_block())..end
    }

    /// Visit the blocks that have become full since the last call.
    pub(super) fn walk_new_full_blocks(&mut self, mut visit: impl FnMut(BlockId, &PrefixBlock<'_>)) {
        let Range { start, end } = self.new_full_blocks();
        if start >= end {
            return;
        }
        let table = std::mem::take(&mut self.table);
        self.walk_blocks(start..end, |block, contents| {
            visit(table.blocks()[block], contents);
            true
        });
        self.table = table;
        self.num_published_blocks = end;
    }

    /// Its next tokens of which the shared layers are computed, and nothing else; `None` where there are none.
    pub(super) fn num_from_shared(&self) -> Option<usize> {
        self.shared.as_ref()?.ahead_of(self.num_computed_tokens)
    }

    fn share_until(&mut self, token: usize) {
        if let Some(shared) = &mut self.shared {
            shared.until = token;
        }
    }

    /// Visit full blocks from `first` on with the contents that the shared layers know them by, as far as a new start could
    /// take them over, until `visit` returns false.
    pub(super) fn walk_shared_layers(&mut self, first: usize, mut visit: impl FnMut(&PrefixBlock<'_>) -> bool) {
        let blocks = first..self.end_of_reusable();
        self.visit_shared(blocks, |_, contents| visit(contents));
    }

    /// Visit the blocks that have become full since [`Self::walk_new_full_blocks`] was called.
    pub(super) fn walk_new_shared_layers(&mut self, mut visit: impl FnMut(BlockId, &PrefixBlock<'_>)) {
        let (blocks, table) = (self.new_full_blocks(), std::mem::take(&mut self.table));
        self.visit_shared(blocks, |block, contents| {
            visit(table.blocks()[block], contents);
            true
        });
        self.table = table;
    }

    /// Until `visit` returns false; no blocks of one that shares nothing.
    fn visit_shared(&mut self, blocks: Range<usize>, visit: impl FnMut(usize, &PrefixBlock<'_>) -> bool) {
        let Some(mut shared) = self.shared.take() else { return };
        let base = self.scope.of_base();
        walk_chain(&mut shared.keys, (0, blocks), |_| &base, |block| self.block_tokens(block), visit);
        self.shared = Some(shared);
    }

    /// Begin to run with a table whose blocks after the virtual ones hold `num_reused` reused blocks and behind them
    /// `num_from_shared` in which the shared layers are computed.
    pub(super) fn start(&mut self, table: BlockTable, num_reused: usize, num_from_shared: usize) {
        self.state = SequenceState::Running;
        self.reusable = Vec::new();
        self.table = table;
        self.num_published_blocks = self.first_block() + num_reused;
        self.num_computed_tokens = match num_reused {
            0 => 0,
            _ => self.num_published_blocks * self.block_size.get() - self.num_virtual(),
        };
        self.share_until((num_reused + num_from_shared) * self.block_size.get());
    }

    /// Give up its KV: the blocks to release. It has to leave before.
    pub(super) fn preempt(&mut self) -> BlockTable {
        debug_assert_eq!(self.num_told_blocks, None);
        self.state = SequenceState::Preempted;
        self.num_computed_tokens = 0;
        self.num_published_blocks = 0;
        self.share_until(0);
        std::mem::take(&mut self.table)
    }

    /// Prompt tokens among the next `count` that have not been charged before; they are charged now.
    pub(super) fn charge_inputs(&mut self, count: usize) -> usize {
        let end = self.num_computed_tokens + count;
        let begin = self.num_charged_tokens.max(self.num_computed_tokens);
        self.num_charged_tokens = self.num_charged_tokens.max(end);
        end.min(self.tokens.prompt().len()).saturating_sub(begin)
    }

    /// It has just outgrown the context of the short frequencies, so that its KV is of no use.
    pub(super) fn outgrows_short_rope(&self) -> bool {
        self.short_context.is_some_and(|context| self.tokens.len() > context)
    }

    /// Compute everything by the long frequencies from now on. It must have no KV.
    pub(super) fn turn_long(&mut self) {
        debug_assert_eq!(self.num_computed_tokens, 0);
        self.scope = Arc::new(PrefixScope { long_rope: true, ..PrefixScope::clone(&self.scope) });
        self.keys.clear();
        self.shared = self.shared.take().map(|_| SharedLayers::default());
        self.long_from = 0;
        self.short_context = None;
    }

    /// All that whoever computes it has to know; `None` where that one knows it already.
    pub(super) fn join(&mut self) -> Option<JoinedSequence> {
        if self.num_told_blocks.is_some() {
            return None;
        }
        self.num_told_blocks = Some(self.table.len());
        let first = self.num_virtual();
        Some(JoinedSequence {
            id: self.rank.id(),
            slot: self.slot,
            active_from: self.active_from,
            source: RowSource::Tokens {
                tokens: self.tokens.clone(),
                first: first as u32,
                choice: self.choice,
                sampling: Arc::clone(&self.sampling),
                stopping: Arc::clone(&self.stopping),
            },
            start: (first + self.num_computed_tokens) as u32,
            blocks: self.table.blocks().to_vec(),
            long_from: self.long_from,
        })
    }

    /// Its share of a step: the next `count` tokens, scored or pooled as far as that is wanted and not done, and sampled
    /// if they are the last known ones. It has joined.
    pub(super) fn schedule(&mut self, count: usize) -> ScheduledSequence {
        let rows = self.num_computed_tokens..self.num_computed_tokens + count;
        let told = self.num_told_blocks.replace(self.table.len()).unwrap_or(0);
        ScheduledSequence {
            id: self.rank.id(),
            count: count as u32,
            new_blocks: self.table.blocks()[told..].to_vec(),
            from_shared: self.num_from_shared().is_some(),
            scored: within(&self.rows_to_score(), &rows),
            pooled: within(&self.rows_to_pool(), &rows),
            sample: rows.end == self.tokens.len() && self.max_output > 0,
        }
    }

    /// So many more rows of the prompt have been scored.
    pub(super) fn scored(&mut self, rows: usize) {
        self.num_said += rows;
    }

    /// Rows of a share have been pooled, and are computed. How many vectors that makes, and whether they are said now; those
    /// that are are said for good.
    pub(super) fn pooled(&mut self, rows: &Range<u32>) -> (usize, bool) {
        let Some(pool) = self.sampling.pool.filter(|_| !rows.is_empty()) else { return (0, false) };
        let complete = self.num_computed_tokens >= pool.rows.of(self.tokens.prompt().len()).end;
        match pool.rows {
            PoolRows::Each => self.num_said += rows.len(),
            PoolRows::Last | PoolRows::First | PoolRows::Sum if complete => self.num_said = self.num_computed_tokens,
            PoolRows::Last | PoolRows::First | PoolRows::Sum => return (1, false),
        }
        (if pool.rows == PoolRows::Each { rows.len() } else { 1 }, true)
    }

    /// Its prompt is computed, and it is to have no output.
    pub(super) fn ends_with_prompt(&self) -> bool {
        self.max_output == 0 && self.num_remaining() == 0
    }

    /// It has no rows from now on: its id, where whoever computes it has to be told.
    pub(super) fn leave(&mut self) -> Option<SequenceId> {
        self.num_told_blocks.take().map(|_| self.rank.id())
    }

    /// Take in the id sampled after the last known token.
    pub(super) fn accept(&mut self, token: u32) -> Accepted {
        if self.stopping.stops_after(self.tokens.output().len(), token) {
            return Accepted { token: None, finish: Some((FinishReason::Stop, Some(token))) };
        }
        self.tokens.push(token);
        let at_limit = self.tokens.output().len() >= self.max_output;
        Accepted { token: Some(token), finish: at_limit.then_some((FinishReason::Length, None)) }
    }
}

/// Call `visit` with the contents of full blocks `range` in order, until it returns false. `keys` are those of the chain that
/// begins with block `first`, as far as they are known.
fn walk_chain<'s>(
    keys: &mut Vec<BlockKey>,
    (first, range): (usize, Range<usize>),
    scope_of: impl Fn(usize) -> &'s PrefixScope,
    tokens_of: impl Fn(usize) -> Vec<u32>,
    mut visit: impl FnMut(usize, &PrefixBlock<'_>) -> bool,
) {
    if range.is_empty() {
        return;
    }
    for block in range.start.min(first + keys.len())..range.end {
        let (position, scope, tokens) = (block - first, scope_of(block), tokens_of(block));
        let parent = match position.checked_sub(1).map(|before| keys[before]) {
            None => scope.root(),
            Some(before) if scope == scope_of(block - 1) => before,
            Some(before) => scope.behind(before),
        };
        if keys.len() == position {
            keys.push(parent.child(&tokens));
        }
        let contents = PrefixBlock { scope, parent, key: keys[position], tokens: &tokens };
        if block >= range.start && !visit(block, &contents) {
            return;
        }
    }
}

/// The part of `rows` that is `wanted`, counted from the first of `rows`.
fn within(wanted: &Range<usize>, rows: &Range<usize>) -> Range<u32> {
    let (first, end) = (wanted.start.max(rows.start), wanted.end.min(rows.end));
    if first < end { (first - rows.start) as u32..(end - rows.start) as u32 } else { 0..0 }
}

/// The live sequences. A queue never holds an id that is not here, so looking up such an id is an index.
#[derive(Debug, Default)]
pub(super) struct SequenceMap(HashMap<SequenceId, Sequence>);

impl SequenceMap {
    pub(super) fn insert(&mut self, sequence: Sequence) {
        self.0.insert(sequence.rank.id(), sequence);
    }

    pub(super) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        self.0.remove(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.0.get(&id)
    }
}

impl Index<SequenceId> for SequenceMap {
    type Output = Sequence;

    fn index(&self, id: SequenceId) -> &Sequence {
        &self.0[&id]
    }
}

impl IndexMut<SequenceId> for SequenceMap {
    fn index_mut(&mut self, id: SequenceId) -> &mut Sequence {
        match self.0.get_mut(&id) {
            Some(sequence) => sequence,
            None => panic!("sequence {} is queued but not held", id.0),
        }
    }
}
