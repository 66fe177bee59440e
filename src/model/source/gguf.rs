//! A GGUF file as a base: its table of tensors under the names of transformers, its metadata as a `config.json`. Which
//! tokenizer it has is for `text` to say. Refuses what it does not know: a key of the architecture, a tensor without a
//! place, a type of numbers.

mod config;
mod names;
mod refusal;

use std::path::Path;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::blocks::{BlockFormat, type_name};
use super::{Encoding, RowOrder, StoredTensor, WeightFile};
use crate::files::gguf::{GgufError, GgufHeader, GgufMetadata, GgufTensor};
use crate::model::ModelError;
use crate::ops::TensorDtype;
use config::Network;
pub(in crate::model) use names::ROPE_FACTORS;
pub use refusal::GgufRefusal;

/// Bytes hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// An opened GGUF file.
pub(in crate::model) struct GgufBase {
    pub(in crate::model) file: WeightFile,
    pub(in crate::model) metadata: GgufMetadata,
    /// What transformers would have written.
    pub(in crate::model) config: Map<String, Value>,
    /// By transformers' names.
    pub(in crate::model) tensors: Vec<(String, StoredTensor)>,
}

impl GgufBase {
    /// Open a file and check its header; size and header go into `digest`.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::Gguf`], [`ModelError::Truncated`].
    pub(in crate::model) fn open(path: &Path, digest: &mut Sha256) -> Result<Self, ModelError> {
        let refused = |reason: GgufRefusal| ModelError::Gguf { path: path.to_owned(), reason };
        let file = WeightFile::open(path)?;
        let header = GgufHeader::read(&file.file, file.bytes).map_err(|error| match error {
            GgufError::Read(source) => ModelError::Read { path: path.to_owned(), source },
            other => refused(other.into()),
        })?;
        let network = Network::of(&header).map_err(refused)?;
        let tensors = stored(&header, &network).map_err(refused)?;
        check_end(&file, &header, &tensors)?;
        hash_header(&file, header.data_start, digest)?;
        file.check_unchanged()?;
        Ok(Self { file, metadata: header.metadata, config: network.config, tensors })
    }
}

/// The table, checked: every type is known, rows are whole blocks, and the tensors lie one behind the other.
fn stored(header: &GgufHeader, network: &Network) -> Result<Vec<(String, StoredTensor)>, GgufRefusal> {
    let mut expected = 0u64;
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for tensor in &header.tensors {
        let name = names::of_transformers(&tensor.name)
            .ok_or_else(|| GgufRefusal::UnknownTensor { name: tensor.name.clone() })?;
        if tensor.offset != expected {
            return Err(GgufRefusal::Place { name: tensor.name.clone(), offset: tensor.offset, expected });
        }
        let (encoding, bytes) = encoding(tensor)?;
        let begin = header.data_start.saturating_add(tensor.offset);
        expected = expected.saturating_add(bytes).checked_next_multiple_of(header.alignment).unwrap_or(u64::MAX);
        let rows = row_order(tensor, network)?;
        let range = begin..begin.saturating_add(bytes);
        tensors.push((name, StoredTensor { shape: tensor.shape.clone(), encoding, rows, range }));
    }
    Ok(tensors)
}

fn row_order(tensor: &GgufTensor, network: &Network) -> Result<RowOrder, GgufRefusal> {
    if !network.rotates_pairs || !names::rotates(&tensor.name) {
        return Ok(RowOrder::Plain);
    }
    let rows = tensor.shape.first().copied().unwrap_or(0);
    if !rows.is_multiple_of(network.head_dim) {
        let shape = tensor.shape.iter().map(|size| *size as u64).collect();
        return Err(GgufError::Shape { name: tensor.name.clone(), shape }.into());
    }
    Ok(RowOrder::Pairs { head_dim: network.head_dim })
}

/// How a tensor is stored, and its bytes.
fn encoding(tensor: &GgufTensor) -> Result<(Encoding, u64), GgufRefusal> {
    let plain = |dtype: TensorDtype| Ok((Encoding::Numbers(dtype), (tensor.num_numbers() * dtype.size()) as u64));
    match tensor.kind {
        0 => return plain(TensorDtype::F32),
        1 => return plain(TensorDtype::F16),
        30 => return plain(TensorDtype::BF16),
        _ => {}
    }
    let unknown = || GgufRefusal::TensorType { name: tensor.name.clone(), kind: type_name(tensor.kind) };
    let format = BlockFormat::of(tensor.kind).ok_or_else(unknown)?;
    let columns = tensor.shape.last().copied().unwrap_or(0);
    if !columns.is_multiple_of(format.numbers()) {
        let (format, block) = (format.name(), format.numbers());
        return Err(GgufRefusal::Columns { name: tensor.name.clone(), columns, format, block });
    }
    Ok((Encoding::Blocks(format), (tensor.num_numbers() / format.numbers()) as u64 * format.bytes() as u64))
}

/// The file ends where its last tensor does, but for padding.
fn check_end(file: &WeightFile, header: &GgufHeader, tensors: &[(String, StoredTensor)]) -> Result<(), ModelError> {
    let end = tensors.last().map_or(header.data_start, |(_, last)| last.range.end);
    if file.bytes < end {
        return Err(ModelError::Truncated { path: file.path.clone(), expected: end, found: file.bytes });
    }
    if file.bytes - end >= header.alignment {
        let reason = GgufRefusal::Behind { end, bytes: file.bytes };
        return Err(ModelError::Gguf { path: file.path.clone(), reason });
    }
    Ok(())
}

fn hash_header(file: &WeightFile, end: u64, digest: &mut Sha256) -> Result<(), ModelError> {
    digest.update(file.bytes.to_le_bytes());
    digest.update(end.to_le_bytes());
    let end = end.min(file.bytes);
    let mut chunk = vec![0; CHUNK_BYTES.min(end as usize)];
    for at in (0..end).step_by(CHUNK_BYTES) {
        let part = &mut chunk[..CHUNK_BYTES.min((end - at) as usize)];
        file.read_at(part, at)?;
        digest.update(part);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
