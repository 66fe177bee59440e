//! A strict look at the header of a safetensors file, before any library touches it.
//!
//! The reference parser is safe but neither cheap nor strict: it takes headers of 100 MB, keeps the last of two
//! tensors of one name, and accepts any name. An adapter file is an upload from a stranger, so its header is checked
//! here first: small, each name once, every number plausible, every byte of the file accounted for. Cost is bounded
//! by the limits, not by what the file claims.
//!
//! Format (huggingface/safetensors): 8 bytes little-endian length n, n bytes of JSON that begin with `{` and may be
//! padded with spaces, then the data that `data_offsets` refer to.

mod entry;
mod error;
mod visitor;

use std::collections::BTreeMap;
use std::ops::Range;

use entry::Entry;
pub use entry::HeaderLimits;
pub use error::SafetensorsError;

use crate::ops::TensorDtype;

/// One tensor of a checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Unique in the file.
    pub name: String,
    /// How its numbers are stored.
    pub dtype: TensorDtype,
    /// 1 to [`HeaderLimits::max_dims`] dimensions; one that is alone is not 0.
    pub shape: Vec<usize>,
    /// Where its bytes are, counted from [`Header::data_start`].
    pub range: Range<usize>,
}

/// A header that can be relied on: names are unique, shapes agree with their byte ranges, and the ranges cover the
/// data exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// In the order of their data.
    pub tensors: Vec<TensorInfo>,
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Where the data begins in the file.
    pub data_start: usize,
}

impl Header {
    /// The bytes of a tensor; `file` is the whole file this header was read from.
    #[must_use]
    pub fn data<'a>(&self, file: &'a [u8], tensor: &TensorInfo) -> Option<&'a [u8]> {
        file.get(self.data_start..)?.get(tensor.range.clone())
    }
}

/// Formats that are sent under the name of safetensors, by their first bytes: as a length each would be far too large.
fn other_format(start: [u8; 8]) -> Option<&'static str> {
    let begins = |magic: &[u8]| start.starts_with(magic);
    if begins(b"version ") {
        Some("a Git LFS pointer and not the file: run `git lfs pull` and send what that brings")
    } else if begins(b"PK\x03\x04") {
        Some(
            "a zip archive, as torch.save writes: save it with safetensors, or let `polydelta adapter upload` convert it",
        )
    } else if begins(b"GGUF") {
        Some("a GGUF file")
    } else if begins(b"\x1f\x8b") || begins(b"BZh") || begins(b"\xfd7zXZ") || begins(b"\x28\xb5\x2f\xfd") {
        Some("compressed: unpack it")
    } else if begins(b"\x89HDF") || begins(b"\x93NUMPY") {
        Some("in another format")
    } else {
        None
    }
}

/// Length of the header of a file of `file_bytes` bytes that begins with `length`: enough to refuse a bomb before the
/// rest of it is read.
///
/// # Errors
/// [`SafetensorsError::HeaderTooLarge`], [`SafetensorsError::HeaderTruncated`], [`SafetensorsError::NotAnObject`].
pub fn header_bytes(length: [u8; 8], file_bytes: u64, limits: &HeaderLimits) -> Result<usize, SafetensorsError> {
    if let Some(found) = other_format(length) {
        return Err(SafetensorsError::OtherFormat { found });
    }
    let bytes = u64::from_le_bytes(length);
    if bytes > limits.max_header_bytes {
        return Err(SafetensorsError::HeaderTooLarge { bytes, max: limits.max_header_bytes });
    }
    let available = file_bytes.saturating_sub(8);
    if bytes > available {
        return Err(SafetensorsError::HeaderTruncated { bytes, available });
    }
    if bytes < 2 {
        return Err(SafetensorsError::NotAnObject);
    }
    usize::try_from(bytes).map_err(|_| SafetensorsError::HeaderTooLarge { bytes, max: limits.max_header_bytes })
}

/// Check the header of a whole file, and that the file is as long as the header says.
///
/// # Errors
/// The first rule it breaks, naming the tensor.
pub fn read_header(file: &[u8], limits: &HeaderLimits) -> Result<Header, SafetensorsError> {
    let bytes = file.len() as u64;
    // The file holds what its length says, or `header_bytes` has refused it.
    read_beginning(file, bytes, limits)?.ok_or(SafetensorsError::HeaderTruncated { bytes, available: bytes })
}

/// As [`read_header`], of the first bytes of a file that has `file_bytes` in all. `None`: its header is not whole yet.
///
/// # Errors
/// As [`read_header`].
pub fn read_beginning(
    first: &[u8],
    file_bytes: u64,
    limits: &HeaderLimits,
) -> Result<Option<Header>, SafetensorsError> {
    let Some((length, rest)) = first.split_first_chunk::<8>() else {
        let whole = first.len() as u64 >= file_bytes;
        return if whole { Err(SafetensorsError::TooShort { bytes: file_bytes }) } else { Ok(None) };
    };
    let bytes = header_bytes(*length, file_bytes, limits)?;
    let Some(json) = rest.get(..bytes) else { return Ok(None) };
    if json.first() != Some(&b'{') {
        return Err(SafetensorsError::NotAnObject);
    }
    let visitor::Parsed { entries, metadata } = visitor::parse(json, limits)?;
    let data_start = 8 + bytes;
    let tensors = lay_out(entries, file_bytes.saturating_sub(data_start as u64))?;
    Ok(Some(Header { tensors, metadata, data_start }))
}

