//! Temporary.
use super::DeltaError;
use std::ops::Range;
/// Float types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// f32
    F32,
    /// f16
    F16,
    /// bf16
    Bf16,
}
/// One tensor.
pub struct TensorHeader {
    /// name
    pub name: String,
    /// dtype
    pub dtype: FloatType,
    /// shape
    pub shape: Vec<usize>,
    /// bytes after the header
    pub range: Range<usize>,
}
/// Header.
pub struct Header {
    /// tensors
    pub tensors: Vec<TensorHeader>,
}
impl Header {
    /// check
    pub fn check_finite(&self, _data: &[u8]) -> Result<(), DeltaError> {
        Ok(())
    }
}
/// split
pub fn split(bytes: &[u8]) -> Result<(Header, &[u8]), DeltaError> {
    let bad = |e: safetensors::SafeTensorError| DeltaError::Json { reason: e.to_string() };
    let (n, meta) = safetensors::SafeTensors::read_metadata(bytes).map_err(bad)?;
    let tensors = meta
        .tensors()
        .into_iter()
        .map(|(name, info)| TensorHeader {
            name,
            dtype: match info.dtype {
                safetensors::Dtype::F32 => FloatType::F32,
                safetensors::Dtype::F16 => FloatType::F16,
                _ => FloatType::Bf16,
            },
            shape: info.shape.clone(),
            range: info.data_offsets.0..info.data_offsets.1,
        })
        .collect();
    Ok((Header { tensors }, &bytes[8 + n..]))
}
