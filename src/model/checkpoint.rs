//! A Hugging Face model folder: config.json and safetensors, whole or in shards. The files are mapped, not read; a
//! tensor is copied when it is asked for. Nothing here knows a family.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use half::{bf16, f16};
use safetensors::Dtype as FileDtype;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::ModelError;
use crate::delta::{BaseReadError, BaseWeights};
use crate::ops::{HostTensor, TensorData};

/// An opened model folder.
pub struct Checkpoint {
    dir: PathBuf,
    config: Map<String, Value>,
    tensors: MmapedSafetensors,
    names: BTreeSet<String>,
    digest: [u8; 32],
    bytes: u64,
}

impl Checkpoint {
    /// Map the files of a folder.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::Json`], [`ModelError::NoWeights`] and whatever the safetensors reader finds.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let config_path = dir.join("config.json");
        let config_bytes = read(&config_path)?;
        let config = parse_object("config.json", &config_bytes)?;
        let shards = shards(dir)?;
        let mut digest = Sha256::new_with_prefix(b"polydelta base model v1");
        digest.update((config_bytes.len() as u64).to_le_bytes());
        digest.update(&config_bytes);
        let mut bytes = 0;
        for shard in &shards {
            bytes += digest_header(shard, &mut digest)?;
        }
        let tensors = map(&shards)?;
        let names = tensors.tensors().into_iter().map(|(name, _)| name).collect();
        Ok(Self { dir: dir.to_owned(), config, tensors, names, digest: digest.finalize().into(), bytes })
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `config.json`.
    #[must_use]
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Identity of the base: sha256 over config.json and every shard's size and header (names, shapes, places). It
    /// keys the prefix cache, which lives no longer than the process.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Size of the weight files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Numbers in all tensors.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors.tensors().iter().map(|(_, view)| view.shape().iter().product::<usize>() as u64).sum()
    }

    /// All tensor names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// True if the matrices are stored in 16 bits.
    #[must_use]
    pub fn is_16_bit(&self) -> bool {
        let wide =
            |view: &safetensors::tensor::TensorView<'_>| view.dtype() == FileDtype::F32 && view.shape().len() > 1;
        !self.tensors.tensors().iter().any(|(_, view)| wide(view))
    }

    /// A tensor of a known shape.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::TensorShape`], [`ModelError::TensorDtype`].
    pub fn tensor(&self, name: &str, expected: &[usize]) -> Result<HostTensor, ModelError> {
        let tensor = self.find(name)?.ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })?;
        if tensor.shape == expected {
            Ok(tensor)
        } else {
            Err(ModelError::TensorShape { name: name.to_owned(), found: tensor.shape, expected: expected.to_vec() })
        }
    }

    fn find(&self, name: &str) -> Result<Option<HostTensor>, ModelError> {
        if !self.names.contains(name) {
            return Ok(None);
        }
        let view = self.tensors.get(name)?;
        let bytes = view.data();
        let data = match view.dtype() {
            FileDtype::F32 => {
                TensorData::F32(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            FileDtype::F16 => {
                TensorData::F32(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect())
            }
            FileDtype::BF16 => {
                TensorData::Bf16(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect())
            }
            other => {
                return Err(ModelError::TensorDtype { name: name.to_owned(), found: format!("{other:?}") });
            }
        };
        Ok(Some(HostTensor { shape: view.shape().to_vec(), data }))
    }
}

impl BaseWeights for Checkpoint {
    fn tensor(&self, name: &str) -> Result<Option<HostTensor>, BaseReadError> {
        self.find(name).map_err(|error| BaseReadError { name: name.to_owned(), reason: error.to_string() })
    }
}

/// Read a file whole.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    fs::read(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })
}

fn parse_object(file: &'static str, bytes: &[u8]) -> Result<Map<String, Value>, ModelError> {
    serde_json::from_slice(bytes).map_err(|source| ModelError::Json { file, source })
}

/// The weight files, by name. A whole file goes before an index, as in transformers.
fn shards(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index_path = dir.join("model.safetensors.index.json");
    if !index_path.is_file() {
        return Err(ModelError::NoWeights { path: dir.to_owned() });
    }
    let index = parse_object("model.safetensors.index.json", &read(&index_path)?)?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let files: BTreeSet<&str> = map.into_iter().flat_map(Map::values).filter_map(Value::as_str).collect();
    if files.is_empty() {
        return Err(ModelError::NoWeights { path: dir.to_owned() });
    }
    Ok(files.into_iter().map(|file| dir.join(file)).collect())
}

/// Feed a shard's size and header to the digest; returns the size.
fn digest_header(path: &Path, digest: &mut Sha256) -> Result<u64, ModelError> {
    use std::io::Read;
    let failed = |source| ModelError::Read { path: path.to_owned(), source };
    let mut file = fs::File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(failed)?;
    digest.update(size.to_le_bytes());
    digest.update(length);
    let mut header = Vec::new();
    file.take(u64::from_le_bytes(length).min(size)).read_to_end(&mut header).map_err(failed)?;
    digest.update(&header);
    Ok(size)
}

#[expect(unsafe_code, reason = "mapping files is an unsafe operation of candle's")]
fn map(shards: &[PathBuf]) -> Result<MmapedSafetensors, ModelError> {
    // SAFETY: the base model's folder is the operator's and is not written while a server runs on it; the map is
    // private and read-only, and every access goes through the bounds candle checked against the header.
    Ok(unsafe { MmapedSafetensors::multi(shards) }?)
}
