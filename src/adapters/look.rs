//! What lies in a folder of which someone says that it is an adapter: the adapter, in which form, or what it is instead
//! and what to do about it. Looks at names, sizes and first bytes, and reads no weights.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::files::{ADAPTERHUB_WEIGHTS_FILE, CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE};
use crate::files;

/// Weights as PEFT saved them before it knew safetensors.
pub const PICKLE_FILE: &str = "adapter_model.bin";
/// Weights as AdapterHub's library saves them unless it is asked for safetensors.
pub const ADAPTERHUB_PICKLE_FILE: &str = "pytorch_adapter.bin";
/// What AdapterHub's library says of the head that it saved beside the adapter.
const HEAD_FILE: &str = "head_config.json";

/// Entries of a folder that are looked at, and folders within that are.
const MAX_ENTRIES: usize = 10_000;
const MAX_FOLDERS: usize = 200;
/// Folders that are named to a person.
const MAX_SHOWN: usize = 5;
/// The weights of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundWeights {
    /// `adapter_model.safetensors`.
    Safetensors,
    /// `adapter.safetensors` of AdapterHub's library: it goes by the other name.
    AdapterHub,
    /// `adapter_model.bin`, or `pytorch_adapter.bin`: to be converted.
    Pickle(&'static str),
    /// Safetensors in several parts: to be joined.
    Parts(Vec<String>),
}

/// An adapter in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundAdapter {
    /// In which form it is.
    pub weights: FoundWeights,
    /// Files beside it, which are no part of it.
    pub others: Vec<String>,
}

