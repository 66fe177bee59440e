//! A base model's files: a folder as Hugging Face lays it out (config.json and safetensors, whole or in shards), or one
//! GGUF file. Headers are read when it is opened, tensors when they are asked for. Nothing here knows a family.

mod identity;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::source::{Encoding, GgufBase, StoredTensor, WeightFile};
use super::{ModelError, read_spec};
use crate::delta::{BaseReadError, BaseWeights};
use crate::files::gguf::GgufMetadata;
use crate::files::{self, MAX_SETTINGS_BYTES, parse_object};
use crate::ops::{HostTensor, TensorDtype};

const CONFIG: &str = "config.json";
const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const HEAD: &str = "lm_head.weight";
/// Numbers of two tensors that are compared at a time.
const COMPARED_NUMBERS: usize = 1 << 20;

/// An opened base model.
pub struct Checkpoint {
    path: PathBuf,
    config: Map<String, Value>,
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, Place>,
    digest: [u8; 32],
    /// Of a GGUF file.
    metadata: Option<GgufMetadata>,
}

/// Where a tensor is.
struct Place {
    /// Index into the files.
    file: usize,
    stored: StoredTensor,
}

impl Checkpoint {
    /// Open the files of a folder. Where two shards have a tensor of one name, the later file's counts, as in
    /// transformers.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::Json`], [`ModelError::NoWeights`], [`ModelError::BadIndex`],
    /// [`ModelError::NotSafetensors`], [`ModelError::Truncated`].
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let config_bytes = read(&dir.join(CONFIG))?;
        let config = parse(CONFIG, &config_bytes)?;
        let mut digest = Sha256::new_with_prefix(b"polydelta base model v1");
        digest.update((config_bytes.len() as u64).to_le_bytes());
        digest.update(&config_bytes);
        let (mut files, mut tensors) = (Vec::new(), BTreeMap::new());
        for path in shard_paths(dir)? {
            let (file, found) = WeightFile::safetensors(&path, &mut digest)?;
            let index = files.len();
            tensors.extend(found.into_iter().map(|(name, stored)| (name, Place { file: index, stored })));
            files.push(file);
        }
        // As transformers: where the two are one, either name will do.
        if !tensors.contains_key(EMBEDDING)
            && read_spec(&config).is_ok_and(|spec| spec.tied)
            && let Some(head) = tensors.remove(HEAD)
        {
            tensors.insert(EMBEDDING.to_owned(), head);
        }
        let digest = digest.finalize().into();
        Ok(Self { path: dir.to_owned(), config, files, tensors, digest, metadata: None })
    }

    /// Open a GGUF file. Its tensors go by the names that they have in transformers, and its metadata are
    /// [`Self::config`] as transformers would have written it.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::Gguf`], [`ModelError::Truncated`].
    pub fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let mut digest = Sha256::new_with_prefix(b"polydelta base model gguf v1");
        let GgufBase { file, metadata, config, tensors } = GgufBase::open(path, &mut digest)?;
        let place = |(name, stored)| (name, Place { file: 0, stored });
        Ok(Self {
            path: path.to_owned(),
            config,
            files: vec![file],
            tensors: tensors.into_iter().map(place).collect(),
            digest: digest.finalize().into(),
            metadata: Some(metadata),
        })
    }

    /// The folder, or the GGUF file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a GGUF file says of itself; `None` for a folder.
    #[must_use]
    pub fn metadata(&self) -> Option<&GgufMetadata> {
        self.metadata.as_ref()
    }

    /// `config.json`, or what a GGUF file says in its place.
    #[must_use]
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Identity of the base: sha256 over config.json and every file's size and header (names, shapes, places). It
    /// keys the prefix cache, which lives no longer than the process.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Size of the weight files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(WeightFile::bytes).sum()
    }

    /// Numbers in all tensors.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|place| place.stored.len() as u64).sum()
    }

    /// All tensor names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// True if the matrices are stored in 16 bits or fewer.
    #[must_use]
    pub fn is_16_bit(&self) -> bool {
        let wide =
            |stored: &StoredTensor| stored.encoding == Encoding::Numbers(TensorDtype::F32) && stored.shape.len() > 1;
        !self.tensors.values().any(|place| wide(&place.stored))
    }

    /// True if the matrices are stored in f16, all of them.
    #[must_use]
    pub fn is_f16(&self) -> bool {
        let f16 = |stored: &StoredTensor| stored.encoding == Encoding::Numbers(TensorDtype::F16);
        let mut matrices = self.tensors.values().map(|place| &place.stored).filter(|stored| stored.shape.len() > 1);
        matrices.all(f16)
    }

    /// Shape of a tensor, if it is there; nothing is read for it.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|place| place.stored.shape.as_slice())
    }

    /// A tensor of a known shape.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::TensorShape`], [`ModelError::TensorDtype`], and what reading it
    /// says: the file may have changed since it was opened.
    pub fn tensor(&self, name: &str, expected: &[usize]) -> Result<HostTensor, ModelError> {
        let place = self.shaped(name, expected)?;
        self.files[place.file].tensor(name, &place.stored)
    }

    /// Matrix `index` of a tensor of several, whose shape is known; only its own bytes are read.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub(super) fn slice(&self, name: &str, expected: [usize; 3], index: usize) -> Result<HostTensor, ModelError> {
        let place = self.shaped(name, &expected)?;
        let [_, rows, columns] = expected;
        let range = index * rows * columns..(index + 1) * rows * columns;
        let data = self.files[place.file].numbers(name, &place.stored, range)?;
        Ok(HostTensor { shape: vec![rows, columns], data })
    }

    fn shaped(&self, name: &str, expected: &[usize]) -> Result<&Place, ModelError> {
        let place = self.tensors.get(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })?;
        if place.stored.shape != expected {
            let (found, expected) = (place.stored.shape.clone(), expected.to_vec());
            return Err(ModelError::TensorShape { name: name.to_owned(), found, expected });
        }
        Ok(place)
    }

    /// True if two tensors of one shape hold the same numbers in the same places of their files, whatever their dtypes;
    /// reads as far as they agree.
    pub(super) fn equal(&self, a: &str, b: &str) -> Result<bool, ModelError> {
        let (Some(first), Some(second)) = (self.tensors.get(a), self.tensors.get(b)) else { return Ok(false) };
        if first.stored.shape != second.stored.shape {
            return Ok(false);
        }
        let count = first.stored.len();
        for start in (0..count).step_by(COMPARED_NUMBERS) {
            let range = start..count.min(start + COMPARED_NUMBERS);
            let part = |name, place: &Place| self.files[place.file].numbers(name, &place.stored, range.clone());
            if !part(a, first)?.equals(&part(b, second)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn find(&self, name: &str) -> Result<Option<HostTensor>, ModelError> {
        let read = |place: &Place| self.files[place.file].tensor(name, &place.stored);
        self.tensors.get(name).map(read).transpose()
    }
}

impl BaseWeights for Checkpoint {
    fn tensor(&self, name: &str) -> Result<Option<HostTensor>, BaseReadError> {
        self.find(name).map_err(|error| BaseReadError { name: name.to_owned(), reason: error.to_string() })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    files::read(path, MAX_SETTINGS_BYTES).map_err(|source| ModelError::Read { path: path.to_owned(), source })
}

fn parse(file: &'static str, bytes: &[u8]) -> Result<Map<String, Value>, ModelError> {
    parse_object(bytes).map_err(|source| ModelError::Json { file, source })
}

/// The weight files, by name. A whole file goes before an index, as in transformers.
fn shard_paths(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    // What is there and no file is opened too: the refusal says what it is.
    let is_there = |path: &Path| fs::metadata(path).is_ok();
    let whole = dir.join(WHOLE);
    if is_there(&whole) {
        return Ok(vec![whole]);
    }
    let index = dir.join(INDEX);
    if !is_there(&index) {
        return Err(ModelError::NoWeights { path: dir.to_owned() });
    }
    let index = parse(INDEX, &read(&index)?)?;
    let files = shard_files(&index)?;
    Ok(files.into_iter().map(|file| dir.join(file)).collect())
}

/// The files an index names: each below the index's own folder. What lies there may be a link, as in the hub's cache.
fn shard_files(index: &Map<String, Value>) -> Result<BTreeSet<&str>, ModelError> {
    let bad = |reason: String| ModelError::BadIndex { reason };
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| bad("it has no object `weight_map`".to_owned()))?;
    let mut files = BTreeSet::new();
    for (tensor, file) in map {
        match file.as_str() {
            Some(file) if is_below(file) => files.insert(file),
            Some(file) => {
                return Err(bad(format!("`{tensor}` is said to be in {file:?}, which is no path below the folder")));
            }
            None => return Err(bad(format!("`{tensor}` has {file} in the place of a file's name"))),
        };
    }
    if files.is_empty() { Err(bad("it names no file".to_owned())) } else { Ok(files) }
}

/// Joined to a folder, the path leads to something below it, unless a link there leads elsewhere.
fn is_below(path: &str) -> bool {
    let mut parts = Path::new(path).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests;
