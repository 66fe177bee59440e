//! Requests to generate, and what becomes of them.

use std::collections::HashSet;
use std::sync::Arc;

use super::super::pb;
use super::{BadMessage, adapter_name, adapter_version, milliseconds, request_id};
use crate::adapters::AdapterBytes;
use crate::admission::{
    AdapterChoice, AdmissionRequest, ChoiceDelta, DeltaChoice, GenerationInfo, OutputLogprob, OutputToken, PartChoice,
    ServingDelta, ServingPart, StopMatch, Timings, TopToken, template_variables,
};
use crate::receipt::Receipt;
use crate::types::generate::{
    Chat, ChatMessage, GenerateInput, OutputOptions, PromptInput, SamplingInput, StoppingInput, TemplateValue,
};
use crate::types::{FinishReason, Usage};

/// Without the transport's part: id, arrival, deadline and the limit of an answer are the handler's to add.
pub(in crate::grpc) fn generate_request(request: pb::GenerateRequest) -> Result<AdmissionRequest, BadMessage> {
    let pb::GenerateRequest {
        request_id: id,
        adapter,
        adapter_version: version,
        input,
        sampling,
        stopping,
        options,
        n,
        priority,
        cache_salt,
        mix,
        inline_adapter,
    } = request;
    let request_id = request_id(id)?;
    let prompt = prompt_input(input.ok_or(BadMessage::Missing { field: "input" })?)?;
    Ok(AdmissionRequest {
        request_id,
        delta: with_inline(delta_choice(&adapter, &version, &mix)?, inline_adapter)?,
        input: GenerateInput {
            prompt,
            sampling: sampling_input(sampling.unwrap_or_default()),
            stopping: stopping_input(stopping.unwrap_or_default()),
            options: output_options(options.unwrap_or_default()),
            choices: n,
            priority,
            cache_salt,
        },
        max_answer_bytes: None,
    })
}

/// A text in whichever form it came.
pub(super) fn prompt_input(input: pb::generate_request::Input) -> Result<PromptInput, BadMessage> {
    use pb::generate_request::Input;
    Ok(match input {
        Input::Prompt(text) => PromptInput::Text(text),
        Input::TokenIds(pb::TokenIds { ids }) => PromptInput::TokenIds(ids),
        Input::Chat(messages) => PromptInput::Chat(chat(messages)?),
    })
}

pub(super) fn delta_choice(name: &str, version: &str, mix: &[pb::MixPart]) -> Result<DeltaChoice, BadMessage> {
    match (name, version, mix) {
        ("", "", []) => Ok(DeltaChoice::Base),
        ("", _, []) => Err(BadMessage::VersionWithoutAdapter),
        (name, version, []) => Ok(DeltaChoice::Adapter(adapter_choice(["adapter", "adapter_version"], name, version)?)),
        ("", "", parts) => Ok(DeltaChoice::Mix(parts.iter().map(part_choice).collect::<Result<_, _>>()?)),
        _ => Err(BadMessage::Together { field: "mix", other: "adapter" }),
    }
}

fn with_inline(delta: DeltaChoice, inline: Option<pb::InlineAdapter>) -> Result<DeltaChoice, BadMessage> {
    match (delta, inline) {
        (delta, None) => Ok(delta),
        (DeltaChoice::Base, Some(pb::InlineAdapter { config, weights })) => {
            Ok(DeltaChoice::Sent(Arc::new(AdapterBytes { config, weights })))
        }
        (_, Some(_)) => Err(BadMessage::Together { field: "inline_adapter", other: "adapter or mix" }),
    }
}

fn part_choice(part: &pb::MixPart) -> Result<PartChoice, BadMessage> {
    let fields = ["mix.adapter", "mix.adapter_version"];
    let adapter = adapter_choice(fields, &part.adapter, &part.adapter_version)?;
    Ok(PartChoice { adapter, weight: part.weight })
}

