//! What a repository holds, as the hub lists it.

use std::io::{self, Read};

use serde::Deserialize;

use super::cache::is_commit;
use super::{HubError, INDEX, WEIGHTS};

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
    pub(super) fn weights(&self, repository: &str) -> Result<&File, HubError> {
        self.file(WEIGHTS)
            .or_else(|| self.file(INDEX))
            .ok_or_else(|| HubError::NoSafetensors { repository: repository.to_owned(), found: self.other_weights() })
    }

    /// What a repository without safetensors has instead.
    fn other_weights(&self) -> &'static str {
        let any = |ends: &[&str]| self.files.iter().any(|file| ends.iter().any(|end| file.name.ends_with(end)));
        if self.file("adapter_config.json").is_some() {
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
