//! The model in the binary: a small base, its adapters, and a prompt for each. `build.rs` lists the files.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::error::AppError;
use crate::config::AdapterSource;
use crate::types::AdapterName;

/// Path under `models/demo`, with `/`, and content.
type BundledFile = (&'static str, &'static [u8]);

const FILES: &[BundledFile] = include!(concat!(env!("OUT_DIR"), "/bundled.rs"));

/// Name of the bundled base.
pub(super) const NAME: &str = "polydelta-demo";

/// One line of the demo.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct DemoPrompt {
    /// Adapter; the base where it is empty.
    pub(super) name: String,
    /// Method and size, for people.
    pub(super) kind: String,
    /// What it was trained for.
    pub(super) task: String,
    /// What to send.
    pub(super) prompt: String,
    /// Names of the labels of an adapter with a classification head, in the head's order; empty for those that write.
    #[serde(default)]
    pub(super) labels: Vec<String>,
    /// Adapters that are added up for this line, which has no adapter of its own then.
    #[serde(default)]
    pub(super) mix: Vec<MixedPart>,
}

/// An adapter and how much of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct MixedPart {
    /// Its name.
    pub(super) adapter: String,
    /// What it is multiplied by.
    pub(super) weight: f32,
}

impl DemoPrompt {
    /// The adapter that has to be there for this line and no other; a mix and the base have none.
    pub(super) fn adapter(&self) -> Option<&str> {
        (self.mix.is_empty() && !self.name.is_empty()).then_some(self.name.as_str())
    }
}

/// Write every file into a temporary folder, laid out as Hugging Face does.
pub(super) fn unpack() -> Result<TempDir, AppError> {
    let folder = tempfile::Builder::new().prefix("polydelta-").tempdir().map_err(AppError::Temporary)?;
    for (path, content) in FILES {
        let place = folder.path().join(path);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(AppError::Temporary)?;
        }
        fs::write(&place, content).map_err(AppError::Temporary)?;
    }
    Ok(folder)
}

/// The adapters of an unpacked model, by name.
pub(super) fn adapters(folder: &Path) -> Result<Vec<(AdapterName, AdapterSource)>, AppError> {
    let mut found = Vec::new();
    for (path, _) in FILES {
        let name = path.strip_prefix("adapters/").and_then(|rest| rest.strip_suffix("/adapter_config.json"));
        let Some(name) = name else { continue };
        let parsed = name.parse().map_err(|_| bad(format!("{name:?} is no name of an adapter")))?;
        found.push((parsed, AdapterSource::Dir(folder.join("adapters").join(name))));
    }
    Ok(found)
}

/// What the demo asks.
pub(super) fn prompts() -> Result<Vec<DemoPrompt>, AppError> {
    let file = FILES.iter().find(|(path, _)| *path == "demo.json");
    let (_, content) = file.ok_or_else(|| bad("it has no demo.json".to_owned()))?;
    serde_json::from_slice(content).map_err(|error| bad(format!("demo.json: {error}")))
}

fn bad(reason: String) -> AppError {
    AppError::Bundled { reason }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_adapter_has_a_prompt_and_every_prompt_an_adapter() {
        let folder = unpack().unwrap();
        let adapters: BTreeSet<_> =
            adapters(folder.path()).unwrap().into_iter().map(|(name, _)| name.to_string()).collect();
        let prompts = prompts().unwrap();
        let asked: BTreeSet<_> = prompts.iter().filter_map(DemoPrompt::adapter).map(str::to_owned).collect();
        assert_eq!(adapters, asked);
        assert!(adapters.len() > 16, "{adapters:?}");
        let alone: Vec<_> = prompts.iter().filter(|prompt| prompt.adapter().is_none()).collect();
        assert!(alone.iter().any(|prompt| prompt.name.is_empty()), "the base is asked too");
        let parts: Vec<_> = prompts.iter().flat_map(|prompt| &prompt.mix).collect();
        assert!(parts.len() > 1 && parts.iter().all(|part| adapters.contains(&part.adapter)), "{parts:?}");
    }

    #[test]
    fn the_bundle_stays_small() {
        let bytes: usize = FILES.iter().map(|(_, content)| content.len()).sum();
        assert!(bytes < 15 << 20, "{bytes} bytes");
    }
}
