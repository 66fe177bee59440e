//! The border between deciding and computing: [`ScheduledBatch`] in, [`StepOutput`] out. Plain data, no tensors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::event::TokenLogprob;
use super::ids::{AdapterSlot, BlockId, SequenceId};
use super::pool::PooledVector;
#[cfg(doc)]
use super::rope::LongRope;
use super::sampling::{SamplingParams, StoppingParams};
use super::tokens::Tokens;

/// What the sampler needs for the last row of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSpec {
    /// How to choose.
    pub params: Arc<SamplingParams>,
    /// Choice index within the request; part of the counter of the random draw.
    pub choice: u32,
    /// Number of output tokens before this one; part of the counter of the random draw.
    pub output_position: u32,
    /// Ids that may not be chosen at this step (`min_tokens` not yet reached).
    pub banned: Vec<u32>,
    /// Prompt and output so far; present only where [`SamplingParams::needs_counts`].
    pub counts: Option<Arc<TokenCounts>>,
}

/// What is wanted of a row's logits.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// A token, chosen from them.
    Sample(SampleSpec),
    /// The log-probability of a token that is known: the one that follows the row in a prompt.
    PromptLogprobs {
        /// The token.
        target: u32,
        /// How many of the most likely tokens are reported beside it.
        top: u32,
    },
}

/// Which ids a sequence has seen, and how often: all that penalties need of its past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts(BTreeMap<u32, u32>);

impl TokenCounts {
    /// Of a prompt without output.
    #[must_use]
    pub fn of_prompt(prompt: &[u32]) -> Self {
        Self(prompt.iter().map(|id| (*id, 0)).collect())
    }

    /// Of a prompt and its output so far.
    #[must_use]
    pub fn of(tokens: &Tokens) -> Self {
        let mut counts = Self::of_prompt(tokens.prompt());
        tokens.output().iter().for_each(|id| counts.add_output(*id));
        counts
    }

    /// Count an id of the output.
    pub fn add_output(&mut self, id: u32) {
        *self.0.entry(id).or_default() += 1;
    }

    /// Every id seen, ascending, with its occurrences in the output: 0 where only the prompt has it.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().map(|(id, occurrences)| (*id, *occurrences))
    }
}

/// Most rows of a sequence that are scored, or whose vectors are wanted one by one, in a step: what a step has to say of one request stays small, whatever the
/// step's size.
pub const MAX_SCORED_ROWS: usize = 64;

/// Where the rows of a sequence come from.
#[derive(Clone, Debug, PartialEq)]
pub enum RowSource {
    /// The tokens of one choice of a request.
    Tokens {
        /// All that are known.
        tokens: Tokens,
        /// KV index of the first of them: as many virtual tokens lie before it.
        first: u32,
        /// Index of the choice within the request.
        choice: u32,
        /// How its next token is chosen, and what is reported beside it and beside those of its prompt.
        sampling: Arc<SamplingParams>,
        /// Which ids may not be chosen yet.
        stopping: Arc<StoppingParams>,
    },
    /// The prompt embeddings of the adapter in the sequence's slot: row `i` of them lies at KV index `i`. Nothing is
    /// ever sampled or scored.
    PromptEmbeds,
}

/// A sequence that has rows in steps from now on, with all that an executor needs to know of it. From here on both sides
/// move it by the same rules: the rows of a step that has been computed lie in the cache, a sampled id is appended.
#[derive(Clone, Debug, PartialEq)]
pub struct JoinedSequence {
    /// Which sequence.
    pub id: SequenceId,
    /// Adapter of its rows; `None` is the base.
    pub slot: Option<AdapterSlot>,
    /// First KV index whose row has the adapter; rows before it are the base's.
    pub active_from: u32,
    /// Its rows.
    pub source: RowSource,
    /// KV index, and rope position, of its next row: everything before it is in the cache already.
    pub start: u32,
    /// Block table: block `i` holds KV indices `i * block_size ..`.
    pub blocks: Vec<BlockId>,
    /// First KV index that is rotated by the long frequencies; [`LongRope::NEVER`] where none is.
    pub long_from: u32,
}

