//! What was left out of a request, filled in.

use std::hash::{BuildHasher, RandomState};

use super::{InvalidRequest, Limits, MAX_RECEIPT_TOKENS, MAX_REQUEST_TOKENS, MAX_STOP_TOKEN_IDS, few};
use crate::types::generate::{GenerateInput, OutputOptions, PromptInput, SamplingInput};
use crate::types::{SamplingParams, StoppingParams};

/// Below this a temperature is 0, as in vLLM: two logits that differ by 0.001 are e^100 apart there already, and
/// nothing behind the gate has to divide by a subnormal.
const GREEDY_BELOW: f32 = 1e-5;

/// A request as the engine takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// Every default applied.
    pub sampling: SamplingParams,
    /// Every default applied.
    pub stopping: StoppingParams,
    /// At least 1.
    pub choices: u32,
}

impl Limits {
    /// Apply what the request left out: first the model's generation config, then what is neutral. `prompt_tokens` are
    /// those of the tokenized prompt, `virtual_tokens` those of its adapter. Takes a request that [`Limits::check`] has
    /// passed.
    ///
    /// A request is greedy where its temperature is 0, or unset and the model's own is. A temperature above 0 samples,
    /// whatever the model's `do_sample` says.
    ///
    /// # Errors
    /// Prompt and output together do not fit the context.
    pub fn resolve(
        &self,
        input: &GenerateInput,
        prompt_tokens: usize,
        virtual_tokens: u32,
    ) -> Result<Resolved, InvalidRequest> {
        let max_tokens = self.room(input, prompt_tokens, virtual_tokens)?;
        let min_tokens = input.stopping.min_tokens.unwrap_or(0);
        let stop_token_ids = self.stop_token_ids(input);
        if min_tokens > 0 && stop_token_ids.len() >= self.vocab_size as usize {
            return Err(InvalidRequest::NothingToSample { vocab_size: self.vocab_size });
        }
        if input.options.receipt {
            // Those of the model too: a receipt names all of them, and is asked for again with what it names.
            few("stopping.stop_token_ids", stop_token_ids.len(), MAX_STOP_TOKEN_IDS)?;
        }
        Ok(Resolved {
            sampling: self.sampling(&input.sampling, input.options),
            stopping: StoppingParams { max_tokens, min_tokens, stop_token_ids },
            choices: input.choices.max(1),
        })
    }

    /// `max_tokens` of a request whose prompt has so many tokens: what it asks for, else what the context leaves,
    /// capped by the server's default. Known before its adapter is loaded, but for the adapter's virtual tokens.
    ///
    /// # Errors
    /// Prompt and output together do not fit the context.
    pub fn room(
        &self,
        input: &GenerateInput,
        prompt_tokens: usize,
        virtual_tokens: u32,
    ) -> Result<u32, InvalidRequest> {
        let left = self.check_length(&input.prompt, prompt_tokens, virtual_tokens, input.least_tokens())?;
        let max_tokens = match input.stopping.max_tokens {
            Some(max_tokens) if max_tokens > left => {
                return Err(InvalidRequest::MaxTokens {
                    max_tokens,
                    prompt_tokens: Some(prompt_tokens),
                    virtual_tokens,
                    context_length: self.context_length,
                });
            }
            Some(max_tokens) => max_tokens,
            None => {
                let share = MAX_REQUEST_TOKENS / u64::from(input.choices.max(1));
                let share = u32::try_from(share).unwrap_or(u32::MAX).max(1);
                self.default_max_tokens.min(left).min(share)
            }
        };
        if input.options.receipt {
            let tokens = u64::from(max_tokens) * u64::from(input.choices.max(1)) + prompt_tokens as u64;
            if tokens > MAX_RECEIPT_TOKENS {
                return Err(InvalidRequest::ReceiptTokens { tokens, max: MAX_RECEIPT_TOKENS });
            }
        }
        match input.stopping.min_tokens {
            Some(min_tokens) if min_tokens > max_tokens => Err(InvalidRequest::MinTokens { min_tokens, max_tokens }),
            _ => Ok(max_tokens),
        }
    }

    /// Tokens that fit behind a prompt; at least `least`, 0 or 1.
    pub(super) fn check_length(
        &self,
        prompt: &PromptInput,
        prompt_tokens: usize,
        virtual_tokens: u32,
        least: u32,
    ) -> Result<u32, InvalidRequest> {
        let used = u32::try_from(prompt_tokens).unwrap_or(u32::MAX).saturating_add(virtual_tokens);
        let left = self.context_length.checked_sub(used).filter(|left| *left >= least);
        left.ok_or_else(|| InvalidRequest::PromptTooLong {
            field: prompt_field(prompt),
            prompt_tokens,
            virtual_tokens,
            context_length: self.context_length,
        })
    }

    fn stop_token_ids(&self, input: &GenerateInput) -> Vec<u32> {
        let own = if input.stopping.ignore_eos.unwrap_or(false) { &[][..] } else { &self.defaults.eos_token_ids };
        let mut ids = [own, &input.stopping.stop_token_ids].concat();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    fn sampling(&self, input: &SamplingInput, options: OutputOptions) -> SamplingParams {
        let defaults = &self.defaults;
        let temperature = input.temperature.unwrap_or(defaults.temperature);
        SamplingParams {
            temperature: if temperature < GREEDY_BELOW { 0.0 } else { temperature },
            top_k: input.top_k.unwrap_or(defaults.top_k),
            top_p: input.top_p.unwrap_or(defaults.top_p),
            min_p: input.min_p.unwrap_or(defaults.min_p),
            seed: input.seed.unwrap_or_else(fresh_seed),
            repetition_penalty: input.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: input.presence_penalty.unwrap_or(0.0),
            frequency_penalty: input.frequency_penalty.unwrap_or(0.0),
            logit_bias: input.logit_bias.iter().copied().collect(),
            // A receipt has a digest of them.
            logprobs: options.logprobs.or(options.receipt.then_some(0)),
            prompt_logprobs: options.prompt_logprobs,
            pool: None,
        }
    }
}

/// Path of the form in which a prompt came.
pub(in crate::admission) fn prompt_field(prompt: &PromptInput) -> &'static str {
    match prompt {
        PromptInput::Text(_) => "prompt",
        PromptInput::TokenIds(_) => "token_ids.ids",
        PromptInput::Chat(_) => "chat.messages",
    }
}

/// A seed for a request that brought none: SipHash of nothing under the standard library's hash keys, which the
/// operating system's random numbers seed once per thread and which differ with every call. Nobody can tell one from
/// another; it is not for secrets.
fn fresh_seed() -> u64 {
    RandomState::new().hash_one(())
}
