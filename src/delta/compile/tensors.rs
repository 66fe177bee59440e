//! The tensors of an upload, taken out one by one so that what nobody took is refused.

use std::collections::BTreeMap;

use half::{bf16, f16};

use crate::delta::DeltaError;
use crate::delta::safetensors::{HeaderLimits, TensorDtype, check_finite, check_fits_bf16, read_header};
use crate::ops::{HostTensor, TensorData};

/// Views into a checked safetensors file.
pub(crate) struct TensorSet<'a> {
    tensors: BTreeMap<String, Entry<'a>>,
}

struct Entry<'a> {
    dtype: TensorDtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> TensorSet<'a> {
    /// All tensors of a file: its header checked before anything is allocated, every number finite, also as bf16.
    pub(crate) fn read(file: &'a [u8]) -> Result<Self, DeltaError> {
        let header = read_header(file, &HeaderLimits::default())?;
        let mut tensors = BTreeMap::new();
        for tensor in &header.tensors {
            // The header's check has put every range inside the file.
            let bytes = header.data(file, tensor).unwrap_or_default();
            check_finite(&tensor.name, tensor.dtype, bytes)?;
            check_fits_bf16(&tensor.name, tensor.dtype, bytes)?;
            tensors.insert(tensor.name.clone(), Entry { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes });
        }
        Ok(Self { tensors })
    }

    /// Take a tensor if it is there.
    pub(crate) fn take(&mut self, name: &str) -> Option<HostTensor> {
        let entry = self.tensors.remove(name)?;
        Some(HostTensor { data: decode(entry.dtype, entry.bytes), shape: entry.shape })
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

    /// Whether a tensor is there and nobody took it.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Take a tensor away if it equals the base's, compared in the file's dtype: training may have held the base in
    /// fewer bits. PEFT would go on with the rounded copy; here the base stays as it is. False: it is there and differs.
    pub(crate) fn drop_copy(&mut self, name: &str, base: &HostTensor) -> bool {
        let Some(entry) = self.tensors.get(name) else { return true };
        let (dtype, shape) = (entry.dtype, &entry.shape);
        if *shape != base.shape {
            return false;
        }
        let copy = decode(dtype, entry.bytes);
        let rounded: Box<dyn Fn(f32) -> f32> = match dtype {
            TensorDtype::F32 => Box::new(|value| value),
            TensorDtype::BF16 => Box::new(|value| bf16::from_f32(value).to_f32()),
            TensorDtype::F16 => Box::new(|value| f16::from_f32(value).to_f32()),
        };
        let copy = HostTensor { shape: shape.clone(), data: copy };
        let equal = copy.to_f32().iter().zip(base.to_f32()).all(|(copy, base)| *copy == rounded(base));
        if equal {
            self.tensors.remove(name);
        }
        equal
    }

    /// Names nobody took, in order.
    pub(crate) fn left(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

fn decode(dtype: TensorDtype, bytes: &[u8]) -> TensorData {
    match dtype {
        TensorDtype::F32 => {
            TensorData::F32(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        }
        TensorDtype::F16 => {
            TensorData::F32(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect())
        }
        TensorDtype::BF16 => {
            TensorData::Bf16(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect())
        }
    }
}
