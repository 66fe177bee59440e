//! Numbers as files store them, and the one place where they are decoded.

use half::{bf16, f16};

use super::{OpsError, TensorData};

/// How a file stores the numbers of a tensor, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorDtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE 754 binary64, read as the nearest binary32: PEFT copies it into a parameter of that type.
    F64,
    /// Unsigned byte. Like all integers an index of something and never a weight.
    U8,
    /// Two's complement, 2 bytes.
    I16,
    /// Two's complement, 4 bytes.
    I32,
    /// Two's complement, 8 bytes.
    I64,
}

impl TensorDtype {
    const ALL: [Self; 8] = [Self::F32, Self::F16, Self::BF16, Self::F64, Self::U8, Self::I16, Self::I32, Self::I64];

    /// Whether its numbers are indices and no weights.
    #[must_use]
    pub fn is_integer(self) -> bool {
        match self {
            Self::F32 | Self::F16 | Self::BF16 | Self::F64 => false,
            Self::U8 | Self::I16 | Self::I32 | Self::I64 => true,
        }
    }

    /// Bytes of one number.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::U8 => 1,
        }
    }

    /// Its name in safetensors files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F64 => "F64",
            Self::U8 => "U8",
            Self::I16 => "I16",
            Self::I32 => "I32",
            Self::I64 => "I64",
        }
    }

    /// The dtype of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.as_str() == name)
    }

    /// The number as it comes back from a file of this dtype.
    #[must_use]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 | Self::F64 | Self::U8 | Self::I16 | Self::I32 | Self::I64 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::BF16 => bf16::from_f32(value).to_f32(),
        }
    }

    /// Append the number as a file of this dtype has it; of integers there are none.
    pub fn encode(self, value: f32, bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend(value.to_le_bytes()),
            Self::F64 => bytes.extend(f64::from(value).to_le_bytes()),
            Self::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
            Self::BF16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
            Self::U8 | Self::I16 | Self::I32 | Self::I64 => {}
        }
    }
}

/// The numbers of a tensor as far as they have been read: bf16 as stored, all others as the nearest f32.
pub struct TensorReader {
    dtype: TensorDtype,
    data: TensorData,
}

impl TensorReader {
    /// None yet, with room for `count`; `what` is for people.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    pub fn new(dtype: TensorDtype, count: usize, what: &'static str) -> Result<Self, OpsError> {
        fn room<T>(count: usize, what: &'static str) -> Result<Vec<T>, OpsError> {
            let mut numbers = Vec::new();
            let bytes = (count as u64).saturating_mul(size_of::<T>() as u64);
            numbers.try_reserve_exact(count).map_err(|_| OpsError::OutOfMemory { what, bytes })?;
            Ok(numbers)
        }
        let data = match dtype {
            dtype if dtype != TensorDtype::BF16 => TensorData::F32(room(count, what)?),
            _ => TensorData::Bf16(room(count, what)?),
        };
        Ok(Self { dtype, data })
    }

    /// Take the next bytes, which are whole numbers.
    pub fn read(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len().is_multiple_of(self.dtype.size()));
        match (&mut self.data, self.dtype) {
            (TensorData::F32(numbers), TensorDtype::F32) => extend(numbers, bytes, f32::from_le_bytes),
            (TensorData::F32(numbers), TensorDtype::F16) => extend(numbers, bytes, |b| f16::from_le_bytes(b).to_f32()),
            (TensorData::F32(numbers), TensorDtype::F64) => extend(numbers, bytes, |b| f64::from_le_bytes(b) as f32),
            (TensorData::F32(numbers), TensorDtype::U8) => extend(numbers, bytes, |b| f32::from(u8::from_le_bytes(b))),
            (TensorData::F32(numbers), TensorDtype::I16) => {
                extend(numbers, bytes, |b| f32::from(i16::from_le_bytes(b)))
            }
            (TensorData::F32(numbers), TensorDtype::I32) => extend(numbers, bytes, |b| i32::from_le_bytes(b) as f32),
            (TensorData::F32(numbers), TensorDtype::I64) => extend(numbers, bytes, |b| i64::from_le_bytes(b) as f32),
            (TensorData::Bf16(numbers), TensorDtype::BF16) => extend(numbers, bytes, bf16::from_le_bytes),
            (TensorData::F32(_), TensorDtype::BF16) | (TensorData::Bf16(_), _) => unreachable!("as `new` has made it"),
        }
    }

    /// All that was read.
    #[must_use]
    pub fn finish(self) -> TensorData {
        self.data
    }
}

fn extend<const N: usize, T>(numbers: &mut Vec<T>, bytes: &[u8], one: impl Fn([u8; N]) -> T) {
    numbers.extend(bytes.as_chunks::<N>().0.iter().map(|bytes| one(*bytes)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_is_read_in_pieces_as_its_numbers_widened() {
        let values = [0.0f32, -1.5, 0.333, 60_000.0, 1e-5, f32::MIN_POSITIVE];
        for dtype in TensorDtype::ALL.into_iter().filter(|dtype| !dtype.is_integer()) {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| match dtype {
                    TensorDtype::F32 => value.to_le_bytes().to_vec(),
                    TensorDtype::F64 => f64::from(*value).to_le_bytes().to_vec(),
                    TensorDtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
                    TensorDtype::BF16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
                    integer => unreachable!("{integer:?}"),
                })
                .collect();
            assert_eq!(bytes.len(), values.len() * dtype.size());
            let mut reader = TensorReader::new(dtype, values.len(), "a tensor").unwrap();
            bytes.chunks(4 * dtype.size()).for_each(|piece| reader.read(piece));
            let widened = match reader.finish() {
                TensorData::F32(numbers) => numbers,
                TensorData::Bf16(numbers) => numbers.into_iter().map(bf16::to_f32).collect(),
            };
            assert_eq!(widened, values.map(|value| dtype.round(value)), "{dtype:?}");
        }
    }

    #[test]
    fn every_dtype_has_a_name_and_indices_are_read_as_they_are() {
        for dtype in TensorDtype::ALL {
            assert_eq!(TensorDtype::parse(dtype.as_str()), Some(dtype));
        }
        assert_eq!(TensorDtype::parse("I8"), None);
        let read = |dtype, bytes: &[u8]| {
            let mut reader = TensorReader::new(dtype, 2, "a tensor").unwrap();
            reader.read(bytes);
            reader.finish()
        };
        let expected = TensorData::F32(vec![7.0, 1.0]);
        assert_eq!(read(TensorDtype::U8, &[7, 1]), expected);
        assert_eq!(read(TensorDtype::I16, &[7, 0, 1, 0]), expected);
        assert_eq!(read(TensorDtype::I32, &[7, 0, 0, 0, 1, 0, 0, 0]), expected);
        assert_eq!(read(TensorDtype::I64, &[7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]), expected);
    }

    #[test]
    fn more_than_memory_holds_is_refused() {
        let refused = TensorReader::new(TensorDtype::F32, usize::MAX / 4, "a tensor").err();
        assert!(matches!(refused, Some(OpsError::OutOfMemory { what: "a tensor", .. })));
    }
}
