//! An adapter brought from wherever a person has it, to a folder with exactly what is served: a folder as it was saved,
//! in an older form or in parts, or a repository of the hub. For clients that upload and for the operator's own
//! `--adapter`; what comes over the network is safetensors and nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::adapters::import::AdapterFolder;
use crate::adapters::look::{FoundAdapter, FoundWeights, NotAnAdapter, look};
use crate::adapters::{ADAPTERHUB_WEIGHTS_FILE, CHAT_TEMPLATE_FILE, CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE};
use crate::config::{AdapterSource, Environment, Exit, HubRepository, Terminal};
use crate::delta::convert::{ConvertError, join_safetensors, pickle_to_safetensors};
use crate::files;
use crate::hub::{self, HubError, HubOptions, Wanted};
use crate::telemetry::Progress;
use crate::text::settings::chat_template_in;
use crate::text::{OwnTokensError, SavedTokens, TokenizerError};

/// Files beside an adapter that are named to a person.
const MAX_SHOWN: usize = 6;

/// An adapter that lies ready.
#[derive(Debug)]
pub struct Brought {
    dir: PathBuf,
    chat_template: Option<Vec<u8>>,
    saved_tokens: Option<SavedTokens>,
    notes: Vec<String>,
    /// Where a converted one lies; goes with this value.
    _converted: Option<TempDir>,
}

impl Brought {
    /// A folder with `adapter_config.json` and `adapter_model.safetensors`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The chat template that was saved with it, where there is one: `chat_template.jinja`, or what tokenizer_config.json
    /// says.
    #[must_use]
    pub fn chat_template(&self) -> Option<&[u8]> {
        self.chat_template.as_deref()
    }

    /// The added tokens of the tokenizer that was saved with it, where there are any: the base's, and its own.
    #[must_use]
    pub fn saved_tokens(&self) -> Option<&SavedTokens> {
        self.saved_tokens.as_ref()
    }

    /// What is to be read of it. Which tokens are its own only the base's tokenizer says.
    #[must_use]
    pub fn folder(&self) -> AdapterFolder<'_> {
        AdapterFolder { dir: &self.dir, chat_template: self.chat_template(), own_tokens: None }
    }

    /// What was done to it and what was left aside, for people.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// What of the files that were saved with an adapter goes with it; the rest stays where it is, whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Its chat template.
    pub chat_template: bool,
    /// The tokens of its tokenizer.
    pub tokens: bool,
}

impl Saved {
    /// All that is of use.
    pub const ALL: Self = Self { chat_template: true, tokens: true };
}

