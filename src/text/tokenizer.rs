//! `tokenizer.json`: text to ids and back.

use std::collections::HashMap;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Arc;

use tokenizers::{
    AddedToken, AddedVocabulary, Decoder, Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString,
    PreTokenizer, TruncationDirection,
};

use super::bound::Bound;
use super::decoder_kind::DecoderKind;
use super::error::TokenizerError;
use super::knowing::Knowing;
use super::settings::TokenizerSettings;
use crate::files::{self, MAX_TOKENIZER_BYTES};

/// Files in which tokenizers were kept before `tokenizer.json`.
const LEGACY: [&str; 6] =
    ["tokenizer.model", "spiece.model", "tekken.json", "tiktoken.model", "vocab.json", "vocab.txt"];

/// A Hugging Face tokenizer. Shared between threads behind an `Arc`.
///
/// Control tokens written out in a text are read as control tokens, as transformers does: a client that renders its
/// own chat prompt depends on it.
#[derive(Debug)]
pub struct Tokenizer {
    /// The base's, with the tokens that were added to it.
    inner: Arc<tokenizers::Tokenizer>,
    /// Those, and an adapter's own; `None`: an adapter has none.
    with_own: Option<AddedVocabulary>,
    /// Id and text of every special token.
    special: HashMap<u32, String>,
    decoder: DecoderKind,
    vocab_size: usize,
    bound: Option<Bound>,
}

