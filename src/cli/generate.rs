//! `polydelta generate`.

use std::io::{Read, Write};

use serde_json::{Value, json};

use super::client::{connect, request};
use super::conversation;
use super::exit::{CliError, UsageError};
use super::interrupt::unless_interrupted;
use super::{logprobs, receipt};
use crate::config::client::{MixedAdapter, SamplingArgs, StoppingArgs};
use crate::config::{GenerateArgs, Terminal};
use crate::grpc::pb;
use crate::telemetry::Spinner;
use crate::types::AdapterName;
use pb::generate_request::Input;
use pb::generate_stream_response::Event;
use pb::generation_service_client::GenerationServiceClient;

async fn message(args: &GenerateArgs, terminal: Terminal) -> Result<pb::GenerateRequest, CliError> {
    Ok(pb::GenerateRequest {
        adapter: args.adapter.as_ref().map(ToString::to_string).unwrap_or_default(),
        input: Some(input(args, terminal).await?),
        sampling: Some(sampling(&args.sampling)),
        stopping: Some(stopping(&args.stopping)),
        options: Some(pb::OutputOptions {
            logprobs: args.logprobs,
            echo: args.echo,
            token_ids: args.client.json,
            prompt_logprobs: args.prompt_logprobs,
            receipt: args.receipt.is_some(),
        }),
        n: args.n.unwrap_or(0),
        priority: args.priority.unwrap_or(0),
        mix: args.mix.iter().map(part).collect(),
        ..pb::GenerateRequest::default()
    })
}

fn part(part: &MixedAdapter) -> pb::MixPart {
    pb::MixPart { adapter: part.name.to_string(), weight: part.weight, adapter_version: String::new() }
}

async fn input(args: &GenerateArgs, terminal: Terminal) -> Result<Input, CliError> {
    let system = args.system.as_deref().map(|content| chat_message("system", content));
    if let Some(path) = &args.messages {
        let path = path.clone();
        let messages = off_task(move || conversation::read(&path)).await?;
        return Ok(Input::Chat(chat(system.into_iter().chain(messages))));
    }
    let prompt = match args.prompt.as_deref() {
        None | Some("-") if terminal.typed_input => {
            tracing::info!("reading the prompt from the terminal; Ctrl-D on a line of its own ends it");
            off_task(read_stdin).await?
        }
        None | Some("-") => off_task(read_stdin).await?,
        Some(prompt) => prompt.to_owned(),
    };
    if !args.chat {
        return Ok(Input::Prompt(prompt));
    }
    Ok(Input::Chat(chat(system.into_iter().chain([chat_message("user", &prompt)]))))
}

/// Reading waits for whoever writes, and Ctrl-C must get through meanwhile.
async fn off_task<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, CliError> + Send + 'static,
) -> Result<T, CliError> {
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => result,
        Err(panic) => Err(stdin_error(panic.into())),
    }
}

fn chat(messages: impl Iterator<Item = pb::ChatMessage>) -> pb::Chat {
    pb::Chat { messages: messages.collect(), ..pb::Chat::default() }
}

fn chat_message(role: &str, content: &str) -> pb::ChatMessage {
    pb::ChatMessage { role: role.to_owned(), content: content.to_owned() }
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
        stop: args.stop.iter().map(|text| unescaped(text)).collect(),
        stop_token_ids: Vec::new(),
        ignore_eos: args.ignore_eos.then_some(true),
    }
}

fn read_stdin() -> Result<String, CliError> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut bytes);
    read.map_err(stdin_error)?;
    String::from_utf8(bytes).map(without_last_break).map_err(|_| UsageError::PromptEncoding.into())
}

fn stdin_error(source: std::io::Error) -> CliError {
    CliError::File { action: "reading", path: "standard input".to_owned(), source }
}

/// The line break that `echo` and editors put behind a text is not the prompt's; one more would be.
fn without_last_break(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

/// With the characters that a shell makes hard to write. Other backslashes stay.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        let escaped = match rest.as_str().chars().next().filter(|_| character == '\\') {
            Some('n') => '\n',
            Some('t') => '\t',
            Some('r') => '\r',
            Some('\\') => '\\',
            _ => {
                plain.push(character);
                continue;
            }
        };
        plain.push(escaped);
        rest.next();
    }
    plain
}

/// Run the verb, writing to `out`.
///
/// # Errors
/// The connection, the server's refusal, the output, Ctrl-C.
pub async fn run(args: &GenerateArgs, terminal: Terminal, out: &mut impl Write) -> Result<(), CliError> {
    unless_interrupted(generate(args, terminal, out)).await
}

async fn generate(args: &GenerateArgs, terminal: Terminal, out: &mut impl Write) -> Result<(), CliError> {
    let request = request(&args.client, message(args, terminal).await?);
    let mut spinner = Spinner::start(&format!("connecting to {}", args.client.server), terminal.progress);
    let mut service = GenerationServiceClient::new(connect(&args.client).await?);
    let adapters: Vec<&str> =
        args.adapter.iter().chain(args.mix.iter().map(|part| &part.name)).map(AdapterName::as_str).collect();
    let with = if adapters.is_empty() { "" } else { " with " };
    spinner.now(&format!("waiting for a place{with}{}", adapters.join(", ")));
    if args.client.json || args.no_stream {
        let response = service.generate(request).await?.into_inner();
        spinner.clear();
        let written = if args.client.json {
            writeln!(out, "{:#}", response_json(&response))
        } else {
            let texts = if texts_of(args) > 0 { &response.choices[..] } else { &[] };
            print_all(texts, &response.prompt_logprobs, out)
        };
        written.map_err(CliError::Output)?;
        return keep_receipt(args, &response.receipt).await;
    }
    let mut events = service.generate_stream(request).await?.into_inner();
    let mut printer = Printer::new(out, texts_of(args));
    while let Some(message) = events.message().await? {
        match message.event {
            Some(Event::Started(_)) => spinner.now("waiting for the first token"),
            Some(Event::PromptLogprobs(prompt)) => printer.prompt.extend(prompt.logprobs),
            Some(Event::Delta(delta)) => {
                spinner.clear();
                printer.print(delta).map_err(CliError::Output)?;
            }
            Some(Event::Finished(finished)) => {
                spinner.clear();
                printer.finish().map_err(CliError::Output)?;
                tracing::debug!("{}", summary(&finished));
                return keep_receipt(args, &finished.receipt).await;
            }
            None => {}
        }
    }
    Err(CliError::Incomplete { missing: "end" })
}

