//! The JSON of a header, read in one pass that stops at the first broken rule: nothing is collected that a limit
//! does not bound, and no key is read twice.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::entry::{Entry, HeaderLimits};
use super::error::SafetensorsError;
use crate::ops::TensorDtype;

const METADATA: &str = "__metadata__";

pub(super) struct Parsed {
    pub(super) entries: Vec<Entry>,
    pub(super) metadata: BTreeMap<String, String>,
}

pub(super) fn parse(json: &[u8], limits: &HeaderLimits) -> Result<Parsed, SafetensorsError> {
    let mut refusal = None;
    let mut parser = serde_json::Deserializer::from_slice(json);
    let result = HeaderSeed { limits, refusal: &mut refusal }.deserialize(&mut parser).and_then(|parsed| {
        parser.end()?;
        Ok(parsed)
    });
    // serde carries words only; the rule that was broken, with its numbers, is in `refusal`.
    result.map_err(|error| refusal.unwrap_or_else(|| SafetensorsError::Malformed { reason: error.to_string() }))
}

/// Stop reading because of `reason`.
fn refuse<E: Error>(refusal: &mut Option<SafetensorsError>, reason: SafetensorsError) -> E {
    *refusal = Some(reason);
    E::custom("refused")
}

fn shorten(text: &str) -> String {
    text.chars().take(128).collect()
}

fn is_allowed(name: &str, limits: &HeaderLimits) -> bool {
    (1..=limits.max_name_bytes).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'\\'))
        && !name.contains("..")
}

/// A string, borrowed from the input where it has no escapes.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

struct HeaderSeed<'a> {
    limits: &'a HeaderLimits,
    refusal: &'a mut Option<SafetensorsError>,
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = Parsed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parsed, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a safetensors header")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
        let Self { limits, refusal } = self;
        let mut seen = HashSet::new();
        let mut parsed = Parsed { entries: Vec::new(), metadata: BTreeMap::new() };
        while let Some(key) = map.next_key_seed(Text)? {
            if !is_allowed(&key, limits) {
                return Err(refuse(refusal, SafetensorsError::BadName { name: shorten(&key) }));
            }
            if !seen.insert(key.clone()) {
                return Err(refuse(refusal, SafetensorsError::Duplicate { key: shorten(&key) }));
            }
            if key == METADATA {
                parsed.metadata = map.next_value_seed(MetadataSeed { refusal })?;
                continue;
            }
            if parsed.entries.len() == limits.max_tensors {
                return Err(refuse(refusal, SafetensorsError::TooManyTensors { max: limits.max_tensors }));
            }
            parsed.entries.push(map.next_value_seed(TensorSeed { name: &key, limits, refusal })?);
        }
        Ok(parsed)
    }
}

struct MetadataSeed<'a> {
    refusal: &'a mut Option<SafetensorsError>,
}

impl<'de> DeserializeSeed<'de> for MetadataSeed<'_> {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed<'_> {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("metadata of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut metadata = BTreeMap::new();
        while let Some((key, value)) = map.next_entry_seed(Text, Text)? {
            if metadata.contains_key(key.as_ref()) {
                return Err(refuse(self.refusal, SafetensorsError::Duplicate { key: shorten(&key) }));
            }
            metadata.insert(key.into_owned(), value.into_owned());
        }
        Ok(metadata)
    }
}

struct TensorSeed<'a> {
    name: &'a str,
    limits: &'a HeaderLimits,
    refusal: &'a mut Option<SafetensorsError>,
}

impl<'de> DeserializeSeed<'de> for TensorSeed<'_> {
    type Value = Entry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TensorSeed<'_> {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the description of tensor {}", self.name)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let Self { name, limits, refusal } = self;
        let tensor = || name.to_owned();
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key_seed(Text)? {
            let twice = match key.as_ref() {
                "dtype" => dtype.is_some(),
                "shape" => shape.is_some(),
                "data_offsets" => offsets.is_some(),
                _ => {
                    return Err(refuse(refusal, SafetensorsError::UnknownKey { tensor: tensor(), key: shorten(&key) }));
                }
            };
            if twice {
                return Err(refuse(refusal, SafetensorsError::Duplicate { key: format!("{name}.{key}") }));
            }
            match key.as_ref() {
                "dtype" => {
                    let text = map.next_value_seed(Text)?;
                    let unsupported = || SafetensorsError::UnsupportedDtype { tensor: tensor(), dtype: shorten(&text) };
                    let Some(known) = TensorDtype::parse(&text) else { return Err(refuse(refusal, unsupported())) };
                    dtype = Some(known);
                }
                "shape" => shape = Some(map.next_value_seed(ShapeSeed { name, max: limits.max_dims, refusal })?),
                _ => offsets = Some(map.next_value::<[u64; 2]>()?),
            }
        }
        let missing = |key| SafetensorsError::MissingKey { tensor: tensor(), key };
        let Some(dtype) = dtype else { return Err(refuse(refusal, missing("dtype"))) };
        let Some(shape) = shape else { return Err(refuse(refusal, missing("shape"))) };
        let Some([begin, end]) = offsets else { return Err(refuse(refusal, missing("data_offsets"))) };
        Ok(Entry { name: tensor(), dtype, shape, begin, end })
    }
}

struct ShapeSeed<'a> {
    name: &'a str,
    max: usize,
    refusal: &'a mut Option<SafetensorsError>,
}

impl<'de> DeserializeSeed<'de> for ShapeSeed<'_> {
    type Value = Vec<u64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ShapeSeed<'_> {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the shape of tensor {}", self.name)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let Self { name, max, refusal } = self;
        let rank = |dims| SafetensorsError::BadRank { tensor: name.to_owned(), dims, max };
        let mut shape = Vec::new();
        while let Some(dim) = seq.next_element()? {
            if shape.len() == max {
                return Err(refuse(refusal, rank(max + 1)));
            }
            shape.push(dim);
        }
        if shape.is_empty() {
            return Err(refuse(refusal, rank(0)));
        }
        Ok(shape)
    }
}
