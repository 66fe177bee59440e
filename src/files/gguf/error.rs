//! Why a GGUF file is not read.

use std::io;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The disk.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// Another format under this name.
    #[error("it does not begin with GGUF")]
    NotGguf,
    /// What Git leaves in the place of a large file.
    #[error("it is a Git LFS pointer; `git lfs pull` fetches the file itself")]
    LfsPointer,
    /// A version of the format that is not read.
    #[error("it is GGUF version {version}; versions 2 and 3 are read, llama.cpp's converter writes them")]
    Version {
        /// Of the file.
        version: u32,
    },
    /// Written on, and for, a machine of the other byte order.
    #[error("its numbers are big-endian; convert it for little-endian machines")]
    BigEndian,
    /// The header is cut off.
    #[error("it has {bytes} bytes and ends within its header")]
    Truncated {
        /// Of the file.
        bytes: u64,
    },
    /// A count or a length beyond what is read.
    #[error("{what}: {found}, at most {max}")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// In the file.
        found: u64,
        /// Read here, or possible in a file of this size.
        max: u64,
    },
    /// A key, or a tensor's name, that is not printable ASCII.
    #[error("{name:?} is no name")]
    BadName {
        /// Shortened.
        name: String,
    },
    /// One key, or one tensor's name, twice.
    #[error("`{name}` is there twice")]
    Twice {
        /// Which.
        name: String,
    },
    /// A type of value that the format does not have.
    #[error("`{key}` has values of the unknown type {found}")]
    UnknownType {
        /// Of the value.
        key: String,
        /// In the file.
        found: u32,
    },
    /// A list of lists.
    #[error("`{key}` is a list of lists, which no known key is")]
    Nested {
        /// Of the value.
        key: String,
    },
    /// A string that is not UTF-8.
    #[error("a text of `{key}` is not UTF-8")]
    NotText {
        /// Of the value.
        key: String,
    },
    /// A truth value that is neither 0 nor 1.
    #[error("`{key}` is neither true nor false: {found}")]
    NotBool {
        /// Of the value.
        key: String,
        /// The byte.
        found: u8,
    },
    /// A value of another type than its key has.
    #[error("`{key}` is {found}, expected {expected}")]
    WrongType {
        /// Of the value.
        key: String,
        /// The value, shortened, or its type.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A value that is needed.
    #[error("it has no `{key}`")]
    Missing {
        /// Of the value.
        key: String,
    },
    /// A tensor without dimensions or with too many, or with more numbers than can be counted.
    #[error("tensor `{name}` has the shape {shape:?}")]
    Shape {
        /// Of the tensor.
        name: String,
        /// Rows first.
        shape: Vec<u64>,
    },
}
