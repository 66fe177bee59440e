//! Tokenizer classes of transformers that take only the vocabulary from `tokenizer.json`. What comes before and behind
//! the vocabulary is then the class's own, whatever the file says: a Llama tokenizer whose file puts a space before
//! every piece of text puts one before the first alone. Which class a model gets is transformers' `AutoTokenizer`'s to
//! say. The post-processor and the added tokens remain the file's.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokenizers::{DecoderWrapper, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// What splits a text of Qwen: `PRETOKENIZE_REGEX` of `tokenization_qwen2.py`.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The class that reads a model's tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum TokenizerClass {
    /// `TokenizersBackend`: everything is as the file says.
    #[default]
    AsWritten,
    /// `LlamaTokenizer`.
    Llama {
        /// A space comes before every piece of text between special tokens, and not before the first alone.
        legacy: bool,
        /// A space comes before a text at all.
        prefix: bool,
    },
    /// `Qwen2Tokenizer`.
    Qwen2 {
        /// A space comes before a text.
        prefix: bool,
    },
    /// `GemmaTokenizer`.
    Gemma {
        /// What stands for a character without a token.
        unknown: String,
    },
}

impl TokenizerClass {
    /// The class of a model with these `config.json` and `tokenizer_config.json`. `written_in_bytes` says whether its
    /// `tokenizer.json` is of the alphabet of bytes, and is asked only where it matters.
    pub(super) fn of<E>(
        model: &Map<String, Value>,
        tokenizer: &Map<String, Value>,
        written_in_bytes: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Self, E> {
        let text = |from: &Map<String, Value>, field: &str| from.get(field)?.as_str().map(str::to_owned);
        let class = text(tokenizer, "tokenizer_class").or_else(|| text(model, "tokenizer_class"));
        let class = class.as_deref().map(|class| class.strip_suffix("Fast").unwrap_or(class));
        let model_type = text(model, "model_type").unwrap_or_default();
        let prefix = |default| tokenizer.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(default);
        let class = match (model_type.as_str(), class) {
            ("qwen2", _) | ("qwen3" | "qwen3_moe", None) => "Qwen2Tokenizer",
            ("gemma2" | "gemma3_text", None) => "GemmaTokenizer",
            ("llama" | "qwen3" | "qwen3_moe" | "gemma2" | "gemma3_text", Some(class)) => class,
            _ => return Ok(Self::AsWritten),
        };
        Ok(match class {
            // A file of Llama 3 under the name of Llama 2's class is read as it is.
            "LlamaTokenizer" if written_in_bytes()? => Self::AsWritten,
            "LlamaTokenizer" => Self::Llama {
                legacy: tokenizer.get("legacy").and_then(Value::as_bool).unwrap_or(false),
                prefix: prefix(true),
            },
            "Qwen2Tokenizer" => Self::Qwen2 { prefix: prefix(false) },
            "GemmaTokenizer" => {
                let unknown = text(tokenizer, "unk_token");
                let unknown = unknown.or_else(|| tokenizer.get("unk_token")?["content"].as_str().map(str::to_owned));
                Self::Gemma { unknown: unknown.unwrap_or_else(|| "<unk>".to_owned()) }
            }
            _ => Self::AsWritten,
        })
    }

    /// Special tokens that the class names where the files do not.
    pub(super) fn names(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::AsWritten => &[],
            Self::Llama { .. } => &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")],
            Self::Qwen2 { .. } => {
                &[("unk_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")]
            }
            Self::Gemma { .. } => &[
                ("unk_token", "<unk>"),
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
        }
    }

    /// Make `tokenizer` what the class makes of its vocabulary.
    ///
    /// # Errors
    /// Those of the library, which knows all these parts.
    pub(super) fn apply(&self, tokenizer: &mut Tokenizer) -> Result<(), tokenizers::Error> {
        let spaces = || json!([replaced("▁", " "), { "type": "ByteFallback" }, { "type": "Fuse" }]);
        match self {
            Self::AsWritten => Ok(()),
            Self::Llama { legacy, prefix } => {
                let scheme = match (prefix, legacy) {
                    (false, _) => "never",
                    (true, true) => "always",
                    (true, false) => "first",
                };
                let mut decoders = spaces();
                if let (true, Value::Array(decoders)) = (*prefix, &mut decoders) {
                    decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
                }
                set_model(tokenizer, None, true);
                tokenizer.with_normalizer(None::<NormalizerWrapper>)?;
                let metaspace =
                    json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false });
                set_ends(tokenizer, metaspace, json!({ "type": "Sequence", "decoders": decoders }))
            }
            Self::Qwen2 { prefix } => {
                set_model(tokenizer, None, false);
                tokenizer.with_normalizer(Some(part::<NormalizerWrapper>(json!({ "type": "NFC" }))?))?;
                let split = json!({
                    "type": "Split", "pattern": { "Regex": QWEN2_WORDS }, "behavior": "Isolated", "invert": false
                });
                let bytes = |prefix: bool, regex: bool| {
                    json!({
                        "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex
                    })
                };
                let words = json!({ "type": "Sequence", "pretokenizers": [split, bytes(*prefix, false)] });
                set_ends(tokenizer, words, bytes(true, true))
            }
            Self::Gemma { unknown } => {
                set_model(tokenizer, Some(unknown.clone()), true);
                tokenizer.with_normalizer(Some(part::<NormalizerWrapper>(replaced(" ", "▁"))?))?;
                let split = json!({
                    "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false
                });
                set_ends(tokenizer, split, json!({ "type": "Sequence", "decoders": spaces() }))
            }
        }
    }
}

fn replaced(pattern: &str, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content })
}

fn part<P: DeserializeOwned>(value: Value) -> Result<P, tokenizers::Error> {
    Ok(serde_json::from_value(value)?)
}

fn set_ends(tokenizer: &mut Tokenizer, before: Value, behind: Value) -> Result<(), tokenizers::Error> {
    tokenizer.with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(before)?));
    tokenizer.with_decoder(Some(part::<DecoderWrapper>(behind)?));
    Ok(())
}

/// Sentencepiece's vocabularies fall back to bytes. A model that is as it should be is not copied.
fn set_model(tokenizer: &mut Tokenizer, unknown: Option<String>, sentencepiece: bool) {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return };
    let none = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
    let same = model.unk_token == unknown
        && (model.fuse_unk, model.byte_fallback, model.ignore_merges) == (sentencepiece, sentencepiece, false)
        && model.dropout.is_none()
        && none(&model.continuing_subword_prefix)
        && none(&model.end_of_word_suffix);
    if same {
        return;
    }
    let mut model = model.clone();
    model.unk_token = unknown;
    (model.fuse_unk, model.byte_fallback, model.ignore_merges) = (sentencepiece, sentencepiece, false);
    model.dropout = None;
    (model.continuing_subword_prefix, model.end_of_word_suffix) = (None, None);
    tokenizer.with_model(model);
}
