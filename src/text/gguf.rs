//! The tokenizer that a GGUF file has in its metadata. llama.cpp's converter writes the vocabulary, the merges or scores,
//! the kind of each token, and a name (`tokenizer.ggml.pre`) for what splits a text into words; the rest is put together
//! here as transformers has it for the tokenizer of that name. A name that is not known is refused: a text that is split
//! differently is another text to the model.

mod error;
mod merges;
mod vocabulary;
mod words;

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use super::error::TokenizerError;
use super::settings::TokenizerSettings;
use super::tokenizer::Tokenizer;
use super::tokenizer_class::TokenizerClass;
use crate::files::gguf::GgufMetadata;
pub use error::GgufTokenizerError;
use vocabulary::Vocabulary;
use words::Words;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
const SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// The two kinds that are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `gpt2`: an alphabet of bytes, and merges.
    Bytes(Words),
    /// `llama`: sentencepiece's pieces, with scores.
    Pieces,
}

impl Kind {
    fn of(metadata: &GgufMetadata) -> Result<Self, GgufTokenizerError> {
        let shortened = |text: &str| text.chars().take(64).collect();
        match metadata.text(MODEL)?.ok_or_else(|| metadata.wrong(MODEL, "a text"))? {
            "llama" => Ok(Self::Pieces),
            "gpt2" => {
                let name = metadata.text(PRE)?.unwrap_or("none");
                Words::of(name).map(Self::Bytes).ok_or_else(|| GgufTokenizerError::Pre { found: shortened(name) })
            }
            found => Err(GgufTokenizerError::Model { found: shortened(found) }),
        }
    }

    /// llama.cpp's own defaults, where the file does not say.
    fn adds_bos(self) -> bool {
        match self {
            Self::Bytes(words) => words.adds_bos(),
            Self::Pieces => true,
        }
    }
}

impl TokenizerSettings {
    /// What a GGUF file says of tokens and templates. Of two ways to read sentencepiece's pieces behind a special token,
    /// which the file does not tell apart, it is transformers' newer one: no space is put there.
    ///
    /// # Errors
    /// [`TokenizerError::Gguf`].
    pub fn from_gguf(metadata: &GgufMetadata) -> Result<Self, TokenizerError> {
        Ok(settings(metadata)?)
    }
}

fn settings(metadata: &GgufMetadata) -> Result<TokenizerSettings, GgufTokenizerError> {
    let class = match Kind::of(metadata)? {
        Kind::Pieces => TokenizerClass::Llama { legacy: false, prefix: metadata.flag(SPACE_PREFIX)?.unwrap_or(true) },
        Kind::Bytes(Words::Qwen2) => TokenizerClass::Qwen2 { prefix: false },
        Kind::Bytes(_) => TokenizerClass::AsWritten,
    };
    let vocabulary = Vocabulary::read(metadata)?;
    let named = vocabulary.named.iter().map(|(name, id)| ((*name).to_owned(), added(vocabulary.token(*id), true)));
    let template = |key| Ok::<_, GgufTokenizerError>(metadata.text(key)?.map(str::to_owned));
    Ok(TokenizerSettings {
        named: named.collect(),
        chat_template: template("tokenizer.chat_template")?,
        tool_template: template("tokenizer.chat_template.tool_use")?,
        class,
        ..TokenizerSettings::default()
    })
}

impl Tokenizer {
    /// Read the tokenizer of a GGUF file; `settings` are of the same file.
    ///
    /// # Errors
    /// [`TokenizerError::Gguf`] and [`TokenizerError::Format`].
    pub fn from_gguf(metadata: &GgufMetadata, settings: &TokenizerSettings) -> Result<Self, TokenizerError> {
        Self::finished(tokenizer(metadata)?, settings)
    }
}

