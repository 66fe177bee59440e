//! A request to generate, whichever route it came by: what both have in common, and what the gate is asked for.

use serde::Deserialize;

use super::super::fields::{Fields, Neutral};
use super::super::refused::Refused;
use super::super::site::Site;
use super::delta::{self, Model};
use super::sampling;
use crate::admission::AdmissionRequest;
use crate::types::generate::{GenerateInput, OutputOptions, PromptInput, SamplingInput, StoppingInput};
use crate::wire;

/// Which route a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Text,
}

/// What an answer shows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    pub(super) kind: Kind,
    /// Log-probabilities with so many alternatives.
    pub(super) logprobs: Option<u32>,
    /// Those of the prompt in a field of their own.
    pub(super) prompt_logprobs: Option<u32>,
    /// The prompt at the head of each choice.
    pub(super) echo: bool,
    /// Ids of prompt and choices.
    pub(super) token_ids: bool,
    /// Tokens of log-probabilities as `token_id:7`.
    pub(super) tokens_as_ids: bool,
}

/// What a request asks for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) model: Model,
    /// Each is a request of its own to the gate.
    pub(super) prompts: Vec<PromptInput>,
    pub(super) sampling: SamplingInput,
    pub(super) stopping: StoppingInput,
    /// Of each prompt.
    pub(super) choices: u32,
    pub(super) priority: i32,
    pub(super) cache_salt: String,
    /// The client's own.
    pub(super) request_id: Option<String>,
    pub(super) receipt: bool,
    pub(super) stream: bool,
    /// The stream ends with token counts.
    pub(super) include_usage: bool,
    pub(super) shape: Shape,
}

/// Fields that clients send and that change nothing here: labels of the client's own, hints to caches and schedulers of
/// other servers.
const IGNORED: [&str; 9] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
];

/// Fields of both routes that are not implemented.
const NEUTRAL: &[(&str, Neutral)] = &[
    ("response_format", Neutral::TypeText),
    ("structured_outputs", Neutral::Empty),
    ("guided_json", Neutral::Absent),
    ("guided_regex", Neutral::Absent),
    ("guided_choice", Neutral::Empty),
    ("guided_grammar", Neutral::Absent),
    ("guided_decoding_backend", Neutral::Absent),
    ("guided_whitespace_pattern", Neutral::Absent),
    ("use_beam_search", Neutral::Bool(false)),
    ("length_penalty", Neutral::Number(1.0)),
    ("include_stop_str_in_output", Neutral::Bool(false)),
    ("skip_special_tokens", Neutral::Bool(true)),
    ("spaces_between_special_tokens", Neutral::Bool(true)),
    ("truncate_prompt_tokens", Neutral::Absent),
    ("allowed_token_ids", Neutral::Empty),
    ("bad_words", Neutral::Empty),
    ("logits_processors", Neutral::Empty),
    ("kv_transfer_params", Neutral::Empty),
    ("vllm_xargs", Neutral::Empty),
];

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl Asked {
    /// Take what both routes have, of these prompts.
    pub(super) fn take(
        fields: &mut Fields,
        site: &Site,
        prompts: Vec<PromptInput>,
        shape: Shape,
    ) -> Result<Self, Refused> {
        let choices = fields.take::<u32>("n")?.unwrap_or(1);
        if choices == 0 {
            return Err(Refused::field("n", "expected at least 1"));
        }
        if fields.take::<u32>("best_of")?.is_some_and(|best_of| best_of != choices) {
            return Err(Refused::Unsupported { field: "best_of".to_owned() });
        }
        let request_id = fields.take::<String>("request_id")?;
        if request_id.as_ref().is_some_and(|id| !wire::is_valid(id)) {
            return Err(Refused::field("request_id", "expected 1 to 128 printable characters of ASCII"));
        }
        // vLLM's: the lower, the earlier.
        let priority = fields.or_default::<i32>("priority")?.saturating_neg();
        let options: StreamOptions = fields.or_default("stream_options")?;
        let asked = Self {
            model: delta::take(fields, site)?,
            prompts,
            sampling: sampling::sampling(fields)?,
            stopping: sampling::stopping(fields)?,
            choices,
            priority,
            cache_salt: fields.or_default("cache_salt")?,
            request_id,
            receipt: fields.or_default("receipt")?,
            stream: fields.or_default("stream")?,
            include_usage: options.include_usage.unwrap_or_default(),
            shape: Shape {
                prompt_logprobs: fields.take("prompt_logprobs")?,
                token_ids: fields.or_default("return_token_ids")?,
                tokens_as_ids: fields.or_default("return_tokens_as_token_ids")?,
                ..shape
            },
        };
        if asked.receipt && asked.prompts.len() > 1 {
            return Err(Refused::Together { field: "receipt", other: "several prompts" });
        }
        if asked.stream && asked.shape.prompt_logprobs.is_some() {
            return Err(Refused::Together { field: "prompt_logprobs", other: "stream" });
        }
        fields.ignore(&IGNORED);
        fields.neutral(NEUTRAL)?;
        Ok(asked)
    }

    /// What the gate is asked for of one prompt. `max_answer_bytes` is that of an answer that is one document.
    pub(super) fn of_prompt(&self, prompt: PromptInput, id: String, max_answer_bytes: usize) -> AdmissionRequest {
        AdmissionRequest {
            request_id: id,
            delta: self.model.delta.clone(),
            input: GenerateInput {
                prompt,
                sampling: self.sampling.clone(),
                stopping: self.stopping.clone(),
                options: self.options(),
                choices: self.choices,
                priority: self.priority,
                cache_salt: self.cache_salt.clone(),
            },
            max_answer_bytes: (!self.stream).then_some(max_answer_bytes as u64),
        }
    }

    fn options(&self) -> OutputOptions {
        let Shape { logprobs, prompt_logprobs, echo, token_ids, .. } = self.shape;
        // Of a prompt alone there is nothing to generate, so something must be wanted of it.
        let alone = self.stopping.max_tokens == Some(0);
        let echoed = echo.then_some(logprobs.or(alone.then_some(0))).flatten();
        OutputOptions {
            logprobs,
            prompt_logprobs: prompt_logprobs.max(echoed),
            // Its ids come no other way.
            echo: echo || token_ids,
            token_ids,
            receipt: self.receipt,
        }
    }
}
