//! From what the scheduler decided to what the decoder reads, a pure translation of ids into flat arrays; and from what
//! came of its rows back to whose they are.

use super::input_batch::{SequenceInput, StepInput};
use crate::model::{EmbedRows, ModelInput};
use crate::ops::{SampleOutcome, SampledRows, SequencePlan};
use crate::types::{Output, ScheduledBatch, StepOutput};

/// A decoder's input, in the memory of the step before.
#[derive(Debug, Default)]
pub(super) struct PassInput {
    pub(super) input: ModelInput,
    /// Rows of the pass that are sampled or scored, ascending.
    sampled_rows: Vec<u32>,
}

impl PassInput {
    /// Make it that of a step. `long_rows` is where the long frequencies begin in the rotary tables of a base that has two
    /// sets of them.
    pub(super) fn prepare(&mut self, step: &StepInput<'_>, block_size: u32, long_rows: Option<u32>) {
        let Self { input, sampled_rows } = self;
        input.plan.clear();
        input.embeds.clear();
        sampled_rows.clear();
        for sequence in step.sequences() {
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
        }
        input.plan.rows.group();
        SampledRows::group_into(&mut input.plan.sampled, &input.plan.rows, sampled_rows);
    }
}

/// Give each sequence of a step what came of its rows; `outcomes` are those of the prepared rows, in order.
pub(super) fn hand_out(batch: &ScheduledBatch, outcomes: Vec<SampleOutcome>) -> StepOutput {
    let mut outcomes = outcomes.into_iter();
    let mut output = StepOutput::default();
    for share in &batch.sequences {
        if !share.scored.is_empty() {
            // All of its rows are taken, whatever they hold: those of the next sequence begin behind them.
            let rows: Vec<SampleOutcome> = outcomes.by_ref().take(share.scored.len()).collect();
            let scored = |row: SampleOutcome| row.map(|scored| scored.logprob.map(|logprob| (scored.token, logprob)));
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
    let ModelInput { plan, embeds } = input;
    let first = plan.rows.slots.len();
    let rows = first..first + sequence.count as usize;
    plan.rows.slots.resize(rows.end, sequence.slot);
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
        AdapterSlot, BlockId, JoinedSequence, RowSource, SampleSpec, SampledToken, SamplingParams, ScheduledSequence,
        SequenceFailure, SequenceId, StoppingParams, TokenLogprob, Tokens,
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
        batch.joined.push(JoinedSequence { id, slot: slot.map(AdapterSlot), source, start, blocks, long_from: 1 });
        batch.sequences.push(ScheduledSequence { id, count, new_blocks: vec![], scored: 0..0, sample: id.0 == 1 });
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
            prepared.prepare(&step, 4, None);
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
            prepared.prepare(&step, 4, Some(100));
            assert_eq!(prepared.input.plan.rope_rows, [105, 0, 101, 102, 101]);
        }
        prepared.prepare(&step.base_alone(), 4, None);
        assert_eq!(prepared.input.plan.rows.slots, [None; 5]);
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
        prepared.prepare(&StepInput::new(&batch, &sequences), 4, None);
        let plan = &prepared.input.plan;
        assert_eq!(plan.sampled[0].sources, [1, 2, 3, 4, 5]);
        let scored = [6, 70, 8, 9].map(|target| Output::PromptLogprobs { target, top: 2 });
        assert_eq!(plan.outputs[..4], scored);
        assert!(matches!(plan.outputs[4], Output::Sample(_)));

        let logprob = |logprob| TokenLogprob { logprob, top: vec![] };
        let row = |token, value| Ok(SampledToken { token, logprob: Some(logprob(value)) });
        let broken = Err(SequenceFailure::NonFinite);
        let output = hand_out(&batch, vec![broken, row(70, -1.0), row(8, -2.0), row(9, -3.0), row(11, -4.0)]);
        let second = vec![(8, logprob(-2.0)), (9, logprob(-3.0))];
        let failed = Err(SequenceFailure::NonFinite);
        assert_eq!(output.prompt_logprobs, [(SequenceId(0), failed), (SequenceId(1), Ok(second))]);
        assert_eq!(output.sampled, [(SequenceId(1), row(11, -4.0))]);
    }
}