async fn keep_receipt(args: &GenerateArgs, text: &str) -> Result<(), CliError> {
    match &args.receipt {
        Some(path) => receipt::write(path, text).await,
        None => Ok(()),
    }
}

/// Texts that will be printed: none where the prompt alone is scored.
fn texts_of(args: &GenerateArgs) -> usize {
    if args.stopping.max_tokens == Some(0) && !args.echo { 0 } else { args.n.unwrap_or(1).max(1) as usize }
}

fn print_all(choices: &[pb::Choice], prompt: &[pb::TokenLogprob], out: &mut impl Write) -> std::io::Result<()> {
    match choices {
        [only] => writeln!(out, "{}", only.text)?,
        several => several.iter().try_for_each(|choice| writeln!(out, "[{}] {}", choice.index, choice.text))?,
    }
    let logprobs: Vec<_> = choices.iter().map(|choice| choice.logprobs.as_slice()).collect();
    logprobs::write(prompt, &logprobs, out)
}

/// One choice is printed as it comes; several, which come interleaved, when all have ended.
struct Printer<'a, W: Write> {
    out: &'a mut W,
    texts: Vec<String>,
    prompt: Vec<pb::TokenLogprob>,
    logprobs: Vec<Vec<pb::TokenLogprob>>,
    /// Text stands on a line that has not ended.
    open: bool,
}

impl<'a, W: Write> Printer<'a, W> {
    fn new(out: &'a mut W, choices: usize) -> Self {
        let (texts, logprobs) = (vec![String::new(); choices], vec![Vec::new(); choices]);
        Self { out, texts, prompt: Vec::new(), logprobs, open: false }
    }

    fn print(&mut self, delta: pb::Delta) -> std::io::Result<()> {
        let choice = delta.index as usize;
        if let Some(logprobs) = self.logprobs.get_mut(choice) {
            logprobs.extend(delta.logprobs);
        }
        if self.texts.len() == 1 {
            self.open |= !delta.text.is_empty();
            self.out.write_all(delta.text.as_bytes())?;
            return self.out.flush();
        }
        if let Some(text) = self.texts.get_mut(choice) {
            text.push_str(&delta.text);
        }
        Ok(())
    }

    fn finish(&mut self) -> std::io::Result<()> {
        self.open = false;
        if self.texts.len() == 1 {
            writeln!(self.out)?;
        } else {
            self.texts.iter().enumerate().try_for_each(|(index, text)| writeln!(self.out, "[{index}] {text}"))?;
        }
        let logprobs: Vec<_> = self.logprobs.iter().map(Vec::as_slice).collect();
        logprobs::write(&self.prompt, &logprobs, self.out)
    }
}

/// A text that breaks off does not share its line with what is said about it.
impl<W: Write> Drop for Printer<'_, W> {
    fn drop(&mut self) {
        if self.open {
            // Where it cannot be written there is nobody to read it either.
            let _ = writeln!(self.out).and_then(|()| self.out.flush());
        }
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
        "mix": response.mix.iter().map(part_json).collect::<Vec<_>>(),
        "prompt_logprobs": response.prompt_logprobs.iter().map(logprob_json).collect::<Vec<_>>(),
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

fn part_json(part: &pb::MixPart) -> Value {
    json!({ "adapter": part.adapter, "weight": part.weight, "adapter_version": part.adapter_version })
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
    let top = |top: &pb::TopLogprob| json!({ "token_id": top.token_id, "text": top.text, "logprob": top.logprob });
    let alternatives: Vec<_> = token.top.iter().map(top).collect();
    json!({ "token_id": token.token_id, "text": token.text, "logprob": token.logprob, "top": alternatives })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_may_hold_what_a_shell_makes_hard_to_write() {
        let cases = [(r"\n\n", "\n\n"), (r"a\tb\r", "a\tb\r"), (r"\\n", r"\n"), (r"C:\dir", r"C:\dir"), (r"\", r"\")];
        for (given, meant) in cases {
            assert_eq!(unescaped(given), meant, "{given}");
        }
    }

    #[test]
    fn a_text_that_breaks_off_ends_its_line() {
        let delta = |text: &str| pb::Delta { text: text.to_owned(), ..pb::Delta::default() };
        let printed = |texts: &[&str], finish: bool| {
            let mut out = Vec::new();
            let mut printer = Printer::new(&mut out, 1);
            texts.iter().for_each(|text| printer.print(delta(text)).unwrap());
            if finish {
                printer.finish().unwrap();
            }
            drop(printer);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(printed(&["a", " b"], true), "a b\n");
        assert_eq!(printed(&["a", " b"], false), "a b\n");
        assert_eq!(printed(&[""], false), "");
    }

    #[test]
    fn a_piped_prompt_loses_one_line_break() {
        for (given, kept) in [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a"), ("\n", ""), ("a\r", "a\r")] {
            assert_eq!(without_last_break(given.to_owned()), kept, "{given:?}");
        }
    }
}
