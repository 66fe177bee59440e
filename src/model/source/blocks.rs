//! Quantized numbers as ggml stores them: blocks of some numbers of one row that share a scale. candle widens them.

use std::borrow::Cow;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;

use crate::model::ModelError;

/// A kind of block that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) struct BlockFormat(GgmlDType);

/// Types of tensors by ggml's numbers for them, as far as they have names.
const NAMES: [(u32, &str); 27] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// ggml's name for a type of tensors.
pub(super) fn type_name(kind: u32) -> String {
    let found = NAMES.into_iter().find(|(number, _)| *number == kind);
    found.map_or_else(|| format!("ggml's number {kind}"), |(_, name)| name.to_owned())
}

impl BlockFormat {
    /// By ggml's number for the type, where it is quantized and read.
    pub(super) fn of(kind: u32) -> Option<Self> {
        Some(Self(match kind {
            2 => GgmlDType::Q4_0,
            3 => GgmlDType::Q4_1,
            6 => GgmlDType::Q5_0,
            7 => GgmlDType::Q5_1,
            8 => GgmlDType::Q8_0,
            10 => GgmlDType::Q2K,
            11 => GgmlDType::Q3K,
            12 => GgmlDType::Q4K,
            13 => GgmlDType::Q5K,
            14 => GgmlDType::Q6K,
            _ => return None,
        }))
    }

    /// ggml's name.
    pub(super) fn name(self) -> &'static str {
        match self.0 {
            GgmlDType::Q4_0 => "Q4_0",
            GgmlDType::Q4_1 => "Q4_1",
            GgmlDType::Q5_0 => "Q5_0",
            GgmlDType::Q5_1 => "Q5_1",
            GgmlDType::Q8_0 => "Q8_0",
            GgmlDType::Q2K => "Q2_K",
            GgmlDType::Q3K => "Q3_K",
            GgmlDType::Q4K => "Q4_K",
            GgmlDType::Q5K => "Q5_K",
            GgmlDType::Q6K => "Q6_K",
            GgmlDType::F32 => "F32",
            GgmlDType::F16 => "F16",
            GgmlDType::BF16 => "BF16",
            GgmlDType::Q8_1 => "Q8_1",
            GgmlDType::Q8K => "Q8_K",
        }
    }

    /// Numbers of a block.
    pub(super) fn numbers(self) -> usize {
        self.0.block_size()
    }

    /// Bytes of a block.
    pub(super) fn bytes(self) -> usize {
        self.0.type_size()
    }

    /// Widen whole blocks onto the end of `numbers`. `blocks` begins at an even address.
    ///
    /// # Errors
    /// [`ModelError::Widen`].
    pub(super) fn widen(self, blocks: &[u8], numbers: &mut Vec<f32>) -> Result<(), ModelError> {
        let failed = |reason| ModelError::Widen { format: self.name(), reason };
        let count = blocks.len() / self.bytes() * self.numbers();
        match self.0.from_data(Cow::Borrowed(blocks)).dequantize(count) {
            Ok(CpuStorage::F32(widened)) => {
                numbers.extend_from_slice(&widened);
                Ok(())
            }
            Ok(_) => Err(failed("not to f32".to_owned())),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}
