//! From what the scheduler decided to what the decoder reads, a pure translation of ids into flat arrays; and from what
//! came of its rows back to whose they are.

use super::input_batch::{SequenceInput, StepInput};
use crate::model::{EmbedRows, ModelInput};
use crate::ops::{PooledRows, PooledSpan, SampledRows, SequencePlan, StepOutcomes};
use crate::types::{Output, PoolRows, SampledToken, ScheduledBatch, SequenceFailure, StepOutput};

/// A decoder's input, in the memory of the step before.
#[derive(Debug, Default)]
pub(super) struct PassInput {
    pub(super) input: ModelInput,
    /// Rows of the pass that are sampled or scored, ascending.
    sampled_rows: Vec<u32>,
    /// Rows of the pass that are pooled.
    spans: Vec<PooledSpan>,
}

impl PassInput {
    /// Make it that of the sequences of a step that are `from_shared`, or of those that are not. `long_rows` is where the long
    /// frequencies begin in the rotary tables of a base that has two sets of them.
    pub(super) fn prepare(&mut self, step: &StepInput<'_>, block_size: u32, long_rows: Option<u32>, from_shared: bool) {
        let Self { input, sampled_rows, spans } = self;
        input.from_shared = from_shared;
        input.plan.clear();
        input.embeds.clear();
        sampled_rows.clear();
        spans.clear();
        for sequence in step.sequences().filter(|sequence| sequence.from_shared == from_shared) {
            let first = input.plan.rows.slots.len() as u32;
            append(input, &sequence, block_size, long_rows);
            for (row, output) in sequence.scored() {
                sampled_rows.push(first + row);
                input.plan.outputs.push(output);
            }
            if let Some(sample) = sequence.sample() {
                sampled_rows.push(input.plan.rows.slots.len() as u32 - 1);
                input.plan.outputs.push(Output::Sample(sample));
            }
            push_spans(spans, first, &sequence);
        }
        input.plan.rows.group();
        SampledRows::group_into(&mut input.plan.sampled, &input.plan.rows, sampled_rows);
        input.plan.pooled = PooledRows::groups(&input.plan.rows, spans);
    }
}

/// What is pooled of a sequence whose rows begin at `first` in the pass.
fn push_spans(spans: &mut Vec<PooledSpan>, first: u32, sequence: &SequenceInput<'_>) {
    let Some((rows, pool)) = sequence.pooled() else { return };
    let rows = first + rows.start..first + rows.end;
    let labels = pool.labels;
    match pool.rows {
        PoolRows::Each => spans.extend(rows.map(|row| PooledSpan { rows: row..row + 1, onto: None, labels })),
        PoolRows::Sum => spans.push(PooledSpan { rows, onto: sequence.sum().cloned(), labels }),
        PoolRows::First | PoolRows::Last => spans.push(PooledSpan { rows, onto: None, labels }),
    }
}

/// Give each sequence of a step what came of its rows; `outcomes` are those of the prepared rows and of the `spans` of them, in
/// order.
pub(super) fn hand_out(step: &StepInput<'_>, outcomes: StepOutcomes) -> StepOutput {
    let StepOutcomes { sampled, pooled } = outcomes;
    let mut output = hand_out_tokens(step.batch(), sampled);
    let mut pooled = pooled.into_iter();
    for sequence in step.sequences() {
        let Some((rows, pool)) = sequence.pooled() else { continue };
        let count = if pool.rows == PoolRows::Each { rows.len() } else { 1 };
        // All of them are taken, whatever they hold: those of the next sequence begin behind them.
        let vectors: Vec<_> = pooled.by_ref().take(count).collect();
        output.pooled.push((sequence.id, vectors.into_iter().collect()));
    }
    output
}

fn hand_out_tokens(batch: &ScheduledBatch, outcomes: Vec<Result<SampledToken, SequenceFailure>>) -> StepOutput {
    let mut outcomes = outcomes.into_iter();
    let mut output = StepOutput::default();
    for share in &batch.sequences {
        if !share.scored.is_empty() {
            // All of its rows are taken, whatever they hold: those of the next sequence begin behind them.
            let rows: Vec<_> = outcomes.by_ref().take(share.scored.len()).collect();
            let scored =
                |row: Result<SampledToken, _>| row.map(|scored| scored.logprob.map(|logprob| (scored.token, logprob)));
            let rows: Result<Vec<_>, _> = rows.into_iter().filter_map(|row| scored(row).transpose()).collect();
            output.prompt_logprobs.push((share.id, rows));
        }
        if share.sample
            && let Some(outcome) = outcomes.next()
        {
            output.sampled.push((share.id, outcome));
        }
    }
    output
}

