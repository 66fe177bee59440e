//! What texts to be read may ask for.

use super::{InvalidRequest, Limits, MAX_CACHE_SALT_BYTES, MAX_REQUEST_TOKENS, at_most, few, short};
use crate::types::PromptInput;
use crate::types::pool::{PoolInput, PoolWanted};

/// Most texts of a request.
pub const MAX_INPUTS: usize = 64;

/// Bytes of a number in an answer.
const NUMBER_BYTES: u64 = size_of::<f32>() as u64;

impl Limits {
    /// Everything but the texts themselves, before they are tokenized.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn check_pooling(&self, input: &PoolInput) -> Result<(), InvalidRequest> {
        let PoolInput { inputs, wanted, priority, cache_salt } = input;
        if inputs.is_empty() {
            return Err(InvalidRequest::Empty { field: "inputs".to_owned() });
        }
        few("inputs", inputs.len(), MAX_INPUTS)?;
        short(cache_salt.len() as u64, MAX_CACHE_SALT_BYTES, || "cache_salt".to_owned())?;
        self.check_priority(*priority)?;
        match wanted {
            PoolWanted::Embeddings(options) => match options.dimensions {
                Some(0) => Err(InvalidRequest::Zero { field: "dimensions" }),
                Some(dimensions) => at_most("dimensions", dimensions, self.hidden_size),
                None => Ok(()),
            },
            PoolWanted::Scores => Ok(()),
        }
    }

    /// One of the texts, before it is tokenized. Nothing has to fit behind it.
    ///
    /// # Errors
    /// As [`Limits::check_prompt`].
    pub fn check_input(&self, prompt: &PromptInput) -> Result<(), InvalidRequest> {
        self.check_prompt_before(prompt, 0)
    }

    /// One of the texts by its tokens, and by those of its adapter.
    ///
    /// # Errors
    /// It does not fit the context.
    pub fn check_input_length(
        &self,
        prompt: &PromptInput,
        tokens: usize,
        virtual_tokens: u32,
    ) -> Result<(), InvalidRequest> {
        self.check_length(prompt, tokens, virtual_tokens, 0).map(drop)
    }

    /// All texts together.
    ///
    /// # Errors
    /// They have more tokens than a request may have, or become more numbers than the answer, a message of `max_bytes`, holds.
    pub fn check_inputs(&self, tokens: u64, numbers: u64, max_bytes: u64) -> Result<(), InvalidRequest> {
        if tokens > MAX_REQUEST_TOKENS {
            return Err(InvalidRequest::InputTokens { tokens, max: MAX_REQUEST_TOKENS });
        }
        if numbers.saturating_mul(NUMBER_BYTES) > max_bytes {
            return Err(InvalidRequest::AnswerNumbers { numbers, max_bytes });
        }
        Ok(())
    }
}
