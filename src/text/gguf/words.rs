//! What splits a text into words, by llama.cpp's name for it (`convert_hf_to_gguf.py`, `get_vocab_base_pre`): the
//! pre-tokenizers of the `tokenizer.json` that the name stands for.

use serde_json::{Value, json};

/// A way to split a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// GPT-2.
    Gpt2,
    /// SmolLM, StarCoder: GPT-2's, and every digit alone.
    SmolLm,
    /// Llama 3.
    Llama3,
    /// Qwen2 and Qwen3.
    Qwen2,
    /// Mistral's Tekken.
    Tekken,
}

/// Llama 3's `tokenizer.json`.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral Nemo's `tokenizer.json`.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What comes before the vocabulary, and behind it.
pub(super) struct Ends {
    /// A pre-tokenizer.
    pub(super) before: Value,
    /// A decoder.
    pub(super) behind: Value,
}

impl Words {
    /// Names that are known.
    pub(super) const NAMES: [&'static str; 8] =
        ["gpt-2", "llama-bpe", "llama-v3", "llama3", "qwen2", "smollm", "starcoder", "tekken"];

    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "gpt-2" => Self::Gpt2,
            "smollm" | "starcoder" => Self::SmolLm,
            "llama3" | "llama-v3" | "llama-bpe" => Self::Llama3,
            "qwen2" => Self::Qwen2,
            "tekken" => Self::Tekken,
            _ => return None,
        })
    }

    /// A word that is a token is that token, whatever the merges would make of it.
    pub(super) fn ignores_merges(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }

    /// Where the file does not say.
    pub(super) fn adds_bos(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }

    pub(super) fn ends(self) -> Ends {
        let bytes = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
        let split = |regex: &str| {
            let words =
                json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
            json!({ "type": "Sequence", "pretokenizers": [words, bytes(false)] })
        };
        let before = match self {
            Self::Gpt2 => bytes(true),
            Self::SmolLm => {
                let digits = json!({ "type": "Digits", "individual_digits": true });
                json!({ "type": "Sequence", "pretokenizers": [digits, bytes(true)] })
            }
            Self::Llama3 => split(LLAMA3),
            Self::Tekken => split(TEKKEN),
            // The tokenizer's class puts its own in this place.
            Self::Qwen2 => bytes(false),
        };
        Ends { before, behind: bytes(true) }
    }
}
