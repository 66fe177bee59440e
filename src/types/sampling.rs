//! How a token is chosen and when a sequence ends. Values here are already resolved and checked by `admission`.

use std::collections::BTreeMap;

use super::pool::PoolSpec;

/// Sampling of one request, every default already applied.
///
/// Order of application (as vLLM and transformers do): logit bias, penalties, temperature, top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; else finite and > 0.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set whose probability reaches this; 1 keeps all. In (0, 1].
    pub top_p: f32,
    /// Drop tokens less likely than this fraction of the most likely one; 0 keeps all. In [0, 1].
    pub min_p: f32,
    /// Seed of the counter-based draws: a draw depends on (seed, choice, output position) and nothing else.
    pub seed: u64,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output (CTRL); 1 is neutral.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of each token seen in the output (OpenAI); 0 is neutral.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output (OpenAI); 0 is neutral.
    pub frequency_penalty: f32,
    /// Added to the logits of these token ids. Ids are below the vocabulary size.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Report log-probabilities with this many top alternatives; `None` reports none.
    pub logprobs: Option<u32>,
    /// Report log-probabilities of the prompt's tokens but the first, with this many top alternatives; `None` reports none.
    pub prompt_logprobs: Option<u32>,
    /// Read the prompt's hidden states; nothing is sampled then. `None` reads none.
    pub pool: Option<PoolSpec>,
}

impl SamplingParams {
    /// Greedy decoding with everything else neutral.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            logprobs: None,
            prompt_logprobs: None,
            pool: None,
        }
    }

    /// Nothing but what is wanted of the prompt's hidden states.
    #[must_use]
    pub fn pooling(pool: PoolSpec) -> Self {
        Self { pool: Some(pool), ..Self::greedy() }
    }

    /// Whether something is wanted of the prompt itself, so that there need be no output.
    #[must_use]
    pub fn reads_prompt(&self) -> bool {
        self.prompt_logprobs.is_some() || self.pool.is_some()
    }

    /// Whether the choice depends on the tokens seen so far.
    #[must_use]
    pub fn needs_counts(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// When a sequence ends, as far as token ids tell; stop strings are matched on text, outside the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoppingParams {
    /// Prompt, virtual tokens and this together fit the context. 0 only where [`SamplingParams::reads_prompt`].
    pub max_tokens: u32,
    /// No stop id ends the sequence before this many tokens (they are masked from sampling until then).
    pub min_tokens: u32,
    /// Ids that end the sequence and are not part of its text: eos of the model (unless ignored) and the request's.
    pub stop_token_ids: Vec<u32>,
}

impl StoppingParams {
    /// The ids that may not come after `output` tokens, because they would end the sequence too early.
    #[must_use]
    pub fn banned_after(&self, output: usize) -> &[u32] {
        if output < self.min_tokens as usize { &self.stop_token_ids } else { &[] }
    }

    /// Whether this id ends the sequence after `output` tokens.
    #[must_use]
    pub fn stops_after(&self, output: usize, token: u32) -> bool {
        output >= self.min_tokens as usize && self.stop_token_ids.contains(&token)
    }
}