fn tokenizer(metadata: &GgufMetadata) -> Result<tokenizers::Tokenizer, GgufTokenizerError> {
    let kind = Kind::of(metadata)?;
    check_served(metadata, kind)?;
    let vocabulary = Vocabulary::read(metadata)?;
    let ids: Vocab = vocabulary.of_model().map(|(id, token)| (token.to_owned(), id)).collect();
    let merges = match kind {
        Kind::Bytes(_) => merges::written(metadata, &ids)?,
        Kind::Pieces => merges::of_scores(&vocabulary, &vocabulary::scores(metadata, vocabulary.len())?),
    };
    let sentencepiece = kind == Kind::Pieces;
    let ignore_merges = matches!(kind, Kind::Bytes(words) if words.ignores_merges());
    let model = BPE::builder()
        .vocab_and_merges(ids, merges)
        .fuse_unk(sentencepiece)
        .byte_fallback(sentencepiece)
        .ignore_merges(ignore_merges)
        .build()
        .map_err(library)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    if let Kind::Bytes(words) = kind {
        let ends = words.ends();
        tokenizer.with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(ends.before)?));
        tokenizer.with_decoder(Some(part::<DecoderWrapper>(ends.behind)?));
    }
    tokenizer.with_post_processor(around(metadata, &vocabulary, kind)?);
    let tokens = vocabulary.added().map(|(id, special)| added(vocabulary.token(id), special));
    tokenizer.add_tokens(tokens).map_err(library)?;
    match vocabulary.added().find(|(id, _)| tokenizer.token_to_id(vocabulary.token(*id)) != Some(*id)) {
        Some((id, _)) => Err(GgufTokenizerError::Library { reason: format!("token {id} got another id") }),
        None => Ok(tokenizer),
    }
}

/// Settings that change what is encoded and that no served tokenizer has.
fn check_served(metadata: &GgufMetadata, kind: Kind) -> Result<(), GgufTokenizerError> {
    let model = if kind == Kind::Pieces { "llama" } else { "gpt2" };
    let unsupported = |key| GgufTokenizerError::Unsupported { key, found: metadata.shown(key), model };
    const SQUEEZES: &str = "tokenizer.ggml.remove_extra_whitespaces";
    const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
    if metadata.flag(SQUEEZES)? == Some(true) {
        return Err(unsupported(SQUEEZES));
    }
    if metadata.get(CHARSMAP).is_some() {
        return Err(unsupported(CHARSMAP));
    }
    if kind != Kind::Pieces && metadata.flag(SPACE_PREFIX)? == Some(true) {
        return Err(unsupported(SPACE_PREFIX));
    }
    Ok(())
}

/// What is put around a text.
fn around(
    metadata: &GgufMetadata,
    vocabulary: &Vocabulary<'_>,
    kind: Kind,
) -> Result<Option<PostProcessorWrapper>, GgufTokenizerError> {
    let bos = metadata.flag(ADD_BOS)?.unwrap_or_else(|| kind.adds_bos());
    let eos = metadata.flag(ADD_EOS)?.unwrap_or(false);
    let token = |wanted: bool, name, key| match vocabulary.named(name) {
        _ if !wanted => Ok(None),
        Some(id) => Ok(Some(id)),
        None => Err(GgufTokenizerError::from(metadata.wrong(key, "an id, since it is put around every text"))),
    };
    let bos = token(bos, "bos_token", vocabulary::BOS)?;
    let eos = token(eos, "eos_token", vocabulary::EOS)?;
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    let special = |id: u32| json!({ "SpecialToken": { "id": vocabulary.token(id), "type_id": 0 } });
    let sequence = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    let one = |name| bos.map(special).into_iter().chain([sequence(name)]).chain(eos.map(special));
    let tokens = bos.into_iter().chain(eos).map(|id| {
        let text = vocabulary.token(id);
        (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }))
    });
    let template = json!({
        "type": "TemplateProcessing",
        "single": one("A").collect::<Vec<_>>(),
        "pair": one("A").chain(one("B")).collect::<Vec<_>>(),
        "special_tokens": tokens.collect::<serde_json::Map<_, _>>(),
    });
    part(template).map(Some)
}

fn added(token: &str, special: bool) -> AddedToken {
    AddedToken::from(token, special).normalized(false)
}

fn library(error: tokenizers::Error) -> GgufTokenizerError {
    GgufTokenizerError::Library { reason: error.to_string() }
}

fn part<P: serde::de::DeserializeOwned>(value: Value) -> Result<P, GgufTokenizerError> {
    serde_json::from_value(value).map_err(|error| GgufTokenizerError::Library { reason: error.to_string() })
}

#[cfg(test)]
mod tests;
