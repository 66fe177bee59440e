//! JSON objects as they are written: keys in file order (PEFT's pattern tables are first match wins) and no key twice.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    /// null.
    Null,
    /// true, false.
    Bool(bool),
    /// A number; whole numbers are exact up to 2^53.
    Number(f64),
    /// A string.
    String(String),
    /// A list.
    Array(Vec<Json>),
    /// An object in file order.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// True for null, false, "", 0-length lists and objects: the values that switch nothing on.
    #[must_use]
    pub(crate) fn is_neutral(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(value) => !value,
            Self::Number(_) => false,
            Self::String(text) => text.is_empty(),
            Self::Array(items) => items.is_empty(),
            Self::Object(fields) => fields.is_empty(),
        }
    }
}

/// Most values of a config. One that names every linear module of a large model of experts, with a rank and an alpha for
/// each, has about a hundred thousand; each takes some hundred bytes once it is parsed, where the text has two.
const MAX_VALUES: usize = 1 << 18;

/// Refuse a text that may hold more values than a config has, without parsing it: each but the first comes behind one of
/// these bytes, which a string may hold too.
pub(crate) fn check_size(text: &[u8]) -> Result<(), String> {
    let most = text.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{' | b':')).count();
    if most <= MAX_VALUES { Ok(()) } else { Err(format!("it may have {most} values, the limit is {MAX_VALUES}")) }
}

/// The text without the byte order mark that editors of some systems put in front.
pub(crate) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Why a text is no JSON, with a word on what Python and editors let pass.
pub(crate) fn why_not(text: &[u8], error: &serde_json::Error) -> String {
    if text.starts_with(crate::files::LFS_POINTER) {
        return format!("it is a Git LFS pointer and not the file: run `git lfs pull` ({error})");
    }
    let line = text.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    // The parser stops at the first byte it cannot take, or one behind it.
    let near = (0..3).filter_map(|back| line.get(error.column().checked_sub(back)?..));
    let is_at = |words: &[&[u8]]| near.clone().any(|rest| words.iter().any(|word| rest.starts_with(word)));
    if error.is_syntax() && is_at(&[b"NaN", b"Infinity"]) {
        format!("{error}; NaN and Infinity are no JSON, and no field may have them")
    } else if error.is_syntax() && is_at(&[b"//", b"/*", b"#"]) {
        format!("{error}; JSON has no comments")
    } else {
        error.to_string()
    }
}

/// The base that a config says its adapter was trained on: a note of the trainer's, which decides nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedBase {
    /// A folder, or `ORG/NAME`.
    pub name: String,
    /// Its revision on the hub, where one is named.
    pub revision: Option<String>,
}

/// The base that the bytes of an `adapter_config.json` name.
#[must_use]
pub fn named_base(config: &[u8]) -> Option<NamedBase> {
    #[derive(serde::Deserialize)]
    struct Provenance {
        base_model_name_or_path: Option<String>,
        revision: Option<String>,
    }
    let Provenance { base_model_name_or_path, revision } = serde_json::from_slice(without_mark(config)).ok()?;
    let some = |text: &String| !text.is_empty();
    Some(NamedBase { name: base_model_name_or_path.filter(some)?, revision: revision.filter(some) })
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::String(text) => write!(f, "{text:?}"),
            Self::Array(items) => write!(f, "a list of {}", items.len()),
            Self::Object(fields) => write!(f, "an object of {}", fields.len()),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(Json::Number(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Number(value as f64))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(Json::Number(value as f64))
            }
            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json::String(value.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Json::Array(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut fields: Vec<(String, Json)> = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some((key, value)) = map.next_entry::<String, Json>()? {
                    if !seen.insert(key.clone()) {
                        return Err(de::Error::custom(format_args!("key {key:?} occurs twice")));
                    }
                    fields.push((key, value));
                }
                Ok(Json::Object(fields))
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}
