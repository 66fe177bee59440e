//! What a repository holds, as the hub lists it.

use std::io::{self, Read};

use serde::Deserialize;

use super::cache::is_commit;
use super::error::HubError;
use super::wanted::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, WEIGHTS, Wanted};

/// Most bytes of a listing; the largest repositories have some thousands of files.
const MAX_BYTES: u64 = 16 << 20;

/// A repository at one commit.
pub(super) struct Listing {
    /// The commit.
    pub(super) sha: String,
    files: Vec<File>,
}

/// A file of a repository.
pub(super) struct File {
    pub(super) name: String,
    /// Bytes.
    pub(super) size: Option<u64>,
    /// Of large files only.
    pub(super) sha256: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
}

impl Listing {
    pub(super) fn read(answer: impl Read, repository: &str) -> Result<Self, HubError> {
        let bad = |reason: String| HubError::BadListing { repository: repository.to_owned(), reason };
        let answer: Answer = serde_json::from_reader(io::BufReader::new(answer.take(MAX_BYTES)))
            .map_err(|error| bad(error.to_string()))?;
        if !is_commit(&answer.sha) {
            return Err(bad("its commit is not a hexadecimal number".to_owned()));
        }
        let file = |sibling: Sibling| File {
            name: sibling.rfilename,
            size: sibling.size,
            sha256: sibling.lfs.map(|lfs| lfs.sha256),
        };
        Ok(Self { sha: answer.sha, files: answer.siblings.into_iter().map(file).collect() })
    }

    pub(super) fn file(&self, name: &str) -> Option<&File> {
        self.files.iter().find(|file| file.name == name)
    }

    pub(super) fn required(&self, name: &str, repository: &str) -> Result<&File, HubError> {
        self.file(name)
            .ok_or_else(|| HubError::MissingFile { repository: repository.to_owned(), file: name.to_owned() })
    }

    /// The weights: one file, or the index of several.
    pub(super) fn weights(&self, wanted: Wanted, repository: &str) -> Result<&File, HubError> {
        let repository = || repository.to_owned();
        match wanted {
            Wanted::Model => self
                .file(WEIGHTS)
                .or_else(|| self.file(INDEX))
                .ok_or_else(|| HubError::NoSafetensors { repository: repository(), found: self.other_weights() }),
            Wanted::Adapter => ADAPTER_WEIGHTS
                .iter()
                .find_map(|name| self.file(name))
                .filter(|_| self.file(ADAPTER_CONFIG).is_some())
                .ok_or_else(|| HubError::NoAdapter { repository: repository(), found: self.no_adapter() }),
        }
    }

    /// What a repository without an adapter at its root has instead.
    fn no_adapter(&self) -> String {
        let config = |file: &File| file.name.strip_suffix("/adapter_config.json").map(str::to_owned);
        let folders: std::collections::BTreeSet<String> = self.files.iter().filter_map(config).collect();
        if self.file(ADAPTER_CONFIG).is_some() {
            "a config and no adapter_model.safetensors or adapter_model.bin".to_owned()
        } else if !folders.is_empty() {
            let folders: Vec<_> = folders.into_iter().take(5).collect();
            format!("adapters in {}: download one of these folders and name it", folders.join(", "))
        } else if self.file("config.json").is_some() {
            "a whole model, which is served with --model".to_owned()
        } else {
            self.other_weights().to_owned()
        }
    }

    /// What a repository without safetensors has instead.
    fn other_weights(&self) -> &'static str {
        let any = |ends: &[&str]| self.files.iter().any(|file| ends.iter().any(|end| file.name.ends_with(end)));
        if self.file(ADAPTER_CONFIG).is_some() {
            "an adapter, which is no base model"
        } else if any(&[".gguf", ".ggml"]) {
            "GGUF files"
        } else if any(&[".bin", ".pt", ".pth"]) {
            "pickled weights, which can run code"
        } else if any(&[".safetensors"]) {
            "safetensors under other names"
        } else {
            "no weights"
        }
    }
}