fn adapter_choice(fields: [&'static str; 2], name: &str, version: &str) -> Result<AdapterChoice, BadMessage> {
    Ok(AdapterChoice {
        name: adapter_name(fields[0], name)?,
        version: (!version.is_empty()).then(|| adapter_version(fields[1], version)).transpose()?,
    })
}

fn chat(chat: pb::Chat) -> Result<Chat, BadMessage> {
    let pb::Chat { messages, template_kwargs, allow_special_tokens, template_kwargs_json } = chat;
    let mut variables = template_kwargs.map(template_entries).unwrap_or_default();
    let ordered = template_variables(template_kwargs_json.as_bytes());
    let ordered = ordered.map_err(|bad| BadMessage::TemplateJson { reason: bad.reason })?;
    let known: HashSet<&str> = variables.iter().map(|(name, _)| name.as_str()).collect();
    if let Some((twice, _)) = ordered.iter().find(|(name, _)| known.contains(name.as_str())) {
        return Err(BadMessage::TemplateVariableTwice { name: twice.chars().take(64).collect() });
    }
    variables.extend(ordered);
    Ok(Chat {
        messages: messages.into_iter().map(|pb::ChatMessage { role, content }| ChatMessage { role, content }).collect(),
        template_kwargs: variables,
        allow_special_tokens,
    })
}

fn template_entries(fields: prost_types::Struct) -> Vec<(String, TemplateValue)> {
    fields.fields.into_iter().map(|(name, value)| (name, template_value(value))).collect()
}

/// As deep as the message's decoder lets it be.
fn template_value(value: prost_types::Value) -> TemplateValue {
    use prost_types::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => TemplateValue::Null,
        Some(Kind::BoolValue(value)) => TemplateValue::Bool(value),
        Some(Kind::NumberValue(value)) => TemplateValue::Number(value),
        Some(Kind::StringValue(value)) => TemplateValue::Text(value),
        Some(Kind::ListValue(list)) => TemplateValue::List(list.values.into_iter().map(template_value).collect()),
        Some(Kind::StructValue(fields)) => TemplateValue::Map(template_entries(fields)),
    }
}

fn sampling_input(sampling: pb::SamplingParams) -> SamplingInput {
    let pb::SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
        seed,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        logit_bias,
    } = sampling;
    let mut logit_bias: Vec<_> = logit_bias.into_iter().collect();
    // The map of the message has no order of its own; refusals must not depend on it.
    logit_bias.sort_by_key(|(id, _)| *id);
    SamplingInput {
        temperature,
        top_k,
        top_p,
        min_p,
        seed,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        logit_bias,
    }
}

fn stopping_input(stopping: pb::StoppingParams) -> StoppingInput {
    let pb::StoppingParams { max_tokens, min_tokens, stop, stop_token_ids, ignore_eos } = stopping;
    StoppingInput { max_tokens, min_tokens, stop, stop_token_ids, ignore_eos }
}

fn output_options(options: pb::OutputOptions) -> OutputOptions {
    let pb::OutputOptions { logprobs, echo, token_ids, prompt_logprobs, receipt } = options;
    OutputOptions { logprobs, prompt_logprobs, echo, token_ids, receipt }
}

/// What to tokenize, and for which adapter.
pub(in crate::grpc) fn tokenize_input(request: pb::TokenizeRequest) -> Result<(PromptInput, DeltaChoice), BadMessage> {
    use pb::tokenize_request::Input;
    let pb::TokenizeRequest { input, adapter, adapter_version, mix } = request;
    let input = match input.ok_or(BadMessage::Missing { field: "input" })? {
        Input::Prompt(text) => PromptInput::Text(text),
        Input::Chat(messages) => PromptInput::Chat(chat(messages)?),
    };
    Ok((input, delta_choice(&adapter, &adapter_version, &mix)?))
}

pub(in crate::grpc) fn detokenize_delta(request: &pb::DetokenizeRequest) -> Result<DeltaChoice, BadMessage> {
    delta_choice(&request.adapter, &request.adapter_version, &request.mix)
}

/// Name, version and parts, as messages have them.
pub(super) fn serving(delta: &ServingDelta) -> (String, String, Vec<pb::MixPart>) {
    let part = |part: &ServingPart| pb::MixPart {
        adapter: part.name.to_string(),
        weight: part.weight,
        adapter_version: part.version.to_string(),
    };
    match delta {
        ServingDelta::Base => (String::new(), String::new(), Vec::new()),
        ServingDelta::Adapter { name, version } => (name.to_string(), version.to_string(), Vec::new()),
        ServingDelta::Mix { version, parts } => (String::new(), version.to_string(), parts.iter().map(part).collect()),
        ServingDelta::Sent { version } => (String::new(), version.to_string(), Vec::new()),
    }
}

fn event(event: pb::generate_stream_response::Event) -> pb::GenerateStreamResponse {
    pb::GenerateStreamResponse { event: Some(event) }
}

pub(in crate::grpc) fn started(info: &GenerationInfo) -> pb::GenerateStreamResponse {
    let (adapter, adapter_version, mix) = serving(&info.delta);
    let (request_id, active_from) = (info.request_id.clone(), info.active_from);
    let started = pb::Started { request_id, adapter, adapter_version, mix, active_from };
    event(pb::generate_stream_response::Event::Started(started))
}

/// `token_ids` says whether the client wants them.
pub(in crate::grpc) fn delta(delta: ChoiceDelta, token_ids: bool) -> pb::GenerateStreamResponse {
    let ChoiceDelta { index, text, tokens, finish } = delta;
    let Tokens { ids, logprobs } = Tokens::of(tokens, token_ids);
    let (finish_reason, stop_match) = finish_parts(finish);
    event(pb::generate_stream_response::Event::Delta(pb::Delta {
        index,
        text,
        token_ids: ids,
        logprobs,
        finish_reason: finish_reason.into(),
        stop_match,
    }))
}

