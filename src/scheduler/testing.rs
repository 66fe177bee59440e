//! An executor without a model that checks the KV cache: every place remembers what was written there, and a row is
//! only computed after every earlier place of its sequence has been read back through the block table and found right.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Deref, Range};

use crate::scheduler::SchedulerConfig;
use crate::types::{
    AdapterBinding, AdapterSlot, AdapterVersion, BlockId, EngineRequest, FinishReason, JoinedSequence, PoolRows,
    PoolSpec, PooledVector, RowSource, SampleSpec, SampledToken, ScheduledBatch, ScheduledSequence, SequenceFailure,
    SequenceId, StepOutput, TokenLogprob,
};

pub(crate) const VOCAB: u64 = 4;
/// Requests with this seed turn non-finite at their first sampled row.
pub(crate) const NON_FINITE_SEED: u64 = u64::MAX;

/// What the rows of a share are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Rows {
    Ids(Vec<u32>),
    PromptEmbeds { first: u32, count: u32 },
}

impl Rows {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::PromptEmbeds { count, .. } => *count as usize,
        }
    }
}

/// One sequence's share of a step, with all that it means.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Share {
    pub(crate) id: SequenceId,
    pub(crate) slot: Option<AdapterSlot>,
    pub(crate) active_from: u32,
    pub(crate) start: u32,
    pub(crate) rows: Rows,
    /// The whole table.
    pub(crate) blocks: Vec<BlockId>,
    pub(crate) long_from: u32,
    pub(crate) from_shared: bool,
    pub(crate) scored: Range<u32>,
    /// The token behind each scored row.
    pub(crate) targets: Vec<u32>,
    /// Rows whose states are read, what for, and the sum of those before.
    pub(crate) pooled: Option<(Range<u32>, PoolSpec)>,
    pub(crate) sum: Option<PooledVector>,
    pub(crate) sample: Option<SampleSpec>,
}

/// A step, and what its shares mean.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) batch: ScheduledBatch,
    pub(crate) sequences: Vec<Share>,
}

impl Deref for Step {
    type Target = ScheduledBatch;

    fn deref(&self) -> &ScheduledBatch {
        &self.batch
    }
}

/// Sequences as the scheduler has told them, in the plainest way, and the last vector that came of each.
#[derive(Default)]
pub(crate) struct Told(HashMap<SequenceId, JoinedSequence>, HashMap<SequenceId, PooledVector>);

impl Told {
    pub(crate) fn apply(&mut self, batch: ScheduledBatch) -> Step {
        for id in &batch.left {
            assert!(self.0.remove(id).is_some(), "{id:?} leaves and was not here");
            self.1.remove(id);
        }
        for joined in &batch.joined {
            assert!(self.0.insert(joined.id, joined.clone()).is_none(), "{:?} joins twice", joined.id);
            assert!(batch.sequences.iter().any(|share| share.id == joined.id), "{:?} joins for nothing", joined.id);
        }
        let sequences = batch.sequences.iter().map(|share| self.share(share)).collect();
        Step { batch, sequences }
    }

    fn share(&mut self, share: &ScheduledSequence) -> Share {
        let Some(told) = self.0.get_mut(&share.id) else { panic!("{:?} has rows and has not joined", share.id) };
        told.blocks.extend(&share.new_blocks);
        let JoinedSequence { id, slot, active_from, ref source, start, ref blocks, long_from } = *told;
        let scored = share.scored.clone();
        let mut pooled = None;
        let (rows, targets, sample) = match source {
            RowSource::PromptEmbeds => (Rows::PromptEmbeds { first: start, count: share.count }, Vec::new(), None),
            RowSource::Tokens { tokens, first, choice, sampling, stopping } => {
                let begin = (start - first) as usize;
                pooled = sampling.pool.filter(|_| !share.pooled.is_empty()).map(|pool| (share.pooled.clone(), pool));
                let output = tokens.output().len();
                let sample = SampleSpec {
                    params: sampling.clone(),
                    choice: *choice,
                    output_position: output as u32,
                    banned: stopping.banned_after(output).to_vec(),
                    counts: None,
                };
                let target = |row: u32| tokens.prompt()[begin + row as usize + 1];
                let ids = tokens.slices(begin..begin + share.count as usize).concat();
                (Rows::Ids(ids), scored.clone().map(target).collect(), Some(sample))
            }
        };
        let (blocks, sample) = (blocks.clone(), sample.filter(|_| share.sample));
        let sum = self.1.get(&id).cloned();
        let from_shared = share.from_shared;
        Share {
            id,
            slot,
            active_from,
            start,
            rows,
            blocks,
            long_from,
            from_shared,
            scored,
            targets,
            pooled,
            sum,
            sample,
        }
    }