/// Why there is no adapter where someone says there is one. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum NotAnAdapter {
    /// Nothing of that name.
    #[error("there is no folder {}", path.display())]
    Missing {
        /// As given.
        path: PathBuf,
    },
    /// A file in place of a folder.
    #[error("{} is {what}", path.display())]
    AFile {
        /// As given.
        path: PathBuf,
        /// What it looks like, and what to do.
        what: &'static str,
    },
    /// Further down.
    #[error("{} has no {CONFIG_FILE}, but {}: name one of these folders", path.display(), listed(folders))]
    Below {
        /// As given.
        path: PathBuf,
        /// Folders that have an adapter, the latest checkpoint first.
        folders: Vec<String>,
    },
    /// Further up.
    #[error("{} has no {CONFIG_FILE}, the folder above has one: name {}", path.display(), parent.display())]
    Above {
        /// As given.
        path: PathBuf,
        /// The folder above.
        parent: PathBuf,
    },
    /// A base model, or an adapter that was merged into one.
    #[error(
        "{} is a whole model and no adapter (it has {file}): serve it with --model, or save the adapter without merging it",
        path.display()
    )]
    WholeModel {
        /// As given.
        path: PathBuf,
        /// By which file it is told.
        file: String,
    },
    /// An adapter of another program.
    #[error("{} has an adapter of {program} ({file}), which is no adapter of PEFT: {advice}", path.display())]
    OtherProgram {
        /// As given.
        path: PathBuf,
        /// Whose.
        program: &'static str,
        /// By which file it is told.
        file: String,
        /// What to do.
        advice: &'static str,
    },
    /// A head that says what the tokens are, beside an adapter of AdapterHub's library.
    #[error(
        "{} has a language model's head beside the adapter ({HEAD_FILE}), which the library trains with it: save the adapter \
         with save_adapter(..., with_head=False), or remove the head's files if it is still the base's",
        path.display()
    )]
    Head {
        /// As given.
        path: PathBuf,
    },
    /// A pointer in place of a file.
    #[error(
        "{file} in {} is a Git LFS pointer and not the file: run `git lfs pull` there, or name hf:ORG/REPO", path.display()
    )]
    LfsPointer {
        /// As given.
        path: PathBuf,
        /// Which.
        file: &'static str,
    },
    /// Packed.
    #[error("{} has no {CONFIG_FILE}, but the archive {file}: unpack it and name the folder within", path.display())]
    Packed {
        /// As given.
        path: PathBuf,
        /// Which.
        file: String,
    },
    /// Weights alone.
    #[error("{} has {file} and no {CONFIG_FILE}: both are needed, as save_pretrained of peft writes them", path.display())]
    NoConfig {
        /// As given.
        path: PathBuf,
        /// Which weights.
        file: &'static str,
    },
    /// A config alone.
    #[error("{} has {CONFIG_FILE} and neither {WEIGHTS_FILE} nor {PICKLE_FILE}{instead}", path.display())]
    NoWeights {
        /// As given.
        path: PathBuf,
        /// What it has in their place.
        instead: String,
    },
    /// Neither.
    #[error("{} has no {CONFIG_FILE}", path.display())]
    Nothing {
        /// As given.
        path: PathBuf,
    },
    /// A folder, pipe or device in place of a file.
    #[error("{file} in {} is no file", path.display())]
    NotAFile {
        /// As given.
        path: PathBuf,
        /// Which.
        file: String,
    },
    /// An index that names no files, or some that are not there.
    #[error("{INDEX_FILE} in {}: {reason}", path.display())]
    Index {
        /// As given.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The disk.
    #[error("looking at {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

fn listed(folders: &[String]) -> String {
    let shown = folders.iter().take(MAX_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match folders.len().saturating_sub(MAX_SHOWN) {
        0 => format!("there is an adapter in {shown}"),
        more => format!("there is an adapter in {shown} and {more} more"),
    }
}

/// Find the adapter in a folder. Links are followed: hub caches consist of them.
///
/// # Errors
/// [`NotAnAdapter`].
pub fn look(folder: &Path) -> Result<FoundAdapter, NotAnAdapter> {
    let path = folder.to_owned();
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(NotAnAdapter::AFile { what: what_file(folder), path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NotAnAdapter::Missing { path }),
        Err(source) => return Err(NotAnAdapter::Io { path, source }),
    }
    let names = names(folder).map_err(|source| NotAnAdapter::Io { path: path.clone(), source })?;
    if !names.contains(CONFIG_FILE) {
        return Err(without_config(folder, &names));
    }
    check_file(folder, CONFIG_FILE)?;
    let (weights, taken) = weights(folder, &names)?;
    let others = names.into_iter().filter(|name| name != CONFIG_FILE && !taken.contains(name)).collect();
    Ok(FoundAdapter { weights, others })
}

fn weights(folder: &Path, names: &BTreeSet<String>) -> Result<(FoundWeights, Vec<String>), NotAnAdapter> {
    if names.contains(WEIGHTS_FILE) {
        check_file(folder, WEIGHTS_FILE)?;
        return Ok((FoundWeights::Safetensors, vec![WEIGHTS_FILE.to_owned()]));
    }
    if names.contains(INDEX_FILE) {
        check_file(folder, INDEX_FILE)?;
        let parts = parts(folder, names)?;
        let taken = parts.iter().cloned().chain([INDEX_FILE.to_owned()]).collect();
        return Ok((FoundWeights::Parts(parts), taken));
    }
    if names.contains(PICKLE_FILE) {
        check_file(folder, PICKLE_FILE)?;
        return Ok((FoundWeights::Pickle(PICKLE_FILE), vec![PICKLE_FILE.to_owned()]));
    }
    let of_adapterhub = [ADAPTERHUB_WEIGHTS_FILE, ADAPTERHUB_PICKLE_FILE];
    if let Some(file) = of_adapterhub.into_iter().find(|file| names.contains(*file)) {
        check_file(folder, file)?;
        check_head(folder, names)?;
        let is_pickle = file == ADAPTERHUB_PICKLE_FILE;
        let weights = if is_pickle { FoundWeights::Pickle(file) } else { FoundWeights::AdapterHub };
        return Ok((weights, vec![file.to_owned()]));
    }
    Err(without_weights(folder, names))
}

/// A head that classifies changes no token and is left aside. One that says what the tokens are may be another than the
/// base's: so is the head of a model that is a language model by its class, of which the file says no kind.
fn check_head(folder: &Path, names: &BTreeSet<String>) -> Result<(), NotAnAdapter> {
    #[derive(serde::Deserialize)]
    struct Head {
        config: Option<Kind>,
    }
    #[derive(serde::Deserialize)]
    struct Kind {
        head_type: Option<String>,
    }
    if !names.contains(HEAD_FILE) {
        return Ok(());
    }
    let place = folder.join(HEAD_FILE);
    let content = files::read(&place, files::MAX_SETTINGS_BYTES);
    let content = content.map_err(|source| NotAnAdapter::Io { path: place, source })?;
    let kind = serde_json::from_slice(&content).ok().and_then(|head: Head| head.config?.head_type);
    match kind {
        Some(kind) if !kind.ends_with("lm") => Ok(()),
        _ => Err(NotAnAdapter::Head { path: folder.to_owned() }),
    }
}

/// Names of a folder's entries; those that are no text are no business of an adapter.
fn names(folder: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)?.take(MAX_ENTRIES) {
        names.extend(entry?.file_name().into_string().ok());
    }
    Ok(names)
}

/// A file that is one, and not a pointer to one.
fn check_file(folder: &Path, file: &'static str) -> Result<(), NotAnAdapter> {
    let path = folder.to_owned();
    let place = folder.join(file);
    match fs::metadata(&place) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(NotAnAdapter::NotAFile { path, file: file.to_owned() }),
        Err(source) => return Err(NotAnAdapter::Io { path: place, source }),
    }
    let start = start_of(&place).map_err(|source| NotAnAdapter::Io { path: place, source })?;
    if start.starts_with(files::LFS_POINTER) { Err(NotAnAdapter::LfsPointer { path, file }) } else { Ok(()) }
}

