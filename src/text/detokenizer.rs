//! Ids to text, one token at a time.
//!
//! The text of a token depends on its neighbours: a code point may span several byte-level tokens, sentencepiece
//! drops the space of the very first piece, and a run of byte-fallback tokens is text only if the whole run is valid
//! UTF-8. The detokenizer gives out text as soon as no later token can change it, and never part of a code point.
//! What it gave out, put together, is what decoding all ids at once gives.

use std::sync::Arc;

use super::decoder_kind::DecoderKind;
use super::error::TokenizerError;
use super::tokenizer::Tokenizer;

/// Tokens of already final text kept in front of new ones, so that the new ones decode as they do in the middle of a
/// text. Decoders look back at most one token today; a few more cost nothing.
const CONTEXT: usize = 4;

/// Incremental detokenizer of one choice. Work per token is constant, amortized.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// Bytes of an unfinished code point: at most three between calls.
    Bytes(Vec<u8>),
    Window(Window),
}

#[derive(Clone, Debug)]
struct Window {
    /// Context, then tokens whose text is not out yet.
    ids: Vec<u32>,
    /// How many of `ids` are context.
    read: usize,
    byte_fallback: bool,
    opaque: bool,
}

impl Detokenizer {
    /// For text that follows `context` (the prompt's ids): a sentencepiece prompt's first generated word then keeps
    /// its leading space. An empty context decodes the ids as a text of their own.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool, context: &[u32]) -> Self {
        let state = match tokenizer.decoder_kind() {
            DecoderKind::ByteLevel => State::Bytes(Vec::new()),
            DecoderKind::Pieces { byte_fallback } => {
                State::Window(Window::new(&tokenizer, skip_special, context, byte_fallback, false))
            }
            // A context that ends within a code point would change its own text.
            DecoderKind::Opaque => State::Window(Window::new(&tokenizer, skip_special, &[], true, true)),
        };
        Self { tokenizer, skip_special, state }
    }

    /// Take one token and append to `out` whatever text is final now: possibly nothing.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn push(&mut self, id: u32, out: &mut String) -> Result<(), TokenizerError> {
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(());
        }
        let Some(token) = self.tokenizer.token(id) else {
            return Ok(());
        };
        match &mut self.state {
            State::Bytes(pending) => {
                append_bytes(&token, pending);
                take_text(pending, out);
                Ok(())
            }
            State::Window(window) => {
                window.ids.push(id);
                if window.byte_fallback && is_byte(&token) {
                    return Ok(());
                }
                window.advance(&self.tokenizer, self.skip_special, false, out)
            }
        }
    }

    /// No more tokens follow: append what is left. An unfinished code point becomes U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn finish(&mut self, out: &mut String) -> Result<(), TokenizerError> {
        match &mut self.state {
            State::Bytes(pending) => {
                out.push_str(&String::from_utf8_lossy(pending));
                pending.clear();
                Ok(())
            }
            State::Window(window) if window.read < window.ids.len() => {
                window.advance(&self.tokenizer, self.skip_special, true, out)
            }
            State::Window(_) => Ok(()),
        }
    }
}

impl Window {
    fn new(tokenizer: &Tokenizer, skip_special: bool, context: &[u32], byte_fallback: bool, opaque: bool) -> Self {
        let mut ids: Vec<u32> = context
            .iter()
            .rev()
            .copied()
            .filter(|&id| !(skip_special && tokenizer.is_special(id)))
            // A byte run at the end of the context could go on in the output and change its own text.
            .skip_while(|&id| byte_fallback && tokenizer.token(id).is_none_or(|token| is_byte(&token)))
            .take(CONTEXT)
            .collect();
        ids.reverse();
        Self { read: ids.len(), ids, byte_fallback, opaque }
    }

    /// Append the text of the tokens after the context, unless it may still change, and make them context.
    fn advance(
        &mut self,
        tokenizer: &Tokenizer,
        skip_special: bool,
        last: bool,
        out: &mut String,
    ) -> Result<(), TokenizerError> {
        let text = tokenizer.decode(&self.ids, skip_special)?;
        if self.opaque && !last && text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(());
        }
        let before = tokenizer.decode(&self.ids[..self.read], skip_special)?;
        let Some(new) = text.strip_prefix(before.as_str()) else {
            return match last {
                true => Err(TokenizerError::Decode {
                    count: self.ids.len(),
                    reason: "the decoder changed text it had already given".to_owned(),
                }),
                false => Ok(()),
            };
        };
        out.push_str(new);
        self.ids.drain(..self.ids.len().saturating_sub(CONTEXT));
        self.read = self.ids.len();
        Ok(())
    }
}

/// `<0x41>`, as sentencepiece writes a byte it has no piece for.
fn is_byte(token: &str) -> bool {
    token.len() == 6
        && token.starts_with("<0x")
        && token.ends_with('>')
        && token.get(3..5).is_some_and(|hex| u8::from_str_radix(hex, 16).is_ok())
}

/// The bytes of a byte-level token. A token with a character outside the alphabet (an added token) is its own text.
fn append_bytes(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for character in token.chars() {
        if let Some(byte) = byte_of(character) {
            bytes.push(byte);
        } else {
            bytes.truncate(start);
            bytes.extend_from_slice(token.as_bytes());
            return;
        }
    }
}

