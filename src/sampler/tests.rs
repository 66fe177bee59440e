use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::{AnyMachine, Sampler};
use crate::types::{Output, SampleSpec, SamplingParams, SequenceFailure, TokenCounts};

fn spec(params: SamplingParams) -> SampleSpec {
    SampleSpec { params: Arc::new(params), choice: 0, output_position: 0, banned: Vec::new(), counts: None }
}

fn counts(prompt: impl IntoIterator<Item = u32>, output: impl IntoIterator<Item = u32>) -> Arc<TokenCounts> {
    let mut counts = TokenCounts::of_prompt(&prompt.into_iter().collect::<Vec<_>>());
    output.into_iter().for_each(|id| counts.add_output(id));
    Arc::new(counts)
}

fn at(spec: &SampleSpec, output_position: u32) -> SampleSpec {
    SampleSpec { output_position, ..spec.clone() }
}

fn token(logits: &[f32], spec: &SampleSpec) -> u32 {
    Sampler::new(logits.len()).sample(&AnyMachine, logits, spec).expect("finite logits").token
}

fn warm() -> SamplingParams {
    SamplingParams { temperature: 1.0, ..SamplingParams::greedy() }
}

/// A fixed row of `n` distinct-looking logits.
fn row(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 2_654_435_761) % 10_007) as f32 / 1000.0 - 5.0).collect()
}

#[test]
fn greedy_takes_the_largest_and_the_lower_id_of_equals() {
    let greedy = spec(SamplingParams::greedy());
    assert_eq!(token(&[1.0, 3.0, 2.0], &greedy), 1);
    assert_eq!(token(&[3.0, 1.0, 3.0, 3.0], &greedy), 0);
    assert_eq!(token(&[-0.0, 0.0], &greedy), 0);
    let mut long = row(5000);
    long[1023] = 50.0;
    long[1024] = 50.0;
    long[4999] = 50.0;
    assert_eq!(token(&long, &greedy), 1023);
}

#[test]
fn a_row_with_any_non_finite_logit_fails() {
    let mut sampler = Sampler::new(4);
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for n in [1, 3, 17, 1024, 3000] {
            for place in [0, n / 2, n - 1] {
                for params in [SamplingParams::greedy(), warm()] {
                    let mut logits = row(n);
                    logits[place] = bad;
                    assert_eq!(sampler.sample(&AnyMachine, &logits, &spec(params)), Err(SequenceFailure::NonFinite));
                }
            }
        }
    }
    assert_eq!(sampler.sample(&AnyMachine, &[], &spec(SamplingParams::greedy())), Err(SequenceFailure::NonFinite));
}

#[test]
fn banned_ids_are_never_chosen_and_banning_all_fails() {
    let logits = row(8);
    for params in [SamplingParams::greedy(), warm()] {
        let mut sample = spec(params);
        sample.banned = vec![0, 2, 3, 4, 5, 6, 7, 99];
        assert_eq!(token(&logits, &sample), 1);
        sample.banned.push(1);
        assert_eq!(Sampler::new(8).sample(&AnyMachine, &logits, &sample), Err(SequenceFailure::NonFinite));
    }
}

#[test]
fn a_ban_outlasts_any_bias() {
    let mut sample = spec(SamplingParams { logit_bias: [(2, 100.0)].into(), ..SamplingParams::greedy() });
    assert_eq!(token(&[5.0, 1.0, 0.0], &sample), 2);
    sample.banned = vec![2];
    assert_eq!(token(&[5.0, 1.0, 0.0], &sample), 0);
}

#[test]
fn repetition_covers_prompt_and_output_while_presence_and_frequency_cover_output_only() {
    let seen = Some(counts([0], [1, 1, 1]));
    let pick = |logits: &[f32], params| token(logits, &SampleSpec { counts: seen.clone(), ..spec(params) });
    let base = SamplingParams::greedy();
    let repetition = SamplingParams { repetition_penalty: 2.0, ..base.clone() };
    assert_eq!(pick(&[4.0, 3.9, 2.1], repetition.clone()), 2, "4/2 and 3.9/2 lose to 2.1");
    assert_eq!(pick(&[-1.0, -0.9, -1.9], repetition), 1, "negative logits are multiplied");
    let presence = SamplingParams { presence_penalty: 1.0, ..base.clone() };
    assert_eq!(pick(&[0.0, 1.5, 0.6], presence.clone()), 2, "subtracted once");
    assert_eq!(pick(&[4.0, 4.5, 0.0], presence), 0, "prompt tokens are not touched");
    let frequency = SamplingParams { frequency_penalty: 1.0, ..base };
    assert_eq!(pick(&[0.0, 2.9, -0.05], frequency), 0, "subtracted three times");
}

