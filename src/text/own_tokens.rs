//! The tokens that an adapter has and its base does not: what is kept of the tokenizer that was saved with it. Texts for the
//! adapter are read and written with them beside the base's ([`Tokenizer::with_tokens`]); everything else of a tokenizer
//! is the base's, whatever the files say.

use std::collections::HashSet;

use tokenizers::AddedToken;

use super::error::TokenizerError;
use super::own_tokens_error::{MAX_TOKEN_BYTES, OwnTokensError};
use super::saved_tokens::SavedTokens;
use super::tokenizer::Tokenizer;
use crate::types::MAX_ADDED_TOKENS;

/// At least one token, of a text and with an id that the base does not have as an added token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnTokens {
    saved: SavedTokens,
}

impl OwnTokens {
    /// Those of `saved` that `base` does not look for in a text; `None` where it looks for all of them. What the base knows
    /// must have the base's id, and an id that the base knows must be the base's token. A token of the base is what the
    /// base says of it.
    ///
    /// # Errors
    /// [`OwnTokensError`], which names the token.
    pub fn beside(base: &Tokenizer, saved: SavedTokens) -> Result<Option<Self>, OwnTokensError> {
        let SavedTokens { added, eos } = saved;
        let mut own: Vec<(u32, AddedToken)> = Vec::new();
        let mut texts = HashSet::new();
        for (id, token) in added {
            let text = || token.content.clone();
            if token.content.is_empty() {
                return Err(OwnTokensError::Empty { id });
            }
            if !texts.insert(text()) {
                return Err(OwnTokensError::Repeated { token: text() });
            }
            match (base.token_id(&token.content), base.token(id)) {
                (Some(base_id), _) if base_id != id => {
                    return Err(OwnTokensError::OtherId { token: text(), id, base_id });
                }
                (None, Some(other)) => return Err(OwnTokensError::Taken { token: text(), id, other }),
                (Some(_), _) if base.is_added(&token.content) => {}
                _ => own.push((id, token)),
            }
        }
        check(&own)?;
        let own = (!own.is_empty()).then_some(Self { saved: SavedTokens { added: own, eos } });
        if let Some(own) = &own {
            // What the library refuses is refused now, and not at the first text.
            base.with_tokens(own)?;
        }
        Ok(own)
    }

    /// What is kept.
    ///
    /// # Errors
    /// As [`SavedTokens::to_file`].
    pub fn to_file(&self) -> Result<Vec<u8>, OwnTokensError> {
        self.saved.to_file()
    }

    /// Whether the ids are those of rows. An adapter with as many rows as its base of `base_rows` (`rows` is `None`) may
    /// have been saved with tokens that it has no use for, and no rows either: they are known, and a prompt with them is
    /// refused by name.
    ///
    /// # Errors
    /// [`OwnTokensError::NoRow`].
    pub fn check_rows(&self, base_rows: u32, rows: Option<u32>) -> Result<(), OwnTokensError> {
        let rows = rows.unwrap_or(base_rows.saturating_add(MAX_ADDED_TOKENS as u32));
        match self.saved.added.iter().find(|(id, _)| *id >= rows) {
            Some((id, token)) => Err(OwnTokensError::NoRow { token: token.content.clone(), id: *id, rows }),
            None => Ok(()),
        }
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.saved.added.len()
    }
}

impl Tokenizer {
    /// This tokenizer with an adapter's own tokens beside those that were added to it, looked for in a text as all of them
    /// are. What it is made of besides, the model above all, is shared with it.
    ///
    /// # Errors
    /// [`TokenizerError::Format`]: the library cannot look for them.
    pub fn with_tokens(&self, own: &OwnTokens) -> Result<Self, TokenizerError> {
        self.with_added(&own.saved.added)
    }
}

/// What can be said without the base.
fn check(own: &[(u32, AddedToken)]) -> Result<(), OwnTokensError> {
    if own.len() > MAX_ADDED_TOKENS {
        return Err(OwnTokensError::TooMany { count: own.len() });
    }
    if let Some((id, token)) = own.iter().find(|(_, token)| token.content.len() > MAX_TOKEN_BYTES) {
        return Err(OwnTokensError::TooLong { id: *id, bytes: token.content.len() });
    }
    // They are in the order of their ids.
    match own.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some([(id, other), (_, token)]) => {
            Err(OwnTokensError::SameId { token: token.content.clone(), id: *id, other: other.content.clone() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