/// Check sizes, and that the tensors cover the data without hole, overlap or remainder.
fn lay_out(mut entries: Vec<Entry>, data_bytes: u64) -> Result<Vec<TensorInfo>, SafetensorsError> {
    if entries.is_empty() {
        return Err(SafetensorsError::NoTensors);
    }
    entries.sort_by_key(|entry| (entry.begin, entry.end));
    let mut covered = 0u64;
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in entries {
        let expected = entry.bytes()?;
        let Entry { begin, end, .. } = entry;
        if end.checked_sub(begin) != Some(expected) {
            return Err(SafetensorsError::WrongSize { tensor: entry.name, shape: entry.shape, expected, begin, end });
        }
        if begin != covered {
            return Err(SafetensorsError::NotContiguous { tensor: entry.name, begin, expected: covered });
        }
        if end > data_bytes {
            return Err(SafetensorsError::DataLength { expected: end, actual: data_bytes });
        }
        covered = end;
        // end <= data_bytes, the size of a file, and the product of what is not 0 was formed: all fit usize.
        let shape = entry.shape.iter().map(|dim| *dim as usize).collect();
        tensors.push(TensorInfo { name: entry.name, dtype: entry.dtype, shape, range: begin as usize..end as usize });
    }
    if covered != data_bytes {
        return Err(SafetensorsError::DataLength { expected: covered, actual: data_bytes });
    }
    Ok(tensors)
}

/// Refuse NaN and infinities in the little-endian numbers of a tensor.
///
/// # Errors
/// [`SafetensorsError::NonFinite`] with the first of them.
pub fn check_finite(name: &str, dtype: TensorDtype, bytes: &[u8]) -> Result<(), SafetensorsError> {
    let found = match dtype {
        TensorDtype::F32 => first_word(bytes, |bits| bits & 0x7fff_ffff >= 0x7f80_0000),
        TensorDtype::F16 => first_half(bytes, |bits| bits & 0x7fff >= 0x7c00),
        TensorDtype::BF16 => first_half(bytes, |bits| bits & 0x7fff >= 0x7f80),
        TensorDtype::F64 => first_double(bytes, |value| !(value as f32).is_finite()),
        TensorDtype::U8 | TensorDtype::I16 | TensorDtype::I32 | TensorDtype::I64 => None,
    };
    refuse(name, dtype, bytes, found)
}

/// Refuse what [`check_finite`] refuses and finite numbers that become infinite when rounded to bf16: only f32 numbers
/// from `0x7f7f8000` (3.3961776e38) on do.
///
/// # Errors
/// [`SafetensorsError::NonFinite`] with the first of them.
pub fn check_fits_bf16(name: &str, dtype: TensorDtype, bytes: &[u8]) -> Result<(), SafetensorsError> {
    match dtype {
        TensorDtype::F32 => {
            let found = first_word(bytes, |bits| bits & 0x7fff_ffff >= 0x7f7f_8000);
            refuse(name, dtype, bytes, found)
        }
        TensorDtype::F64 => {
            let found = first_double(bytes, |value| (value as f32).to_bits() & 0x7fff_ffff >= 0x7f7f_8000);
            refuse(name, dtype, bytes, found)
        }
        _ => check_finite(name, dtype, bytes),
    }
}

fn refuse(name: &str, dtype: TensorDtype, bytes: &[u8], index: Option<usize>) -> Result<(), SafetensorsError> {
    let Some(index) = index else { return Ok(()) };
    let number = bytes.get(index * dtype.size()..).unwrap_or_default();
    let value = match (dtype, number) {
        (TensorDtype::F32, [a, b, c, d, ..]) => f32::from_le_bytes([*a, *b, *c, *d]),
        (TensorDtype::F16, [a, b, ..]) => half::f16::from_le_bytes([*a, *b]).to_f32(),
        (TensorDtype::BF16, [a, b, ..]) => half::bf16::from_le_bytes([*a, *b]).to_f32(),
        (TensorDtype::F64, [a, b, c, d, e, f, g, h, ..]) => f64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]) as f32,
        _ => f32::NAN,
    };
    Err(SafetensorsError::NonFinite { tensor: name.to_owned(), index, value })
}

/// Numbers looked at without a branch between them, so that the compiler vectorises; a multiple of both sizes.
const BLOCK: usize = 1024;

fn first_word(bytes: &[u8], bad: impl Fn(u32) -> bool) -> Option<usize> {
    let (words, _) = bytes.as_chunks::<4>();
    let is_bad = |word: &[u8; 4]| bad(u32::from_le_bytes(*word));
    first(words, is_bad)
}

fn first_double(bytes: &[u8], bad: impl Fn(f64) -> bool) -> Option<usize> {
    let (doubles, _) = bytes.as_chunks::<8>();
    first(doubles, |double: &[u8; 8]| bad(f64::from_le_bytes(*double)))
}

fn first_half(bytes: &[u8], bad: impl Fn(u16) -> bool) -> Option<usize> {
    let (halves, _) = bytes.as_chunks::<2>();
    let is_bad = |half: &[u8; 2]| bad(u16::from_le_bytes(*half));
    first(halves, is_bad)
}

fn first<T>(numbers: &[T], bad: impl Fn(&T) -> bool) -> Option<usize> {
    let any = |block: &[T]| block.iter().fold(false, |seen, number| seen | bad(number));
    let block = numbers.chunks(BLOCK).position(any)?;
    numbers.iter().skip(block * BLOCK).position(&bad).map(|index| block * BLOCK + index)
}

#[cfg(test)]
mod tests;
