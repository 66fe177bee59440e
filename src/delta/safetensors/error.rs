//! Why a header is refused.

/// Why a file is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SafetensorsError {
    /// Shorter than the header's length field.
    #[error("a file of {bytes} bytes is no safetensors file")]
    TooShort {
        /// Of the file.
        bytes: u64,
    },
    /// Another format under this name.
    #[error("it is {found}")]
    OtherFormat {
        /// What it begins like, and what to do.
        found: &'static str,
    },
    /// The header is longer than allowed.
    #[error("the header claims {bytes} bytes, the limit is {max}")]
    HeaderTooLarge {
        /// Claimed.
        bytes: u64,
        /// Allowed.
        max: u64,
    },
    /// The header ends behind the file.
    #[error("the header claims {bytes} bytes, the file has {available} behind the length")]
    HeaderTruncated {
        /// Claimed.
        bytes: u64,
        /// There.
        available: u64,
    },
    /// Empty, or anything but `{` first.
    #[error("the header does not begin with {{")]
    NotAnObject,
    /// Not JSON, or not of the form the format prescribes.
    #[error("the header is malformed: {reason}")]
    Malformed {
        /// Where and what.
        reason: String,
    },
    /// More tensors than allowed.
    #[error("the header has more than {max} tensors")]
    TooManyTensors {
        /// Allowed.
        max: usize,
    },
    /// No tensor at all.
    #[error("the file has no tensors")]
    NoTensors,
    /// A name that is empty, too long, or not of printable ASCII without `/`, `\` and `..`.
    #[error("tensor name {name:?} is not allowed")]
    BadName {
        /// Shortened to 128 characters.
        name: String,
    },
    /// A name, or a key of a tensor or of the metadata, twice.
    #[error("{key:?} appears twice")]
    Duplicate {
        /// Shortened to 128 characters.
        key: String,
    },
    /// A key the format does not know.
    #[error("tensor {tensor} has the unknown key {key:?}")]
    UnknownKey {
        /// Name.
        tensor: String,
        /// Shortened to 128 characters.
        key: String,
    },
    /// A key the format asks for.
    #[error("tensor {tensor} has no {key}")]
    MissingKey {
        /// Name.
        tensor: String,
        /// `dtype`, `shape` or `data_offsets`.
        key: &'static str,
    },
    /// One that nothing is read from, or one of indices for weights, or the other way round.
    #[error(
        "tensor {tensor} has dtype {dtype:?}; F64, F32, F16 and BF16 are served, and U8, I16, I32 and I64 for indices"
    )]
    UnsupportedDtype {
        /// Name.
        tensor: String,
        /// Shortened to 128 characters.
        dtype: String,
    },
    /// No dimension, or more than allowed.
    #[error("tensor {tensor} has {dims} dimensions{}, 1 to {max} are allowed", if dims > max { " or more" } else { "" })]
    BadRank {
        /// Name.
        tensor: String,
        /// Seen when it was refused.
        dims: usize,
        /// Allowed.
        max: usize,
    },
    /// A vector of no numbers.
    #[error(
        "tensor {tensor} of shape {shape:?} is empty, as DeepSpeed ZeRO-3 saves weights that were not gathered before"
    )]
    EmptyTensor {
        /// Name.
        tensor: String,
        /// Declared.
        shape: Vec<u64>,
    },
    /// Its size does not fit into a machine word.
    #[error("the size of tensor {tensor} of shape {shape:?} overflows")]
    SizeOverflow {
        /// Name.
        tensor: String,
        /// Declared.
        shape: Vec<u64>,
    },
    /// The byte range does not fit the shape.
    #[error("tensor {tensor} of shape {shape:?} takes {expected} bytes, its offsets are {begin}..{end}")]
    WrongSize {
        /// Name.
        tensor: String,
        /// Declared.
        shape: Vec<u64>,
        /// By shape and dtype.
        expected: u64,
        /// Declared.
        begin: u64,
        /// Declared.
        end: u64,
    },
    /// A gap before a tensor, or an overlap with the one before it.
    #[error("tensor {tensor} begins at {begin}, the data before it ends at {expected}")]
    NotContiguous {
        /// Name.
        tensor: String,
        /// Declared.
        begin: u64,
        /// End of the tensor before it.
        expected: u64,
    },
    /// The file ends before or after the last tensor.
    #[error("the tensors take {expected} bytes, the file has {actual} behind the header")]
    DataLength {
        /// By the offsets.
        expected: u64,
        /// In the file.
        actual: u64,
    },
    /// A NaN or an infinity, or a number that would become one.
    #[error("tensor {tensor} has {value} at index {index}")]
    NonFinite {
        /// Name.
        tensor: String,
        /// Of the first such number, counted in numbers.
        index: usize,
        /// `NaN`, `inf`, `-inf`, or a number too large for bf16.
        value: f32,
    },
}