    pub(crate) fn advance(&mut self, batch: &ScheduledBatch, output: &StepOutput) {
        for share in &batch.sequences {
            if let Some(told) = self.0.get_mut(&share.id) {
                told.start += share.count;
            }
        }
        for (id, pooled) in &output.pooled {
            let vector = pooled.as_ref().ok().and_then(|pooled| pooled.last());
            self.1.extend(vector.map(|vector| (*id, vector.clone())));
        }
        for (id, sampled) in &output.sampled {
            if let (Some(JoinedSequence { source: RowSource::Tokens { tokens, .. }, .. }), Ok(sampled)) =
                (self.0.get_mut(id), sampled)
            {
                tokens.push(sampled.token);
            }
        }
    }
}

/// One token place of the fake KV cache.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    index: u32,
    version: Option<AdapterVersion>,
    /// `None` for a virtual token.
    token: Option<u32>,
    /// Tenant that wrote it; virtual tokens belong to all.
    tenant: Option<Vec<u8>>,
    /// Of this and everything before it.
    digest: u64,
    /// What comes out of the shared layers, of this and everything before it.
    shared: u64,
}

fn digest(previous: u64, version: Option<AdapterVersion>, token: Option<u32>, index: u32) -> u64 {
    let mut hash = DefaultHasher::new();
    (previous, version, token, index).hash(&mut hash);
    hash.finish()
}

fn choose(history: u64, seed: u64, choice: u32, position: u32, banned: &[u32]) -> u32 {
    (0u32..)
        .map(|attempt| {
            let mut hash = DefaultHasher::new();
            (history, seed, choice, position, attempt).hash(&mut hash);
            (hash.finish() % VOCAB) as u32
        })
        .find(|token| !banned.contains(token))
        .unwrap()
}

/// What a token is worth behind a history.
fn score(history: u64, token: u32) -> (u32, TokenLogprob) {
    (token, TokenLogprob { logprob: -((history >> 40) as f32), top: Vec::new() })
}

/// What a row's hidden state is behind a history: a number that sums are exact in.
fn hidden(history: u64) -> f32 {
    (history >> 52) as f32
}

/// What pooled rows become, onto the sum of those before.
fn pool(rows: &[u64], pool: PoolSpec, sum: Option<&PooledVector>) -> Vec<PooledVector> {
    match pool.rows {
        PoolRows::Each => rows.iter().map(|state| [hidden(*state)].into()).collect(),
        PoolRows::Sum => {
            let before = sum.map_or(0.0, |sum| sum[0]);
            vec![[rows.iter().map(|state| hidden(*state)).fold(before, |sum, row| sum + row)].into()]
        }
        PoolRows::First | PoolRows::Last => {
            assert_eq!(rows.len(), 1);
            vec![[hidden(rows[0])].into()]
        }
    }
}

fn virtual_count(adapter: Option<AdapterBinding>) -> u32 {
    adapter.and_then(|adapter| adapter.virtual_tokens).map_or(0, |tokens| tokens.count)
}

/// Whose KV lies at an index.
fn version_at(adapter: Option<AdapterBinding>, index: u32) -> Option<AdapterVersion> {
    adapter.filter(|adapter| index >= adapter.kv_from).map(|adapter| adapter.version)
}