fn append(input: &mut ModelInput, sequence: &SequenceInput<'_>, block_size: u32, long_rows: Option<u32>) {
    let ModelInput { plan, embeds, .. } = input;
    let first = plan.rows.slots.len();
    let rows = first..first + sequence.count as usize;
    plan.rows.slots.extend(sequence.slots());
    match (sequence.ids(), sequence.slot) {
        (Some(ids), _) => plan.ids.extend(ids.map(Some)),
        (None, slot) => {
            plan.ids.resize(rows.end, None);
            embeds.extend(slot.map(|slot| EmbedRows { slot, first: sequence.start as usize, rows: rows.clone() }));
        }
    }
    for position in sequence.places() {
        let block = sequence.blocks[(position / block_size) as usize];
        plan.positions.push(position);
        plan.kv_slots.push(block * block_size + position % block_size);
    }
    if let Some(long_rows) = long_rows {
        let row = |position| position + if position >= sequence.long_from { long_rows } else { 0 };
        plan.rope_rows.extend(sequence.places().map(row));
    }
    plan.sequences.push(SequencePlan { rows, start: sequence.start, blocks: sequence.blocks.clone() });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::input_batch::InputBatch;
    use crate::types::{
        AdapterSlot, BlockId, JoinedSequence, PoolSpec, PooledVector, RowSource, SampleSpec, SampledToken,
        SamplingParams, ScheduledSequence, SequenceFailure, SequenceId, StoppingParams, TokenLogprob, Tokens,
    };

    fn tokens(prompt: &[u32]) -> RowSource {
        RowSource::Tokens {
            tokens: Tokens::new(prompt.into()),
            first: 0,
            choice: 0,
            sampling: SamplingParams { prompt_logprobs: Some(2), ..SamplingParams::greedy() }.into(),
            stopping: StoppingParams { max_tokens: 9, min_tokens: 0, stop_token_ids: vec![] }.into(),
        }
    }

    /// `count` rows of a sequence that joins.
    fn join(
        batch: &mut ScheduledBatch,
        slot: Option<u32>,
        (start, count): (u32, u32),
        source: RowSource,
        blocks: &[u32],
    ) {
        let id = SequenceId(batch.joined.len() as u64);
        let blocks = blocks.iter().copied().map(BlockId).collect();
        let slot = slot.map(AdapterSlot);
        batch.joined.push(JoinedSequence { id, slot, active_from: 0, source, start, blocks, long_from: 1 });
        batch.sequences.push(ScheduledSequence {
            id,
            count,
            new_blocks: vec![],
            from_shared: false,
            scored: 0..0,
            pooled: 0..0,
            sample: id.0 == 1,
        });
    }

    #[test]
    fn the_running_example_of_the_plan_comes_out_as_documented() {
        let mut batch = ScheduledBatch::default();
        join(&mut batch, Some(2), (5, 1), tokens(&[0, 0, 0, 0, 0, 7]), &[3, 1]);
        join(&mut batch, None, (0, 3), tokens(&[4, 5, 6]), &[0]);
        join(&mut batch, Some(2), (1, 1), RowSource::PromptEmbeds, &[2]);
        let mut sequences = InputBatch::default();
        sequences.apply(&batch);
        let step = StepInput::new(&batch, &sequences);
        let mut prepared = PassInput::default();
        // Twice: what a step leaves behind is not in the next one.
        for _ in 0..2 {
            prepared.prepare(&step, 4, None, false);
            let plan = &prepared.input.plan;
            assert_eq!(plan.positions, [5, 0, 1, 2, 1]);
            assert_eq!(plan.kv_slots, [5, 0, 1, 2, 9]);
            assert_eq!(plan.ids, [Some(7), Some(4), Some(5), Some(6), None]);
            assert_eq!(plan.rows.order, [0, 4]);
            assert_eq!(plan.sequences[1].rows, 1..4);
            let spec = SampleSpec {
                params: SamplingParams { prompt_logprobs: Some(2), ..SamplingParams::greedy() }.into(),
                choice: 0,
                output_position: 0,
                banned: vec![],
                counts: None,
            };
            assert_eq!((&plan.sampled[0].sources[..], &plan.outputs[..]), (&[3][..], &[Output::Sample(spec)][..]));
            assert!(plan.rope_rows.is_empty());
            assert_eq!(prepared.input.embeds, [EmbedRows { slot: AdapterSlot(2), first: 1, rows: 4..5 }]);
            prepared.prepare(&step, 4, Some(100), false);
            assert_eq!(prepared.input.plan.rope_rows, [105, 0, 101, 102, 101]);
        }
        prepared.prepare(&step.base_alone(), 4, None, false);
        assert_eq!(prepared.input.plan.rows.slots, [None; 5]);
    }

    #[test]
    fn rows_before_the_adapter_is_active_are_the_bases_however_they_are_cut() {
        let mut batch = ScheduledBatch::default();
        join(&mut batch, Some(2), (0, 3), tokens(&[4, 5, 6, 7, 8]), &[0, 1]);
        batch.joined[0].active_from = 2;
        let mut sequences = InputBatch::default();
        sequences.apply(&batch);
        let mut prepared = PassInput::default();
        let mut slots = |batch: &ScheduledBatch, sequences: &InputBatch| {
            prepared.prepare(&StepInput::new(batch, sequences), 4, None, false);
            prepared.input.plan.rows.slots.clone()
        };
        assert_eq!(slots(&batch, &sequences), [None, None, Some(AdapterSlot(2))]);
        sequences.advance(&batch, &StepOutput::default());
        batch.joined.clear();
        batch.sequences[0].count = 2;
        assert_eq!(slots(&batch, &sequences), [Some(AdapterSlot(2)); 2]);
    }

    #[test]
    fn scored_rows_come_before_the_sampled_one_and_back_to_their_sequence() {
        let mut batch = ScheduledBatch::default();
        join(&mut batch, None, (0, 3), tokens(&[4, 5, 6, 70]), &[0]);
        join(&mut batch, None, (2, 3), tokens(&[0, 0, 7, 8, 9]), &[1, 2]);
        batch.sequences[0].scored = 1..3;
        batch.sequences[1].scored = 0..2;
        let mut sequences = InputBatch::default();
        sequences.apply(&batch);
        let mut prepared = PassInput::default();
        prepared.prepare(&StepInput::new(&batch, &sequences), 4, None, false);
        let plan = &prepared.input.plan;
        assert_eq!(plan.sampled[0].sources, [1, 2, 3, 4, 5]);
        let scored = [6, 70, 8, 9].map(|target| Output::PromptLogprobs { target, top: 2 });
        assert_eq!(plan.outputs[..4], scored);
        assert!(matches!(plan.outputs[4], Output::Sample(_)));

        let logprob = |logprob| TokenLogprob { logprob, top: vec![] };
        let row = |token, value| Ok(SampledToken { token, logprob: Some(logprob(value)) });
        let broken = Err(SequenceFailure::NonFinite);
        let sampled = vec![broken, row(70, -1.0), row(8, -2.0), row(9, -3.0), row(11, -4.0)];
        let step = StepInput::new(&batch, &sequences);
        let output = hand_out(&step, StepOutcomes { sampled, pooled: Vec::new() });
        let second = vec![(8, logprob(-2.0)), (9, logprob(-3.0))];
        let failed = Err(SequenceFailure::NonFinite);
        assert_eq!(output.prompt_logprobs, [(SequenceId(0), failed), (SequenceId(1), Ok(second))]);
        assert_eq!(output.sampled, [(SequenceId(1), row(11, -4.0))]);
    }

    #[test]
    fn pooled_rows_go_on_from_the_sum_before_and_back_to_their_sequence() {
        let pooling = |rows, labels, prompt: &[u32]| {
            let RowSource::Tokens { first, choice, stopping, .. } = tokens(prompt) else { panic!() };
            let sampling = SamplingParams::pooling(PoolSpec { rows, labels }).into();
            RowSource::Tokens { tokens: Tokens::new(prompt.into()), first, choice, sampling, stopping }
        };
        let mut batch = ScheduledBatch::default();
        join(&mut batch, Some(1), (0, 2), pooling(PoolRows::Sum, None, &[4, 5, 6]), &[0]);
        join(&mut batch, None, (0, 3), pooling(PoolRows::Each, Some(2), &[7, 8, 9]), &[1]);
        join(&mut batch, None, (0, 2), pooling(PoolRows::Last, None, &[7, 8]), &[2]);
        batch.sequences[1].sample = false;
        for (share, rows) in batch.sequences.iter_mut().zip([0..2, 1..3, 1..2]) {
            share.pooled = rows;
        }
        let mut sequences = InputBatch::default();
        sequences.apply(&batch);
        let span = |rows, onto: Option<&PooledVector>, labels| PooledSpan { rows, onto: onto.cloned(), labels };
        let mut prepared = PassInput::default();
        prepared.prepare(&StepInput::new(&batch, &sequences), 4, None, false);
        let [group] = &prepared.input.plan.pooled[..] else { panic!() };
        let spans =
            [span(0..2, None, None), span(3..4, None, Some(2)), span(4..5, None, Some(2)), span(6..7, None, None)];
        assert_eq!(group.spans, spans);
        assert_eq!(group.rows.slots, [Some(AdapterSlot(1)), None, None, None]);
        assert!(prepared.input.plan.sampled.is_empty() && prepared.input.plan.outputs.is_empty());

        let vector = |number: f32| PooledVector::from([number]);
        let broken = Err(SequenceFailure::NonFinite);
        let pooled = vec![Ok(vector(3.0)), broken.clone(), Ok(vector(1.0)), Ok(vector(2.0))];
        let outcomes = StepOutcomes { sampled: Vec::new(), pooled };
        let output = hand_out(&StepInput::new(&batch, &sequences), outcomes);
        let expected = [Ok(vec![vector(3.0)]), broken.map(|_| Vec::new()), Ok(vec![vector(2.0)])];
        assert_eq!(output.pooled, (0..).map(SequenceId).zip(expected).collect::<Vec<_>>());

        // A step that is tried again has the sum of the step before, until its own is taken in.
        sequences.advance(&batch, &output);
        let mut next = ScheduledBatch { sequences: batch.sequences[..1].to_vec(), ..ScheduledBatch::default() };
        (next.sequences[0].count, next.sequences[0].pooled) = (1, 0..1);
        for _ in 0..2 {
            prepared.prepare(&StepInput::new(&next, &sequences), 4, None, false);
            assert_eq!(prepared.input.plan.pooled[0].spans, [span(0..1, Some(&vector(3.0)), None)]);
        }
    }
}
