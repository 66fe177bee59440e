//! What a folder that is not a model's has instead, so that people are told what to do.

use std::fs;
use std::path::Path;

use crate::config::Exit;
use crate::files::{self, MAX_SETTINGS_BYTES};

/// What the folder named by `--model` is not, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoModel {
    /// An adapter lies there.
    #[error(
        "this folder holds an adapter, not a model{}; serve the model it was trained on, and it with --adapter NAME={folder}",
        base.as_ref().map(|base| format!(" (of {base})")).unwrap_or_default()
    )]
    Adapter {
        /// As given.
        folder: String,
        /// `base_model_name_or_path` of its config.
        base: Option<String>,
    },
    /// One quantized file.
    #[error(
        "this folder has {file} and no config.json; GGUF files are not served, only models as Hugging Face has them"
    )]
    Gguf {
        /// The file.
        file: String,
    },
    /// Nothing that describes a model.
    #[error("this folder has no config.json{}", below.as_ref().map(|below| format!("; {below} has one")).unwrap_or_default())]
    NoConfig {
        /// A folder in it that has one.
        below: Option<String>,
    },
    /// Weights as pickles alone.
    #[error(
        "its weights are in {file}, a pickle, which can run code when it is read and is not read here; \
         save_pretrained(…, safe_serialization=True) of transformers writes model.safetensors"
    )]
    Pickle {
        /// The file.
        file: String,
    },
}

impl NoModel {
    /// The exit code: what is missing is not found, what is there and is not taken is rejected.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoConfig { .. } => Exit::NotFound,
            Self::Adapter { .. } | Self::Gguf { .. } | Self::Pickle { .. } => Exit::Rejected,
        }
    }
}

/// Look at the names in a folder before it is opened as a model.
///
/// # Errors
/// [`NoModel`] for what people take for a model. A folder that cannot be listed is left to its opening.
pub(super) fn check(dir: &Path) -> Result<(), NoModel> {
    reason(dir).map_or(Ok(()), Err)
}

fn reason(dir: &Path) -> Option<NoModel> {
    let mut names: Vec<String> =
        fs::read_dir(dir).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let has = |name: &str| names.iter().any(|found| found == name);
    let ending = |endings: &[&str]| {
        let ends = |name: &&String| endings.iter().any(|ending| name.to_ascii_lowercase().ends_with(ending));
        names.iter().find(ends).cloned()
    };
    if !has("config.json") {
        if has("adapter_config.json") {
            return Some(NoModel::Adapter { folder: dir.display().to_string(), base: base_of(dir) });
        }
        if let Some(file) = ending(&[".gguf"]) {
            return Some(NoModel::Gguf { file });
        }
        let below = names.iter().find(|name| dir.join(name).join("config.json").is_file());
        return Some(NoModel::NoConfig { below: below.cloned() });
    }
    if has("model.safetensors") || has("model.safetensors.index.json") {
        return None;
    }
    // Of an optimizer or of a tokenizer, these endings say nothing.
    let weights = |name: &&String| {
        let pickle = [".bin", ".pth", ".pt", ".ckpt"].iter().any(|ending| name.ends_with(ending));
        pickle && (name.starts_with("pytorch_model") || name.starts_with("consolidated") || name.starts_with("model"))
    };
    names.iter().find(weights).map(|file| NoModel::Pickle { file: file.clone() })
}

fn base_of(dir: &Path) -> Option<String> {
    let bytes = files::read(&dir.join("adapter_config.json"), MAX_SETTINGS_BYTES).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    Some(config.get("base_model_name_or_path")?.as_str()?.to_owned()).filter(|base| !base.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    #[test]
    fn what_people_take_for_a_model_is_named() {
        let of = |files: &[(&str, &str)]| reason(folder(files).path());
        let adapter = [("adapter_config.json", r#"{"base_model_name_or_path": "org/base"}"#)];
        assert!(matches!(of(&adapter), Some(NoModel::Adapter { base: Some(base), .. }) if base == "org/base"));
        assert_eq!(of(&[("m.Q4.gguf", "")]), Some(NoModel::Gguf { file: "m.Q4.gguf".into() }));
        assert_eq!(of(&[]), Some(NoModel::NoConfig { below: None }));
        assert_eq!(of(&[("1/config.json", "{}")]), Some(NoModel::NoConfig { below: Some("1".into()) }));
        let pickle = [("config.json", "{}"), ("pytorch_model-00001-of-00002.bin", "")];
        assert_eq!(of(&pickle), Some(NoModel::Pickle { file: "pytorch_model-00001-of-00002.bin".into() }));
        assert_eq!(of(&[("config.json", "{}"), ("model.safetensors", ""), ("pytorch_model.bin", "")]), None);
        assert_eq!(of(&[("config.json", "{}"), ("training_args.bin", "")]), None, "left to the opening");
    }
}
