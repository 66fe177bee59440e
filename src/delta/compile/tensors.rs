//! The tensors of an upload, taken out one by one so that what nobody took is refused.

use std::collections::BTreeMap;

use half::{bf16, f16};

use crate::delta::DeltaError;
use crate::delta::safetensors::{FloatType, Header};
use crate::ops::{HostTensor, TensorData};

/// Views into a checked safetensors file.
pub(crate) struct TensorSet<'a> {
    data: &'a [u8],
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    dtype: FloatType,
    shape: Vec<usize>,
    range: std::ops::Range<usize>,
}

impl<'a> TensorSet<'a> {
    /// All tensors of a file whose header was checked; `data` is what follows the header.
    pub(crate) fn new(header: Header, data: &'a [u8]) -> Self {
        let entry = |tensor: crate::delta::safetensors::TensorHeader| {
            (tensor.name, Entry { dtype: tensor.dtype, shape: tensor.shape, range: tensor.range })
        };
        Self { data, tensors: header.tensors.into_iter().map(entry).collect() }
    }

    /// Take a tensor if it is there.
    pub(crate) fn take(&mut self, name: &str) -> Option<HostTensor> {
        let entry = self.tensors.remove(name)?;
        Some(HostTensor { data: decode(entry.dtype, &self.data[entry.range]), shape: entry.shape })
    }

    /// Take a tensor of a known shape if it is there.
    pub(crate) fn take_shaped(&mut self, name: &str, expected: &[usize]) -> Result<Option<HostTensor>, DeltaError> {
        match self.take(name) {
            Some(tensor) if tensor.shape != expected => {
                Err(DeltaError::Shape { tensor: name.to_owned(), found: tensor.shape, expected: expected.to_vec() })
            }
            tensor => Ok(tensor),
        }
    }

    /// Take a saved copy of a base tensor: true if it equals the base's, compared in the file's dtype.
    pub(crate) fn take_copy(&mut self, name: &str, base: &HostTensor) -> Option<bool> {
        let dtype = self.tensors.get(name)?.dtype;
        let copy = self.take(name)?;
        let rounded: Box<dyn Fn(f32) -> f32> = match dtype {
            FloatType::F32 => Box::new(|value| value),
            FloatType::Bf16 => Box::new(|value| bf16::from_f32(value).to_f32()),
            FloatType::F16 => Box::new(|value| f16::from_f32(value).to_f32()),
        };
        let equal = copy.shape == base.shape
            && copy.to_f32().iter().zip(base.to_f32()).all(|(copy, base)| *copy == rounded(base));
        Some(equal)
    }

    /// Names nobody took, in order.
    pub(crate) fn left(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

fn decode(dtype: FloatType, bytes: &[u8]) -> TensorData {
    match dtype {
        FloatType::F32 => {
            TensorData::F32(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        }
        FloatType::F16 => {
            TensorData::F32(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect())
        }
        FloatType::Bf16 => TensorData::Bf16(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect()),
    }
}
