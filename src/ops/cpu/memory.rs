//! Allocations that can be refused, and activation buffers.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};

use crate::ops::OpsError;

/// f32 activations, row-major `[rows, cols]`.
#[derive(Debug)]
pub struct Buffer {
    pub(super) cols: usize,
    pub(super) data: Vec<f32>,
}

impl Buffer {
    pub(super) fn new(rows: usize, cols: usize) -> Result<Self, OpsError> {
        Ok(Self { cols, data: filled("an activation buffer", rows.saturating_mul(cols), 0.0)? })
    }

    pub(super) fn rows(&self) -> usize {
        self.data.len() / self.cols.max(1)
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.cols..][..self.cols]
    }
}

fn refused<T>(what: &'static str, len: usize) -> OpsError {
    OpsError::OutOfMemory { what, bytes: (len as u64).saturating_mul(size_of::<T>() as u64) }
}

/// `len` copies of `value`.
pub(super) fn filled<T: Copy>(what: &'static str, len: usize, value: T) -> Result<Vec<T>, OpsError> {
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(len).map_err(|_| refused::<T>(what, len))?;
    numbers.resize(len, value);
    Ok(numbers)
}

/// `len` zeros in pages that the system provides when they are first written.
pub(super) fn untouched(what: &'static str, len: usize) -> Result<Vec<u32>, OpsError> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let layout = Layout::array::<u32>(len).map_err(|_| refused::<u32>(what, len))?;
    // SAFETY: the layout has a size above zero.
    let words = unsafe { alloc_zeroed(layout) }.cast::<u32>();
    if words.is_null() {
        return Err(refused::<u32>(what, len));
    }
    // SAFETY: allocated by the global allocator with exactly the layout of `len` u32, all of them zero.
    Ok(unsafe { Vec::from_raw_parts(words, len, len) })
}

/// Grow-only scratch: at least `len` elements, the contents unspecified. Allocates only when a step is larger than
/// all before it.
pub(super) fn at_least<T: Copy + Default>(scratch: &mut Vec<T>, len: usize) -> &mut [T] {
    if scratch.len() < len {
        scratch.resize(len, T::default());
    }
    &mut scratch[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_sizes_are_refused_with_their_bytes() {
        let error = Buffer::new(usize::MAX / 8, 4).unwrap_err();
        assert!(matches!(error, OpsError::OutOfMemory { bytes, .. } if bytes > 1 << 60));
        assert!(matches!(untouched("KV", usize::MAX / 2), Err(OpsError::OutOfMemory { .. })));
        assert!(matches!(untouched("KV", 1 << 60), Err(OpsError::OutOfMemory { .. })));
    }

    #[test]
    fn untouched_memory_reads_as_zero_and_can_be_empty() {
        assert!(untouched("KV", 0).unwrap().is_empty());
        assert!(untouched("KV", 5000).unwrap().iter().all(|word| *word == 0));
    }
}