#[test]
fn the_scratch_of_one_row_does_not_reach_the_next() {
    let logits = row(300);
    let mut sampler = Sampler::new(300);
    let plain = spec(warm());
    let alone: Vec<_> = (0..50).map(|i| token(&logits, &at(&plain, i))).collect();
    let heavy = SampleSpec {
        counts: Some(counts(0..200, 0..300)),
        banned: (0..100).collect(),
        ..spec(SamplingParams {
            repetition_penalty: 3.0,
            frequency_penalty: 1.0,
            logit_bias: [(5, 9.0)].into(),
            logprobs: Some(5),
            top_p: 0.9,
            ..warm()
        })
    };
    let between: Vec<_> = (0..50)
        .map(|i| {
            sampler.sample(&AnyMachine, &logits, &at(&heavy, i)).unwrap();
            sampler.sample(&AnyMachine, &logits, &at(&plain, i)).unwrap().token
        })
        .collect();
    assert_eq!(alone, between);
}

#[test]
fn filters_that_keep_everything_change_nothing() {
    let logits = row(2000);
    let all = SamplingParams { top_k: 2000, ..warm() };
    for position in 0..200 {
        assert_eq!(token(&logits, &at(&spec(warm()), position)), token(&logits, &at(&spec(all.clone()), position)));
    }
}

#[test]
fn top_k_keeps_the_lower_ids_at_a_tied_boundary() {
    let mut logits = vec![0.0; 100];
    logits[70] = 1.0;
    let sample = spec(SamplingParams { top_k: 3, temperature: 5.0, ..warm() });
    let drawn: BTreeSet<_> = (0..500).map(|i| token(&logits, &at(&sample, i))).collect();
    assert_eq!(drawn, BTreeSet::from([0, 1, 70]));
}

#[test]
fn the_smallest_and_largest_temperatures_are_their_limits() {
    let logits = row(500);
    let best = token(&logits, &spec(SamplingParams::greedy()));
    let cold = spec(SamplingParams { temperature: 1e-45, ..warm() });
    let hot = spec(SamplingParams { temperature: f32::MAX, ..warm() });
    let drawn: BTreeSet<_> = (0..500).map(|i| token(&logits, &at(&hot, i))).collect();
    assert!((0..500).all(|i| token(&logits, &at(&cold, i)) == best));
    assert!(drawn.len() > 250, "nearly uniform over 500 ids, but only {} were drawn", drawn.len());
}

#[test]
fn a_wide_nucleus_is_drawn_from_by_its_weights() {
    const DRAWS: u32 = 2000;
    let logits: Vec<f32> = (0..2400).map(|i| (i % 20) as f32 * 0.05).collect();
    let params = SamplingParams { top_p: 0.6, seed: 5, ..warm() };
    let expected = naive(&logits, &params, &[]);
    let mut sampler = Sampler::new(logits.len());
    let mut by_score = [0u32; 20];
    for position in 0..DRAWS {
        let id = sampler.sample(&AnyMachine, &logits, &at(&spec(params.clone()), position)).unwrap().token as usize;
        assert!(expected[id] > 0.0, "{id} is outside the nucleus");
        by_score[id % 20] += 1;
    }
    for (score, count) in by_score.iter().enumerate() {
        let share: f64 = expected.iter().skip(score).step_by(20).sum();
        let mean = share * f64::from(DRAWS);
        // Five standard deviations; the seed is fixed, so this cannot flake.
        assert!((f64::from(*count) - mean).abs() <= 5.0 * mean.sqrt(), "{score}: {count} of {mean}");
    }
}

#[test]
fn seed_choice_and_position_each_move_the_draw() {
    let logits = vec![0.0; 1000];
    let draw = |seed, choice, output_position| {
        let params = SamplingParams { seed, ..warm() };
        token(&logits, &SampleSpec { choice, output_position, ..spec(params) })
    };
    assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
    let distinct: BTreeSet<_> =
        [draw(1, 2, 3), draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4), draw(1 << 40, 2, 3)].into();
    assert_eq!(distinct.len(), 5);
}

#[test]
fn the_tokens_of_a_seed_are_pinned() {
    let logits = row(1000);
    let sample = spec(SamplingParams { seed: 42, temperature: 0.7, top_k: 50, top_p: 0.95, ..warm() });
    let drawn: Vec<_> = (0..8).map(|i| token(&logits, &at(&sample, i))).collect();
    assert_eq!(drawn, [498, 345, 680, 680, 862, 297, 776, 431]);
}

