//! What a request may ask for, and what it gets where it does not say.
//!
//! Questions in the order a request meets them: [`Limits::check`] and [`Limits::check_prompt`] look at the request
//! alone, before anything is tokenized or allocated; [`Limits::check_tokens`] at the ids of its text, [`Limits::room`] at
//! how many they are, [`Limits::check_answer`] at how much is to be said of them; [`Limits::resolve`] fills in what was left out. Every way into the server passes here, and nothing behind the gate checks again.

use std::borrow::Cow;

mod invalid;
mod pooling;
mod resolve;

pub use invalid::{Interval, InvalidRequest};
pub use pooling::MAX_INPUTS;
pub use resolve::Resolved;
pub(super) use resolve::prompt_field;

use super::generation_defaults::GenerationDefaults;
use super::salt::MAX_CACHE_SALT_BYTES;
use crate::config::RequestLimits;
use crate::types::generate::{Chat, GenerateInput, PromptInput, SamplingInput, StoppingInput};

/// Most entries of `sampling.logit_bias`: each is applied anew for every token.
pub const MAX_LOGIT_BIAS: usize = 1024;

/// Most entries of `stopping.stop_token_ids`: each is looked at for every token.
pub const MAX_STOP_TOKEN_IDS: usize = 256;

/// Most entries of `chat.messages`: the template costs time for an empty message too.
pub const MAX_CHAT_MESSAGES: usize = 4096;

/// Most entries of `chat.template_kwargs`.
pub const MAX_TEMPLATE_KWARGS: usize = 64;

/// Most levels of lists and objects inside each other in a value of `chat.template_kwargs`.
pub const MAX_TEMPLATE_KWARGS_DEPTH: usize = 16;

/// Bytes of a log-probability in an answer, about: an id, a number, a text of a few letters, and what says which is which.
const LOGPROB_BYTES: u64 = 16;

/// Most tokens of all choices of a request together: bounds what one request can ask to be computed.
pub const MAX_REQUEST_TOKENS: u64 = 1 << 20;

/// Most tokens of a request with a receipt, prompt and all choices together: it lists them, in one message.
pub const MAX_RECEIPT_TOKENS: u64 = 1 << 18;

/// What only the loaded model knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelSizes {
    /// See [`Limits`].
    pub context_length: u32,
    /// See [`Limits`].
    pub vocab_size: u32,
    /// See [`Limits`].
    pub hidden_size: u32,
}

/// What a request may ask for, and what it gets where it does not say. One per server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most tokens of a sequence: prompt, virtual tokens and output together. No more than the model's context and
    /// than the KV cache has room for.
    pub context_length: u32,
    /// Rows of the model's embedding and width of its logits, or the number that a request's adapter has: every token id of a
    /// request is below, whichever way it came in. The tokenizer may know more.
    pub vocab_size: u32,
    /// Numbers of a hidden state.
    pub hidden_size: u32,
    /// `stopping.max_tokens` where it is unset and the context leaves more.
    pub default_max_tokens: u32,
    /// Largest `n`.
    pub max_choices: u32,
    /// Most bytes of a prompt's text; of a chat, all roles and contents together.
    pub max_prompt_bytes: u64,
    /// Most entries of `stopping.stop`.
    pub max_stop_strings: u32,
    /// Most bytes of one of them.
    pub max_stop_bytes: u64,
    /// Largest `options.logprobs` and `options.prompt_logprobs`.
    pub max_logprobs: u32,
    /// Largest `priority`, up and down.
    pub max_priority: u32,
    /// Most bytes of an adapter that a request brings; 0 takes none.
    pub max_inline_adapter_bytes: u64,
    /// What the model's makers want where a request does not say.
    pub defaults: GenerationDefaults,
}

impl Limits {
    /// The limits of a server's configuration, with what only the loaded model knows.
    #[must_use]
    pub fn new(config: &RequestLimits, model: ModelSizes, defaults: GenerationDefaults) -> Self {
        let ModelSizes { context_length, vocab_size, hidden_size } = model;
        Self {
            context_length,
            vocab_size,
            hidden_size,
            default_max_tokens: config.default_max_tokens,
            max_choices: config.max_choices,
            max_prompt_bytes: config.max_prompt_bytes,
            max_stop_strings: config.max_stop_strings,
            max_stop_bytes: config.max_stop_bytes,
            max_logprobs: config.max_logprobs,
            max_priority: config.max_priority,
            max_inline_adapter_bytes: config.max_inline_adapter_bytes,
            defaults,
        }
    }

