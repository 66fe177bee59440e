//! STAND-IN until the validation room lands.
use crate::types::generate::{GenerateInput, PromptInput};
use crate::types::{SamplingParams, StoppingParams};

/// Stand-in.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} is invalid")]
pub struct InvalidRequest {
    /// Field.
    pub field: String,
}

/// Stand-in.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Context.
    pub context: u32,
    /// Default.
    pub default_max_tokens: u32,
}

/// Stand-in.
pub struct Resolved {
    /// Sampling.
    pub sampling: SamplingParams,
    /// Stopping.
    pub stopping: StoppingParams,
    /// Choices.
    pub choices: u32,
}

impl Limits {
    /// Stand-in.
    pub fn check(&self, _: &GenerateInput) -> Result<(), InvalidRequest> {
        Ok(())
    }
    /// Stand-in.
    pub fn check_prompt(&self, _: &PromptInput) -> Result<(), InvalidRequest> {
        Ok(())
    }
    /// Stand-in.
    pub fn resolve(&self, input: &GenerateInput, prompt: usize, virt: u32) -> Result<Resolved, InvalidRequest> {
        let left = self.context.saturating_sub(prompt as u32 + virt);
        let max_tokens = input.stopping.max_tokens.unwrap_or(self.default_max_tokens).min(left);
        if max_tokens == 0 {
            return Err(InvalidRequest { field: "stopping.max_tokens".into() });
        }
        Ok(Resolved {
            sampling: SamplingParams { logprobs: input.options.logprobs, ..SamplingParams::greedy() },
            stopping: StoppingParams {
                max_tokens,
                min_tokens: input.stopping.min_tokens.unwrap_or(0),
                stop_token_ids: input.stopping.stop_token_ids.clone(),
            },
            choices: input.choices.max(1),
        })
    }
}
