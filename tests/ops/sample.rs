//! Rows of logits that ask for different things, and what a backend must make of them.

use std::sync::Arc;

use polydelta::ops::{Backend, SampleOutcome, SampledRows, StepOutcomes};
use polydelta::types::{Output, SampleSpec, SamplingParams, SequenceFailure, TokenCounts};

use super::{numbers, plan_of};

pub(crate) fn sample(index: u32, params: SamplingParams) -> Output {
    let counts = params.needs_counts().then(|| Arc::new(TokenCounts::of_prompt(&[1, 2, 3, 90])));
    Output::Sample(SampleSpec {
        params: Arc::new(params),
        choice: 0,
        output_position: index,
        banned: if index % 5 == 4 { vec![3, 7] } else { Vec::new() },
        counts,
    })
}

/// Rows that ask for different things, in turn. The vocabulary has more than 90 ids.
pub(crate) fn outputs(rows: usize) -> Vec<Output> {
    let base = SamplingParams { temperature: 0.8, seed: 3, ..SamplingParams::greedy() };
    let kinds = [
        SamplingParams::greedy(),
        SamplingParams { logprobs: Some(20), ..SamplingParams::greedy() },
        base.clone(),
        SamplingParams { top_p: 0.9, ..base.clone() },
        SamplingParams { top_p: 0.3, min_p: 0.2, ..base.clone() },
        SamplingParams { top_k: 50, min_p: 0.01, ..base.clone() },
        SamplingParams { top_k: 5, top_p: 0.7, logprobs: Some(3), ..base.clone() },
        SamplingParams { min_p: 0.05, temperature: 1.7, ..base.clone() },
        SamplingParams { repetition_penalty: 1.3, top_p: 0.5, logprobs: Some(0), ..base.clone() },
        SamplingParams {
            frequency_penalty: 0.4,
            presence_penalty: 0.2,
            logit_bias: [(5, 2.0), (90, -3.0)].into(),
            ..base
        },
    ];
    let score = |row: usize| Output::PromptLogprobs { target: row as u32, top: 5 };
    let output =
        |row: usize| kinds.get(row % (kinds.len() + 1)).map_or(score(row), |kind| sample(row as u32, kind.clone()));
    (0..rows).map(output).collect()
}

/// What comes of all rows of `logits`, group by group.
pub(crate) fn choose<B: Backend>(backend: &B, outputs: &[Output], vocab: usize, logits: &[f32]) -> Vec<SampleOutcome> {
    let groups = logits.chunks(SampledRows::MOST * vocab);
    let groups: Vec<B::Buffer> = groups.map(|group| backend.buffer_of(vocab, group).unwrap()).collect();
    choose_from(backend, outputs, &groups)
}

/// The same of rows that lie in buffers, each of a group.
pub(crate) fn choose_from<B: Backend>(backend: &B, outputs: &[Output], logits: &[B::Buffer]) -> Vec<SampleOutcome> {
    let mut plan = plan_of(vec![None; outputs.len()]);
    plan.sampled = SampledRows::groups(&plan.rows, &(0..outputs.len() as u32).collect::<Vec<_>>());
    plan.outputs = outputs.to_vec();
    let mut step = backend.step();
    backend.upload(&plan, &mut step).unwrap();
    logits.iter().enumerate().for_each(|(group, logits)| backend.sample(&mut step, group, logits, None));
    backend.finish(&mut step).unwrap().sampled
}

/// A row that is not finite fails alone, and the next step begins anew.
pub(crate) fn check_non_finite<B: Backend>(backend: &B) {
    let outputs = outputs(3);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut logits = numbers(1, 3 * 900);
        logits[900 + 17] = bad;
        let outcomes = choose(backend, &outputs, 900, &logits);
        assert_eq!(outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(outcomes[1], Err(SequenceFailure::NonFinite));
    }
    let mut step = backend.step();
    assert_eq!(backend.finish(&mut step).unwrap(), StepOutcomes::default());
}
