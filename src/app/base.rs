//! The base model, opened: its folder or file found, its headers and small files read. Nothing of it is on the device
//! yet.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::bundled;
use super::error::AppError;
use super::model_folder::{self, ModelFiles};
use crate::admission::GenerationDefaults;
use crate::cli::fetch;
use crate::config::{Environment, ModelSource};
use crate::files::{self, MAX_SETTINGS_BYTES};
use crate::hub::Wanted;
use crate::model::{BaseModel, Checkpoint, DecoderSpec, ModelError};
use crate::ops::{Backend, Numerics};
use crate::telemetry::Progress;
use crate::text::{Tokenizer, TokenizerSettings};

/// A base model's files.
pub struct OpenedBase {
    /// Name it is served under: of its folder, or of its repository.
    pub name: String,
    /// What the decoder is built by.
    pub spec: DecoderSpec,
    /// config.json and weights.
    pub checkpoint: Arc<Checkpoint>,
    /// Where the bundled model is unpacked; goes with this value.
    _unpacked: Option<TempDir>,
}

impl OpenedBase {
    /// Find and open a model; one of the hub is fetched where it is not in the cache. Blocks.
    ///
    /// # Errors
    /// Missing or unreadable files, and a model that is not served.
    pub fn open(source: &ModelSource, environment: &Environment) -> Result<Self, AppError> {
        match source {
            ModelSource::Dir(dir) => {
                let found = model_folder::find(dir);
                match found.map_err(|reason| AppError::NoModel { path: dir.clone(), reason })? {
                    ModelFiles::HuggingFace => Self::new(Checkpoint::open(dir)?, folder_name(dir), None),
                    ModelFiles::Gguf(file) => Self::in_gguf(&file),
                }
            }
            ModelSource::Gguf(file) => Self::in_gguf(file),
            ModelSource::Hub(repository) => {
                let dir = fetch(repository, Wanted::Model, environment)?;
                Self::new(Checkpoint::open(&dir)?, repository.name.clone(), None)
            }
            ModelSource::Bundled => {
                let unpacked = bundled::unpack()?;
                let checkpoint = Checkpoint::open(unpacked.path())?;
                Self::new(checkpoint, bundled::NAME.to_owned(), Some(unpacked))
            }
        }
    }

    fn in_gguf(file: &Path) -> Result<Self, AppError> {
        let name = file.file_stem().map_or_else(|| file.display().to_string(), |stem| stem.to_string_lossy().into());
        Self::new(Checkpoint::open_gguf(file)?, name, None)
    }

    fn new(checkpoint: Checkpoint, name: String, unpacked: Option<TempDir>) -> Result<Self, AppError> {
        let spec = checkpoint.spec()?;
        Ok(Self { name, spec, checkpoint: Arc::new(checkpoint), _unpacked: unpacked })
    }

    /// The folder of the model's files, or its GGUF file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// Read what the files beside `tokenizer.json` say, or the GGUF file.
    ///
    /// # Errors
    /// Of these files.
    pub fn tokenizer_settings(&self) -> Result<TokenizerSettings, AppError> {
        Ok(match self.checkpoint.metadata() {
            Some(metadata) => TokenizerSettings::from_gguf(metadata)?,
            None => TokenizerSettings::from_dir(self.path(), self.checkpoint.config())?,
        })
    }

    /// Read `tokenizer.json`, or what the GGUF file has in its place.
    ///
    /// # Errors
    /// Of the tokenizer's file.
    pub fn tokenizer(&self, settings: &TokenizerSettings) -> Result<Arc<Tokenizer>, AppError> {
        let tokenizer = match self.checkpoint.metadata() {
            Some(metadata) => Tokenizer::from_gguf(metadata, settings)?,
            None => Tokenizer::from_dir(self.path(), settings)?,
        };
        Ok(Arc::new(tokenizer))
    }

    /// What the model's makers want where a request does not say: `generation_config.json`, where there is one, and
    /// the end-of-sequence ids of `config.json`. A GGUF file has the ids.
    ///
    /// # Errors
    /// Of the two files.
    pub fn generation_defaults(&self) -> Result<GenerationDefaults, AppError> {
        let vocab_size = self.spec.vocab_size as u32;
        let path = self.path().join("generation_config.json");
        let generation = match self.checkpoint.metadata() {
            Some(_) => None,
            None => files::read_if_there(&path, MAX_SETTINGS_BYTES)
                .map_err(|source| ModelError::Read { path: path.clone(), source })?,
        };
        let defaults = GenerationDefaults::read(generation.as_deref(), self.checkpoint.config(), vocab_size)?;
        if !defaults.unreachable_eos.is_empty() {
            tracing::warn!(
                eos_token_ids = ?defaults.unreachable_eos,
                vocab_size = self.spec.vocab_size,
                "the model has no row for these ends of sequence: it cannot generate them"
            );
        }
        for setting in &defaults.ignored {
            tracing::warn!(setting, "generation_config.json has a setting that this server does not have");
        }
        Ok(defaults)
    }

    /// Put its weights on a device, for sequences of up to `context` tokens, and show how far that is on a terminal that can be
    /// drawn over.
    ///
    /// # Errors
    /// Missing or misshapen tensors, and memory the device refuses.
    pub fn load<B: Backend>(&self, backend: &B, context: usize, terminal: bool) -> Result<BaseModel<B>, ModelError> {
        let Self { name, spec, checkpoint, .. } = self;
        let bytes = checkpoint.bytes();
        let bar = RefCell::new(Progress::bytes(&format!("loading {name}"), bytes, terminal));
        let advance = |done: usize, of: usize| {
            let mut bar = bar.borrow_mut();
            let (before, _) = bar.position();
            bar.advance((bytes * done as u64 / of.max(1) as u64).saturating_sub(before));
        };
        let model = BaseModel::load(backend, spec, checkpoint, context, &advance)?;
        bar.into_inner().finish();
        Ok(model)
    }

    /// The numerics that keep what the checkpoint has: f16 where all matrices are, bf16 for others of 16 bits or fewer, else
    /// f32.
    #[must_use]
    pub fn own_numerics(&self) -> Numerics {
        if self.checkpoint.is_f16() {
            Numerics::F16
        } else if self.checkpoint.is_16_bit() {
            Numerics::BF16
        } else {
            Numerics::F32
        }
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
