//! Control tokens that a client wrote are text, those that the template wrote are control tokens.
//!
//! As transformers' `apply_chat_template(sanitize_control_tokens=True)` does it: control tokens in what the client gave
//! stand between two private-use characters while the template runs; behind it, what still stands between them is
//! encoded as ordinary text. A mark that the template separated from its other breaks the text all the same, so that
//! no two parts join into a control token.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use aho_corasick::{AhoCorasick, MatchKind};

use super::error::TokenizerError;
use super::tokenizer::Tokenizer;

const START: char = '\u{f0000}';
const END: char = '\u{f0001}';

/// Longest text whose ids are kept for the next time it occurs in a prompt.
const MAX_KEPT_BYTES: usize = 64;

/// Finds control tokens in text.
#[derive(Debug)]
pub(super) struct ControlTokens {
    finder: Option<AhoCorasick>,
}

impl ControlTokens {
    /// The tokenizer's special tokens, and those of `listed`; where nothing is listed, every added token that the
    /// template's `literals` hold and that is not white space.
    ///
    /// # Errors
    /// The tokens are too many for a finder.
    pub(super) fn new<'t>(
        tokenizer: &Tokenizer,
        listed: Option<&[String]>,
        literals: impl Iterator<Item = &'t str>,
    ) -> Result<Self, TokenizerError> {
        let literals: Vec<&str> = literals.collect();
        let is_control = |text: &str| match listed {
            Some(listed) => listed.iter().any(|listed| listed == text),
            None => !text.trim().is_empty() && literals.iter().any(|literal| literal.contains(text)),
        };
        let tokens: Vec<String> = tokenizer
            .added_tokens()
            .filter(|(text, special)| *special || is_control(text))
            .map(|(text, _)| text.to_owned())
            .collect();
        if tokens.is_empty() {
            return Ok(Self { finder: None });
        }
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&tokens);
        let finder = finder.map_err(|error| TokenizerError::Format { reason: format!("added tokens: {error}") })?;
        Ok(Self { finder: Some(finder) })
    }

    /// `text` with marks around every control token, and without marks that it may have brought.
    pub(super) fn mark(&self, text: &str) -> String {
        let text = unmarked(text);
        let Some(finder) = &self.finder else { return text };
        let mut out = String::with_capacity(text.len());
        let mut from = 0;
        for found in finder.find_iter(&text) {
            out.push_str(&text[from..found.start()]);
            out.push(START);
            out.push_str(&text[found.range()]);
            out.push(END);
            from = found.end();
        }
        out.push_str(&text[from..]);
        out
    }
}

/// `text` without marks.
pub(super) fn unmarked(text: &str) -> String {
    text.replace([START, END], "")
}

pub(super) fn is_marked(text: &str) -> bool {
    text.contains([START, END])
}

/// A part of a marked text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Piece<'t> {
    Ordinary(&'t str),
    /// A control token that is to be text.
    Quoted(&'t str),
}

/// The parts of a marked text, the first of them ordinary.
fn pieces<'t>(marked: &'t str, is_token: impl Fn(&str) -> bool) -> Vec<Piece<'t>> {
    let first = marked.find([START, END]).unwrap_or(marked.len());
    let mut pieces = vec![Piece::Ordinary(&marked[..first])];
    let mut rest = &marked[first..];
    while let Some(mark) = rest.chars().next() {
        rest = &rest[mark.len_utf8()..];
        let end = rest.find([START, END]).unwrap_or(rest.len());
        if mark == START && rest[end..].starts_with(END) && is_token(&rest[..end]) {
            pieces.push(Piece::Quoted(&rest[..end]));
            rest = &rest[end + END.len_utf8()..];
        }
        let end = rest.find([START, END]).unwrap_or(rest.len());
        if end > 0 {
            pieces.push(Piece::Ordinary(&rest[..end]));
            rest = &rest[end..];
        }
    }
    pieces
}

/// Ids of a marked text; `None` where they are more than `most`.
pub(super) fn encode_at_most(
    tokenizer: &Tokenizer,
    marked: &str,
    most: usize,
) -> Result<Option<Vec<u32>>, TokenizerError> {
    let pieces = pieces(marked, |text| tokenizer.is_added(text));
    let mut kept: HashMap<Piece<'_>, Vec<u32>> = HashMap::new();
    let mut ids = Vec::new();
    for (index, piece) in pieces.into_iter().enumerate() {
        let left = most - ids.len();
        match piece {
            Piece::Ordinary(text) if index == 0 => {
                let Some(first) = tokenizer.encode_at_most(text, false, left)? else { return Ok(None) };
                ids.extend(first);
            }
            Piece::Ordinary(text) | Piece::Quoted(text) if text.len() > MAX_KEPT_BYTES => {
                let Some(more) = encode_inner(tokenizer, piece, left)? else { return Ok(None) };
                ids.extend(more);
            }
            _ => {
                let known = match kept.entry(piece) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(encode_inner(tokenizer, piece, usize::MAX)?.unwrap_or_default()),
                };
                ids.extend(known.iter());
            }
        }
        if ids.len() > most {
            return Ok(None);
        }
    }
    Ok(Some(ids))
}

/// Ids of a piece that has something before it: behind a line break, whose ids are taken off again, so that
/// sentencepiece does not put the space before it that it puts before a text. `None` where ordinary text has more than
/// `most`; a quoted token is a short text.
fn encode_inner(tokenizer: &Tokenizer, piece: Piece<'_>, most: usize) -> Result<Option<Vec<u32>>, TokenizerError> {
    let line_break = tokenizer.encode("\n", false)?;
    let encode = |text: &str, most: usize| match piece {
        Piece::Ordinary(_) => tokenizer.encode_at_most(text, false, most),
        Piece::Quoted(_) => tokenizer.encode_ordinary(text).map(Some),
    };
    let (Piece::Ordinary(text) | Piece::Quoted(text)) = piece;
    let Some(ids) = encode(&format!("\n{text}"), most.saturating_add(line_break.len()))? else { return Ok(None) };
    let ids = match ids.strip_prefix(line_break.as_slice()) {
        Some(ids) => Some(ids.to_vec()),
        None => encode(text, most)?,
    };
    match (piece, &ids) {
        (Piece::Quoted(token), Some(ids)) if tokenizer.token_id(token).is_some_and(|id| ids.contains(&id)) => {
            Err(TokenizerError::Control { token: token.to_owned() })
        }
        _ => Ok(ids),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_text_falls_into_what_is_text_and_what_is_to_be_text() {
        let pieces = |text: &str| {
            let marked = text.replace('[', "\u{f0000}").replace(']', "\u{f0001}");
            let found = pieces(&marked, |text| text == "<s>");
            found
                .iter()
                .map(|piece| match piece {
                    Piece::Ordinary(text) => (*text).to_owned(),
                    Piece::Quoted(text) => format!("\"{text}\""),
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(pieces("a <s> b"), ["a <s> b"]);
        assert_eq!(pieces("a [<s>] b"), ["a ", "\"<s>\"", " b"]);
        assert_eq!(pieces("[<s>][<s>]"), ["", "\"<s>\"", "\"<s>\""]);
        assert_eq!(pieces("a[<s"), ["a", "<s"], "a lone mark breaks the text");
        assert_eq!(pieces("a[<s]>"), ["a", "<s", ">"], "what stands between marks is no token any more");
        assert_eq!(pieces("][a"), ["", "a"]);
    }
}