    /// Those of requests whose adapter has so many tokens; `None`: as many as the model.
    #[must_use]
    pub fn of_vocabulary(&self, tokens: Option<u32>) -> Cow<'_, Self> {
        match tokens {
            Some(vocab_size) => Cow::Owned(Self { vocab_size, ..self.clone() }),
            None => Cow::Borrowed(self),
        }
    }

    /// Those of requests whose adapter has a token of its own that ends an answer.
    #[must_use]
    pub fn with_eos(limits: Cow<'_, Self>, eos: Option<u32>) -> Cow<'_, Self> {
        // One without a row is never chosen.
        let Some(eos) = eos.filter(|eos| *eos < limits.vocab_size) else { return limits };
        let mut limits = limits.into_owned();
        limits.defaults.eos_token_ids.push(eos);
        Cow::Owned(limits)
    }

    /// Everything that can be said of a request before it is tokenized. Costs time in proportion to the request.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn check(&self, input: &GenerateInput) -> Result<(), InvalidRequest> {
        let GenerateInput { prompt, sampling, stopping, options, choices, priority, cache_salt } = input;
        at_most("n", *choices, self.max_choices)?;
        short(cache_salt.len() as u64, MAX_CACHE_SALT_BYTES, || "cache_salt".to_owned())?;
        self.check_priority(*priority)?;
        if let Some(logprobs) = options.logprobs {
            at_most("options.logprobs", logprobs, self.max_logprobs)?;
        }
        if let Some(logprobs) = options.prompt_logprobs {
            at_most("options.prompt_logprobs", logprobs, self.max_logprobs)?;
        }
        self.check_sampling(sampling)?;
        if stopping.max_tokens.is_some_and(|max_tokens| max_tokens < input.least_tokens()) {
            return Err(InvalidRequest::Zero { field: "stopping.max_tokens" });
        }
        self.check_stopping(stopping)?;
        self.check_prompt_before(prompt, input.least_tokens())?;
        self.check_total(stopping, *choices)
    }

    fn check_priority(&self, priority: i32) -> Result<(), InvalidRequest> {
        if priority.unsigned_abs() > self.max_priority {
            return Err(InvalidRequest::Priority { priority, max: self.max_priority });
        }
        Ok(())
    }

    fn check_sampling(&self, sampling: &SamplingInput) -> Result<(), InvalidRequest> {
        let SamplingInput {
            temperature,
            top_k: _,
            top_p,
            min_p,
            seed: _,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
        } = sampling;
        Interval::at_least(0.0).check("sampling.temperature", *temperature)?;
        Interval::above(0.0).and_at_most(1.0).check("sampling.top_p", *top_p)?;
        Interval::at_least(0.0).and_at_most(1.0).check("sampling.min_p", *min_p)?;
        Interval::above(0.0).check("sampling.repetition_penalty", *repetition_penalty)?;
        Interval::at_least(-2.0).and_at_most(2.0).check("sampling.presence_penalty", *presence_penalty)?;
        Interval::at_least(-2.0).and_at_most(2.0).check("sampling.frequency_penalty", *frequency_penalty)?;
        self.check_logit_bias(logit_bias)
    }

    fn check_logit_bias(&self, logit_bias: &[(u32, f32)]) -> Result<(), InvalidRequest> {
        const FIELD: &str = "sampling.logit_bias";
        few(FIELD, logit_bias.len(), MAX_LOGIT_BIAS)?;
        for (id, bias) in logit_bias {
            self.in_vocabulary(*id, || FIELD.to_owned())?;
            Interval::at_least(-100.0).and_at_most(100.0).check(FIELD, Some(*bias))?;
        }
        let mut ids: Vec<u32> = logit_bias.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(InvalidRequest::Repeated { field: FIELD, id: pair[0] }),
            None => Ok(()),
        }
    }

    fn check_stopping(&self, stopping: &StoppingInput) -> Result<(), InvalidRequest> {
        let StoppingInput { max_tokens, min_tokens, stop, stop_token_ids, ignore_eos: _ } = stopping;
        if let (Some(min_tokens), Some(max_tokens)) = (*min_tokens, *max_tokens)
            && min_tokens > max_tokens
        {
            return Err(InvalidRequest::MinTokens { min_tokens, max_tokens });
        }
        few("stopping.stop", stop.len(), self.max_stop_strings as usize)?;
        for (index, text) in stop.iter().enumerate() {
            if text.is_empty() {
                return Err(InvalidRequest::Empty { field: format!("stopping.stop[{index}]") });
            }
            short(text.len() as u64, self.max_stop_bytes, || format!("stopping.stop[{index}]"))?;
        }
        few("stopping.stop_token_ids", stop_token_ids.len(), MAX_STOP_TOKEN_IDS)?;
        self.all_in_vocabulary("stopping.stop_token_ids", stop_token_ids)
    }

    /// Everything that can be said of a prompt before it is tokenized.
    ///
    /// # Errors
    /// It is too long, empty where that has no meaning, or holds ids that are no tokens.
    pub fn check_prompt(&self, prompt: &PromptInput) -> Result<(), InvalidRequest> {
        self.check_prompt_before(prompt, 1)
    }

    /// As [`Self::check_prompt`], of a prompt behind which so many tokens have to fit.
    fn check_prompt_before(&self, prompt: &PromptInput, tokens: u32) -> Result<(), InvalidRequest> {
        match prompt {
            // A tokenizer may make a token of an empty text: the beginning of a sequence.
            PromptInput::Text(text) => short(text.len() as u64, self.max_prompt_bytes, || "prompt".to_owned()),
            PromptInput::TokenIds(ids) => {
                if ids.is_empty() {
                    return Err(InvalidRequest::Empty { field: "token_ids.ids".to_owned() });
                }
                self.check_length(prompt, ids.len(), 0, tokens)?;
                self.all_in_vocabulary("token_ids.ids", ids)
            }
            PromptInput::Chat(chat) => self.check_chat(chat),
        }
    }

    /// Ids to be turned into text.
    ///
    /// # Errors
    /// There are more than the context holds, or one is no token.
    pub fn check_detokenize(&self, ids: &[u32]) -> Result<(), InvalidRequest> {
        few("token_ids", ids.len(), self.context_length as usize)?;
        self.all_in_vocabulary("token_ids", ids)
    }

    fn check_chat(&self, chat: &Chat) -> Result<(), InvalidRequest> {
        let Chat { messages, template_kwargs, allow_special_tokens: _ } = chat;
        if messages.is_empty() {
            return Err(InvalidRequest::Empty { field: "chat.messages".to_owned() });
        }
        few("chat.messages", messages.len(), MAX_CHAT_MESSAGES)?;
        if let Some(index) = messages.iter().position(|message| message.role.is_empty()) {
            return Err(InvalidRequest::Empty { field: format!("chat.messages[{index}].role") });
        }
        few("chat.template_kwargs", template_kwargs.len(), MAX_TEMPLATE_KWARGS)?;
        for (name, value) in template_kwargs {
            let field = || format!("chat.template_kwargs.{}", name.chars().take(64).collect::<String>());
            if name == "messages" {
                return Err(InvalidRequest::Reserved { field: field() });
            }
            if value.depth() > MAX_TEMPLATE_KWARGS_DEPTH {
                let (depth, max) = (value.depth(), MAX_TEMPLATE_KWARGS_DEPTH);
                return Err(InvalidRequest::TooDeep { field: field(), depth, max });
            }
        }
        short(chat.bytes(), self.max_prompt_bytes, || "chat.messages".to_owned())
    }

    /// What the tokenizer made of the text in `field`: it may know tokens that were added to it and that the model has
    /// no rows for.
    ///
    /// # Errors
    /// [`InvalidRequest::NotInVocabulary`] of the first of them.
    pub fn check_tokens(&self, field: &'static str, ids: &[u32]) -> Result<(), InvalidRequest> {
        ids.iter().try_for_each(|id| self.in_vocabulary(*id, || field.to_owned()))
    }

    /// The ids of a request whose adapter's vocabulary was not known before; `prompt` are those of its prompt, of which the
    /// form is left.
    ///
    /// # Errors
    /// [`InvalidRequest::NotInVocabulary`] of the first that is in none.
    pub fn check_ids(&self, input: &GenerateInput, prompt: &[u32]) -> Result<(), InvalidRequest> {
        self.check_logit_bias(&input.sampling.logit_bias)?;
        self.all_in_vocabulary("stopping.stop_token_ids", &input.stopping.stop_token_ids)?;
        self.check_prompt_ids(&input.prompt, prompt)
    }

    /// The same of a prompt alone, of which the form is left.
    ///
    /// # Errors
    /// As [`Self::check_ids`].
    pub fn check_prompt_ids(&self, form: &PromptInput, ids: &[u32]) -> Result<(), InvalidRequest> {
        match form {
            PromptInput::TokenIds(_) => self.all_in_vocabulary("token_ids.ids", ids),
            PromptInput::Text(_) => self.check_tokens("prompt", ids),
            PromptInput::Chat(_) => self.check_tokens("chat.messages", ids),
        }
    }

    /// Whether what is wanted of a prompt of so many tokens fits an answer that is given as a whole.
    ///
    /// # Errors
    /// [`InvalidRequest::AnswerTooLarge`].
    pub fn check_answer(
        &self,
        input: &GenerateInput,
        prompt_tokens: usize,
        max_bytes: u64,
    ) -> Result<(), InvalidRequest> {
        let Some(top) = input.options.prompt_logprobs else { return Ok(()) };
        let logprobs = (prompt_tokens as u64).saturating_sub(1).saturating_mul(u64::from(top) + 1);
        if logprobs.saturating_mul(LOGPROB_BYTES) > max_bytes {
            return Err(InvalidRequest::AnswerTooLarge { logprobs, max_bytes });
        }
        Ok(())
    }

    /// What is asked for in so many words. Where `max_tokens` is unset, [`Limits::room`] sees to it.
    fn check_total(&self, stopping: &StoppingInput, choices: u32) -> Result<(), InvalidRequest> {
        let (Some(max_tokens), choices) = (stopping.max_tokens, choices.max(1)) else { return Ok(()) };
        // The context is named first: a client that asks for too much of both should hear of that one.
        if max_tokens >= self.context_length {
            return Err(InvalidRequest::MaxTokens {
                max_tokens,
                prompt_tokens: None,
                virtual_tokens: 0,
                context_length: self.context_length,
            });
        }
        if u64::from(max_tokens) * u64::from(choices) > MAX_REQUEST_TOKENS {
            return Err(InvalidRequest::TotalTokens { max_tokens, choices, max: MAX_REQUEST_TOKENS });
        }
        Ok(())
    }

    fn in_vocabulary(&self, id: u32, field: impl FnOnce() -> String) -> Result<(), InvalidRequest> {
        if id < self.vocab_size {
            return Ok(());
        }
        Err(InvalidRequest::NotInVocabulary { field: field(), id, token: None, vocab_size: self.vocab_size })
    }

    fn all_in_vocabulary(&self, field: &'static str, ids: &[u32]) -> Result<(), InvalidRequest> {
        ids.iter().enumerate().try_for_each(|(index, id)| self.in_vocabulary(*id, || format!("{field}[{index}]")))
    }
}

fn at_most(field: &'static str, value: u32, max: u32) -> Result<(), InvalidRequest> {
    if value <= max { Ok(()) } else { Err(InvalidRequest::TooLarge { field, value, max }) }
}

fn few(field: &'static str, count: usize, max: usize) -> Result<(), InvalidRequest> {
    if count <= max { Ok(()) } else { Err(InvalidRequest::TooMany { field, count, max }) }
}

fn short(bytes: u64, max: u64, field: impl FnOnce() -> String) -> Result<(), InvalidRequest> {
    if bytes <= max { Ok(()) } else { Err(InvalidRequest::TooLong { field: field(), bytes, max }) }
}

#[cfg(test)]
mod tests;
