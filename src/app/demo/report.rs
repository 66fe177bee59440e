//! What the demo shows.

use std::io::{self, Write};
use std::net::SocketAddr;

use serde_json::json;

use super::super::bundled::DemoPrompt;
use crate::cli::Table;
use crate::server::pb;

/// What one adapter said.
pub(super) struct Answer {
    pub(super) prompt: DemoPrompt,
    pub(super) text: String,
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
    pub(super) fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let mut table = Table::new(["ADAPTER", "KIND", "PROMPT", "OUTPUT", "TOKENS/S"]);
        for answer in &self.answers {
            table.row([
                answer.name().to_owned(),
                answer.prompt.kind.clone(),
                one_line(&answer.prompt.prompt),
                one_line(answer.text.trim()),
                format!("{:.0}", answer.tokens_per_second),
            ]);
        }
        table.write(out)?;
        let tokens: u32 = self.answers.iter().map(|answer| answer.tokens).sum();
        let steps: u64 = self.steps.iter().sum();
        writeln!(
            out,
            "\n{} requests in one batch: {tokens} tokens in {steps} steps and {:.2} s ({:.0} tokens/s together)",
            self.answers.len(),
            self.seconds,
            f64::from(tokens) / self.seconds.max(f64::EPSILON),
        )?;
        write!(out, "distinct adapters in a step:")?;
        for (distinct, count) in self.steps.iter().enumerate().filter(|(_, count)| **count > 0).rev() {
            write!(out, "  {distinct} in {count} {}", if *count == 1 { "step" } else { "steps" })?;
        }
        writeln!(out)
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
        writeln!(out, "  polydelta adapter list --server http://{address}")?;
        writeln!(out, "  grpcurl -plaintext -d {body} {address} {call}")?;
        writeln!(out, "  ghz --insecure --call {call} -d {body} -c 8 -n 400 {address}")?;
        out.flush()
    }
}

fn answer_json(answer: &Answer) -> serde_json::Value {
    json!({
        "adapter": answer.prompt.name,
        "kind": answer.prompt.kind,
        "task": answer.prompt.task,
        "prompt": answer.prompt.prompt,
        "output": answer.text.trim(),
        "tokens": answer.tokens,
        "tokens_per_second": answer.tokens_per_second,
    })
}

/// Characters of a cell; the whole text is in the JSON.
const CELL: usize = 72;

/// Line breaks as a person would write them, and no more than fits, so that a table stays a table.
fn one_line(text: &str) -> String {
    let text = text.replace('\n', "\\n");
    if text.chars().count() <= CELL {
        return text;
    }
    let kept: String = text.chars().take(CELL - 1).collect();
    format!("{kept}…")
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
    use super::*;

    #[test]
    fn cells_stay_on_one_line_of_bounded_length() {
        assert_eq!(one_line("a\n=>"), "a\\n=>");
        assert_eq!(one_line(&"ä".repeat(100)).chars().count(), CELL);
    }

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted_for_bash("it's\n=>"), r"$'it\'s\n=>'");
    }
}
