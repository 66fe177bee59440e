//! From what the scheduler decided to what the decoder reads: a pure translation of ids into flat arrays.

use crate::model::{EmbedRows, ModelInput};
use crate::ops::{RowPlan, SampledRows, SequencePlan};
use crate::types::{Output, ScheduledBatch, ScheduledSequence, SequenceId, TokenSource};

/// A decoder's input, and for each sampled row in order whose it is.
pub(super) struct Prepared {
    pub(super) input: ModelInput,
    pub(super) sampled: Vec<SequenceId>,
}

/// `long_rows` is where the long frequencies begin in the rotary tables of a base that has two sets of them.
pub(super) fn prepare(batch: &ScheduledBatch, block_size: u32, long_rows: Option<u32>) -> Prepared {
    let rows = batch.num_tokens();
    let mut slots = Vec::with_capacity(rows);
    let mut input = ModelInput::default();
    let mut sampled_rows = Vec::new();
    let mut sampled = Vec::new();
    for sequence in &batch.sequences {
        let first = slots.len();
        slots.resize(first + sequence.tokens.len(), sequence.slot);
        append(&mut input, sequence, first, block_size);
        if let Some(long_rows) = long_rows {
            let positions = &input.plan.positions[first..];
            let row = |position: &u32| *position + if *position >= sequence.long_from { long_rows } else { 0 };
            input.plan.rope_rows.extend(positions.iter().map(row));
        }
        if let Some(spec) = &sequence.sample {
            sampled.push(sequence.id);
            sampled_rows.push(slots.len() as u32 - 1);
            input.plan.outputs.push(Output::Sample(spec.clone()));
        }
    }
    input.plan.rows = RowPlan::new(slots);
    input.plan.sampled = SampledRows::groups(&input.plan.rows, &sampled_rows);
    Prepared { input, sampled }
}

fn append(input: &mut ModelInput, sequence: &ScheduledSequence, first: usize, block_size: u32) {
    let count = sequence.tokens.len();
    let rows = first..first + count;
    match &sequence.tokens {
        TokenSource::Ids(ids) => input.plan.ids.extend(ids.iter().copied().map(Some)),
        TokenSource::PromptEmbeds { first: first_virtual, .. } => {
            input.plan.ids.resize(rows.end, None);
            if let Some(slot) = sequence.slot {
                input.embeds.push(EmbedRows { slot, first: *first_virtual as usize, rows: rows.clone() });
            }
        }
    }
    for position in sequence.start..sequence.start + count as u32 {
        let block = sequence.blocks[(position / block_size) as usize];
        input.plan.positions.push(position);
        input.plan.kv_slots.push(block.0 * block_size + position % block_size);
    }
    let blocks = sequence.blocks.iter().map(|block| block.0).collect();
    input.plan.sequences.push(SequencePlan { rows, start: sequence.start, blocks });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{AdapterSlot, BlockId, SampleSpec, SamplingParams};

    fn sequence(id: u64, slot: Option<u32>, start: u32, tokens: TokenSource, blocks: &[u32]) -> ScheduledSequence {
        let blocks = blocks.iter().copied().map(BlockId).collect();
        ScheduledSequence {
            id: SequenceId(id),
            slot: slot.map(AdapterSlot),
            start,
            tokens,
            blocks,
            long_from: 1,
            sample: None,
        }
    }

    #[test]
    fn the_running_example_of_the_plan_comes_out_as_documented() {
        let mut batch = ScheduledBatch::default();
        batch.sequences.push(sequence(0, Some(2), 5, TokenSource::Ids(vec![7]), &[3, 1]));
        batch.sequences.push(sequence(1, None, 0, TokenSource::Ids(vec![4, 5, 6]), &[0]));
        batch.sequences.push(sequence(2, Some(2), 1, TokenSource::PromptEmbeds { first: 1, count: 1 }, &[2]));
        let spec = SampleSpec {
            params: SamplingParams::greedy().into(),
            choice: 0,
            output_position: 0,
            banned: vec![],
            counts: None,
        };
        batch.sequences[1].sample = Some(spec.clone());
        let prepared = prepare(&batch, 4, None);
        let plan = &prepared.input.plan;
        assert_eq!(plan.positions, [5, 0, 1, 2, 1]);
        assert_eq!(plan.kv_slots, [5, 0, 1, 2, 9]);
        assert_eq!(plan.ids, [Some(7), Some(4), Some(5), Some(6), None]);
        assert_eq!(plan.rows.order, [0, 4]);
        assert_eq!(plan.sequences[1].rows, 1..4);
        assert_eq!((&plan.sampled[0].sources[..], &plan.outputs[..]), (&[3][..], &[Output::Sample(spec)][..]));
        assert_eq!(prepared.sampled, [SequenceId(1)]);
        assert!(plan.rope_rows.is_empty());
        assert_eq!(prepare(&batch, 4, Some(100)).input.plan.rope_rows, [105, 0, 101, 102, 101]);
        assert_eq!(prepared.input.embeds, [EmbedRows { slot: AdapterSlot(2), first: 1, rows: 4..5 }]);
    }
}
