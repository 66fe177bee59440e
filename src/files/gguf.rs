//! The container GGUF (ggml-org/ggml, docs/gguf.md): named values and a table of tensors before the tensors' bytes.
//! Knows no key but its own, `general.alignment`, and no type of tensors. The file is a stranger's: whatever it claims is
//! held against its size and against the limits here before memory is taken, and no byte of a tensor is read.
//!
//! Format, all numbers little-endian: `GGUF`, u32 version, u64 tensors, u64 values; the values, each a key and a typed
//! value; the tensors, each name, u32 dimensions, their u64 sizes (columns first), u32 type, u64 place; padding up to
//! `general.alignment`; the tensors' bytes, to which the places refer. A string is its u64 length and UTF-8.

mod error;
mod metadata;
mod reader;

use std::collections::HashSet;
use std::fs::File;

pub(crate) use error::GgufError;
pub(crate) use metadata::GgufMetadata;
use reader::Reader;

/// Most values.
const MAX_VALUES: u64 = 4096;
/// Most tensors.
const MAX_TENSORS: u64 = 1 << 16;
/// Most dimensions, as in ggml.
const MAX_DIMS: u32 = 4;
/// Where the tensors' bytes begin is a multiple of it, unless the file says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 16;
const ALIGNMENT: &str = "general.alignment";

/// One tensor of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GgufTensor {
    /// Unique in the file, printable.
    pub name: String,
    /// 1 to 4 sizes, none 0, slowest first: `[rows, columns]`.
    pub shape: Vec<usize>,
    /// Number of the type, of which [`GgufHeader`] knows nothing.
    pub kind: u32,
    /// Where its bytes begin, counted from [`GgufHeader::data_start`].
    pub offset: u64,
}

impl GgufTensor {
    /// How many numbers it has, at least 1.
    #[must_use]
    pub(crate) fn num_numbers(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Everything before the tensors' bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GgufHeader {
    /// Named values.
    pub metadata: GgufMetadata,
    /// In the order of the file.
    pub tensors: Vec<GgufTensor>,
    /// Multiple of which the places of tensors are.
    pub alignment: u64,
    /// Where the tensors' bytes begin in the file.
    pub data_start: u64,
}

impl GgufHeader {
    /// Read the header of a file of `bytes` bytes.
    ///
    /// # Errors
    /// [`GgufError`].
    pub(crate) fn read(file: &File, bytes: u64) -> Result<Self, GgufError> {
        let mut reader = Reader::new(file, bytes);
        magic(&mut reader)?;
        let tensor_count = reader.count("tensors", MAX_TENSORS)?;
        let value_count = reader.count("values", MAX_VALUES)?;
        let metadata = GgufMetadata::read(&mut reader, value_count)?;
        let mut tensors = Vec::new();
        let mut names = HashSet::new();
        for _ in 0..tensor_count {
            let tensor = tensor(&mut reader)?;
            if !names.insert(tensor.name.clone()) {
                return Err(GgufError::Twice { name: tensor.name });
            }
            tensors.push(tensor);
        }
        let alignment = alignment(&metadata)?;
        let data_start = reader.position().next_multiple_of(alignment);
        Ok(Self { metadata, tensors, alignment, data_start })
    }
}

fn magic(reader: &mut Reader<'_>) -> Result<(), GgufError> {
    match &reader.take::<4>()? {
        b"GGUF" => {}
        b"vers" => return Err(GgufError::LfsPointer),
        _ => return Err(GgufError::NotGguf),
    }
    match reader.u32()? {
        2 | 3 => Ok(()),
        // A small number in the high bytes: the other byte order.
        swapped if swapped != 0 && swapped & 0xffff == 0 => Err(GgufError::BigEndian),
        version => Err(GgufError::Version { version }),
    }
}

fn tensor(reader: &mut Reader<'_>) -> Result<GgufTensor, GgufError> {
    let name = reader.name()?;
    let dims = reader.u32()?;
    if !(1..=MAX_DIMS).contains(&dims) {
        return Err(GgufError::TooLarge { what: "dimensions of a tensor", found: dims.into(), max: MAX_DIMS.into() });
    }
    let mut shape = (0..dims).map(|_| reader.u64()).collect::<Result<Vec<_>, _>>()?;
    shape.reverse();
    // Any type takes less than 8 bytes a number: what is counted in numbers can be counted in bytes.
    let numbers = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
    if numbers.is_none_or(|numbers| numbers == 0 || numbers > u64::MAX >> 4) {
        return Err(GgufError::Shape { name, shape });
    }
    let shape = shape.into_iter().map(|size| size as usize).collect();
    Ok(GgufTensor { name, shape, kind: reader.u32()?, offset: reader.u64()? })
}

fn alignment(metadata: &GgufMetadata) -> Result<u64, GgufError> {
    let alignment = metadata.count(ALIGNMENT)?.unwrap_or(DEFAULT_ALIGNMENT);
    let fits = alignment.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&alignment);
    let expected = "a power of two from 8 to 65536";
    let wrong = || GgufError::WrongType { key: ALIGNMENT.to_owned(), found: alignment.to_string(), expected };
    fits.then_some(alignment).ok_or_else(wrong)
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
