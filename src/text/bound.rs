//! How long a text may be, at most, that so many tokens can stand for. What is longer need not be tokenized to be
//! refused.

use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::models::ModelWrapper;

/// Most bytes of text one byte of normalized text can come from, by NFC. Canonical decomposition makes NFC text at most 3
/// times as long in UTF-8 (UAX #15, U+0390), and any text at most 3 times shorter (U+212A KELVIN SIGN is a `K`).
const NFC_SHRINKS: u64 = 9;

/// What bounds the text of a token, where the tokenizer's parts allow one to say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    /// Bytes of the longest token.
    longest: u64,
    /// How many times shorter a text can become before the model has it.
    shrinks: u64,
}

impl Bound {
    /// `None` where a token can stand for any length: a model that fuses or drops what it does not know, an added token that
    /// takes the spaces around it, a normalizer or pre-tokenizer that drops text or that is not known here.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let normalizer = serde_json::to_value(tokenizer.get_normalizer()).ok()?;
        let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer()).ok()?;
        let shrinks = normalizer_shrinks(&normalizer)?;
        if !keeps_text(&pre_tokenizer) || !knows_every_byte(tokenizer, &pre_tokenizer) {
            return None;
        }
        // As written in the vocabulary a token is never shorter than its text: one byte is at least one character there.
        let longest = tokenizer.get_vocab(true).keys().map(|token| token.len() as u64).max()?;
        // A character outside the vocabulary may be a token of its own.
        let bound = Self { longest: longest.max(4), shrinks };
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        bound.with(added.values())
    }

    /// The same with more added tokens.
    pub(super) fn with<'t>(self, added: impl IntoIterator<Item = &'t AddedToken>) -> Option<Self> {
        added.into_iter().try_fold(self, |bound, token| {
            let takes_spaces = token.lstrip || token.rstrip;
            (!takes_spaces).then(|| Self { longest: bound.longest.max(token.content.len() as u64), ..bound })
        })
    }

    /// Most bytes of text that one token can stand for.
    pub(super) fn bytes_per_token(self) -> Option<u64> {
        self.longest.checked_mul(self.shrinks)
    }
}

fn kind(part: &Value) -> &str {
    part.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn members<'a>(part: &'a Value, name: &str) -> &'a [Value] {
    part.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// How many times shorter a text can become.
fn normalizer_shrinks(part: &Value) -> Option<u64> {
    if part.is_null() {
        return Some(1);
    }
    match kind(part) {
        "Sequence" => {
            let mut parts = members(part, "normalizers").iter();
            parts.try_fold(1u64, |all, part| all.checked_mul(normalizer_shrinks(part)?))
        }
        "Prepend" | "ByteLevel" => Some(1),
        "NFC" => Some(NFC_SHRINKS),
        "Replace" => {
            let text = |value: Option<&Value>| value.and_then(Value::as_str).map(|text| text.len() as u64);
            let pattern = text(part.get("pattern").and_then(|pattern| pattern.get("String")))?;
            let content = text(part.get("content")).filter(|len| *len > 0)?;
            Some(pattern.div_ceil(content).max(1))
        }
        _ => None,
    }
}

/// Whether all of a text reaches the model.
fn keeps_text(part: &Value) -> bool {
    if part.is_null() {
        return true;
    }
    match kind(part) {
        "Sequence" => members(part, "pretokenizers").iter().all(keeps_text),
        "Split" | "Punctuation" => part.get("behavior").and_then(Value::as_str).is_some_and(|how| how != "Removed"),
        "ByteLevel" | "Metaspace" | "Digits" | "UnicodeScripts" => true,
        _ => false,
    }
}

fn is_byte_level(part: &Value) -> bool {
    kind(part) == "ByteLevel" || members(part, "pretokenizers").iter().any(is_byte_level)
}

/// Whether whatever the model is given becomes tokens, and no token stands for more than one character it does not know.
fn knows_every_byte(tokenizer: &tokenizers::Tokenizer, pre_tokenizer: &Value) -> bool {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return false };
    let has = |token: &str| tokenizer.get_model_token(token);
    if model.byte_fallback && (0..=255u8).all(|byte| has(&format!("<0x{byte:02X}>"))) {
        return true;
    }
    let alphabet = || tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    if is_byte_level(pre_tokenizer) && alphabet().into_iter().all(|letter| has(letter.encode_utf8(&mut [0; 4]))) {
        return true;
    }
    model.unk_token.is_some() && !model.fuse_unk
}

/// Membership in the model's vocabulary, added tokens aside.
trait ModelVocabulary {
    fn get_model_token(&self, token: &str) -> bool;
}

impl ModelVocabulary for tokenizers::Tokenizer {
    fn get_model_token(&self, token: &str) -> bool {
        tokenizers::Model::token_to_id(self.get_model(), token).is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Tokenizer;
    use super::super::fixtures::{byte_level, sentencepiece};
    use super::*;

    fn changed(change: impl FnOnce(&mut Value)) -> Tokenizer {
        let mut json = super::super::fixtures::byte_level_json();
        change(&mut json);
        Tokenizer::from_bytes(&serde_json::to_vec(&json).unwrap()).unwrap()
    }

    #[test]
    fn no_text_has_fewer_tokens_than_its_bytes_allow() {
        for tokenizer in [byte_level(), sentencepiece()] {
            let most = tokenizer.max_bytes(1).unwrap();
            for text in ["hello world", "naïve café", "日本語 🦀", " two  spaces ", "<s><s>", "\0\u{7f}\u{212a}", ""]
            {
                let ids = tokenizer.encode(text, false).unwrap();
                assert!(text.len() as u64 <= most * ids.len() as u64, "{text:?}: {ids:?}");
            }
        }
    }

    #[test]
    fn normalizers_count_by_how_much_they_shorten() {
        let plain = changed(|_| ()).max_bytes(1).unwrap();
        assert_eq!(changed(|json| json["normalizer"] = json!({"type": "NFC"})).max_bytes(1), Some(plain * 9));
        let replace = json!({"type": "Replace", "pattern": {"String": "abcde"}, "content": "x"});
        let both = json!({"type": "Sequence", "normalizers": [replace, {"type": "Prepend", "prepend": "_"}]});
        assert_eq!(changed(|json| json["normalizer"] = both).max_bytes(2), Some(plain * 10));
    }

    #[test]
    fn where_a_token_can_stand_for_any_length_there_is_no_bound() {
        let none = |change: fn(&mut Value)| assert_eq!(changed(change).max_bytes(1), None);
        none(|json| json["normalizer"] = json!({"type": "Strip", "strip_left": true, "strip_right": true}));
        none(|json| json["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "a"}));
        none(|json| json["normalizer"] = json!({"type": "Replace", "pattern": {"String": "a"}, "content": ""}));
        none(|json| json["added_tokens"][0]["lstrip"] = json!(true));
        none(|json| json["pre_tokenizer"] = json!({"type": "WhitespaceSplit"}));
        none(|json| json["pre_tokenizer"] = json!(null));
    }
}