/// One sequence's share of a step: its next rows. Prefill, chunked prefill and decode are all this.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduledSequence {
    /// Which sequence; it has joined.
    pub id: SequenceId,
    /// Rows, at least one.
    pub count: u32,
    /// Blocks that have been appended to its table since its last share, or since it joined. With them the table covers
    /// all its rows.
    pub new_blocks: Vec<BlockId>,
    /// What the shared layers compute of these rows lies at their places already, KV and hidden states: they are computed
    /// from there on. Nothing is scored, pooled or sampled then.
    pub from_shared: bool,
    /// Rows of the prompt that are to be scored by the token that follows, counted from the first row of the share; no more
    /// than [`MAX_SCORED_ROWS`], all before the one that is sampled. Empty where none is.
    pub scored: Range<u32>,
    /// Rows of the prompt whose hidden states are read, counted from the first row of the share. Where each is for itself, no
    /// more than [`MAX_SCORED_ROWS`]. Empty where none is.
    pub pooled: Range<u32>,
    /// Whether the last row's logits are to be sampled.
    pub sample: bool,
}

/// Copy all that one KV block holds: a shared partial block becomes the first own block of a sequence, a block with the
/// shared layers of others' rows one in which a sequence computes the rest of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Read from.
    pub source: BlockId,
    /// Written to.
    pub target: BlockId,
}

/// Write the saved K and V of a prefix-tuning adapter into blocks, all layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixWrite {
    /// Slot of the adapter.
    pub slot: AdapterSlot,
    /// Blocks for its virtual tokens, in order; the last may be partly filled.
    pub blocks: Vec<BlockId>,
}

/// One step's work, as what has changed since the last one. First sequences leave, then others join, under the same id
/// perhaps; then the executor applies `prefix_writes`, then `block_copies`, then runs all sequences: in one pass, and those that
/// go on from the shared layers in another one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScheduledBatch {
    /// Sequences that had joined and have no rows any more: ended, preempted or laid aside.
    pub left: Vec<SequenceId>,
    /// Sequences that have their first rows in this step.
    pub joined: Vec<JoinedSequence>,
    /// Prefix-tuning pages to fill before the pass.
    pub prefix_writes: Vec<PrefixWrite>,
    /// Block copies to make before the pass, in order.
    pub block_copies: Vec<BlockCopy>,
    /// The sequences of the pass.
    pub sequences: Vec<ScheduledSequence>,
}

impl ScheduledBatch {
    /// Rows of the pass.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.count as usize).sum()
    }

    /// True where there is nothing to compute, whoever has left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty() && self.prefix_writes.is_empty() && self.block_copies.is_empty()
    }
}

/// The token of a row whose logits were wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Chosen id, or the one that was scored.
    pub token: u32,
    /// Present where the request asked for log-probabilities, and wherever a token was scored.
    pub logprob: Option<TokenLogprob>,
}

/// Why one sequence, and only that one, failed in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceFailure {
    /// Its logits or hidden states held NaN or infinity: the adapter or the base overflowed on this row.
    #[error("numbers of this sequence are not finite")]
    NonFinite,
}

/// For each scored row of a sequence in a step, the token that follows and what it is worth.
pub type ScoredTokens = Vec<(u32, TokenLogprob)>;

/// Result of a step: what each sequence wanted of its rows, in batch order, and any other failure.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// One entry per sequence that was to be sampled: its token, or the failure of that sequence alone.
    pub sampled: Vec<(SequenceId, Result<SampledToken, SequenceFailure>)>,
    /// One entry per sequence with scored rows: what they say, or the failure of that sequence alone.
    pub prompt_logprobs: Vec<(SequenceId, Result<ScoredTokens, SequenceFailure>)>,
    /// One entry per sequence with pooled rows: a vector of each row, or the one that they have become together so far, or
    /// the failure of that sequence alone.
    pub pooled: Vec<(SequenceId, Result<Vec<PooledVector>, SequenceFailure>)>,
}

impl StepOutput {
    /// Take in the result of another part of the same step.
    pub fn append(&mut self, mut part: Self) {
        self.sampled.append(&mut part.sampled);
        self.prompt_logprobs.append(&mut part.prompt_logprobs);
        self.pooled.append(&mut part.pooled);
    }
}
