//! Tokens, their kinds, and which of them have a name.

use std::collections::HashMap;

use super::error::GgufTokenizerError;
use crate::files::gguf::GgufMetadata;

const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
pub(super) const BOS: &str = "tokenizer.ggml.bos_token_id";
pub(super) const EOS: &str = "tokenizer.ggml.eos_token_id";

/// transformers' names of special tokens.
const NAMED: [(&str, &str); 4] = [
    ("bos_token", BOS),
    ("eos_token", EOS),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
];

/// llama.cpp's kinds of tokens (`llama_token_type`), as far as they differ to a tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// What a text is made of: ordinary, unknown, and single bytes.
    Text,
    /// A control token.
    Control,
    /// Looked for in a text before anything else, and not a control token.
    UserDefined,
    /// Fills the embedding up.
    Unused,
}

/// The vocabulary of a file.
pub(super) struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<TokenKind>,
    /// Special tokens with a name of transformers'.
    pub(super) named: Vec<(&'static str, u32)>,
    /// Ids below are in the model's vocabulary; those from here on are added to it one after the other.
    model: usize,
    /// Ids from here on are unused.
    used: usize,
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(metadata: &'a GgufMetadata) -> Result<Self, GgufTokenizerError> {
        let tokens = metadata.texts(TOKENS)?.ok_or_else(|| metadata.wrong(TOKENS, "a list of texts"))?;
        let mut kinds = kinds(metadata, tokens.len())?;
        let mut named = Vec::new();
        for (name, key) in NAMED {
            let Some(id) = metadata.count(key)? else { continue };
            let beyond = || GgufTokenizerError::Id { key, id, tokens: tokens.len() };
            let place = usize::try_from(id).ok().filter(|id| *id < tokens.len()).ok_or_else(beyond)?;
            named.push((name, place as u32));
            // Whatever the file says of its kind, as transformers has it.
            kinds[place] = TokenKind::Control;
        }
        let is_added = |kind: &TokenKind| matches!(kind, TokenKind::Control | TokenKind::UserDefined);
        let used = kinds.iter().rposition(|kind| *kind != TokenKind::Unused).map_or(0, |last| last + 1);
        let model = kinds[..used].iter().rposition(|kind| !is_added(kind)).map_or(0, |last| last + 1);
        check_distinct(&tokens[..used])?;
        Ok(Self { tokens, kinds, named, model, used })
    }

    /// Tokens, unused ones among them.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn token(&self, id: u32) -> &'a str {
        self.tokens[id as usize]
    }

    pub(super) fn named(&self, name: &str) -> Option<u32> {
        self.named.iter().find(|(known, _)| *known == name).map(|(_, id)| *id)
    }

    /// Id and text of what a text is cut into.
    pub(super) fn of_model(&self) -> impl Iterator<Item = (u32, &'a str)> {
        self.tokens[..self.model].iter().enumerate().map(|(id, token)| (id as u32, *token))
    }

    /// Ids of what is looked for in a text before it is cut, and whether each is special. Ascending.
    pub(super) fn added(&self) -> impl Iterator<Item = (u32, bool)> {
        self.kinds[..self.used].iter().enumerate().filter_map(|(id, kind)| match kind {
            TokenKind::Control => Some((id as u32, true)),
            TokenKind::UserDefined => Some((id as u32, false)),
            TokenKind::Text | TokenKind::Unused => None,
        })
    }
}

/// One score for each token.
pub(super) fn scores(metadata: &GgufMetadata, tokens: usize) -> Result<Vec<f64>, GgufTokenizerError> {
    let scores = metadata.numbers(SCORES)?.ok_or_else(|| metadata.wrong(SCORES, "a list of numbers"))?;
    if scores.len() == tokens {
        Ok(scores)
    } else {
        Err(GgufTokenizerError::Length { key: SCORES, found: scores.len(), tokens })
    }
}

fn kinds(metadata: &GgufMetadata, tokens: usize) -> Result<Vec<TokenKind>, GgufTokenizerError> {
    let Some(kinds) = metadata.numbers(KINDS)? else { return Ok(vec![TokenKind::Text; tokens]) };
    if kinds.len() != tokens {
        return Err(GgufTokenizerError::Length { key: KINDS, found: kinds.len(), tokens });
    }
    let kind = |(id, number): (usize, f64)| match number {
        1.0 | 2.0 | 6.0 => Ok(TokenKind::Text),
        3.0 => Ok(TokenKind::Control),
        4.0 => Ok(TokenKind::UserDefined),
        5.0 => Ok(TokenKind::Unused),
        found => Err(GgufTokenizerError::TokenKind { id, found }),
    };
    kinds.into_iter().enumerate().map(kind).collect()
}

fn check_distinct(tokens: &[&str]) -> Result<(), GgufTokenizerError> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(first) = ids.insert(*token, id as u32) {
            let token = token.chars().take(64).collect();
            return Err(GgufTokenizerError::Twice { token, first, second: id as u32 });
        }
    }
    Ok(())
}