/// Who has changed what comes out of so many layers at an index.
fn changed_by(adapter: Option<AdapterBinding>, index: u32, layers: u32) -> Option<AdapterVersion> {
    version_at(adapter.filter(|adapter| adapter.base_layers < layers), index)
}

/// The histories of a request's prompt, token by token: computed alone.
fn states_of_prompt(request: &EngineRequest) -> Vec<u64> {
    let version = |index| version_at(request.adapter, index);
    let count = virtual_count(request.adapter);
    let mut history = 0;
    for index in 0..count {
        history = digest(history, version(index), None, index);
    }
    let append = |(index, token): (u32, &u32)| {
        history = digest(history, version(index), Some(*token), index);
        history
    };
    (count..).zip(request.prompt.iter()).map(append).collect()
}

/// What the tokens of a request's prompt are worth.
pub(crate) fn oracle_of_prompt(request: &EngineRequest) -> Vec<(u32, TokenLogprob)> {
    let next = request.prompt.iter().skip(1);
    states_of_prompt(request).into_iter().zip(next).map(|(state, token)| score(state, *token)).collect()
}

/// What a request's prompt becomes.
pub(crate) fn oracle_of_pool(request: &EngineRequest) -> Vec<PooledVector> {
    let Some(spec) = request.sampling.pool else { return Vec::new() };
    pool(&states_of_prompt(request)[spec.rows.of(request.prompt.len())], spec, None)
}

/// What a request must produce: computed alone, without blocks, budgets or batches.
pub(crate) fn oracle(
    request: &EngineRequest,
    choice: u32,
    max_model_len: u32,
) -> (Vec<u32>, FinishReason, Option<u32>) {
    let count = virtual_count(request.adapter);
    let mut history = 0;
    let mut index = 0;
    let mut append = |token| {
        history = digest(history, version_at(request.adapter, index), token, index);
        index += 1;
        history
    };
    let mut state = 0;
    for _ in 0..count {
        state = append(None);
    }
    for token in request.prompt.iter() {
        state = append(Some(*token));
    }
    let stopping = &request.stopping;
    let limit = stopping.max_tokens.min(max_model_len - count - request.prompt.len() as u32);
    let mut output = Vec::new();
    if limit == 0 {
        return (output, FinishReason::Length, None);
    }
    loop {
        let may_stop = output.len() as u32 >= stopping.min_tokens;
        let banned = if may_stop { &[][..] } else { &stopping.stop_token_ids };
        let token = choose(state, request.sampling.seed, choice, output.len() as u32, banned);
        if may_stop && stopping.stop_token_ids.contains(&token) {
            return (output, FinishReason::Stop, Some(token));
        }
        output.push(token);
        if output.len() as u32 == limit {
            return (output, FinishReason::Length, None);
        }
        state = append(Some(token));
    }
}

/// Executes batches against a KV cache of [`Place`]s; `None` is poison.
pub(crate) struct FakeExecutor {
    block_size: usize,
    shared_layers: u32,
    blocks: Vec<Vec<Option<Place>>>,
    adapters: HashMap<AdapterSlot, AdapterBinding>,
    /// As the requests of sequences have them: prompts say from where on they are active.
    bindings: HashMap<SequenceId, AdapterBinding>,
    tenants: HashMap<SequenceId, Vec<u8>>,
    /// Versions whose prompt embeddings turn non-finite.
    pub(crate) poisoned_embeds: BTreeSet<AdapterVersion>,
    pub(crate) rows: usize,
    /// Of them, those that went on from behind the shared layers.
    pub(crate) from_shared: usize,
}

impl FakeExecutor {
    pub(crate) fn new(config: &SchedulerConfig) -> Self {
        let block_size = config.block_size as usize;
        Self {
            block_size,
            shared_layers: config.shared_layers.unwrap_or(u32::MAX),
            blocks: vec![vec![None; block_size]; config.num_blocks as usize],
            adapters: HashMap::new(),
            bindings: HashMap::new(),
            tenants: HashMap::new(),
            poisoned_embeds: BTreeSet::new(),
            rows: 0,
            from_shared: 0,
        }
    }

