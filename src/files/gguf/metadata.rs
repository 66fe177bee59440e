//! The named values of a file. A list takes no more memory than it has bytes in the file.

use std::collections::BTreeMap;

use super::error::GgufError;
use super::reader::Reader;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// Of any width without a sign.
    Unsigned(u64),
    /// Of any width with a sign.
    Signed(i64),
    /// f32 widened, or f64.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8.
    Text(String),
    /// Of one type.
    List(GgufList),
}

/// Values of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufList {
    /// Texts one after the other.
    Texts {
        /// All of them.
        joined: String,
        /// Where each ends in it, in bytes.
        ends: Vec<u32>,
    },
    /// Numbers or truth values.
    Numbers {
        /// Of each.
        kind: GgufNumber,
        /// As stored, little-endian.
        bytes: Vec<u8>,
    },
}

/// Types of fixed width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufNumber {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

const TEXT: u32 = 8;
const LIST: u32 = 9;

impl GgufNumber {
    /// By the format's number for the type.
    fn of(kind: u32) -> Option<Self> {
        Some(match kind {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The value in the first bytes of `stored`; the rest are 0.
    fn value(self, stored: [u8; 8]) -> GgufValue {
        let [a, b, c, d, ..] = stored;
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => GgufValue::Unsigned(u64::from_le_bytes(stored)),
            Self::Bool => GgufValue::Bool(a != 0),
            Self::I8 => GgufValue::Signed(i8::from_le_bytes([a]).into()),
            Self::I16 => GgufValue::Signed(i16::from_le_bytes([a, b]).into()),
            Self::I32 => GgufValue::Signed(i32::from_le_bytes([a, b, c, d]).into()),
            Self::I64 => GgufValue::Signed(i64::from_le_bytes(stored)),
            Self::F32 => GgufValue::Float(f32::from_le_bytes([a, b, c, d]).into()),
            Self::F64 => GgufValue::Float(f64::from_le_bytes(stored)),
        }
    }
}

impl GgufValue {
    /// For messages: the value, shortened, or what kind of list it is.
    fn shown(&self) -> String {
        match self {
            Self::Unsigned(number) => number.to_string(),
            Self::Signed(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(text) => format!("{:?}", text.chars().take(64).collect::<String>()),
            Self::List(GgufList::Texts { ends, .. }) => format!("a list of {} texts", ends.len()),
            Self::List(GgufList::Numbers { kind, bytes }) => format!("a list of {} numbers", bytes.len() / kind.size()),
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Self::Unsigned(number) => Some(*number as f64),
            Self::Signed(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            Self::Bool(_) | Self::Text(_) | Self::List(_) => None,
        }
    }
}

/// All values of a file, by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufMetadata(BTreeMap<String, GgufValue>);

impl GgufMetadata {
    pub(super) fn read(reader: &mut Reader<'_>, count: u64) -> Result<Self, GgufError> {
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let key = reader.name()?;
            let kind = reader.u32()?;
            let value = match kind {
                LIST => GgufValue::List(list(reader, &key)?),
                TEXT => GgufValue::Text(text(reader, &key)?),
                _ => number(reader, &key, kind)?,
            };
            if values.contains_key(&key) {
                return Err(GgufError::Twice { name: key });
            }
            values.insert(key, value);
        }
        Ok(Self(values))
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.0.get(key)
    }

    /// A whole number of at least 0.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn count(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "a whole number of at least 0", |value| match value {
            GgufValue::Unsigned(number) => Some(*number),
            GgufValue::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        })
    }

    /// A finite number.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a finite number", |value| value.number().filter(|number| number.is_finite()))
    }

    /// True or false.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "true or false", |value| match value {
            GgufValue::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// A text.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a text", |value| match value {
            GgufValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A list of texts.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, GgufError> {
        self.typed(key, "a list of texts", |value| match value {
            GgufValue::List(GgufList::Texts { joined, ends }) => {
                let starts = std::iter::once(0).chain(ends.iter().copied());
                Some(starts.zip(ends).map(|(start, end)| &joined[start as usize..*end as usize]).collect())
            }
            _ => None,
        })
    }

    /// A list of numbers; what is wider than f64 is rounded.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, GgufError> {
        self.typed(key, "a list of numbers", |value| match value {
            GgufValue::List(GgufList::Numbers { kind, bytes }) => {
                let value = |stored: &[u8]| {
                    let mut wide = [0; 8];
                    wide[..stored.len()].copy_from_slice(stored);
                    kind.value(wide).number()
                };
                bytes.chunks_exact(kind.size()).map(value).collect()
            }
            _ => None,
        })
    }

    /// A value for messages, shortened; of a list its length.
    #[must_use]
    pub fn shown(&self, key: &str) -> String {
        self.0.get(key).map_or_else(|| "absent".to_owned(), GgufValue::shown)
    }

    /// A value of `key` that is not what it should be.
    #[must_use]
    pub fn wrong(&self, key: &str, expected: &'static str) -> GgufError {
        match self.0.get(key) {
            Some(value) => GgufError::WrongType { key: key.to_owned(), found: value.shown(), expected },
            None => GgufError::Missing { key: key.to_owned() },
        }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(key, expected))
    }
}

fn text(reader: &mut Reader<'_>, key: &str) -> Result<String, GgufError> {
    let length = reader.u64()?;
    String::from_utf8(reader.bytes(length)?).map_err(|_| GgufError::NotText { key: key.to_owned() })
}

fn number(reader: &mut Reader<'_>, key: &str, kind: u32) -> Result<GgufValue, GgufError> {
    let kind = number_kind(key, kind)?;
    let mut stored = [0; 8];
    stored[..kind.size()].copy_from_slice(&reader.bytes(kind.size() as u64)?);
    if kind == GgufNumber::Bool {
        check_bool(key, stored[0])?;
    }
    Ok(kind.value(stored))
}

fn number_kind(key: &str, kind: u32) -> Result<GgufNumber, GgufError> {
    GgufNumber::of(kind).ok_or_else(|| GgufError::UnknownType { key: key.to_owned(), found: kind })
}

fn check_bool(key: &str, found: u8) -> Result<(), GgufError> {
    if found > 1 { Err(GgufError::NotBool { key: key.to_owned(), found }) } else { Ok(()) }
}

fn list(reader: &mut Reader<'_>, key: &str) -> Result<GgufList, GgufError> {
    const WHAT: &str = "entries of a list";
    let (kind, count) = (reader.u32()?, reader.u64()?);
    match kind {
        LIST => Err(GgufError::Nested { key: key.to_owned() }),
        TEXT => {
            // Each has its length before it.
            reader.expect(WHAT, count, 8)?;
            let mut joined = String::new();
            let mut ends = Vec::with_capacity(count as usize);
            for _ in 0..count {
                joined.push_str(&text(reader, key)?);
                // All of them together are shorter than the header.
                ends.push(joined.len() as u32);
            }
            Ok(GgufList::Texts { joined, ends })
        }
        _ => {
            let kind = number_kind(key, kind)?;
            reader.expect(WHAT, count, kind.size() as u64)?;
            let bytes = reader.bytes(count * kind.size() as u64)?;
            if kind == GgufNumber::Bool {
                bytes.iter().try_for_each(|byte| check_bool(key, *byte))?;
            }
            Ok(GgufList::Numbers { kind, bytes })
        }
    }
}
