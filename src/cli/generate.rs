//! `polydelta generate`.

use std::io::{Read, Write};

use serde_json::{Value, json};

use super::client::{connect, request};
use super::exit::{CliError, UsageError};
use crate::config::GenerateArgs;
use crate::config::client::{SamplingArgs, StoppingArgs};
use crate::server::pb;
use pb::generate_stream_response::Event;
use pb::generation_service_client::GenerationServiceClient;

fn message(args: &GenerateArgs) -> Result<pb::GenerateRequest, CliError> {
    use pb::generate_request::Input;
    let prompt = match args.prompt.as_deref() {
        None | Some("-") => read_stdin()?,
        Some(prompt) => prompt.to_owned(),
    };
    let input = if args.chat { Input::Chat(chat(args.system.as_deref(), prompt)) } else { Input::Prompt(prompt) };
    Ok(pb::GenerateRequest {
        adapter: args.adapter.as_ref().map(ToString::to_string).unwrap_or_default(),
        input: Some(input),
        sampling: Some(sampling(&args.sampling)),
        stopping: Some(stopping(&args.stopping)),
        options: Some(pb::OutputOptions { logprobs: args.logprobs, echo: args.echo, token_ids: args.client.json }),
        n: args.n.unwrap_or(0),
        priority: args.priority.unwrap_or(0),
        ..pb::GenerateRequest::default()
    })
}

fn chat(system: Option<&str>, prompt: String) -> pb::Chat {
    let system = system.map(|content| pb::ChatMessage { role: "system".to_owned(), content: content.to_owned() });
    let user = pb::ChatMessage { role: "user".to_owned(), content: prompt };
    pb::Chat { messages: system.into_iter().chain([user]).collect() }
}

fn sampling(args: &SamplingArgs) -> pb::SamplingParams {
    pb::SamplingParams {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        seed: args.seed,
        repetition_penalty: args.repetition_penalty,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        ..pb::SamplingParams::default()
    }
}

fn stopping(args: &StoppingArgs) -> pb::StoppingParams {
    pb::StoppingParams {
        max_tokens: args.max_tokens,
        min_tokens: args.min_tokens,
        stop: args.stop.clone(),
        stop_token_ids: Vec::new(),
        ignore_eos: args.ignore_eos.then_some(true),
    }
}

fn read_stdin() -> Result<String, CliError> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut bytes);
    read.map_err(|source| CliError::File { action: "reading", path: "standard input".to_owned(), source })?;
    String::from_utf8(bytes).map_err(|_| UsageError::PromptEncoding.into())
}

/// Run the verb, writing to `out`.
///
/// # Errors
/// The connection, the server's refusal, the output.
pub async fn run(args: &GenerateArgs, out: &mut impl Write) -> Result<(), CliError> {
    let request = request(&args.client, message(args)?);
    let mut service = GenerationServiceClient::new(connect(&args.client).await?);
    if args.client.json || args.no_stream {
        let response = service.generate(request).await?.into_inner();
        let written = if args.client.json {
            writeln!(out, "{:#}", response_json(&response))
        } else {
            print_all(&response.choices, out)
        };
        return written.map_err(CliError::Output);
    }
    let mut events = service.generate_stream(request).await?.into_inner();
    let mut printer = Printer { out, texts: vec![String::new(); args.n.unwrap_or(1).max(1) as usize] };
    while let Some(message) = events.message().await? {
        match message.event {
            Some(Event::Delta(delta)) => printer.print(&delta).map_err(CliError::Output)?,
            Some(Event::Finished(finished)) => {
                printer.finish().map_err(CliError::Output)?;
                tracing::debug!("{}", summary(&finished));
                return Ok(());
            }
            Some(Event::Started(_)) | None => {}
        }
    }
    Err(CliError::Incomplete { missing: "end" })
}

fn print_all(choices: &[pb::Choice], out: &mut impl Write) -> std::io::Result<()> {
    match choices {
        [only] => writeln!(out, "{}", only.text),
        several => several.iter().try_for_each(|choice| writeln!(out, "[{}] {}", choice.index, choice.text)),
    }
}

/// One choice is printed as it comes; several, which come interleaved, when all have ended.
struct Printer<'a, W: Write> {
    out: &'a mut W,
    texts: Vec<String>,
}

impl<W: Write> Printer<'_, W> {
    fn print(&mut self, delta: &pb::Delta) -> std::io::Result<()> {
        if self.texts.len() == 1 {
            self.out.write_all(delta.text.as_bytes())?;
            return self.out.flush();
        }
        if let Some(text) = self.texts.get_mut(delta.index as usize) {
            text.push_str(&delta.text);
        }
        Ok(())
    }

    fn finish(&mut self) -> std::io::Result<()> {
        if self.texts.len() == 1 {
            return writeln!(self.out);
        }
        self.texts.iter().enumerate().try_for_each(|(index, text)| writeln!(self.out, "[{index}] {text}"))
    }
}

fn summary(finished: &pb::Finished) -> String {
    let usage = finished.usage.unwrap_or_default();
    let timings = finished.timings.unwrap_or_default();
    let rate = f64::from(usage.completion_tokens) * 1e3 / (timings.prefill_ms + timings.decode_ms).max(f64::EPSILON);
    format!(
        "{} prompt tokens ({} cached), {} generated, {:.0} ms ({:.0} queued, {:.0} prefill, {:.0} decode), {rate:.1} \
         tokens/s",
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        timings.total_ms,
        timings.queue_ms,
        timings.prefill_ms,
        timings.decode_ms,
    )
}

fn response_json(response: &pb::GenerateResponse) -> Value {
    let usage = response.usage.unwrap_or_default();
    let timings = response.timings.unwrap_or_default();
    json!({
        "request_id": response.request_id,
        "adapter": response.adapter,
        "adapter_version": response.adapter_version,
        "choices": response.choices.iter().map(choice_json).collect::<Vec<_>>(),
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        },
        "timings": {
            "queue_ms": timings.queue_ms,
            "prefill_ms": timings.prefill_ms,
            "decode_ms": timings.decode_ms,
            "total_ms": timings.total_ms,
        },
    })
}

fn choice_json(choice: &pb::Choice) -> Value {
    use pb::stop_match::Match;
    let matched = choice.stop_match.as_ref().and_then(|stop| stop.r#match.as_ref());
    json!({
        "index": choice.index,
        "text": choice.text,
        "token_ids": choice.token_ids,
        "logprobs": choice.logprobs.iter().map(logprob_json).collect::<Vec<_>>(),
        "finish_reason": choice.finish_reason().as_str_name(),
        "stop": matched.map(|matched| match matched {
            Match::Stop(text) => json!(text),
            Match::TokenId(id) => json!(id),
        }),
    })
}

fn logprob_json(token: &pb::TokenLogprob) -> Value {
    let top: Vec<_> = token.top.iter().map(|top| json!({ "token_id": top.token_id, "logprob": top.logprob })).collect();
    json!({ "token_id": token.token_id, "logprob": token.logprob, "top": top })
}
