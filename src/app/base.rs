//! The base model, opened: its folder found, its small files read and its weights mapped. Nothing of it is on the
//! device yet.

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::bundled;
use super::error::AppError;
use crate::config::ModelSource;
use crate::model::{Checkpoint, DecoderSpec, read_spec};
use crate::text::{ChatTemplate, Tokenizer};

/// A base model's files.
pub struct OpenedBase {
    /// Name it is served under: of its folder, or of its repository.
    pub name: String,
    /// What the decoder is built by.
    pub spec: DecoderSpec,
    /// config.json and weights.
    pub checkpoint: Arc<Checkpoint>,
    /// Where the bundled model is unpacked; goes with this value.
    unpacked: Option<TempDir>,
}

impl OpenedBase {
    /// Find and open a model.
    ///
    /// # Errors
    /// Missing or unreadable files, and a model that is not served.
    pub fn open(source: &ModelSource) -> Result<Self, AppError> {
        match source {
            ModelSource::Dir(dir) => Self::in_folder(dir, folder_name(dir), None),
            ModelSource::Hub { repository } => Err(AppError::Bundled { reason: repository.clone() }),
            ModelSource::Bundled => {
                let unpacked = bundled::unpack()?;
                let dir = unpacked.path().to_owned();
                Self::in_folder(&dir, bundled::NAME.to_owned(), Some(unpacked))
            }
        }
    }

    fn in_folder(dir: &Path, name: String, unpacked: Option<TempDir>) -> Result<Self, AppError> {
        let checkpoint = Arc::new(Checkpoint::open(dir)?);
        let spec = read_spec(checkpoint.config())?;
        Ok(Self { name, spec, checkpoint, unpacked })
    }

    /// The folder of the model's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.unpacked.as_ref().map_or_else(|| self.checkpoint.dir(), TempDir::path)
    }

    /// Read `tokenizer.json`.
    ///
    /// # Errors
    /// Of the tokenizer's file.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>, AppError> {
        Ok(Arc::new(Tokenizer::from_file(&self.dir().join("tokenizer.json"))?))
    }

    /// Read the chat template, where there is one.
    ///
    /// # Errors
    /// Of the template.
    pub fn chat_template(&self) -> Result<Option<Arc<ChatTemplate>>, AppError> {
        Ok(ChatTemplate::from_dir(self.dir())?.map(Arc::new))
    }

    /// The `architectures` entry of config.json; empty where there is none.
    #[must_use]
    pub fn architecture(&self) -> String {
        let names = self.checkpoint.config().get("architectures");
        names.and_then(|names| names.get(0)).and_then(|name| name.as_str()).unwrap_or_default().to_owned()
    }
}

/// The last part of a path, or the whole where it has none.
fn folder_name(dir: &Path) -> String {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    full.file_name().map_or_else(|| full.display().to_string(), |name| name.to_string_lossy().into_owned())
}
