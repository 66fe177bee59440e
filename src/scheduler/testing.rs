//! An executor without a model that checks the KV cache: every place remembers what was written there, and a row is
//! only computed after every earlier place of its sequence has been read back through the block table and found right.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::types::{
    AdapterBinding, AdapterSlot, AdapterVersion, BlockId, EngineRequest, FinishReason, SampleSpec, SampledToken,
    ScheduledBatch, ScheduledSequence, SequenceFailure, SequenceId, StepOutput, TokenSource,
};

pub(crate) const VOCAB: u64 = 4;
/// Requests with this seed turn non-finite at their first sampled row.
pub(crate) const NON_FINITE_SEED: u64 = u64::MAX;

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

fn virtual_count(adapter: Option<AdapterBinding>) -> u32 {
    adapter.and_then(|adapter| adapter.virtual_tokens).map_or(0, |tokens| tokens.count)
}

/// What a request must produce: computed alone, without blocks, budgets or batches.
pub(crate) fn oracle(
    request: &EngineRequest,
    choice: u32,
    max_model_len: u32,
) -> (Vec<u32>, FinishReason, Option<u32>) {
    let version = request.adapter.map(|adapter| adapter.version);
    let count = virtual_count(request.adapter);
    let mut history = 0;
    let mut index = 0;
    let mut append = |token| {
        history = digest(history, version, token, index);
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
    blocks: Vec<Vec<Option<Place>>>,
    adapters: HashMap<AdapterSlot, AdapterBinding>,
    tenants: HashMap<SequenceId, Vec<u8>>,
    /// Versions whose prompt embeddings turn non-finite.
    pub(crate) poisoned_embeds: BTreeSet<AdapterVersion>,
    pub(crate) rows: usize,
}

impl FakeExecutor {
    pub(crate) fn new(block_size: u32, num_blocks: u32) -> Self {
        let block_size = block_size as usize;
        Self {
            block_size,
            blocks: vec![vec![None; block_size]; num_blocks as usize],
            adapters: HashMap::new(),
            tenants: HashMap::new(),
            poisoned_embeds: BTreeSet::new(),
            rows: 0,
        }
    }

    /// The adapter is on the device; these sequences are this tenant's.
    pub(crate) fn introduce(&mut self, request: &EngineRequest, ids: &[SequenceId]) {
        if let Some(adapter) = request.adapter {
            self.adapters.insert(adapter.slot, adapter);
        }
        self.tenants.extend(ids.iter().map(|id| (*id, request.tenant_salt.to_vec())));
    }

    pub(crate) fn poison(&mut self, block: BlockId) {
        self.blocks[block.index()].fill(None);
    }

    pub(crate) fn execute(&mut self, batch: &ScheduledBatch) -> StepOutput {
        for write in &batch.prefix_writes {
            let adapter = self.adapters[&write.slot];
            let tokens = adapter.virtual_tokens.unwrap();
            assert!(tokens.saved_kv, "prompt embeddings have no saved KV to write");
            assert_eq!(write.blocks.len(), (tokens.count as usize).div_ceil(self.block_size));
            let mut history = 0;
            for index in 0..tokens.count {
                history = digest(history, Some(adapter.version), None, index);
                let place = Place { index, version: Some(adapter.version), token: None, tenant: None, digest: history };
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
            let state = self.rows_of(sequence, &mut writes);
            self.rows += sequence.tokens.len();
            if let Some(result) = self.sample(sequence, state) {
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

    /// Read everything before the new rows, then stage the new rows. Returns the digest of it all.
    fn rows_of(
        &self,
        sequence: &ScheduledSequence,
        writes: &mut BTreeMap<(BlockId, usize), (SequenceId, Place)>,
    ) -> u64 {
        let adapter = sequence.slot.map(|slot| self.adapters[&slot]);
        let version = adapter.map(|adapter| adapter.version);
        let tenant = self.tenants.get(&sequence.id);
        let count = virtual_count(adapter);
        let places = sequence.start as usize + sequence.tokens.len();
        assert_eq!(sequence.blocks.len(), places.div_ceil(self.block_size), "the table covers exactly its places");
        let distinct: BTreeSet<_> = sequence.blocks.iter().collect();
        assert_eq!(distinct.len(), sequence.blocks.len(), "a block is twice in one table");

        let mut history = 0;
        for index in 0..sequence.start {
            let (block, offset) = (sequence.blocks[index as usize / self.block_size], index as usize % self.block_size);
            let Some(place) = &self.blocks[block.index()][offset] else {
                panic!("{:?} reads poison at KV index {index} in {block:?}", sequence.id);
            };
            history = digest(history, version, place.token, index);
            assert_eq!((place.index, place.version, place.digest), (index, version, history), "{place:?}");
            assert_eq!(place.token.is_none(), index < count, "virtual tokens come first: {place:?}");
            assert!(place.token.is_none() || place.tenant.as_ref() == tenant, "another tenant's KV: {place:?}");
        }
        let tokens: Vec<_> = match &sequence.tokens {
            TokenSource::Ids(ids) => {
                assert!(sequence.start >= count, "real tokens start behind the virtual ones");
                ids.iter().map(|id| Some(*id)).collect()
            }
            TokenSource::PromptEmbeds { first, count: rows } => {
                assert!(adapter.and_then(|adapter| adapter.virtual_tokens).is_some_and(|tokens| !tokens.saved_kv));
                assert_eq!(*first, sequence.start);
                assert!(sequence.sample.is_none() && first + rows <= count);
                vec![None; *rows as usize]
            }
        };
        assert!(!tokens.is_empty());
        for (index, token) in (sequence.start..).zip(tokens) {
            history = digest(history, version, token, index);
            let tenant = if token.is_some() { tenant.cloned() } else { None };
            let place = Place { index, version, token, tenant, digest: history };
            let at = (sequence.blocks[index as usize / self.block_size], index as usize % self.block_size);
            assert!(writes.insert(at, (sequence.id, place)).is_none(), "{at:?} is written twice in a step");
        }
        history
    }

    fn sample(&self, sequence: &ScheduledSequence, state: u64) -> Option<Result<SampledToken, SequenceFailure>> {
        let version = sequence.slot.map(|slot| self.adapters[&slot].version);
        if matches!(sequence.tokens, TokenSource::PromptEmbeds { .. })
            && version.is_some_and(|version| self.poisoned_embeds.contains(&version))
        {
            return Some(Err(SequenceFailure::NonFinite));
        }
        let SampleSpec { params, choice, output_position, banned, counts } = sequence.sample.as_ref()?;
        assert_eq!(counts.is_some(), params.needs_counts());
        if let Some(counts) = counts {
            assert_eq!(counts.iter().map(|(_, occurrences)| occurrences).sum::<u32>(), *output_position);
        }
        if params.seed == NON_FINITE_SEED {
            return Some(Err(SequenceFailure::NonFinite));
        }
        let token = choose(state, params.seed, *choice, *output_position, banned);
        Some(Ok(SampledToken { token, logprob: None }))
    }
}
