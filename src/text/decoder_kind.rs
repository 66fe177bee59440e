//! How the text of a sequence follows from its tokens, as far as incremental decoding must know.

use tokenizers::decoders::DecoderWrapper;

/// What a tokenizer's decoder needs to see before the text of a token is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DecoderKind {
    /// Tokens are bytes in GPT-2's alphabet: text is their concatenation.
    ByteLevel,
    /// Tokens are pieces of text; with byte fallback, `<0x41>` is a byte, final once its run has ended.
    Pieces { byte_fallback: bool },
    /// Bytes and something more: text is final once it does not end in U+FFFD.
    Opaque,
}

impl DecoderKind {
    /// Of a tokenizer's decoder.
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Self {
        let Some(decoder) = decoder else {
            return DecoderKind::Pieces { byte_fallback: false };
        };
        match flatten(decoder).as_slice() {
            [DecoderWrapper::ByteLevel(_)] => DecoderKind::ByteLevel,
            parts if parts.iter().any(|part| matches!(part, DecoderWrapper::ByteLevel(_))) => DecoderKind::Opaque,
            parts => DecoderKind::Pieces {
                byte_fallback: parts.iter().any(|part| matches!(part, DecoderWrapper::ByteFallback(_))),
            },
        }
    }
}

fn flatten(decoder: &DecoderWrapper) -> Vec<&DecoderWrapper> {
    match decoder {
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().flat_map(flatten).collect(),
        single => vec![single],
    }
}