#[test]
fn logprobs_are_of_the_raw_distribution_best_first_with_ties_to_the_lower_id() {
    let logits = [1.0, 2.0, 2.0, -1.0, 0.5];
    let sample = spec(SamplingParams {
        logprobs: Some(3),
        logit_bias: [(3, 100.0)].into(),
        temperature: 0.3,
        ..SamplingParams::greedy()
    });
    let sampled = Sampler::new(5).sample(&AnyMachine, &logits, &sample).unwrap();
    let log_sum = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
    let logprob = sampled.logprob.unwrap();
    assert_eq!(sampled.token, 3);
    assert!((f64::from(logprob.logprob) - (-1.0 - log_sum)).abs() < 1e-6);
    assert_eq!(logprob.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 0]);
    for (id, value) in logprob.top {
        assert!((f64::from(value) - (f64::from(logits[id as usize]) - log_sum)).abs() < 1e-6);
    }
}

#[test]
fn logprobs_without_alternatives_and_with_more_than_there_are() {
    let with = |logprobs| {
        let params = SamplingParams { logprobs, ..SamplingParams::greedy() };
        Sampler::new(3).sample(&AnyMachine, &[0.0, 1.0, 2.0], &spec(params)).unwrap().logprob
    };
    assert_eq!(with(None), None);
    assert_eq!(with(Some(0)).unwrap().top, []);
    assert_eq!(with(Some(u32::MAX)).unwrap().top.len(), 3);
}

#[test]
fn a_score_has_the_bits_of_the_choice_of_that_token() {
    let bits = |found: &crate::types::TokenLogprob| {
        let top: Vec<_> = found.top.iter().map(|(id, logprob)| (*id, logprob.to_bits())).collect();
        (found.logprob.to_bits(), top)
    };
    for vocab in [5, 700, 5000] {
        let logits = row(vocab);
        let mut sampler = Sampler::new(vocab);
        for draw in 0..20 {
            let params = SamplingParams { logprobs: Some(draw % 4), seed: u64::from(draw), ..warm() };
            let chosen = sampler.sample(&AnyMachine, &logits, &spec(params)).unwrap();
            let output = Output::PromptLogprobs { target: chosen.token, top: draw % 4 };
            let scored = sampler.output(&AnyMachine, &logits, &output).unwrap();
            assert_eq!(scored.token, chosen.token);
            assert_eq!(bits(&scored.logprob.unwrap()), bits(&chosen.logprob.unwrap()));
        }
    }
    let broken = [0.0, f32::NAN];
    assert_eq!(Sampler::new(2).score(&AnyMachine, &broken, 0, 1), Err(SequenceFailure::NonFinite));
}

/// The definition, in f64 with a full sort: probability of every id, 0 where filtered out.
fn naive(logits: &[f32], params: &SamplingParams, banned: &[u32]) -> Vec<f64> {
    let mut scores: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
    for (&id, &bias) in &params.logit_bias {
        scores[id as usize] += f64::from(bias);
    }
    for &id in banned {
        scores[id as usize] = f64::NEG_INFINITY;
    }
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |id: usize| ((scores[id] - max) / f64::from(params.temperature)).exp();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut before = 0.0;
    let mut kept: BTreeMap<usize, f64> = BTreeMap::new();
    for &id in &order {
        if before < f64::from(params.top_p) * total && weight(id) >= f64::from(params.min_p) && weight(id) > 0.0 {
            kept.insert(id, weight(id));
        }
        before += weight(id);
    }
    let total: f64 = kept.values().sum();
    (0..logits.len()).map(|id| kept.get(&id).map_or(0.0, |weight| weight / total)).collect()
}

#[test]
fn draws_follow_the_filtered_distribution() {
    const DRAWS: u32 = 40_000;
    let logits = row(40);
    let base = SamplingParams { seed: 7, temperature: 2.0, ..warm() };
    let cases = [
        base.clone(),
        SamplingParams { top_k: 7, ..base.clone() },
        SamplingParams { top_p: 0.83, ..base.clone() },
        SamplingParams { min_p: 0.21, ..base.clone() },
        SamplingParams { top_k: 20, top_p: 0.77, min_p: 0.05, ..base.clone() },
        SamplingParams { logit_bias: [(3, 4.0), (9, -4.0)].into(), temperature: 1.3, ..base },
    ];
    for params in cases {
        let expected = naive(&logits, &params, &[]);
        let mut sampler = Sampler::new(40);
        let sample = spec(params.clone());
        let mut counts = [0u32; 40];
        for position in 0..DRAWS {
            counts[sampler.sample(&AnyMachine, &logits, &at(&sample, position)).unwrap().token as usize] += 1;
        }
        let mut statistic = 0.0;
        let mut freedom = -1.0f64;
        for (count, probability) in counts.iter().zip(&expected) {
            if *probability == 0.0 {
                assert_eq!(*count, 0, "{params:?}");
                continue;
            }
            let mean = probability * f64::from(DRAWS);
            statistic += (f64::from(*count) - mean).powi(2) / mean;
            freedom += 1.0;
        }
        // Five standard deviations of a chi-square above its mean; the seed is fixed, so this cannot flake.
        assert!(statistic < freedom + 5.0 * (2.0 * freedom).sqrt(), "chi-square {statistic} of {freedom}: {params:?}");
    }
}

