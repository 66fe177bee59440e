//! What every other form is read into, and the one form is written from.

use std::borrow::Cow;
use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::View;

/// A tensor with its numbers, row-major, little-endian.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::delta) struct OwnedTensor {
    pub(in crate::delta) dtype: Dtype,
    pub(in crate::delta) shape: Vec<usize>,
    pub(in crate::delta) bytes: Vec<u8>,
}

impl View for &OwnedTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Tensors by name.
pub(in crate::delta) type Tensors = BTreeMap<String, OwnedTensor>;