impl Tokenizer {
    /// Read `tokenizer.json` of a model folder and add what its other files say.
    ///
    /// # Errors
    /// [`TokenizerError::Read`], [`TokenizerError::Missing`] and [`TokenizerError::Format`].
    pub fn from_dir(dir: &Path, settings: &TokenizerSettings) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        match files::read_if_there(&path, MAX_TOKENIZER_BYTES) {
            Ok(Some(bytes)) => Self::with_settings(&bytes, settings),
            Ok(None) => {
                let legacy = LEGACY.into_iter().find(|name| dir.join(name).is_file());
                Err(TokenizerError::Missing { path, legacy })
            }
            Err(source) => Err(TokenizerError::Read { path, source }),
        }
    }

    /// Parse the content of a `tokenizer.json`. Truncation and padding it may ask for are switched off: a prompt is
    /// served whole or refused.
    ///
    /// # Errors
    /// [`TokenizerError::Format`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        Self::with_settings(bytes, &TokenizerSettings::default())
    }

    fn with_settings(bytes: &[u8], settings: &TokenizerSettings) -> Result<Self, TokenizerError> {
        // The library panics on some of what it should refuse, such as a merge that is longer than every token.
        let inner = catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes));
        let inner = inner.map_err(|_| TokenizerError::Panicked)?;
        Self::finished(inner.map_err(|error| TokenizerError::Format { reason: error.to_string() })?, settings)
    }

    /// What a tokenizer's class and settings make of it.
    pub(super) fn finished(
        mut inner: tokenizers::Tokenizer,
        settings: &TokenizerSettings,
    ) -> Result<Self, TokenizerError> {
        let format = |error: tokenizers::Error| TokenizerError::Format { reason: error.to_string() };
        inner.with_truncation(None).map_err(format)?;
        inner.with_padding(None);
        settings.class.apply(&mut inner).map_err(format)?;
        let missing = settings.missing(&inner);
        inner.add_tokens(missing).map_err(format)?;
        inner.set_encode_special_tokens(settings.split_special_tokens);
        let special = special(inner.get_added_vocabulary());
        let decoder = DecoderKind::of(inner.get_decoder());
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        let bound = Bound::of(&inner);
        Ok(Self { inner: Arc::new(inner), with_own: None, special, decoder, vocab_size, bound })
    }

    /// This tokenizer with more added tokens of these ids, which its model does not know.
    ///
    /// # Errors
    /// [`TokenizerError::Format`]: the library cannot look for them.
    pub(super) fn with_added(&self, tokens: &[(u32, AddedToken)]) -> Result<Self, TokenizerError> {
        let mut added = self.added().clone();
        let model = Knowing::of(self.inner.get_model(), tokens);
        added
            .add_tokens(tokens.iter().map(|(_, token)| token.clone()), &model, self.inner.get_normalizer())
            .map_err(|error| TokenizerError::Format { reason: format!("added tokens: {error}") })?;
        let vocab_size = tokens.iter().map(|(id, _)| *id as usize + 1).max().unwrap_or(0).max(self.vocab_size);
        Ok(Self {
            inner: Arc::clone(&self.inner),
            special: special(&added),
            with_own: Some(added),
            decoder: self.decoder,
            vocab_size,
            bound: self.bound.and_then(|bound| bound.with(tokens.iter().map(|(_, token)| token))),
        })
    }

    /// Every token beside the model's.
    fn added(&self) -> &AddedVocabulary {
        self.with_own.as_ref().unwrap_or_else(|| self.inner.get_added_vocabulary())
    }

    /// Token ids of `text`. `add_special` adds what the tokenizer adds around a sequence (usually the bos token);
    /// rendered chat prompts bring their own. Takes time in proportion to the text: check its length first.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        // That many are never too many.
        Ok(self.encode_at_most(text, add_special, usize::MAX)?.unwrap_or_default())
    }

    /// Token ids of `text` in which no added token is looked for.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub(super) fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encode = || {
            let mut normalized = NormalizedString::from(text);
            if let Some(normalizer) = self.inner.get_normalizer() {
                normalizer.normalize(&mut normalized)?;
            }
            let mut parts = PreTokenizedString::from(normalized);
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut parts)?;
            }
            parts.tokenize(|part| self.inner.get_model().tokenize(part.get()))?;
            Ok(parts.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
        };
        encode()
            .map_err(|error: tokenizers::Error| TokenizerError::Encode { bytes: text.len(), reason: error.to_string() })
    }

    /// As [`Tokenizer::encode`]; `None` where there are more than `most` ids, which costs no more than finding `most` of
    /// them and reading the text once.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode_at_most(
        &self,
        text: &str,
        add_special: bool,
        most: usize,
    ) -> Result<Option<Vec<u32>>, TokenizerError> {
        let failed = |error: tokenizers::Error| TokenizerError::Encode { bytes: text.len(), reason: error.to_string() };
        let inner = &self.inner;
        // What the library's `encode_fast` does, but for the limit, and for whose tokens are added.
        let mut pieces = self.added().extract_and_normalize(inner.get_normalizer(), text);
        if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(failed)?;
        }
        let limit = Some((most.saturating_add(1), TruncationDirection::Right));
        inner.get_model().tokenize_in_pretokenized(&mut pieces, limit).map_err(failed)?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None).map_err(failed)?;
        if encoding.len() > most {
            return Ok(None);
        }
        let encoding = inner.post_process(encoding, None, add_special).map_err(failed)?;
        Ok((encoding.len() <= most).then(|| encoding.get_ids().to_vec()))
    }

    /// Most bytes that a text of so many tokens can have; `None` where a token can stand for any length.
    #[must_use]
    pub fn max_bytes(&self, tokens: u32) -> Option<u64> {
        self.bound?.bytes_per_token().map(|bytes| bytes.saturating_mul(u64::from(tokens)))
    }

    /// Text of `ids`, taken as a whole; broken UTF-8 becomes U+FFFD. Ids the tokenizer does not know (a model may
    /// have more logits than tokens) have no text.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        // What the library's `decode` does, but for whose tokens are added.
        let shown = |token: &String| !skip_special || !self.added().is_special_token(token);
        let tokens: Vec<String> = ids.iter().filter_map(|id| self.token(*id).filter(shown)).collect();
        let Some(decoder) = self.inner.get_decoder() else { return Ok(tokens.join(" ")) };
        let failed = |error: tokenizers::Error| TokenizerError::Decode { count: ids.len(), reason: error.to_string() };
        decoder.decode(tokens).map_err(failed)
    }

    /// One more than the largest id. A model's logits may be wider.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of a token as it is written in the vocabulary, for example `<|eot_id|>`.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.added().token_to_id(token, self.inner.get_model())
    }

    /// The token as it is written in the vocabulary.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.added().simple_id_to_token(id).or_else(|| self.inner.get_model().id_to_token(id))
    }

    /// Whether decoding with `skip_special` leaves this id out.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains_key(&id)
    }

    /// Text of a special token as it is written in a prompt; `None` for all other ids.
    #[must_use]
    pub fn special_text(&self, id: u32) -> Option<&str> {
        self.special.get(&id).map(String::as_str)
    }

    /// Whether `text` holds the text of a special token.
    #[must_use]
    pub fn names_special(&self, text: &str) -> bool {
        self.special.values().any(|special| text.contains(special.as_str()))
    }

    /// Text of every added token, and whether it is special.
    pub(super) fn added_tokens(&self) -> impl Iterator<Item = (&str, bool)> {
        let tokens = self.added().get_added_tokens_decoder();
        tokens.iter().map(|(id, token)| (token.content.as_str(), self.is_special(*id)))
    }

    /// How many they are.
    #[must_use]
    pub fn added_count(&self) -> usize {
        self.added().get_added_tokens_decoder().len()
    }

    /// Whether `text` is the text of an added token.
    pub(super) fn is_added(&self, text: &str) -> bool {
        self.added().get_vocab().contains_key(text)
    }

    /// Every special id, ascending.
    #[must_use]
    pub fn special_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.special.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    pub(super) fn decoder_kind(&self) -> DecoderKind {
        self.decoder
    }
}

