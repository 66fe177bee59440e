//! Where the weights of a base come from: files with a table of tensors in front of the tensors' bytes. A format says
//! what tensors there are under the names of transformers, and where; [`WeightFile`] reads them, whatever the format.
//! Knows no family but where a format needs it to translate its names.

mod blocks;
mod file;
mod gguf;
mod safetensors;

use std::ops::Range;

use blocks::BlockFormat;
pub(super) use file::WeightFile;
pub use gguf::GgufRefusal;
pub(super) use gguf::{GgufBase, ROPE_FACTORS};

use crate::ops::TensorDtype;

/// How the numbers of a tensor are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// One by one.
    Numbers(TensorDtype),
    /// Quantized, some numbers at a time, within a row.
    Blocks(BlockFormat),
    /// Nothing that is read as weights; by its name in the format.
    Other(String),
}

impl Encoding {
    /// The format's own name of it. Part of the content digest's definition.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Numbers(dtype) => dtype.as_str(),
            Self::Blocks(format) => format.name(),
            Self::Other(name) => name,
        }
    }
}

/// In which order the rows of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// As transformers has them.
    Plain,
    /// The two rows that rotate together side by side, in every head of so many rows, where transformers has them half a
    /// head apart.
    Pairs {
        /// Even.
        head_dim: usize,
    },
}

/// A tensor of a [`WeightFile`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredTensor {
    /// `[rows, columns]`, or a vector's length.
    pub(super) shape: Vec<usize>,
    pub(super) encoding: Encoding,
    pub(super) rows: RowOrder,
    /// Its bytes, counted from the file's first.
    pub(super) range: Range<u64>,
}

impl StoredTensor {
    /// Numbers.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// What its bytes mean: a part of the content digest's definition.
    pub(super) fn form(&self) -> String {
        let form = format!("{} {:?}", self.encoding.name(), self.shape);
        match self.rows {
            RowOrder::Plain => form,
            RowOrder::Pairs { head_dim } => format!("{form} pairs of {head_dim}"),
        }
    }
}
