use super::*;
use crate::types::{BlockId, SampledToken, SequenceFailure};

const A: SequenceId = SequenceId(1);
const B: SequenceId = SequenceId(2);

fn joined(id: SequenceId, prompt: &[u32], sampling: SamplingParams) -> JoinedSequence {
    JoinedSequence {
        id,
        slot: Some(AdapterSlot(3)),
        active_from: 0,
        source: RowSource::Tokens {
            tokens: Tokens::new(prompt.into()),
            first: 2,
            choice: 4,
            sampling: sampling.into(),
            stopping: StoppingParams { max_tokens: 9, min_tokens: 2, stop_token_ids: vec![9] }.into(),
        },
        start: 2,
        blocks: vec![BlockId(5), BlockId(6)],
        long_from: 7,
    }
}

fn share(id: SequenceId, count: u32, new_blocks: &[u32], sample: bool) -> ScheduledSequence {
    let new_blocks = new_blocks.iter().copied().map(BlockId).collect();
    ScheduledSequence { id, count, new_blocks, from_shared: false, scored: 0..0, pooled: 0..0, sample }
}

fn step(sequences: Vec<ScheduledSequence>) -> ScheduledBatch {
    ScheduledBatch { sequences, ..ScheduledBatch::default() }
}

fn sampled(ids: &[(SequenceId, u32)]) -> StepOutput {
    let sampled = ids.iter().map(|&(id, token)| (id, Ok(SampledToken { token, logprob: None }))).collect();
    StepOutput { sampled, ..StepOutput::default() }
}

/// (start, ids, blocks) of the only sequence of a step.
fn rows(batch: &ScheduledBatch, sequences: &InputBatch) -> (u32, Vec<u32>, Vec<u32>) {
    let only = StepInput::new(batch, sequences).sequences().next().unwrap();
    (only.start, only.ids().unwrap().collect(), only.blocks.to_vec())
}

#[test]
fn a_sequence_is_told_once_and_moves_by_what_is_computed_and_sampled() {
    let mut sequences = InputBatch::default();
    let first = ScheduledBatch {
        joined: vec![joined(A, &[10, 11, 12], SamplingParams::greedy())],
        ..step(vec![share(A, 2, &[], false)])
    };
    sequences.apply(&first);
    assert_eq!(rows(&first, &sequences), (2, vec![10, 11], vec![5, 6]));
    let input = StepInput::new(&first, &sequences).sequences().next().unwrap();
    assert_eq!((input.slot, input.long_from, input.places()), (Some(AdapterSlot(3)), 7, 2..4));
    assert_eq!(input.sample(), None);
    sequences.advance(&first, &StepOutput::default());

    let second = step(vec![share(A, 1, &[], true)]);
    sequences.apply(&second);
    assert_eq!(rows(&second, &sequences), (4, vec![12], vec![5, 6]));
    sequences.advance(&second, &sampled(&[(A, 30)]));

    let third = step(vec![share(A, 1, &[8], true)]);
    sequences.apply(&third);
    assert_eq!(rows(&third, &sequences), (5, vec![30], vec![5, 6, 8]));
    let sample = StepInput::new(&third, &sequences).sequences().next().unwrap().sample().unwrap();
    assert_eq!((sample.choice, sample.output_position, sample.banned, sample.counts), (4, 1, vec![9], None));
}

#[test]
fn a_step_that_is_tried_again_is_the_same_one() {
    let mut sequences = InputBatch::default();
    let joining = vec![joined(A, &[10], SamplingParams::greedy()), joined(B, &[20], SamplingParams::greedy())];
    let both = vec![share(A, 1, &[], true), share(B, 1, &[], true)];
    let batch = ScheduledBatch { joined: joining, ..step(both.clone()) };
    sequences.apply(&batch);
    let part = step(both[1..].to_vec());
    let before = rows(&part, &sequences);
    assert_eq!(before, rows(&part, &sequences));
    assert_eq!(before, (2, vec![20], vec![5, 6]));
    // Only one of the two could be computed.
    sequences.advance(&part, &sampled(&[(B, 21)]));
    assert_eq!(rows(&step(vec![share(A, 1, &[], true)]), &sequences), (2, vec![10], vec![5, 6]));
    assert_eq!(rows(&part, &sequences), (3, vec![21], vec![5, 6]));
}

#[test]
fn whoever_comes_back_in_the_step_in_which_it_leaves_is_told_anew() {
    let mut sequences = InputBatch::default();
    let batch = ScheduledBatch {
        joined: vec![joined(A, &[10, 11], SamplingParams::greedy())],
        ..step(vec![share(A, 2, &[], true)])
    };
    sequences.apply(&batch);
    sequences.advance(&batch, &sampled(&[(A, 12)]));
    let again = ScheduledBatch {
        left: vec![A],
        joined: vec![JoinedSequence { blocks: vec![BlockId(1)], ..joined(A, &[10, 11], SamplingParams::greedy()) }],
        ..step(vec![share(A, 1, &[], false)])
    };
    sequences.apply(&again);
    assert_eq!(rows(&again, &sequences), (2, vec![10], vec![1]));
    sequences.apply(&ScheduledBatch { left: vec![A], ..ScheduledBatch::default() });
    assert!(sequences.0.is_empty());
}

#[test]
fn counts_go_only_to_those_whose_penalties_need_them_and_are_not_copied_between_steps() {
    let mut sequences = InputBatch::default();
    let penalized = SamplingParams { frequency_penalty: 0.5, ..SamplingParams::greedy() };
    let batch = ScheduledBatch {
        joined: vec![joined(A, &[1, 2], SamplingParams::greedy()), joined(B, &[1, 2], penalized)],
        ..step(vec![share(A, 2, &[], true), share(B, 2, &[], true)])
    };
    sequences.apply(&batch);
    let counts = |sequences: &InputBatch| -> Vec<_> {
        StepInput::new(&batch, sequences).sequences().map(|one| one.request.unwrap().counts.clone()).collect()
    };
    let kept = |sequences: &InputBatch| counts(sequences)[1].as_ref().map(Arc::as_ptr);
    assert_eq!(counts(&sequences)[0], None);
    let before = kept(&sequences);
    for _ in 0..2 {
        sequences.advance(&step(vec![]), &sampled(&[(A, 2), (B, 2)]));
    }
    assert_eq!(kept(&sequences), before);
    assert_eq!(counts(&sequences)[1].as_ref().unwrap().iter().collect::<Vec<_>>(), [(1, 0), (2, 2)]);
}

#[test]
fn a_row_that_failed_appends_nothing() {
    let mut sequences = InputBatch::default();
    let batch = ScheduledBatch {
        joined: vec![joined(A, &[10], SamplingParams::greedy())],
        ..step(vec![share(A, 1, &[], true)])
    };
    sequences.apply(&batch);
    sequences
        .advance(&batch, &StepOutput { sampled: vec![(A, Err(SequenceFailure::NonFinite))], ..StepOutput::default() });
    let sequence = sequences.share(&batch.sequences[0]);
    assert_eq!((sequence.start, sequence.request.unwrap().tokens.len()), (3, 1));
}
