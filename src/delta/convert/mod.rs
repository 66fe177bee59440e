//! Weights in another form, made into the one safetensors file that is served: pickles as torch saves them (read as
//! data, never run) and safetensors files in several parts.
//!
//! This is for whoever brings an adapter from a folder; uploads are safetensors and nothing else. Same input, same bytes:
//! the version of an adapter does not depend on when it was converted.

mod archive;
mod machine;
mod parts;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::View;

pub use machine::PickleError;

/// Why weights cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The disk.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A file that is no archive of torch.
    #[error("it is no file of torch: {reason}")]
    Archive {
        /// What is wrong.
        reason: String,
    },
    /// The format before torch 1.6.
    #[error("it is in the format torch had before 1.6: load it with torch and save it again with safetensors")]
    Legacy,
    /// The pickle within.
    #[error("its pickle is refused: {0}")]
    Pickle(#[from] PickleError),
    /// An entry that is no tensor.
    #[error("its entry {key:?} is no tensor")]
    NotATensor {
        /// Shortened.
        key: String,
    },
    /// Neither a dictionary of tensors nor something that holds one.
    #[error("it is no dictionary of tensors")]
    NoTensors,
    /// A tensor that reaches beyond its numbers, or claims more bytes than the file has.
    #[error("tensor {tensor:?} of shape {shape:?} does not fit the numbers stored for it")]
    Tensor {
        /// Its key.
        tensor: String,
        /// Declared.
        shape: Vec<usize>,
    },
    /// A type of numbers no adapter has.
    #[error("tensor {tensor:?} has numbers of type {dtype}; float, half, bfloat16 and double are read")]
    Dtype {
        /// Its key.
        tensor: String,
        /// Torch's name of the storage.
        dtype: String,
    },
    /// The same key twice.
    #[error("tensor {tensor:?} occurs twice")]
    Duplicate {
        /// Its key.
        tensor: String,
    },
    /// A part that cannot be read as safetensors.
    #[error("{file}: {reason}")]
    Part {
        /// Name of the file.
        file: String,
        /// What is wrong.
        reason: String,
    },
}

/// A tensor with its numbers, row-major, little-endian.
#[derive(Clone, Debug, PartialEq)]
struct OwnedTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
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

type Tensors = BTreeMap<String, OwnedTensor>;

/// Convert the pickled weights at `from`, as `torch.save` writes them, into a safetensors file at `to`. Blocks.
///
/// # Errors
/// [`ConvertError`]; what is refused was not run.
pub fn pickle_to_safetensors(from: &Path, to: &Path) -> Result<(), ConvertError> {
    write(&archive::read(crate::files::open(from)?)?, to)
}

/// Join safetensors files in `folder` into one at `to`. Blocks.
///
/// # Errors
/// [`ConvertError`].
pub fn join_safetensors(folder: &Path, parts: &[String], to: &Path) -> Result<(), ConvertError> {
    write(&parts::read(folder, parts)?, to)
}

fn write(tensors: &Tensors, to: &Path) -> Result<(), ConvertError> {
    let written = safetensors::serialize_to_file(tensors.iter(), None, to);
    written.map_err(|error| std::io::Error::other(error).into())
}

#[cfg(test)]
mod tests;