/// Id and text of every special token.
fn special(added: &AddedVocabulary) -> HashMap<u32, String> {
    let tokens = added.get_added_tokens_decoder().iter();
    let special = tokens.filter(|(_, token)| added.is_special_token(&token.content));
    special.map(|(id, token)| (*id, token.content.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{byte_level, sentencepiece};
    use super::*;

    #[test]
    fn text_survives_a_round_trip() {
        for tokenizer in [byte_level(), sentencepiece()] {
            for text in ["hello world", "naïve café", "日本語 🦀", "tabs\tand\nlines", " two  spaces "] {
                let ids = tokenizer.encode(text, false).unwrap();
                assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
            }
        }
    }

    #[test]
    fn a_limit_changes_no_id_and_counts_what_is_added() {
        for tokenizer in [byte_level(), sentencepiece()] {
            for text in ["hello world", "naïve <s> café", "日本語 🦀", "", " two  spaces "] {
                for add_special in [false, true] {
                    let ids = tokenizer.encode(text, add_special).unwrap();
                    let at_most = |most| tokenizer.encode_at_most(text, add_special, most).unwrap();
                    assert_eq!(at_most(ids.len()).as_ref(), Some(&ids));
                    assert_eq!(at_most(ids.len() + 7).as_ref(), Some(&ids));
                    if let Some(less) = ids.len().checked_sub(1) {
                        assert_eq!(at_most(less), None, "{text:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn special_tokens_are_known_skipped_and_added_on_request() {
        let tokenizer = byte_level();
        let bos = tokenizer.token_id("<s>").unwrap();
        assert!(tokenizer.is_special(bos));
        assert_eq!(tokenizer.token(bos).as_deref(), Some("<s>"));
        assert_eq!(tokenizer.encode("a", true).unwrap()[0], bos);
        assert_ne!(tokenizer.encode("a", false).unwrap()[0], bos);
        assert_eq!(tokenizer.decode(&[bos], true).unwrap(), "");
        assert_eq!(tokenizer.decode(&[bos], false).unwrap(), "<s>");
        assert!(tokenizer.special_ids().contains(&bos));
        assert_eq!(tokenizer.vocab_size(), tokenizer.special_ids().last().map_or(0, |id| *id as usize + 1));
    }

    #[test]
    fn ids_beyond_the_vocabulary_have_no_text() {
        let tokenizer = byte_level();
        assert_eq!(tokenizer.decode(&[u32::MAX], false).unwrap(), "");
        assert_eq!(tokenizer.token(u32::MAX), None);
    }

    #[test]
    fn a_broken_file_is_refused_with_a_reason() {
        assert!(matches!(Tokenizer::from_bytes(b"{}"), Err(TokenizerError::Format { .. })));
        let with = |prefix: &str, merge: [&str; 2]| {
            let vocab = serde_json::json!({"a": 0, "b": 1, "##b": 2, "ab": 3});
            let model = serde_json::json!(
                {"type": "BPE", "vocab": vocab, "merges": [merge], "continuing_subword_prefix": prefix}
            );
            Tokenizer::from_bytes(&serde_json::to_vec(&serde_json::json!({"model": model})).unwrap())
        };
        assert!(with("", ["a", "b"]).is_ok());
        assert!(with("##", ["a", "##b"]).is_ok());
        assert!(matches!(with("", ["b", "a"]), Err(TokenizerError::Format { .. })), "a merge that is no token");
        assert!(matches!(with("", ["ab", "##b"]), Err(TokenizerError::Panicked)), "a merge longer than any token");
        assert!(matches!(with("##", ["a", "b"]), Err(TokenizerError::Panicked)), "a part without its prefix");
        let dir = tempfile::tempdir().unwrap();
        let said = || Tokenizer::from_dir(dir.path(), &TokenizerSettings::default()).unwrap_err().to_string();
        assert!(said().ends_with("tokenizer.json is not there"), "{}", said());
        std::fs::write(dir.path().join("tokenizer.model"), "").unwrap();
        assert!(said().contains("only tokenizer.model: convert it"), "{}", said());
    }
}
