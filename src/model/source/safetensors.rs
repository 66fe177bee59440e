//! The table of a safetensors file. Knows no family and no tensor's meaning.
//!
//! Format (huggingface/safetensors): 8 bytes little-endian length n, n bytes of JSON, then the tensors' bytes without
//! hole or overlap up to the end of the file.

use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};

use super::{Encoding, RowOrder, StoredTensor, WeightFile};
use crate::model::ModelError;
use crate::ops::TensorDtype;

/// Most bytes of a header. The format allows 100 MB; a tensor takes some 100 bytes.
const MAX_HEADER_BYTES: u64 = 32 << 20;
/// How the text begins that Git LFS leaves in the place of a file.
const LFS_POINTER: &[u8; 8] = b"version ";

impl WeightFile {
    /// Open a safetensors file and check its header; size and header go into `digest`.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::NotSafetensors`], [`ModelError::Truncated`].
    pub(in crate::model) fn safetensors(
        path: &Path,
        digest: &mut Sha256,
    ) -> Result<(Self, Vec<(String, StoredTensor)>), ModelError> {
        let bad = |reason: String| ModelError::NotSafetensors { path: path.to_owned(), reason };
        let file = Self::open(path)?;
        let header = read_header(&file)?;
        digest.update(file.bytes.to_le_bytes());
        digest.update((header.len() as u64).to_le_bytes());
        digest.update(&header);
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| bad(error.to_string()))?;
        let data_start = 8 + header.len() as u64;
        let expected = data_start + metadata.data_len() as u64;
        if expected > file.bytes {
            return Err(ModelError::Truncated { path: path.to_owned(), expected, found: file.bytes });
        }
        if expected < file.bytes {
            return Err(bad(format!("its tensors end at byte {expected}, the file at {}", file.bytes)));
        }
        let stored = |(name, info): (String, &TensorInfo)| (name, stored(info, data_start));
        let tensors = metadata.tensors().into_iter().map(stored).collect();
        Ok((file, tensors))
    }
}

fn stored(info: &TensorInfo, data_start: u64) -> StoredTensor {
    let encoding = match info.dtype {
        Dtype::F32 => Encoding::Numbers(TensorDtype::F32),
        Dtype::F16 => Encoding::Numbers(TensorDtype::F16),
        Dtype::BF16 => Encoding::Numbers(TensorDtype::BF16),
        other => Encoding::Other(format!("{other:?}")),
    };
    let (begin, end) = info.data_offsets;
    let range = data_start + begin as u64..data_start + end as u64;
    StoredTensor { shape: info.shape.clone(), encoding, rows: RowOrder::Plain, range }
}

/// The bytes of the header.
fn read_header(file: &WeightFile) -> Result<Vec<u8>, ModelError> {
    let bad = |reason: String| ModelError::NotSafetensors { path: file.path.clone(), reason };
    let mut length = [0; 8];
    if file.bytes < length.len() as u64 {
        return Err(bad(format!("it has {} bytes", file.bytes)));
    }
    file.read_at(&mut length, 0)?;
    if length == *LFS_POINTER {
        return Err(bad("it is a Git LFS pointer; `git lfs pull` fetches the file itself".to_owned()));
    }
    let length = u64::from_le_bytes(length);
    let largest = MAX_HEADER_BYTES.min(file.bytes - 8);
    if length > largest {
        return Err(bad(format!("its header claims {length} bytes, at most {largest} are possible")));
    }
    let mut header = vec![0; length as usize];
    file.read_at(&mut header, 8)?;
    Ok(header)
}
