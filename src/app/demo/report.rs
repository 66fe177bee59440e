//! What the demo shows.

use std::io::{self, Write};
use std::net::SocketAddr;

use serde_json::json;

use super::super::bundled::DemoPrompt;
use crate::cli::Table;
use crate::grpc::pb;

/// What one adapter said.
pub(super) struct Answer {
    pub(super) prompt: DemoPrompt,
    /// Of an adapter with a head the likeliest label.
    pub(super) text: String,
    /// How likely that label is.
    pub(super) probability: Option<f32>,
    /// None where a text was scored: nothing is generated then.
    pub(super) tokens: u32,
    /// Of this request alone, from its first step to its last token.
    pub(super) tokens_per_second: f64,
}

impl Answer {
    pub(super) fn finish(&mut self, finished: &pb::Finished) {
        let timings = finished.timings.unwrap_or_default();
        self.tokens = finished.usage.unwrap_or_default().completion_tokens;
        let ms = timings.prefill_ms + timings.decode_ms;
        self.tokens_per_second = if ms > 0.0 { f64::from(self.tokens) * 1e3 / ms } else { 0.0 };
    }

    fn name(&self) -> &str {
        if self.prompt.name.is_empty() { "(base)" } else { &self.prompt.name }
    }

    fn row(&self) -> [String; 5] {
        let (output, speed) = match self.probability {
            Some(probability) => (format!("{} ({probability:.3})", self.text), String::new()),
            None => (one_line(self.text.trim()), format!("{:.0}", self.tokens_per_second)),
        };
        [self.name().to_owned(), shortened(&self.prompt.kind), one_line(&self.prompt.prompt), output, speed]
    }
}

/// The whole batch.
pub(super) struct Report {
    pub(super) address: SocketAddr,
    pub(super) answers: Vec<Answer>,
    /// How many steps held 0, 1, 2, … distinct adapters.
    pub(super) steps: Vec<u64>,
    pub(super) seconds: f64,
}

impl Report {
    /// In so many columns of a terminal.
    pub(super) fn write_text(&self, columns: usize, out: &mut impl Write) -> io::Result<()> {
        let mut table = Table::new(["ADAPTER", "KIND", "PROMPT", "OUTPUT", "TOK/S"]).fit(columns, &[1, 2, 3]);
        for answer in &self.answers {
            table.row(answer.row());
        }
        table.write(out)?;
        let tokens: u32 = self.answers.iter().map(|answer| answer.tokens).sum();
        let steps: u64 = self.steps.iter().sum();
        writeln!(
            out,
            "\n{} requests in one batch: {tokens} tokens in {steps} steps, {:.2} s, {:.0} tokens/s",
            self.answers.len(),
            self.seconds,
            f64::from(tokens) / self.seconds.max(f64::EPSILON),
        )?;
        let steps = self.steps.iter().enumerate().filter(|(_, count)| **count > 0).rev();
        let parts: Vec<_> = steps
            .map(|(distinct, count)| format!("{distinct} in {count} {}", if *count == 1 { "step" } else { "steps" }))
            .collect();
        write_wrapped("distinct adapters in a step:", &parts, columns, out)
    }

    pub(super) fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let answers: Vec<_> = self.answers.iter().map(answer_json).collect();
        let document = json!({
            "address": self.address.to_string(),
            "answers": answers,
            "steps_by_distinct_adapters": self.steps,
            "seconds": self.seconds,
        });
        writeln!(out, "{document:#}")
    }

    /// What to try next, ready to paste.
    pub(super) fn write_invitation(&self, out: &mut impl Write) -> io::Result<()> {
        let Some(answer) = self.answers.iter().find(|answer| !answer.prompt.name.is_empty()) else { return Ok(()) };
        let address = self.address;
        let body = json!({ "adapter": answer.prompt.name, "prompt": answer.prompt.prompt });
        let body = quoted(&body.to_string());
        let call = "polydelta.v1.GenerationService/Generate";
        writeln!(out, "\nStill serving on {address}; Ctrl-C ends it. In another terminal:\n")?;
        writeln!(
            out,
            "  polydelta generate --server http://{address} --adapter {} {}",
            answer.prompt.name,
            quoted_for_bash(&answer.prompt.prompt)
        )?;
        for answer in &self.answers {
            self.write_other_call(&answer.prompt, out)?;
        }
        writeln!(out, "  polydelta adapter list --server http://{address}")?;
        writeln!(out, "  grpcurl -plaintext -d {body} {address} {call}")?;
        writeln!(out, "  ghz --insecure --call {call} -d {body} -c 8 -n 400 {address}")?;
        out.flush()
    }

    /// How to ask for a mix or for scores, where the line is one of these.
    fn write_other_call(&self, prompt: &DemoPrompt, out: &mut impl Write) -> io::Result<()> {
        let (address, text) = (self.address, quoted_for_bash(&prompt.prompt));
        if !prompt.labels.is_empty() {
            writeln!(out, "  polydelta score --server http://{address} --adapter {} {text}", prompt.name)?;
        }
        if !prompt.mix.is_empty() {
            let parts: String =
                prompt.mix.iter().map(|part| format!(" --mix {}={}", part.adapter, part.weight)).collect();
            writeln!(out, "  polydelta generate --server http://{address}{parts} {text}")?;
        }
        Ok(())
    }
}

