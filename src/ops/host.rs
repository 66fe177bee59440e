//! Matrices on the host, on their way to a device.

use half::bf16;

/// How GEMM inputs and KV are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit floats, nothing is narrowed.
    F32,
    /// bfloat16, accumulated in f32.
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// The name in flags and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// The number as a GEMM of this dtype sees it.
    #[must_use]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }
}

/// Numbers of a [`HostMatrix`], row-major.
#[derive(Clone, Copy, Debug)]
pub enum HostData<'a> {
    /// As stored in f32.
    F32(&'a [f32]),
    /// As stored in bf16.
    Bf16(&'a [bf16]),
}

/// A row-major matrix `[rows, cols]` borrowed from the host.
#[derive(Clone, Copy, Debug)]
pub struct HostMatrix<'a> {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// `rows * cols` numbers.
    pub data: HostData<'a>,
}

impl<'a> HostMatrix<'a> {
    /// An f32 matrix.
    #[must_use]
    pub fn f32(rows: usize, cols: usize, data: &'a [f32]) -> Self {
        debug_assert_eq!(data.len(), rows * cols);
        Self { rows, cols, data: HostData::F32(data) }
    }

    /// A bf16 matrix.
    #[must_use]
    pub fn bf16(rows: usize, cols: usize, data: &'a [bf16]) -> Self {
        debug_assert_eq!(data.len(), rows * cols);
        Self { rows, cols, data: HostData::Bf16(data) }
    }

    /// Element `[row, col]`, widened.
    #[must_use]
    pub fn get(&self, row: usize, col: usize) -> f32 {
        let at = row * self.cols + col;
        match self.data {
            HostData::F32(data) => data[at],
            HostData::Bf16(data) => data[at].to_f32(),
        }
    }
}
