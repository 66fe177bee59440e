//! What a header says of one tensor, and how much of it is read.

use super::error::SafetensorsError;
use crate::ops::TensorDtype;

/// Bounds on a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderLimits {
    /// Bytes of JSON.
    pub max_header_bytes: u64,
    /// Tensors.
    pub max_tensors: usize,
    /// Dimensions of a tensor; at least 1 is always asked for.
    pub max_dims: usize,
    /// Bytes of a tensor's name.
    pub max_name_bytes: usize,
}

impl Default for HeaderLimits {
    fn default() -> Self {
        Self { max_header_bytes: 1 << 23, max_tensors: 65_536, max_dims: 4, max_name_bytes: 512 }
    }
}

/// A tensor as declared, not yet checked against the others.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: TensorDtype,
    pub(super) shape: Vec<u64>,
    pub(super) begin: u64,
    pub(super) end: u64,
}

impl Entry {
    /// Bytes by shape and dtype: the one place where sizes are multiplied.
    pub(super) fn bytes(&self) -> Result<u64, SafetensorsError> {
        if self.shape == [0] {
            return Err(SafetensorsError::EmptyTensor { tensor: self.name.clone(), shape: self.shape.clone() });
        }
        // A matrix may be empty (AdaLoRA gives a module no row at all), but its other sizes are held to the same bound.
        let size = |bytes: u64, dim: &u64| bytes.checked_mul((*dim).max(1));
        let bytes =
            self.shape.iter().try_fold(self.dtype.size() as u64, size).ok_or_else(|| {
                SafetensorsError::SizeOverflow { tensor: self.name.clone(), shape: self.shape.clone() }
            })?;
        Ok(if self.shape.contains(&0) { 0 } else { bytes })
    }
}