fn start_of(file: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    files::open(file)?.take(64).read_to_end(&mut start)?;
    Ok(start)
}

/// The files that the index names, all of them there.
fn parts(folder: &Path, names: &BTreeSet<String>) -> Result<Vec<String>, NotAnAdapter> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let bad = |reason: String| NotAnAdapter::Index { path: folder.to_owned(), reason };
    let place = folder.join(INDEX_FILE);
    let content = files::read(&place, files::MAX_SETTINGS_BYTES);
    let content = content.map_err(|source| NotAnAdapter::Io { path: place, source })?;
    let index: Index = serde_json::from_slice(&content).map_err(|error| bad(error.to_string()))?;
    let parts: BTreeSet<String> = index.weight_map.into_values().collect();
    for part in &parts {
        // By the folder's own list: a name with a path in it is not in it.
        if !names.contains(part) || !part.ends_with(".safetensors") {
            return Err(bad(format!("it names {part:?}, which is no safetensors file in this folder")));
        }
        if !fs::metadata(folder.join(part)).is_ok_and(|found| found.is_file()) {
            return Err(NotAnAdapter::NotAFile { path: folder.to_owned(), file: part.clone() });
        }
    }
    if parts.is_empty() { Err(bad("it names no file".to_owned())) } else { Ok(parts.into_iter().collect()) }
}

fn what_file(file: &Path) -> &'static str {
    let name = file.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    if is_archive(&name) {
        "an archive: unpack it and name the folder within"
    } else if name == CONFIG_FILE || ends(&[".safetensors", ".bin"]) {
        "a file of an adapter: name the folder that has it and adapter_config.json"
    } else if ends(&[".gguf", ".ggml"]) {
        "a GGUF file, which is no adapter of PEFT: name the folder it was converted from"
    } else if ends(&[".pt", ".pth", ".ckpt", ".pkl"]) {
        "a checkpoint and no adapter folder: save it with save_pretrained of peft"
    } else {
        "a file: name the folder with adapter_config.json"
    }
}