/// GPT-2's alphabet: printable bytes stand for themselves, the other 68 for U+0100 and up, in order.
fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Move complete code points from `pending` to `out`, each maximal invalid sequence as one U+FFFD (what
/// `String::from_utf8_lossy` does); the beginning of a code point stays.
fn take_text(pending: &mut Vec<u8>, out: &mut String) {
    let mut start = 0;
    while let Some(rest) = pending.get(start..).filter(|rest| !rest.is_empty()) {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                start = pending.len();
            }
            Err(error) => {
                let valid = error.valid_up_to();
                out.push_str(&String::from_utf8_lossy(&rest[..valid]));
                start += valid;
                let Some(invalid) = error.error_len() else { break };
                out.push(char::REPLACEMENT_CHARACTER);
                start += invalid;
            }
        }
    }
    pending.drain(..start);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures::{byte_level, metaspace, opaque, sentencepiece};
    use super::*;

    /// Every delta, and what the detokenizer gave in all.
    fn deltas(tokenizer: &Arc<Tokenizer>, skip_special: bool, context: &[u32], ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), skip_special, context);
        let mut all: Vec<String> = ids
            .iter()
            .map(|&id| {
                let mut delta = String::new();
                detokenizer.push(id, &mut delta).unwrap();
                delta
            })
            .collect();
        let mut last = String::new();
        detokenizer.finish(&mut last).unwrap();
        all.push(last);
        all
    }

    #[test]
    fn gpt2s_alphabet_is_inverted_exactly() {
        let mut bytes: Vec<u8> = (0..0x144u32).filter_map(char::from_u32).filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
    }

    #[test]
    fn a_code_point_is_held_until_its_last_byte() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("a🦀", false).unwrap();
        assert_eq!(deltas(&tokenizer, true, &[], &ids), ["a", "", "", "", "🦀", ""]);
        assert_eq!(deltas(&tokenizer, true, &[], &ids[..3]), ["a", "", "", "\u{fffd}"]);
    }

    #[test]
    fn a_run_of_byte_tokens_is_held_until_it_ends() {
        let tokenizer = sentencepiece();
        let ids = tokenizer.encode("🦀 hello", false).unwrap();
        let parts = deltas(&tokenizer, true, &[], &ids);
        assert_eq!(parts.concat(), "🦀 hello");
        assert!(parts.contains(&"🦀 hello".to_owned()) || parts.contains(&"🦀".to_owned()), "{parts:?}");
    }

    #[test]
    fn a_continuation_keeps_its_leading_space() {
        let tokenizer = sentencepiece();
        let prompt = tokenizer.encode("hello", false).unwrap();
        let word = tokenizer.encode("world", false).unwrap();
        assert_eq!(deltas(&tokenizer, true, &prompt, &word).concat(), " world");
        assert_eq!(deltas(&tokenizer, true, &[], &word).concat(), "world");
    }

    #[test]
    fn an_endless_run_of_broken_bytes_does_not_pile_up() {
        let tokenizer = byte_level();
        let broken = (0..tokenizer.vocab_size() as u32)
            .find(|&id| tokenizer.decode(&[id], true).unwrap() == "\u{fffd}")
            .unwrap();
        let mut detokenizer = Detokenizer::new(tokenizer, true, &[]);
        let mut out = String::new();
        for _ in 0..10_000 {
            detokenizer.push(broken, &mut out).unwrap();
        }
        assert!(matches!(&detokenizer.state, State::Bytes(pending) if pending.len() < 4));
    }

    fn check(tokenizer: &Arc<Tokenizer>, skip_special: bool, context: &[u32], ids: &[u32]) {
        let joined = deltas(tokenizer, skip_special, &[], ids).concat();
        assert_eq!(joined, tokenizer.decode(ids, skip_special).unwrap(), "{ids:?}");
        // With a context that ends in whole text, the deltas continue it.
        let before = tokenizer.decode(context, skip_special).unwrap();
        let whole = tokenizer.decode(&[context, ids].concat(), skip_special).unwrap();
        if let (Some(new), false) = (whole.strip_prefix(&before), before.is_empty()) {
            assert_eq!(deltas(tokenizer, skip_special, context, ids).concat(), new, "{context:?} then {ids:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_streams_to_itself(text in "\\PC{0,24}[a-z ]{0,12}", skip_special: bool) {
            for tokenizer in [byte_level(), sentencepiece(), metaspace(), opaque()] {
                let ids = tokenizer.encode(&text, false).unwrap();
                check(&tokenizer, skip_special, &tokenizer.encode("ab c", false).unwrap(), &ids);
            }
        }

        #[test]
        fn any_ids_stream_to_what_they_decode_to(seeds in proptest::collection::vec(any::<u32>(), 0..40), skip_special: bool) {
            for tokenizer in [byte_level(), sentencepiece(), metaspace(), opaque()] {
                let ids: Vec<u32> = seeds.iter().map(|seed| seed % (tokenizer.vocab_size() as u32 + 2)).collect();
                check(&tokenizer, skip_special, &tokenizer.encode("ab c", false).unwrap(), &ids);
            }
        }
    }
}
