//! Why weights in another form are not taken.

use super::machine::PickleError;

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
