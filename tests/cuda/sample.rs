//! Sampling on the device against the sampler.

use polydelta::ops::reference::ReferenceBackend;
use polydelta::ops::{Numerics, SampleOutcome};
use polydelta::types::{Output, SamplingParams};

use crate::device::cuda;
use crate::scene::numbers;
use crate::scene::sample::{check_non_finite, choose, outputs, sample};

#[track_caller]
pub(crate) fn assert_alike(got: &SampleOutcome, want: &SampleOutcome, what: &str) {
    let (Ok(got), Ok(want)) = (got, want) else {
        assert_eq!(got, want, "{what}");
        return;
    };
    assert_eq!(got.token, want.token, "{what}");
    assert_eq!(got.logprob.is_some(), want.logprob.is_some(), "{what}");
    let (Some(got), Some(want)) = (&got.logprob, &want.logprob) else { return };
    // Of a token that the row does not have it is minus infinity.
    let is_alike = got.logprob == want.logprob || (got.logprob - want.logprob).abs() < 1e-5;
    assert!(is_alike, "{what}: {got:?}, not {want:?}");
    assert_eq!(got.top.len(), want.top.len(), "{what}");
    for (got, want) in got.top.iter().zip(&want.top) {
        assert!(got.0 == want.0 && (got.1 - want.1).abs() < 1e-5, "{what}: {got:?}, not {want:?}");
    }
}

#[test]
fn rows_get_the_tokens_of_the_sampler_alone_and_mixed() {
    let cuda = cuda(Numerics::BF16);
    for (vocab, rows) in [(997, 70), (4999, 22), (3, 11)] {
        let outputs = outputs(rows);
        let numbers: Vec<f32> = numbers(7, rows * vocab).iter().map(|logit| logit * 9.0).collect();
        let (outputs, numbers) = if vocab == 3 { (small(outputs), numbers) } else { (outputs, numbers) };
        let want = choose(&ReferenceBackend::new(Numerics::F32), &outputs, vocab, &numbers);
        let got = choose(&cuda, &outputs, vocab, &numbers);
        assert_eq!(got.len(), want.len());
        for (row, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_alike(got, want, &format!("{vocab} row {row}: {:?}", outputs[row]));
        }
        for row in (0..rows).step_by(3) {
            let alone = choose(&cuda, &outputs[row..=row], vocab, &numbers[row * vocab..][..vocab]);
            assert_eq!(alone, got[row..=row], "row {row} alone");
        }
    }
}

/// Without what names ids that a small vocabulary has not.
fn small(outputs: Vec<Output>) -> Vec<Output> {
    let greedy = |index| sample(index, SamplingParams { logprobs: Some(20), ..SamplingParams::greedy() });
    (0..outputs.len() as u32).map(|index| greedy(if index % 5 == 4 { index + 1 } else { index })).collect()
}

#[test]
fn ties_go_to_the_lower_id() {
    let mut logits = vec![0.0; 300];
    (logits[70], logits[200]) = (5.0, 5.0);
    let outputs = [sample(0, SamplingParams { logprobs: Some(3), ..SamplingParams::greedy() })];
    let chosen = choose(&cuda(Numerics::F32), &outputs, 300, &logits);
    let chosen = chosen[0].as_ref().unwrap();
    assert_eq!(chosen.token, 70);
    let ids: Vec<u32> = chosen.logprob.as_ref().unwrap().top.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [70, 200, 0]);
}

#[test]
fn a_row_that_is_not_finite_fails_alone_and_the_next_step_begins_anew() {
    check_non_finite(&cuda(Numerics::BF16));
}