/// Why an adapter cannot be brought.
#[derive(Debug, thiserror::Error)]
pub enum BringError {
    /// The hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// No adapter there.
    #[error(transparent)]
    Folder(#[from] NotAnAdapter),
    /// Weights in another form that cannot be converted.
    #[error("{}: {source}", file.display())]
    Convert {
        /// Which file.
        file: PathBuf,
        /// Why not.
        source: ConvertError,
    },
    /// The chat template that was saved with it.
    #[error(transparent)]
    ChatTemplate(#[from] TokenizerError),
    /// The tokenizer that was saved with it.
    #[error(transparent)]
    Tokens(#[from] OwnTokensError),
    /// A place for what is converted.
    #[error("cannot make a temporary folder: {0}")]
    Temporary(io::Error),
}

impl BringError {
    /// The exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Hub(error) => exit_of_hub(error),
            Self::Folder(NotAnAdapter::Missing { .. } | NotAnAdapter::Nothing { .. }) => Exit::NotFound,
            Self::Folder(NotAnAdapter::Io { .. })
            | Self::Convert { source: ConvertError::Io(_), .. }
            | Self::Temporary(_) => Exit::Failure,
            Self::Folder(_) | Self::Convert { .. } | Self::ChatTemplate(_) | Self::Tokens(_) => Exit::Rejected,
        }
    }
}

/// The exit code of a failure of the hub.
#[must_use]
pub fn exit_of_hub(error: &HubError) -> Exit {
    match error {
        HubError::NotFound { .. } | HubError::NoRevision { .. } | HubError::NotCached { .. } => Exit::NotFound,
        HubError::Unreachable { .. } => Exit::Unavailable,
        HubError::NoAdapter { .. } | HubError::NoSafetensors { .. } | HubError::MissingFile { .. } => Exit::Rejected,
        _ => Exit::Failure,
    }
}

/// Bring an adapter. Blocks.
///
/// # Errors
/// [`BringError`].
pub fn bring(source: &AdapterSource, saved: Saved, environment: &Environment) -> Result<Brought, BringError> {
    match source {
        AdapterSource::Dir(dir) => from_folder(dir, saved),
        AdapterSource::Hub(repository) => from_folder(&fetch(repository, Wanted::Adapter, environment)?, saved),
    }
}

/// Fetch what is wanted of a repository, showing how far it has come. Blocks.
///
/// # Errors
/// `HubError`.
pub fn fetch(repository: &HubRepository, wanted: Wanted, environment: &Environment) -> Result<PathBuf, HubError> {
    let options = HubOptions::from_environment(environment)?;
    let terminal = Terminal::of_process(environment);
    let mut bar: Option<Progress> = None;
    let folder = hub::fetch(&options, repository, wanted, &mut |at| {
        let start = || Progress::bytes(&format!("fetching {repository}"), at.total, terminal.progress);
        let bar = bar.get_or_insert_with(start);
        let (before, _) = bar.position();
        bar.advance(at.done.saturating_sub(before));
    })?;
    if let Some(bar) = bar {
        bar.finish();
    }
    Ok(folder)
}

fn from_folder(folder: &Path, saved: Saved) -> Result<Brought, BringError> {
    let FoundAdapter { weights, mut others } = look(folder)?;
    // An empty one is none to transformers either.
    let chat_template = match saved.chat_template {
        true => chat_template_in(folder)?.filter(|template| !template.is_empty()).map(String::into_bytes),
        false => None,
    };
    let saved_tokens = match saved.tokens {
        true => SavedTokens::from_dir(folder)?.filter(|tokens| !tokens.is_empty()),
        false => None,
    };
    let taken = [(CHAT_TEMPLATE_FILE, chat_template.is_some()), (TOKENIZER_FILE, saved_tokens.is_some())];
    others.retain(|name| !taken.contains(&(name.as_str(), true)));
    let mut notes = left_aside(&others);
    notes.extend(chat_template.is_some().then(|| "the chat template that was saved with it goes with it".to_owned()));
    let (converted, note) = match weights {
        FoundWeights::Safetensors => (None, None),
        FoundWeights::AdapterHub => {
            let file = folder.join(ADAPTERHUB_WEIGHTS_FILE);
            let copied = convert(folder, &file, |to| fs::copy(&file, to).map(drop).map_err(ConvertError::Io))?;
            (Some(copied), None)
        }
        FoundWeights::Pickle(name) => {
            let file = folder.join(name);
            let converted = convert(folder, &file, |to| pickle_to_safetensors(&file, to))?;
            (Some(converted), Some(format!("{name} was converted to {WEIGHTS_FILE}, without running it")))
        }
        FoundWeights::Parts(parts) => {
            let converted = convert(folder, folder, |to| join_safetensors(folder, &parts, to))?;
            (Some(converted), Some(format!("{} parts were joined to {WEIGHTS_FILE}", parts.len())))
        }
    };
    notes.extend(note);
    let dir = converted.as_ref().map_or_else(|| folder.to_owned(), |folder| folder.path().to_owned());
    Ok(Brought { dir, chat_template, saved_tokens, notes, _converted: converted })
}

/// A temporary folder with the config, and weights in the form and by the name that are served.
fn convert(
    folder: &Path,
    file: &Path,
    write: impl FnOnce(&Path) -> Result<(), ConvertError>,
) -> Result<TempDir, BringError> {
    let failed = |source| BringError::Convert { file: file.to_owned(), source };
    let to = tempfile::Builder::new().prefix("polydelta-adapter-").tempdir().map_err(BringError::Temporary)?;
    write(&to.path().join(WEIGHTS_FILE)).map_err(failed)?;
    let config = files::read(&folder.join(CONFIG_FILE), files::MAX_SETTINGS_BYTES);
    let config = config.and_then(|config| fs::write(to.path().join(CONFIG_FILE), config));
    config.map_err(BringError::Temporary)?;
    Ok(to)
}

fn left_aside(others: &[String]) -> Vec<String> {
    if others.is_empty() {
        return Vec::new();
    }
    let shown = others.iter().take(MAX_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = match others.len().saturating_sub(MAX_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    vec![format!("left aside, as no part of the adapter: {shown}{more}")]
}

#[cfg(test)]
mod tests;
