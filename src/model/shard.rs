//! One safetensors file of a base model. Its header is checked once; tensors are read where they stand when they are
//! asked for. Nothing is mapped: a file that shrinks, changes or goes bad under the server ends in an error of the
//! reader and never in a signal. Knows no family and no tensor's meaning.
//!
//! Format (huggingface/safetensors): 8 bytes little-endian length n, n bytes of JSON, then the tensors' bytes without
//! hole or overlap up to the end of the file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};

use super::ModelError;
use crate::files;
use crate::ops::{HostTensor, OpsError, TensorData};

/// Most bytes of a header. The format allows 100 MB; a tensor takes some 100 bytes.
const MAX_HEADER_BYTES: u64 = 32 << 20;
/// Bytes read at a time: small enough to stay in a core's cache until they are converted, a multiple of 4.
const CHUNK_BYTES: usize = 256 << 10;
/// How the text begins that Git LFS leaves in the place of a file.
const LFS_POINTER: &[u8; 8] = b"version ";

/// An opened weight file.
pub(super) struct Shard {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// `None` where the file system keeps no times.
    modified: Option<SystemTime>,
    data_start: u64,
}

impl Shard {
    /// Open a file and check its header; size and header go into `digest`.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::NotSafetensors`], [`ModelError::Truncated`].
    pub(super) fn open(path: &Path, digest: &mut Sha256) -> Result<(Self, Vec<(String, TensorInfo)>), ModelError> {
        let failed = |source| ModelError::Read { path: path.to_owned(), source };
        let bad = |reason: String| ModelError::NotSafetensors { path: path.to_owned(), reason };
        let file = files::open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let bytes = found.len();
        let header = read_header(path, &file, bytes)?;
        digest.update(bytes.to_le_bytes());
        digest.update((header.len() as u64).to_le_bytes());
        digest.update(&header);
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| bad(error.to_string()))?;
        let data_start = 8 + header.len() as u64;
        let expected = data_start + metadata.data_len() as u64;
        if expected > bytes {
            return Err(ModelError::Truncated { path: path.to_owned(), expected, found: bytes });
        }
        if expected < bytes {
            return Err(bad(format!("its tensors end at byte {expected}, the file at {bytes}")));
        }
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        Ok((Self { path: path.to_owned(), file, bytes, modified: found.modified().ok(), data_start }, tensors))
    }

    /// Size of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Read a tensor of this file: f16 widened to f32, f32 and bf16 as stored.
    ///
    /// # Errors
    /// [`ModelError::TensorDtype`]; [`ModelError::Read`], [`ModelError::Truncated`] and [`ModelError::Changed`] where
    /// the file is not what it was; [`OpsError::OutOfMemory`].
    pub(super) fn tensor(&self, name: &str, info: &TensorInfo) -> Result<HostTensor, ModelError> {
        let count = info.shape.iter().product();
        Ok(HostTensor { shape: info.shape.clone(), data: self.numbers(name, info, 0..count)? })
    }

    /// Numbers `range` of a tensor, row-major.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub(super) fn numbers(&self, name: &str, info: &TensorInfo, range: Range<usize>) -> Result<TensorData, ModelError> {
        let begin = self.data_start + info.data_offsets.0 as u64;
        let data = match info.dtype {
            Dtype::F32 => TensorData::F32(self.read(begin, range, f32::from_le_bytes)?),
            Dtype::F16 => TensorData::F32(self.read(begin, range, |bytes| f16::from_le_bytes(bytes).to_f32())?),
            Dtype::BF16 => TensorData::Bf16(self.read(begin, range, bf16::from_le_bytes)?),
            other => return Err(ModelError::TensorDtype { name: name.to_owned(), found: format!("{other:?}") }),
        };
        self.check_unchanged()?;
        Ok(data)
    }

    /// Numbers `range`, each of `N` bytes, of those that begin at byte `begin`.
    fn read<const N: usize, T>(
        &self,
        begin: u64,
        range: Range<usize>,
        one: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, ModelError> {
        let mut numbers = Vec::new();
        numbers.try_reserve_exact(range.len()).map_err(|_| OpsError::OutOfMemory {
            what: "a tensor of the base model",
            bytes: (range.len() * size_of::<T>()) as u64,
        })?;
        let (mut at, end) = (begin + (range.start * N) as u64, begin + (range.end * N) as u64);
        let mut chunk = vec![0; CHUNK_BYTES.min(range.len() * N)];
        while at < end {
            let part = chunk.len().min((end - at) as usize);
            self.read_at(&mut chunk[..part], at)?;
            numbers.extend(chunk[..part].as_chunks::<N>().0.iter().map(|bytes| one(*bytes)));
            at += part as u64;
        }
        Ok(numbers)
    }

    /// Fill `chunk` from byte `at` of the tensors' bytes on.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::Truncated`].
    pub(super) fn read_data(&self, chunk: &mut [u8], at: usize) -> Result<(), ModelError> {
        self.read_at(chunk, self.data_start + at as u64)
    }

    /// What changes when somebody writes to the file or puts another in its place. ctime too: the system alone sets it,
    /// so that a copy with the times of the original is told from it.
    ///
    /// # Errors
    /// [`ModelError::Read`].
    pub(super) fn stamps(&self) -> Result<[i128; 5], ModelError> {
        let found = self.file.metadata().map_err(|source| ModelError::Read { path: self.path.clone(), source })?;
        let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Ok([
            i128::from(found.dev()),
            i128::from(found.ino()),
            i128::from(found.size()),
            time(found.mtime(), found.mtime_nsec()),
            time(found.ctime(), found.ctime_nsec()),
        ])
    }

    fn read_at(&self, chunk: &mut [u8], at: u64) -> Result<(), ModelError> {
        self.file.read_exact_at(chunk, at).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.truncated(),
            _ => ModelError::Read { path: self.path.clone(), source },
        })
    }

    /// What was read is what was opened: tensors of two states of a file do not make a model.
    pub(super) fn check_unchanged(&self) -> Result<(), ModelError> {
        let found = self.file.metadata().map_err(|source| ModelError::Read { path: self.path.clone(), source })?;
        match () {
            () if found.len() < self.bytes => Err(self.truncated()),
            () if found.len() != self.bytes || found.modified().ok() != self.modified => {
                Err(ModelError::Changed { path: self.path.clone() })
            }
            () => Ok(()),
        }
    }

    fn truncated(&self) -> ModelError {
        let found = self.file.metadata().map_or(0, |found| found.len());
        ModelError::Truncated { path: self.path.clone(), expected: self.bytes, found }
    }
}

/// The bytes of the header.
fn read_header(path: &Path, file: &File, bytes: u64) -> Result<Vec<u8>, ModelError> {
    let failed = |source| ModelError::Read { path: path.to_owned(), source };
    let bad = |reason: String| ModelError::NotSafetensors { path: path.to_owned(), reason };
    let mut length = [0; 8];
    if bytes < length.len() as u64 {
        return Err(bad(format!("it has {bytes} bytes")));
    }
    file.read_exact_at(&mut length, 0).map_err(failed)?;
    if length == *LFS_POINTER {
        return Err(bad("it is a Git LFS pointer; `git lfs pull` fetches the file itself".to_owned()));
    }
    let length = u64::from_le_bytes(length);
    let largest = MAX_HEADER_BYTES.min(bytes - 8);
    if length > largest {
        return Err(bad(format!("its header claims {length} bytes, at most {largest} are possible")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, 8).map_err(failed)?;
    Ok(header)
}
