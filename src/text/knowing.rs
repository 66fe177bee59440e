//! A model as one that knows tokens of an adapter: the library gives a token that it adds the id that the model has for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tokenizers::models::ModelWrapper;
use tokenizers::{AddedToken, Model, Result as LibraryResult, Token};

/// A model with ids that it does not have. It is asked for ids alone.
pub(super) struct Knowing<'t> {
    model: &'t ModelWrapper,
    ids: HashMap<&'t str, u32>,
}

impl<'t> Knowing<'t> {
    /// `model`, and these tokens.
    pub(super) fn of(model: &'t ModelWrapper, tokens: &'t [(u32, AddedToken)]) -> Self {
        Self { model, ids: tokens.iter().map(|(id, token)| (token.content.as_str(), *id)).collect() }
    }
}

impl Model for Knowing<'_> {
    type Trainer = <ModelWrapper as Model>::Trainer;

    fn tokenize(&self, sequence: &str) -> LibraryResult<Vec<Token>> {
        self.model.tokenize(sequence)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied().or_else(|| self.model.token_to_id(token))
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.model.id_to_token(id)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.model.get_vocab()
    }

    fn get_vocab_size(&self) -> usize {
        self.model.get_vocab_size()
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> LibraryResult<Vec<PathBuf>> {
        self.model.save(folder, prefix)
    }

    fn get_trainer(&self) -> Self::Trainer {
        self.model.get_trainer()
    }
}