    /// The adapter is on the device; these sequences are this tenant's.
    pub(crate) fn introduce(&mut self, request: &EngineRequest, ids: &[SequenceId]) {
        if let Some(adapter) = request.adapter {
            self.adapters.insert(adapter.slot, adapter);
            self.bindings.extend(ids.iter().map(|id| (*id, adapter)));
        }
        self.tenants.extend(ids.iter().map(|id| (*id, request.tenant_salt.to_vec())));
    }

    pub(crate) fn poison(&mut self, block: BlockId) {
        self.blocks[block.index()].fill(None);
    }

    pub(crate) fn execute(&mut self, batch: &Step) -> StepOutput {
        for write in &batch.prefix_writes {
            let adapter = self.adapters[&write.slot];
            let tokens = adapter.virtual_tokens.unwrap();
            assert!(tokens.saved_kv, "prompt embeddings have no saved KV to write");
            assert_eq!(write.blocks.len(), (tokens.count as usize).div_ceil(self.block_size));
            let mut history = 0;
            for index in 0..tokens.count {
                history = digest(history, Some(adapter.version), None, index);
                let (version, shared) = (Some(adapter.version), history);
                let place = Place { index, version, token: None, tenant: None, digest: history, shared };
                let block = write.blocks[index as usize / self.block_size];
                self.blocks[block.index()][index as usize % self.block_size] = Some(place);
            }
        }
        for copy in &batch.block_copies {
            self.blocks[copy.target.index()] = self.blocks[copy.source.index()].clone();
        }
        // All reads see the cache as it was before the pass: nobody may depend on what another sequence writes in it.
        let mut writes = BTreeMap::new();
        let mut output = StepOutput::default();
        for sequence in &batch.sequences {
            let states = self.rows_of(sequence, &mut writes);
            self.rows += sequence.rows.len();
            self.from_shared += if sequence.from_shared { sequence.rows.len() } else { 0 };
            if !sequence.scored.is_empty() {
                let rows = states[sequence.scored.start as usize..].iter().zip(&sequence.targets);
                let scores = rows.map(|(state, token)| score(*state, *token)).collect();
                output.prompt_logprobs.push((sequence.id, Ok(scores)));
            }
            if let Some((rows, spec)) = &sequence.pooled {
                let rows = &states[rows.start as usize..rows.end as usize];
                output.pooled.push((sequence.id, Ok(pool(rows, *spec, sequence.sum.as_ref()))));
            }
            if let Some(result) = self.sample(sequence, states[states.len() - 1]) {
                output.sampled.push((sequence.id, result));
            }
        }
        for sequence in &batch.sequences {
            for block in &sequence.blocks {
                let writers: BTreeSet<_> =
                    writes.range((*block, 0)..(*block, usize::MAX)).map(|(_, (id, _))| *id).collect();
                let alone = writers.iter().all(|writer| *writer == sequence.id);
                assert!(alone, "{block:?} of {:?} is written by {writers:?}", sequence.id);
            }
        }
        for ((block, offset), (_, place)) in writes {
            self.blocks[block.index()][offset] = Some(place);
        }
        output
    }

