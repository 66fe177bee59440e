//! Sampling: threads take whole rows, each with scratch of its own, and run the sampler's passes compiled for their
//! instruction set. What is chosen depends on the row alone.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

use super::CpuBackend;
use super::isa::{DetectedIsa, Isa};
use super::memory::Buffer;
use super::scratch::RowSampler;
use crate::ops::{DeltaMemory, OwnVocabularies, SampleOutcome, of_vocabulary};
use crate::sampler::{Pass, Sampler, Simd};
use crate::types::Output;

/// Work of sampling per logit, in multiply-adds.
const COST: usize = 8;

impl Simd for DetectedIsa {
    fn run<P: Pass>(&self, pass: P) -> P::Output {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma")]
            fn wide<P: Pass>(pass: P) -> P::Output {
                pass.run()
            }
            if self.get() != Isa::Portable {
                // SAFETY: every path but `Portable` includes AVX2 and FMA, and `DetectedIsa` exists only for paths this
                // machine has.
                return unsafe { wide(pass) };
            }
        }
        pass.run()
    }
}

impl CpuBackend {
    /// Row i of `logits` by the i-th output; the outcomes in that order. See [`crate::ops::Backend::sample`].
    pub(super) fn sample_rows(
        &self,
        outputs: &[Output],
        logits: &Buffer,
        own: Option<OwnVocabularies<'_, Buffer, <Self as DeltaMemory>::DeltaTable>>,
        outcomes: &mut Vec<SampleOutcome>,
    ) {
        assert!(outputs.len() <= logits.rows());
        let mut scratch = self.scratch();
        let samplers = &mut scratch.samplers;
        let threads = self.pool.threads().min(outputs.len());
        if samplers.len() < threads {
            samplers.resize_with(threads, || RowSampler {
                sampler: Sampler::new(logits.cols),
                whole: Vec::new(),
                chosen: Vec::new(),
            });
        }
        let samplers = &mut samplers[..threads];
        samplers.iter_mut().for_each(|one| one.chosen.clear());
        // Rows differ in what they ask for: whoever is done takes the next.
        let next = AtomicUsize::new(0);
        self.pool.for_blocks(outputs.len() * logits.cols * COST, samplers, 1, |_, samplers| {
            for RowSampler { sampler, whole, chosen } in samplers {
                loop {
                    let row = next.fetch_add(1, Ordering::Relaxed);
                    let Some(output) = outputs.get(row) else { break };
                    let logits = match own {
                        Some(OwnVocabularies { added, sizes, .. }) => {
                            of_vocabulary(logits.row(row), added.row(row), sizes[row], whole)
                        }
                        None => logits.row(row),
                    };
                    chosen.push((row, sampler.output(&self.isa, logits, output)));
                }
            }
        });
        let mut chosen: Vec<_> = samplers.iter_mut().flat_map(|one| one.chosen.drain(..)).collect();
        chosen.sort_unstable_by_key(|(row, _)| *row);
        outcomes.extend(chosen.into_iter().map(|(_, outcome)| outcome));
    }
}
