//! The tables of `generate --logprobs` and `--prompt-logprobs`.

use std::io::{self, Write};

use super::table::Table;
use crate::grpc::pb;

/// Write a table of the prompt's tokens and one for each choice, where they have log-probabilities: the token, its
/// log-probability and probability, and the most likely tokens at its place.
///
/// # Errors
/// The writer's.
pub(super) fn write(
    prompt: &[pb::TokenLogprob],
    choices: &[&[pb::TokenLogprob]],
    out: &mut impl Write,
) -> io::Result<()> {
    write_table("PROMPT", prompt, out)?;
    for (index, tokens) in choices.iter().enumerate() {
        let title = if choices.len() > 1 { format!("[{index}] TOKEN") } else { "TOKEN".to_owned() };
        write_table(&title, tokens, out)?;
    }
    Ok(())
}

fn write_table(title: &str, tokens: &[pb::TokenLogprob], out: &mut impl Write) -> io::Result<()> {
    if tokens.is_empty() {
        return Ok(());
    }
    let mut table = Table::new([title, "TEXT", "LOGPROB", "PROB", "MOST LIKELY"]);
    for token in tokens {
        table.row([
            token.token_id.to_string(),
            quoted(&token.text),
            format!("{:.4}", token.logprob),
            percent(token.logprob),
            token.top.iter().map(alternative).collect::<Vec<_>>().join("  "),
        ]);
    }
    writeln!(out)?;
    table.write(out)
}

fn alternative(top: &pb::TopLogprob) -> String {
    let text = quoted(&top.text);
    let name = if text.is_empty() { top.token_id.to_string() } else { text };
    format!("{name} {:.2}", top.logprob)
}

/// With its blanks and line breaks to be seen; nothing where the server does not say.
fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{text:?}") }
}

fn percent(logprob: f32) -> String {
    format!("{:.1}%", f64::from(logprob).exp() * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_has_a_line() {
        let top = |token_id, text: &str, logprob| pb::TopLogprob { token_id, logprob, text: text.to_owned() };
        let token = |token_id, text: &str, logprob| pb::TokenLogprob {
            token_id,
            logprob,
            text: text.to_owned(),
            top: vec![top(token_id, text, logprob), top(9, "", -3.0)],
        };
        let mut out = Vec::new();
        let prompt = [token(5, "two", -2.0)];
        write(&prompt, &[&[token(17, " lamps", -0.105), token(3, "\n", -1.0)], &[]], &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("\nPROMPT  TEXT   LOGPROB  PROB   MOST LIKELY\n5       \"two\"  -2.0000"), "{text}");
        let lines: Vec<_> = text.lines().skip(3).collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[2], "17         \" lamps\"  -0.1050  90.0%  \" lamps\" -0.10  9 -3.00");
        assert!(lines[3].contains(r#""\n""#), "{text}");
    }
}