fn answer_json(answer: &Answer) -> serde_json::Value {
    json!({
        "adapter": answer.prompt.name,
        "kind": answer.prompt.kind,
        "task": answer.prompt.task,
        "prompt": answer.prompt.prompt,
        "labels": answer.prompt.labels,
        "mix": answer.prompt.mix,
        "output": answer.text.trim(),
        "probability": answer.probability,
        "tokens": answer.tokens,
        "tokens_per_second": answer.probability.is_none().then_some(answer.tokens_per_second),
    })
}

/// Line breaks as a person would write them, so that a table stays a table.
fn one_line(text: &str) -> String {
    text.replace('\n', "\\n")
}

/// The method in the words of a narrow column.
fn shortened(kind: &str) -> String {
    const SHORT: [(&str, &str); 9] = [
        (" and lm_head", " + head"),
        (", q and v, head of", ", head of"),
        (" behind each layer", ""),
        ("mix of two", "two"),
        ("all linear layers", "all"),
        ("attention", "attn"),
        ("with patterns, r8 attn and r16 MLP", "r8 attn, r16 MLP"),
        (" tuning, ", ", "),
        (" and ", ", "),
    ];
    SHORT.iter().fold(kind.to_owned(), |kind, (long, short)| kind.replace(long, short))
}

/// A label and parts behind it, on as many lines as they take.
fn write_wrapped(label: &str, parts: &[String], columns: usize, out: &mut impl Write) -> io::Result<()> {
    let mut line = label.to_owned();
    for part in parts {
        if line.len() + 2 + part.len() > columns {
            writeln!(out, "{line}")?;
            line = " ".repeat(label.len());
        }
        line = format!("{line}  {part}");
    }
    writeln!(out, "{line}")
}

/// A word of a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A word of bash, zsh or ksh with its line breaks escaped.
fn quoted_for_bash(text: &str) -> String {
    format!("$'{}'", text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr;

    use super::super::super::bundled;
    use super::*;

    fn report() -> Report {
        let answers = bundled::prompts().unwrap().into_iter().map(|prompt| Answer {
            text: prompt.labels.first().cloned().unwrap_or_else(|| format!("{0} {0}", prompt.prompt)),
            probability: (!prompt.labels.is_empty()).then_some(0.75),
            prompt,
            tokens: 40,
            tokens_per_second: 1054.0,
        });
        let address = "127.0.0.1:50051".parse().unwrap();
        Report { address, answers: answers.collect(), steps: vec![3; 14], seconds: 0.1 }
    }

    fn written(write: impl Fn(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_fits_a_terminal_and_keeps_what_tells_rows_apart() {
        for columns in [100, 80, 200] {
            let text = written(|out| report().write_text(columns, out));
            assert!(text.lines().all(|line| line.width() <= columns), "{text}");
            assert!(text.contains("json-extract") && text.contains("…") && text.contains("1054"), "{text}");
            assert!(text.contains("order (0.750)") && text.contains("redact+no-city"), "{text}");
        }
    }

    #[test]
    fn the_invitation_has_a_call_for_adapters_that_write_for_one_that_scores_and_for_a_mix() {
        let text = written(|out| report().write_invitation(out));
        assert!(text.contains("generate --server http://127.0.0.1:50051 --adapter json-extract $'"), "{text}");
        assert!(text.contains("score --server http://127.0.0.1:50051 --adapter text-kind $'"), "{text}");
        assert!(text.contains("50051 --mix redact=1 --mix no-city=1 $'Call Elena"), "{text}");
    }

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted_for_bash("it's\n=>"), r"$'it\'s\n=>'");
    }
}