pub(in crate::grpc) fn finished(
    usage: Usage,
    timings: Timings,
    receipt: Option<&Receipt>,
) -> pb::GenerateStreamResponse {
    event(pb::generate_stream_response::Event::Finished(pb::Finished {
        usage: Some(self::usage(usage)),
        timings: Some(self::timings(timings)),
        receipt: receipt.map(Receipt::text).unwrap_or_default(),
    }))
}

/// More of what the prompt's tokens are worth.
pub(in crate::grpc) fn prompt_logprobs(token: OutputToken) -> pb::GenerateStreamResponse {
    let logprobs = Tokens::of(vec![token], false).logprobs;
    event(pb::generate_stream_response::Event::PromptLogprobs(pb::PromptLogprobs { logprobs }))
}

struct Tokens {
    ids: Vec<u32>,
    logprobs: Vec<pb::TokenLogprob>,
}

impl Tokens {
    fn of(tokens: Vec<OutputToken>, token_ids: bool) -> Self {
        let ids = if token_ids { tokens.iter().map(|token| token.id).collect() } else { Vec::new() };
        let logprobs = tokens.into_iter().filter_map(|token| Some(logprob(token.id, token.logprob?))).collect();
        Self { ids, logprobs }
    }
}

fn logprob(token_id: u32, logprob: OutputLogprob) -> pb::TokenLogprob {
    let OutputLogprob { logprob, text, top } = logprob;
    let top = top.into_iter().map(|TopToken { id, logprob, text }| pb::TopLogprob { token_id: id, logprob, text });
    pb::TokenLogprob { token_id, logprob, top: top.collect(), text }
}

fn finish_parts(finish: Option<(FinishReason, Option<StopMatch>)>) -> (pb::FinishReason, Option<pb::StopMatch>) {
    use pb::stop_match::Match;
    let Some((reason, stop)) = finish else { return (pb::FinishReason::Unspecified, None) };
    let reason = match reason {
        FinishReason::Stop => pb::FinishReason::Stop,
        FinishReason::Length => pb::FinishReason::Length,
    };
    let stop = stop.map(|stop| match stop {
        StopMatch::Text(text) => Match::Stop(text),
        StopMatch::Token(id) => Match::TokenId(id),
    });
    (reason, stop.map(|matched| pb::StopMatch { r#match: Some(matched) }))
}

pub(in crate::grpc) fn usage(usage: Usage) -> pb::Usage {
    let Usage { prompt_tokens, completion_tokens, cached_tokens } = usage;
    pb::Usage { prompt_tokens, completion_tokens, cached_tokens }
}

pub(in crate::grpc) fn timings(timings: Timings) -> pb::Timings {
    pb::Timings {
        queue_ms: milliseconds(timings.queue),
        prefill_ms: milliseconds(timings.prefill),
        decode_ms: milliseconds(timings.decode),
        total_ms: milliseconds(timings.total),
    }
}

/// A unary response in the making: the deltas of a stream, put together.
pub(in crate::grpc) struct Collected {
    response: pb::GenerateResponse,
    token_ids: bool,
}

impl Collected {
    pub(in crate::grpc) fn new(info: &GenerationInfo, token_ids: bool) -> Self {
        let (adapter, adapter_version, mix) = serving(&info.delta);
        let choice = |index| pb::Choice { index, ..pb::Choice::default() };
        let response = pb::GenerateResponse {
            request_id: info.request_id.clone(),
            adapter,
            adapter_version,
            choices: (0..info.choices).map(choice).collect(),
            usage: None,
            timings: None,
            prompt_logprobs: Vec::new(),
            mix,
            active_from: info.active_from,
            receipt: String::new(),
        };
        Self { response, token_ids }
    }

    pub(in crate::grpc) fn add_prompt_logprob(&mut self, token: OutputToken) {
        self.response.prompt_logprobs.extend(Tokens::of(vec![token], false).logprobs);
    }

    pub(in crate::grpc) fn add(&mut self, delta: ChoiceDelta) {
        let Some(choice) = self.response.choices.get_mut(delta.index as usize) else { return };
        let Tokens { ids, logprobs } = Tokens::of(delta.tokens, self.token_ids);
        choice.text.push_str(&delta.text);
        choice.token_ids.extend(ids);
        choice.logprobs.extend(logprobs);
        if delta.finish.is_some() {
            let (finish_reason, stop_match) = finish_parts(delta.finish);
            choice.finish_reason = finish_reason.into();
            choice.stop_match = stop_match;
        }
    }

    pub(in crate::grpc) fn finish(
        mut self,
        usage: Usage,
        timings: Timings,
        receipt: Option<&Receipt>,
    ) -> pb::GenerateResponse {
        self.response.usage = Some(self::usage(usage));
        self.response.timings = Some(self::timings(timings));
        self.response.receipt = receipt.map(Receipt::text).unwrap_or_default();
        self.response
    }
}
