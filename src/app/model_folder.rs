//! What lies in a folder that is named as a model: files as Hugging Face has them, one GGUF file, or neither, so that
//! people are told what to do.

use std::fs;
use std::path::{Path, PathBuf};

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
    /// More than one file that is a model.
    #[error("this folder has {} GGUF files: name one of them, such as {folder}/{first}", count)]
    Ggufs {
        /// As given.
        folder: String,
        /// How many.
        count: usize,
        /// By name.
        first: String,
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
            Self::Adapter { .. } | Self::Ggufs { .. } | Self::Pickle { .. } => Exit::Rejected,
        }
    }
}

/// What there is to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ModelFiles {
    /// config.json and safetensors.
    HuggingFace,
    /// A file.
    Gguf(PathBuf),
}

/// Look at the names in a folder before it is opened as a model.
///
/// # Errors
/// [`NoModel`] for what people take for a model. A folder that cannot be listed is left to its opening.
pub(super) fn find(dir: &Path) -> Result<ModelFiles, NoModel> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(ModelFiles::HuggingFace) };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let has = |name: &str| names.iter().any(|found| found == name);
    if has("config.json") && (has("model.safetensors") || has("model.safetensors.index.json")) {
        return Ok(ModelFiles::HuggingFace);
    }
    if !has("config.json") && has("adapter_config.json") {
        return Err(NoModel::Adapter { folder: dir.display().to_string(), base: base_of(dir) });
    }
    let ggufs: Vec<&String> = names.iter().filter(|name| name.to_ascii_lowercase().ends_with(".gguf")).collect();
    match ggufs[..] {
        [] => {}
        [file] => return Ok(ModelFiles::Gguf(dir.join(file))),
        [first, ..] => {
            let (folder, first) = (dir.display().to_string(), first.clone());
            return Err(NoModel::Ggufs { folder, count: ggufs.len(), first });
        }
    }
    if !has("config.json") {
        let below = names.iter().find(|name| dir.join(name).join("config.json").is_file());
        return Err(NoModel::NoConfig { below: below.cloned() });
    }
    // Of an optimizer or of a tokenizer, these endings say nothing.
    let weights = |name: &&String| {
        let pickle = [".bin", ".pth", ".pt", ".ckpt"].iter().any(|ending| name.ends_with(ending));
        pickle && (name.starts_with("pytorch_model") || name.starts_with("consolidated") || name.starts_with("model"))
    };
    match names.iter().find(weights) {
        Some(file) => Err(NoModel::Pickle { file: file.clone() }),
        None => Ok(ModelFiles::HuggingFace),
    }
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
        let of = |files: &[(&str, &str)]| find(folder(files).path());
        let adapter = [("adapter_config.json", r#"{"base_model_name_or_path": "org/base"}"#)];
        assert!(matches!(of(&adapter), Err(NoModel::Adapter { base: Some(base), .. }) if base == "org/base"));
        assert_eq!(of(&[]), Err(NoModel::NoConfig { below: None }));
        assert_eq!(of(&[("1/config.json", "{}")]), Err(NoModel::NoConfig { below: Some("1".into()) }));
        let pickle = [("config.json", "{}"), ("pytorch_model-00001-of-00002.bin", "")];
        assert_eq!(of(&pickle), Err(NoModel::Pickle { file: "pytorch_model-00001-of-00002.bin".into() }));
        let safetensors = [("config.json", "{}"), ("model.safetensors", ""), ("pytorch_model.bin", ""), ("m.gguf", "")];
        assert_eq!(of(&safetensors), Ok(ModelFiles::HuggingFace));
        let left = of(&[("config.json", "{}"), ("training_args.bin", "")]);
        assert_eq!(left, Ok(ModelFiles::HuggingFace), "left to the opening");
    }

    #[test]
    fn one_gguf_file_is_the_model_and_of_several_one_must_be_named() {
        let dir = folder(&[("m.Q4_0.GGUF", ""), ("config.json", "{}"), ("README.md", "")]);
        assert_eq!(find(dir.path()), Ok(ModelFiles::Gguf(dir.path().join("m.Q4_0.GGUF"))));
        let dir = folder(&[("b.gguf", ""), ("a.gguf", "")]);
        let several = find(dir.path()).unwrap_err().to_string();
        assert!(several.contains("2 GGUF files") && several.ends_with("/a.gguf"), "{several}");
    }
}