prop_compose! {
    fn any_params(vocab: u32)(
        temperature in prop_oneof![Just(0.0f32), Just(f32::MIN_POSITIVE), 0.01f32..5.0, Just(f32::MAX)],
        top_k in prop_oneof![Just(0u32), 1..=vocab, Just(u32::MAX)],
        top_p in prop_oneof![Just(1.0f32), 1e-6f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..=1.0],
        seed: u64,
        repetition_penalty in prop_oneof![Just(1.0f32), 0.01f32..10.0, Just(f32::MIN_POSITIVE), Just(f32::MAX)],
        presence_penalty in prop_oneof![Just(0.0f32), -2.0f32..=2.0, Just(f32::MAX)],
        frequency_penalty in prop_oneof![Just(0.0f32), -2.0f32..=2.0, Just(f32::MIN)],
        logit_bias in proptest::collection::btree_map(0..vocab, -100.0f32..=100.0, 0..4),
        logprobs in proptest::option::of(0u32..8), prompt_logprobs in proptest::option::of(0u32..8),
    ) -> SamplingParams {
        SamplingParams {
            temperature, top_k, top_p, min_p, seed, repetition_penalty, presence_penalty, frequency_penalty,
            logit_bias, logprobs, prompt_logprobs, pool: None,
        }
    }
}

proptest! {
    #[test]
    fn every_combination_chooses_an_allowed_id_and_does_so_again(
        logits in proptest::collection::vec(prop_oneof![-20.0f32..20.0, Just(0.0f32), Just(f32::MAX), Just(f32::MIN)], 1..80),
        params in any_params(80),
        choice: u32, output_position: u32,
        seen in proptest::option::of((proptest::collection::vec(0u32..90, 0..30), proptest::collection::vec(0u32..90, 0..30))),
        banned in proptest::collection::vec(0u32..90, 0..6),
    ) {
        let counts = seen.map(|(prompt, output)| counts(prompt, output));
        let sample = SampleSpec { params: Arc::new(params), choice, output_position, banned, counts };
        let all_banned = (0..logits.len() as u32).all(|id| sample.banned.contains(&id));
        let first = Sampler::new(logits.len()).sample(&AnyMachine, &logits, &sample);
        if all_banned {
            prop_assert_eq!(first, Err(SequenceFailure::NonFinite));
        } else {
            let sampled = first.clone().unwrap();
            prop_assert!((sampled.token as usize) < logits.len());
            prop_assert!(!sample.banned.contains(&sampled.token));
            let again = Sampler::new(1).sample(&AnyMachine, &logits, &sample);
            prop_assert_eq!(first, again);
        }
    }

    #[test]
    fn what_is_drawn_has_passed_every_filter(
        logits in proptest::collection::vec(prop_oneof![-8.0f32..8.0, Just(1.5f32)], 1..700),
        top_k in prop_oneof![Just(0u32), 1u32..40],
        top_p in prop_oneof![Just(1.0f32), 0.05f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..=1.0],
        temperature in 0.2f32..4.0,
        seed: u64,
        banned in proptest::collection::vec(0u32..20, 0..4),
    ) {
        let banned: Vec<u32> = banned.into_iter().filter(|id| (*id as usize) < logits.len()).collect();
        prop_assume!(banned.iter().collect::<BTreeSet<_>>().len() < logits.len());
        let params = SamplingParams { temperature, top_k, top_p, min_p, seed, ..SamplingParams::greedy() };
        // A hair of slack at the borders, where f32 weights and f64 ones may disagree about one token.
        let slack = SamplingParams { top_p: (top_p * 1.00001).min(1.0), min_p: min_p * 0.99999, ..params.clone() };
        let allowed = naive(&logits, &slack, &banned);
        let sample = SampleSpec { banned, ..spec(params) };
        for position in 0..16 {
            let chosen = token(&logits, &at(&sample, position));
            prop_assert!(allowed[chosen as usize] > 0.0, "id {} is outside the filters", chosen);
        }
    }
}
