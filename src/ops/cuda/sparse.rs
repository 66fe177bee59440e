//! Sparse matrices on the device.

use std::ops::Range;

use half::bf16;

use super::abi::{Address, Sparse};
use super::driver::{ALIGNMENT, DeviceMemory};
use super::memory::send_list;
use super::uploader::Uploader;
use crate::ops::{HostSparse, OpsError, SparseEntry, WeightFormat, nearest_f16};

/// A sparse matrix `[out, in]`, row by row: where rows begin, inputs and numbers, one list behind the other.
#[derive(Debug)]
pub struct SparseMatrix {
    memory: DeviceMemory,
    count: usize,
    /// Offsets of the lists of inputs and of numbers.
    inputs: usize,
    values: usize,
}

impl SparseMatrix {
    pub(super) fn new(uploader: &Uploader, format: WeightFormat, matrix: &HostSparse) -> Result<Self, OpsError> {
        let (entries, count) = (&matrix.entries[..], matrix.entries.len());
        let inputs = size_of_val(&matrix.starts[..]).next_multiple_of(ALIGNMENT);
        let values = inputs + (count * size_of::<u32>()).next_multiple_of(ALIGNMENT);
        let memory = uploader.allocate("a sparse matrix", values + count * format.size())?;
        send_list(uploader, (&memory, 0), &matrix.starts, |start| start.to_le_bytes())?;
        send_list(uploader, (&memory, inputs), entries, |entry| entry.column.to_le_bytes())?;
        let to = (&memory, values);
        match format {
            WeightFormat::F32 => send_list(uploader, to, entries, |entry| entry.value.to_le_bytes())?,
            WeightFormat::Bf16 => {
                send_list(uploader, to, entries, |entry: &SparseEntry| bf16::from_f32(entry.value).to_le_bytes())?;
            }
            WeightFormat::F16 => send_list(uploader, to, entries, |entry| nearest_f16(entry.value).to_le_bytes())?,
        }
        Ok(Self { memory, count, inputs, values })
    }

    /// As kernels find it, for these columns of a site.
    pub(super) fn view(&self, columns: Range<usize>) -> Sparse {
        let at = |offset: usize| self.memory.address() + offset as u64;
        Sparse {
            starts: Address::new(at(0)),
            inputs: Address::new(at(self.inputs)),
            values: Address::new(at(self.values)),
            column: columns.start as u32,
            columns: columns.len() as u32,
            count: self.count as u32,
            pad: 0,
        }
    }
}
