use std::sync::Arc;

use super::scene::sample::{check_non_finite, choose, choose_from, outputs, sample};
use super::*;
use crate::ops::{SampledRows, SequencePlan};
use crate::types::{Output, SampleSpec, SamplingParams, TokenCounts};

#[test]
fn a_row_gets_the_same_token_alone_and_mixed_on_every_path() {
    const VOCAB: usize = 4999;
    let outputs = outputs(20);
    let numbers: Vec<f32> = numbers(7, 20 * VOCAB).iter().map(|logit| logit * 9.0).collect();
    let reference = ReferenceBackend::new(Numerics::F32);
    let want = choose(&reference, &outputs, VOCAB, &numbers);
    for threads in [1, 3] {
        for cpu in backends(threads) {
            assert_eq!(choose(&cpu, &outputs, VOCAB, &numbers), want, "{}", name(&cpu));
            for (row, output) in outputs.iter().enumerate() {
                let alone = &numbers[row * VOCAB..][..VOCAB];
                let chosen = choose(&cpu, std::slice::from_ref(output), VOCAB, alone);
                assert_eq!(chosen, want[row..=row], "{} row {row}", name(&cpu));
            }
        }
    }
}

#[test]
fn a_step_that_is_over_lets_go_of_what_its_plan_shares() {
    fn check<B: Backend>(backend: &B, logits: &B::Buffer) {
        let counts = Arc::new(TokenCounts::of_prompt(&[1]));
        let blocks = Arc::new(vec![0]);
        let mut plan = plan_of(vec![None]);
        plan.sequences = vec![SequencePlan { rows: 0..1, start: 0, blocks: Arc::clone(&blocks) }];
        plan.sampled = SampledRows::groups(&plan.rows, &[0]);
        let Output::Sample(spec) = sample(0, SamplingParams::greedy()) else { panic!("not a sample") };
        plan.outputs = vec![Output::Sample(SampleSpec { counts: Some(Arc::clone(&counts)), ..spec })];
        let mut step = backend.step();
        backend.upload(&plan, &mut step).unwrap();
        backend.sample(&mut step, 0, logits, None);
        backend.finish(&mut step).unwrap();
        plan.release();
        assert_eq!((Arc::strong_count(&counts), Arc::strong_count(&blocks)), (1, 1));
    }
    check(&ReferenceBackend::new(Numerics::F32), &matrix(3, &[1.0, 2.0, 3.0]));
    check(&backend(Isa::Portable, Numerics::F32, 1), &buffer(3, &[1.0, 2.0, 3.0]));
}

#[test]
fn a_row_that_is_not_finite_fails_alone_and_the_next_step_begins_anew() {
    check_non_finite(&backend(Isa::Portable, Numerics::F32, 2));
}

/// The figures of a full batch with a large vocabulary: `cargo test --release --lib sampling_figures -- --ignored
/// --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn sampling_figures() {
    use std::time::Instant;
    const ROWS: usize = 64;
    const VOCAB: usize = 151_936;
    let cpu = CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::BF16, isa: None }).unwrap();
    let warm = SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::greedy() };
    let cases = [
        ("greedy", SamplingParams::greedy()),
        ("temperature", warm.clone()),
        ("temperature, top-p 0.9", SamplingParams { top_p: 0.9, ..warm.clone() }),
        ("temperature, top-k 50, top-p 0.95", SamplingParams { top_k: 50, top_p: 0.95, ..warm }),
        ("greedy, 20 log-probabilities", SamplingParams { logprobs: Some(20), ..SamplingParams::greedy() }),
    ];
    // The sum of twelve uniform numbers is as good as normal; its spread is that of a model's logits, or wider.
    for spread in [2.0, 4.0, 8.0] {
        let mut logits = buffer(VOCAB, &vec![0.0; ROWS * VOCAB]);
        for part in 0..12 {
            let part = numbers(part, ROWS * VOCAB);
            logits.data.iter_mut().zip(part).for_each(|(logit, part)| *logit += part * spread * 0.5);
        }
        for (name, params) in &cases {
            let outputs: Vec<_> = (0..ROWS as u32).map(|row| sample(row, params.clone())).collect();
            let mut times: Vec<f64> = (0..9)
                .map(|_| {
                    let start = Instant::now();
                    std::hint::black_box(choose_from(&cpu, &outputs, std::slice::from_ref(&logits)));
                    start.elapsed().as_secs_f64() * 1e3
                })
                .collect();
            times.sort_by(f64::total_cmp);
            println!(
                "{} of {ROWS} x {VOCAB}, spread {spread}: {name}: {:.2} ms",
                cpu.info().isa,
                times[times.len() / 2]
            );
        }
    }
}