fn is_archive(name: &str) -> bool {
    [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// What tells a whole model.
fn model_file(names: &BTreeSet<String>) -> Option<&String> {
    let is_model = |name: &&String| {
        let weights = name.ends_with(".safetensors") || name.ends_with(".bin") || name.ends_with(".index.json");
        weights && (name.starts_with("model") || name.starts_with("pytorch_model"))
    };
    names.iter().find(is_model)
}

fn without_config(folder: &Path, names: &BTreeSet<String>) -> NotAnAdapter {
    let path = folder.to_owned();
    let weights = [WEIGHTS_FILE, PICKLE_FILE, ADAPTERHUB_WEIGHTS_FILE, ADAPTERHUB_PICKLE_FILE];
    if let Some(file) = weights.into_iter().find(|file| names.contains(*file)) {
        return NotAnAdapter::NoConfig { path, file };
    }
    let folders = below(folder, names);
    if !folders.is_empty() {
        return NotAnAdapter::Below { path, folders };
    }
    if let Some(file) = model_file(names) {
        return NotAnAdapter::WholeModel { path, file: file.clone() };
    }
    if let Some(file) = names.iter().find(|name| is_archive(&name.to_lowercase())) {
        return NotAnAdapter::Packed { path, file: file.clone() };
    }
    // `..` of a relative path may not be written in it.
    let parent = fs::canonicalize(folder).ok().and_then(|full| full.parent().map(Path::to_owned));
    match parent.filter(|parent| parent.join(CONFIG_FILE).is_file()) {
        Some(parent) => NotAnAdapter::Above { path, parent },
        None => NotAnAdapter::Nothing { path },
    }
}

/// Folders one or two levels down that have an adapter, checkpoints by their number, the latest first.
fn below(folder: &Path, own: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    let mut looked = 0;
    for name in own {
        let place = folder.join(name);
        if !place.is_dir() || looked == MAX_FOLDERS {
            continue;
        }
        looked += 1;
        if place.join(CONFIG_FILE).is_file() {
            found.push(name.clone());
            continue;
        }
        let inner = names(&place).unwrap_or_default();
        let inner = inner.into_iter().filter(|inner| place.join(inner).join(CONFIG_FILE).is_file());
        found.extend(inner.map(|inner| format!("{name}/{inner}")));
    }
    let number = |name: &String| name.rsplit_once('-').and_then(|(_, number)| number.parse::<u64>().ok());
    found.sort_by_key(|name| (std::cmp::Reverse(number(name)), name.clone()));
    found
}

fn without_weights(folder: &Path, names: &BTreeSet<String>) -> NotAnAdapter {
    let path = folder.to_owned();
    let has = |name: &str| names.get(name).cloned();
    if let Some(file) = has("adapters.safetensors").or_else(|| has("adapters.npz")) {
        let advice = "fuse it with mlx_lm.fuse and serve the result with --model";
        return NotAnAdapter::OtherProgram { path, program: "MLX", file, advice };
    }
    if let Some(file) = names.iter().find(|name| name.ends_with(".gguf")) {
        let advice = "name the folder it was converted from";
        return NotAnAdapter::OtherProgram { path, program: "llama.cpp", file: file.clone(), advice };
    }
    if let Some(file) = model_file(names) {
        return NotAnAdapter::WholeModel { path, file: file.clone() };
    }
    let part = |name: &&String| name.starts_with("adapter_model-") && name.ends_with(".safetensors");
    let instead = if let Some(file) = names.iter().find(part) {
        format!("; it has {file}, a part, and no {INDEX_FILE}")
    } else if let Some(folder) = names.iter().find(|name| name.starts_with("global_step")) {
        format!("; it has {folder}, a checkpoint of DeepSpeed: gather it with zero_to_fp32.py and save it with peft")
    } else if let [first, ..] = below(folder, names).as_slice() {
        format!("; there is an adapter in {first}")
    } else {
        String::new()
    };
    NotAnAdapter::NoWeights { path, instead }
}

#[cfg(test)]
mod tests;
