//! Matrices on the host, on their way to a device.

use half::bf16;

use super::OpsError;

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

/// Numbers of a [`HostTensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// 32-bit floats (f16 files are widened: every f16 is an f32).
    F32(Vec<f32>),
    /// bfloat16 as stored.
    Bf16(Vec<bf16>),
}

impl TensorData {
    /// True if both hold the same numbers, widened.
    #[must_use]
    pub fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::F32(a), Self::F32(b)) => a == b,
            (Self::Bf16(a), Self::Bf16(b)) => a == b,
            (Self::F32(wide), Self::Bf16(narrow)) | (Self::Bf16(narrow), Self::F32(wide)) => {
                wide.len() == narrow.len() && wide.iter().zip(narrow).all(|(wide, narrow)| *wide == narrow.to_f32())
            }
        }
    }
}

/// An owned tensor of one or two dimensions, as read from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// One or two sizes.
    pub shape: Vec<usize>,
    /// Row-major numbers.
    pub data: TensorData,
}

impl HostTensor {
    /// An f32 tensor.
    #[must_use]
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Self {
        debug_assert_eq!(data.len(), shape.iter().product::<usize>());
        Self { shape: shape.to_vec(), data: TensorData::F32(data) }
    }

    /// First size; a vector has its length here.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// Product of the other sizes; 1 for a vector.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Number of numbers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True without numbers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole tensor as a matrix `[rows, cols]`.
    #[must_use]
    pub fn matrix(&self) -> HostMatrix<'_> {
        self.rows_of(0..self.rows())
    }

    /// Some rows as a matrix.
    #[must_use]
    pub fn rows_of(&self, rows: std::ops::Range<usize>) -> HostMatrix<'_> {
        let cols = self.cols();
        let range = rows.start * cols..rows.end * cols;
        let data = match &self.data {
            TensorData::F32(data) => HostData::F32(&data[range]),
            TensorData::Bf16(data) => HostData::Bf16(&data[range]),
        };
        HostMatrix { rows: rows.len(), cols, data }
    }

    /// All numbers, widened.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            TensorData::F32(data) => data.clone(),
            TensorData::Bf16(data) => data.iter().copied().map(bf16::to_f32).collect(),
        }
    }

    /// Some rows, in their order.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    pub fn selected(&self, rows: &[usize]) -> Result<Self, OpsError> {
        fn select<T: Copy>(data: &[T], rows: &[usize], cols: usize) -> Result<Vec<T>, OpsError> {
            let mut selected = Vec::new();
            let bytes = (rows.len() * cols * size_of::<T>()) as u64;
            let refused = |_| OpsError::OutOfMemory { what: "rows of a matrix", bytes };
            selected.try_reserve_exact(rows.len() * cols).map_err(refused)?;
            rows.iter().for_each(|row| selected.extend_from_slice(&data[row * cols..][..cols]));
            Ok(selected)
        }
        let cols = self.cols();
        let data = match &self.data {
            TensorData::F32(data) => TensorData::F32(select(data, rows, cols)?),
            TensorData::Bf16(data) => TensorData::Bf16(select(data, rows, cols)?),
        };
        Ok(Self { shape: vec![rows.len(), cols], data })
    }

    /// Whether a row has the numbers, widened, that it has in another matrix of as many columns.
    #[must_use]
    pub fn row_equals(&self, row: usize, other: &Self) -> bool {
        let (own, other) = (self.rows_of(row..row + 1), other.rows_of(row..row + 1));
        (0..own.cols).all(|col| own.get(0, col) == other.get(0, col))
    }

    /// The transposed matrix.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    pub fn transposed(&self) -> Result<Self, OpsError> {
        fn transpose<T: Copy>(data: &[T], rows: usize, cols: usize) -> Result<Vec<T>, OpsError> {
            let mut transposed = Vec::new();
            let refused = |_| OpsError::OutOfMemory { what: "a transposed matrix", bytes: size_of_val(data) as u64 };
            transposed.try_reserve_exact(data.len()).map_err(refused)?;
            transposed.extend((0..cols).flat_map(|col| (0..rows).map(move |row| data[row * cols + col])));
            Ok(transposed)
        }
        let (rows, cols) = (self.rows(), self.cols());
        let data = match &self.data {
            TensorData::F32(data) => TensorData::F32(transpose(data, rows, cols)?),
            TensorData::Bf16(data) => TensorData::Bf16(transpose(data, rows, cols)?),
        };
        Ok(Self { shape: vec![cols, rows], data })
    }
}
