//! A file of weights. Tensors are read where they stand when they are asked for. Nothing is mapped: a file that shrinks,
//! changes or goes bad under the server ends in an error of the reader and never in a signal. Knows no format.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{BlockFormat, Encoding, RowOrder, StoredTensor};
use crate::files;
use crate::model::ModelError;
use crate::ops::{HostTensor, OpsError, TensorData, TensorDtype, TensorReader};

/// For people.
const WHAT: &str = "a tensor of the base model";
/// Bytes read at a time: small enough to stay in a core's cache until they are converted, a multiple of 8.
const CHUNK_BYTES: usize = 256 << 10;

/// An opened weight file.
pub(in crate::model) struct WeightFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Size when it was opened.
    pub(super) bytes: u64,
    /// `None` where the file system keeps no times.
    modified: Option<SystemTime>,
}

impl WeightFile {
    /// Open a regular file.
    ///
    /// # Errors
    /// [`ModelError::Read`].
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let failed = |source| ModelError::Read { path: path.to_owned(), source };
        let file = files::open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        Ok(Self { path: path.to_owned(), file, bytes: found.len(), modified: found.modified().ok() })
    }

    /// Size of the file.
    pub(in crate::model) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Read a tensor of this file in transformers' order of rows: what is narrower than f32 is widened to it, but for
    /// bf16, which is as stored.
    ///
    /// # Errors
    /// As [`Self::numbers`].
    pub(in crate::model) fn tensor(&self, name: &str, stored: &StoredTensor) -> Result<HostTensor, ModelError> {
        let mut data = self.numbers(name, stored, 0..stored.len())?;
        if let RowOrder::Pairs { head_dim } = stored.rows {
            let columns = stored.shape.iter().skip(1).product();
            match &mut data {
                TensorData::F32(numbers) => part_pairs(numbers, columns, head_dim),
                TensorData::Bf16(numbers) => part_pairs(numbers, columns, head_dim),
            }
        }
        Ok(HostTensor { shape: stored.shape.clone(), data })
    }

    /// Numbers `range` of a tensor, row-major, in the order of the file; of a quantized one whole blocks.
    ///
    /// # Errors
    /// [`ModelError::TensorDtype`]; [`ModelError::Read`], [`ModelError::Truncated`] and [`ModelError::Changed`] where
    /// the file is not what it was; [`OpsError::OutOfMemory`].
    pub(in crate::model) fn numbers(
        &self,
        name: &str,
        stored: &StoredTensor,
        range: Range<usize>,
    ) -> Result<TensorData, ModelError> {
        let begin = stored.range.start;
        let data = match &stored.encoding {
            Encoding::Numbers(dtype) => self.read(*dtype, begin, range)?,
            Encoding::Blocks(format) => TensorData::F32(self.widen(*format, begin, range)?),
            Encoding::Other(found) => {
                return Err(ModelError::TensorDtype { name: name.to_owned(), found: found.clone() });
            }
        };
        self.check_unchanged()?;
        Ok(data)
    }

    /// Numbers `range` of those that begin at byte `begin`.
    fn read(&self, dtype: TensorDtype, begin: u64, range: Range<usize>) -> Result<TensorData, ModelError> {
        let mut reader = TensorReader::new(dtype, range.len(), WHAT)?;
        let place = |number: usize| begin + (number * dtype.size()) as u64;
        self.chunks(place(range.start)..place(range.end), CHUNK_BYTES, |chunk| {
            reader.read(chunk);
            Ok(())
        })?;
        Ok(reader.finish())
    }

    /// Numbers `range`, which is whole blocks, of those that begin at byte `begin`.
    fn widen(&self, format: BlockFormat, begin: u64, range: Range<usize>) -> Result<Vec<f32>, ModelError> {
        let mut numbers = Vec::new();
        let refused = |_| OpsError::OutOfMemory { what: WHAT, bytes: size_of::<f32>() as u64 * range.len() as u64 };
        numbers.try_reserve_exact(range.len()).map_err(refused)?;
        let place = |number: usize| begin + (number / format.numbers() * format.bytes()) as u64;
        let chunk = CHUNK_BYTES / format.bytes() * format.bytes();
        self.chunks(place(range.start)..place(range.end), chunk, |chunk| format.widen(chunk, &mut numbers))?;
        Ok(numbers)
    }

    /// Read a range of bytes, so many at a time, each time to an even address.
    fn chunks(
        &self,
        range: Range<u64>,
        size: usize,
        mut each: impl FnMut(&[u8]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let (mut at, end) = (range.start, range.end);
        let size = size.min((end - at) as usize);
        let mut buffer = vec![0u8; size + 1];
        let even = buffer.as_ptr().align_offset(2);
        let buffer = &mut buffer[even..][..size];
        while at < end {
            let part = size.min((end - at) as usize);
            self.read_at(&mut buffer[..part], at)?;
            each(&buffer[..part])?;
            at += part as u64;
        }
        Ok(())
    }

    /// Fill `chunk` from byte `at` of the file on.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::Truncated`].
    pub(in crate::model) fn read_at(&self, chunk: &mut [u8], at: u64) -> Result<(), ModelError> {
        self.file.read_exact_at(chunk, at).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.truncated(),
            _ => ModelError::Read { path: self.path.clone(), source },
        })
    }

    /// What changes when somebody writes to the file or puts another in its place. ctime too: the system alone sets it,
    /// so that a copy with the times of the original is told from it.
    ///
    /// # Errors
    /// [`ModelError::Read`].
    pub(in crate::model) fn stamps(&self) -> Result<[i128; 5], ModelError> {
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

    /// What was read is what was opened: tensors of two states of a file do not make a model.
    pub(in crate::model) fn check_unchanged(&self) -> Result<(), ModelError> {
        let found = self.file.metadata().map_err(|source| ModelError::Read { path: self.path.clone(), source })?;
        match () {
            () if found.len() < self.bytes => Err(self.truncated()),
            () if found.len() != self.bytes || found.modified().ok() != self.modified => {
                Err(ModelError::Changed { path: self.path.clone() })
            }
            () => Ok(()),
        }
    }

    /// The file is shorter than it was.
    fn truncated(&self) -> ModelError {
        let found = self.file.metadata().map_or(0, |found| found.len());
        ModelError::Truncated { path: self.path.clone(), expected: self.bytes, found }
    }
}

