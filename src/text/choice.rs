//! The text of one choice: detokenizer and stop strings, one after the other.

use std::sync::Arc;

use super::detokenizer::Detokenizer;
use super::error::TokenizerError;
use super::stop::StopMatcher;
use super::tokenizer::Tokenizer;

/// Text that became final with a token, and whether a stop string ended the choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextDelta {
    /// New text, never part of a code point and never part of a stop string.
    pub text: String,
    /// Index of the stop string that matched. The choice is over then; tokens that were already on their way are
    /// to be discarded.
    pub stop: Option<usize>,
}

/// Turns the ids of one choice into text that ends before the first stop string.
#[derive(Debug)]
pub struct ChoiceText {
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    min_tokens: u32,
    tokens: u32,
    scratch: String,
}

impl ChoiceText {
    /// `prompt` are the ids the text continues (see [`Detokenizer::new`]); no stop string matches in text that the
    /// first `min_tokens` tokens complete.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, prompt: &[u32], stop: &[String], min_tokens: u32) -> Self {
        Self {
            detokenizer: Detokenizer::new(Arc::clone(&tokenizer), true, prompt),
            stop: StopMatcher::new(stop, |text| tokenizer.names_special(text)),
            tokenizer,
            min_tokens,
            tokens: 0,
            scratch: String::new(),
        }
    }

    /// Take the next id.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn push(&mut self, id: u32) -> Result<TextDelta, TokenizerError> {
        self.tokens = self.tokens.saturating_add(1);
        if self.stop.sees_hidden() {
            let tokenizer = Arc::clone(&self.tokenizer);
            if let Some(special) = tokenizer.special_text(id) {
                return self.push_special(special);
            }
        }
        self.scratch.clear();
        self.detokenizer.push(id, &mut self.scratch)?;
        Ok(self.match_scratch())
    }

    /// Take a special token that a stop string may name. It has no part in the text, which may still wait for the rest
    /// of a code point.
    fn push_special(&mut self, special: &str) -> Result<TextDelta, TokenizerError> {
        let mut delta = TextDelta::default();
        if self.tokens <= self.min_tokens {
            self.stop.pass("", &mut delta.text);
            return Ok(delta);
        }
        // If this ends the choice, what still waits comes before it, as it would at any other end.
        self.scratch.clear();
        self.detokenizer.clone().finish(&mut self.scratch)?;
        if !self.scratch.is_empty() {
            let mut ended = self.stop.clone();
            if ended.push(&self.scratch, &mut delta.text).is_none() {
                delta.stop = ended.push_hidden(special, &mut delta.text);
            }
            if delta.stop.is_some() {
                self.stop = ended;
                return Ok(delta);
            }
            delta.text.clear();
        }
        delta.stop = self.stop.push_hidden(special, &mut delta.text);
        Ok(delta)
    }

    /// Text of one id by itself, as transformers' `decode([id])` gives it: special tokens are written out, a part of a
    /// code point is U+FFFD, and a sentencepiece word has no leading space.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn token_text(&self, id: u32) -> Result<String, TokenizerError> {
        self.tokenizer.decode(&[id], false)
    }

    /// The choice has ended by itself: everything still held comes out, unless a stop string is found in it.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn finish(&mut self) -> Result<TextDelta, TokenizerError> {
        self.scratch.clear();
        self.detokenizer.finish(&mut self.scratch)?;
        let mut delta = self.match_scratch();
        self.stop.finish(&mut delta.text);
        Ok(delta)
    }

    fn match_scratch(&mut self) -> TextDelta {
        let mut delta = TextDelta::default();
        if self.tokens > self.min_tokens {
            delta.stop = self.stop.push(&self.scratch, &mut delta.text);
        } else {
            self.stop.pass(&self.scratch, &mut delta.text);
        }
        delta
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{byte_level, sentencepiece};
    use super::*;

    fn run(tokenizer: &Arc<Tokenizer>, text: &str, stop: &[&str], min_tokens: u32) -> (String, Option<usize>) {
        let stop: Vec<String> = stop.iter().map(|text| (*text).to_owned()).collect();
        let mut choice = ChoiceText::new(tokenizer.clone(), &[], &stop, min_tokens);
        let mut out = String::new();
        for id in tokenizer.encode(text, false).unwrap() {
            let delta = choice.push(id).unwrap();
            out += &delta.text;
            if delta.stop.is_some() {
                return (out, delta.stop);
            }
        }
        let delta = choice.finish().unwrap();
        (out + &delta.text, delta.stop)
    }

    #[test]
    fn text_ends_before_the_stop_string_whatever_the_tokens_are() {
        for tokenizer in [byte_level(), sentencepiece()] {
            assert_eq!(run(&tokenizer, "hello wonder 🦀 hello", &["🦀"], 0), ("hello wonder ".into(), Some(0)));
            assert_eq!(run(&tokenizer, "hello", &["lo w", "x"], 0), ("hello".into(), None));
        }
    }

    #[test]
    fn a_stop_string_released_by_the_end_still_counts() {
        assert_eq!(run(&sentencepiece(), "a🦀", &["🦀"], 0), ("a".into(), Some(0)));
    }

    #[test]
    fn a_stop_string_that_names_a_special_token_stops_there() {
        for tokenizer in [byte_level(), sentencepiece()] {
            assert_eq!(run(&tokenizer, "hello</s>hello", &["</s>"], 0), ("hello".into(), Some(0)));
            // Text that waited for more comes before it.
            assert_eq!(run(&tokenizer, "a🦀</s>b", &["</s>"], 0), ("a🦀".into(), Some(0)));
            assert_eq!(run(&tokenizer, "a🦀</s>b", &["🦀</s>"], 0), ("a".into(), Some(0)));
        }
        let tokenizer = byte_level();
        assert_eq!(run(&tokenizer, "hello</s>hello", &["x", "lo</s>h"], 0), ("hel".into(), Some(1)));
        assert_eq!(run(&tokenizer, "hello</s>hello", &["<s>"], 0), ("hellohello".into(), None));
        assert_eq!(run(&tokenizer, "a🦀<s>b", &["</s>"], 0), ("a🦀b".into(), None));
        assert_eq!(run(&tokenizer, "a</s>b</s>c", &["</s>"], 2), ("ab".into(), Some(0)), "after min_tokens only");
        // An unfinished code point at the stop is what it is at any end.
        let crab = tokenizer.encode("🦀", false).unwrap();
        let mut choice = ChoiceText::new(tokenizer.clone(), &[], &["</s>".to_owned()], 0);
        assert_eq!(choice.push(crab[0]).unwrap(), TextDelta::default());
        let end = choice.push(tokenizer.token_id("</s>").unwrap()).unwrap();
        assert_eq!(end, TextDelta { text: "\u{fffd}".into(), stop: Some(0) });
    }

    #[test]
    fn the_text_of_one_token_is_what_decoding_it_alone_gives() {
        let tokenizer = sentencepiece();
        let choice = ChoiceText::new(tokenizer.clone(), &[], &[], 0);
        let text = |token: &str| choice.token_text(tokenizer.token_id(token).unwrap()).unwrap();
        assert_eq!(
            (text("▁wor").as_str(), text("</s>").as_str(), text("<0xF0>").as_str()),
            ("wor", "</s>", "\u{fffd}")
        );
    }

    #[test]
    fn stop_strings_wait_for_min_tokens() {
        let tokenizer = byte_level();
        assert_eq!(run(&tokenizer, "abcabc", &["b"], 0), ("a".into(), Some(0)));
        assert_eq!(run(&tokenizer, "abcabc", &["b"], 3), ("abca".into(), Some(0)));
    }
}
