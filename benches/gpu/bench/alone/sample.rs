//! The choice of tokens.

use half::bf16;
use polydelta::ops::{Backend, SiteSet};
use polydelta::types::{Output, SamplingParams};
use serde_json::{Value, json};

use super::Site;
use crate::support::Failure;
use crate::support::large::{slots, step};
use crate::support::numbers::weights;

/// One shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) rows: usize,
    pub(crate) vocabulary: usize,
    pub(crate) choice: Choice,
}

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    Greedy,
    /// Temperature 0.8 and top-p 0.95.
    Nucleus,
    /// Greedy, with the 20 likeliest.
    Likeliest,
}

impl Sample {
    pub(super) fn measure(&self, site: Site<'_>) -> Result<Value, Failure> {
        let backend = site.backend;
        let numbers: Vec<f32> = weights(9, self.rows * self.vocabulary, 8.0).into_iter().map(bf16::to_f32).collect();
        let logits = backend.buffer_of(self.vocabulary, &numbers)?;
        let mut input = step(&slots(self.rows, 0), 1, 0, 16);
        let greedy = SamplingParams::greedy();
        let params = match self.choice {
            Choice::Greedy => greedy,
            Choice::Nucleus => SamplingParams { temperature: 0.8, top_p: 0.95, ..greedy },
            Choice::Likeliest => SamplingParams { logprobs: Some(20), ..greedy },
        };
        for output in &mut input.plan.outputs {
            if let Output::Sample(spec) = output {
                spec.params = params.clone().into();
            }
        }
        let groups = input.plan.sampled.len();
        let seconds = site.seconds(&input, &SiteSet::default(), |step| {
            for group in 0..groups {
                backend.sample(step, group, &logits, None);
            }
        })?;
        Ok(json!({
            "op": "sample", "rows": self.rows, "vocabulary": self.vocabulary, "choice": format!("{:?}", self.choice).to_lowercase(),
            "seconds": seconds,
        }))
    }
}