/// Put the rows that rotate together half a head apart, where they stand side by side: in a head of `d` rows, row `r`
/// comes from row `2 (r mod d/2) + r / (d/2)`.
fn part_pairs<T: Copy>(numbers: &mut [T], columns: usize, head_dim: usize) {
    let half = head_dim / 2;
    let mut paired = Vec::with_capacity(head_dim * columns);
    for head in numbers.chunks_exact_mut(head_dim * columns) {
        paired.clear();
        paired.extend_from_slice(head);
        for (row, target) in head.chunks_exact_mut(columns).enumerate() {
            let from = 2 * (row % half) + row / half;
            target.copy_from_slice(&paired[from * columns..][..columns]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_rotate_together_are_put_half_a_head_apart() {
        // Two heads of four rows of two columns, as ggml has them: row 0, row 2, row 1, row 3.
        let row = |head: i32, row: i32| [10 * (4 * head + row), 10 * (4 * head + row) + 1];
        let stored: Vec<i32> = [0, 1].iter().flat_map(|head| [0, 2, 1, 3].map(|at| row(*head, at))).flatten().collect();
        let wanted: Vec<i32> = [0, 1].iter().flat_map(|head| [0, 1, 2, 3].map(|at| row(*head, at))).flatten().collect();
        let mut numbers = stored;
        part_pairs(&mut numbers, 2, 4);
        assert_eq!(numbers, wanted);
        let mut bias = [0, 2, 1, 3];
        part_pairs(&mut bias, 1, 4);
        assert_eq!(bias, [0, 1, 2, 3]);
    }
}