    /// Read everything before the new rows, then stage the new rows. Returns the digest of everything up to each of them.
    fn rows_of(&self, sequence: &Share, writes: &mut BTreeMap<(BlockId, usize), (SequenceId, Place)>) -> Vec<u64> {
        let own = self.bindings.get(&sequence.id).copied();
        let adapter = sequence.slot.map(|slot| own.unwrap_or_else(|| self.adapters[&slot]));
        let tenant = self.tenants.get(&sequence.id);
        let count = virtual_count(adapter);
        if let Some(own) = own {
            let expected = (Some(own.slot), own.active_from.saturating_add(count));
            assert_eq!((sequence.slot, sequence.active_from), expected, "{:?}", sequence.id);
        }
        let places = sequence.start as usize + sequence.rows.len();
        assert!(sequence.blocks.len() >= places.div_ceil(self.block_size), "the table covers its places");
        let distinct: BTreeSet<_> = sequence.blocks.iter().collect();
        assert_eq!(distinct.len(), sequence.blocks.len(), "a block is twice in one table");

        let (mut history, mut shared) = (0, 0);
        let through_shared =
            |before, token, index| digest(before, changed_by(adapter, index, self.shared_layers), token, index);
        for index in 0..sequence.start {
            let place = self.place(sequence, index);
            let version = version_at(adapter, index);
            history = digest(history, version, place.token, index);
            shared = through_shared(shared, place.token, index);
            assert_eq!((place.index, place.version, place.digest), (index, version, history), "{place:?}");
            assert_eq!(place.shared, shared, "{place:?}");
            assert_eq!(place.token.is_none(), index < count, "virtual tokens come first: {place:?}");
            assert!(place.token.is_none() || place.tenant.as_ref() == tenant, "another tenant's KV: {place:?}");
        }
        let tokens: Vec<_> = match &sequence.rows {
            Rows::Ids(ids) => {
                assert!(sequence.start >= count, "real tokens start behind the virtual ones");
                ids.iter().map(|id| Some(*id)).collect()
            }
            Rows::PromptEmbeds { first, count: rows } => {
                assert!(adapter.and_then(|adapter| adapter.virtual_tokens).is_some_and(|tokens| !tokens.saved_kv));
                assert_eq!(*first, sequence.start);
                assert!(
                    sequence.sample.is_none()
                        && sequence.scored.is_empty()
                        && sequence.pooled.is_none()
                        && first + rows <= count
                );
                vec![None; *rows as usize]
            }
        };
        assert!(!tokens.is_empty());
        let mut states = Vec::new();
        for (index, token) in (sequence.start..).zip(tokens) {
            let version = version_at(adapter, index);
            history = digest(history, version, token, index);
            shared = through_shared(shared, token, index);
            let tenant = if token.is_some() { tenant.cloned() } else { None };
            if sequence.from_shared {
                let found = self.place(sequence, index);
                let expected = (index, token, &tenant, shared);
                assert_eq!((found.index, found.token, &found.tenant, found.shared), expected, "{found:?}");
            }
            let place = Place { index, version, token, tenant, digest: history, shared };
            let at = (sequence.blocks[index as usize / self.block_size], index as usize % self.block_size);
            assert!(writes.insert(at, (sequence.id, place)).is_none(), "{at:?} is written twice in a step");
            states.push(history);
        }
        states
    }

    /// What lies at an index of a sequence.
    fn place(&self, sequence: &Share, index: u32) -> &Place {
        let (block, offset) = (sequence.blocks[index as usize / self.block_size], index as usize % self.block_size);
        let place = self.blocks[block.index()][offset].as_ref();
        place.unwrap_or_else(|| panic!("{:?} reads poison at KV index {index} in {block:?}", sequence.id))
    }

    fn sample(&self, sequence: &Share, state: u64) -> Option<Result<SampledToken, SequenceFailure>> {
        let version = sequence.slot.map(|slot| self.adapters[&slot].version);
        if matches!(sequence.rows, Rows::PromptEmbeds { .. })
            && version.is_some_and(|version| self.poisoned_embeds.contains(&version))
        {
            return Some(Err(SequenceFailure::NonFinite));
        }
        let SampleSpec { params, choice, output_position, banned, counts: _ } = sequence.sample.as_ref()?;
        if params.seed == NON_FINITE_SEED {
            return Some(Err(SequenceFailure::NonFinite));
        }
        let token = choose(state, params.seed, *choice, *output_position, banned);
        Some(Ok(SampledToken { token, logprob: None }))
    }
}
