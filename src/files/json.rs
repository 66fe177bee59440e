//! The one reader of JSON that people and clients wrote: stricter than the parser, which keeps the last of two values of
//! one key, and in the order in which it is written. Nesting is bounded by the parser, values here, bytes by whoever read
//! the text.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::LFS_POINTER;

/// Most values of a text. A config that names every linear module of a large model of experts, with a rank and an alpha
/// for each, has about a hundred thousand; each takes some hundred bytes once it is parsed, where the text has two.
const MAX_VALUES: usize = 1 << 18;

/// Why a text is not taken.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, or nested deeper than 128 levels.
    #[error("{reason}")]
    Syntax {
        /// The parser's words and its place, with one on what Python and editors let pass.
        reason: String,
    },
    /// JSON, but not an object.
    #[error("it is {found}, not an object")]
    NotAnObject {
        /// In words.
        found: &'static str,
    },
    /// One key twice in one object: readers disagree on which one counts.
    #[error("`{key}` appears twice in one object, at line {line}")]
    Duplicate {
        /// Shortened to 128 characters.
        key: String,
        /// Where the second one ends.
        line: usize,
    },
    /// More than any settings have.
    #[error("it may have {most} values, the limit is {max}")]
    TooManyValues {
        /// Seen without parsing it.
        most: usize,
        /// The limit.
        max: usize,
    },
}

/// A value as it is written: keys in their order, and none twice.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// null.
    Null,
    /// true, false.
    Bool(bool),
    /// A finite number.
    Number(Number),
    /// A string.
    String(String),
    /// A list.
    Array(Vec<Json>),
    /// An object in file order.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// A number's value; whole numbers are exact up to 2^53.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Number(number) => number.as_f64(),
            _ => None,
        }
    }
}

impl From<Json> for Value {
    fn from(json: Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(value),
            Json::Number(number) => Self::Number(number),
            Json::String(text) => Self::String(text),
            Json::Array(items) => Self::Array(items.into_iter().map(Self::from).collect()),
            Json::Object(fields) => Self::Object(map(fields)),
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::String(text) => write!(f, "{text:?}"),
            Self::Array(items) => write!(f, "a list of {}", items.len()),
            Self::Object(fields) => write!(f, "an object of {}", fields.len()),
        }
    }
}

fn map(fields: Vec<(String, Json)>) -> Map<String, Value> {
    fields.into_iter().map(|(key, value)| (key, value.into())).collect()
}

/// Parse an object whose keys, at every depth, appear once.
///
/// # Errors
/// [`JsonError`].
pub(crate) fn parse_object(text: &[u8]) -> Result<Map<String, Value>, JsonError> {
    parse_ordered(text).map(map)
}

/// The same in the order in which its keys are written.
///
/// # Errors
/// [`JsonError`].
pub(crate) fn parse_ordered(text: &[u8]) -> Result<Vec<(String, Json)>, JsonError> {
    check_size(text)?;
    let mut twice = None;
    let mut parser = serde_json::Deserializer::from_slice(text);
    let parsed = UniqueKeys { twice: &mut twice }.deserialize(&mut parser).and_then(|value| {
        parser.end()?;
        Ok(value)
    });
    let found = match parsed {
        Ok(Json::Object(fields)) => return Ok(fields),
        Ok(Json::Array(_)) => "a list",
        Ok(Json::String(_)) => "a string",
        Ok(Json::Number(_)) => "a number",
        Ok(Json::Bool(_)) => "true or false",
        Ok(Json::Null) => "null",
        // serde carries words only; the key is in `twice`.
        Err(error) => {
            return Err(match twice {
                Some(key) => JsonError::Duplicate { key, line: error.line() },
                None => JsonError::Syntax { reason: why_not(text, &error) },
            });
        }
    };
    Err(JsonError::NotAnObject { found })
}

/// Refuse a text that may hold more values than settings have, without parsing it: each but the first comes behind one of
/// these bytes, which a string may hold too.
fn check_size(text: &[u8]) -> Result<(), JsonError> {
    let most = text.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{' | b':')).count();
    if most <= MAX_VALUES { Ok(()) } else { Err(JsonError::TooManyValues { most, max: MAX_VALUES }) }
}

/// Why a text is no JSON, with a word on what Python and editors let pass.
fn why_not(text: &[u8], error: &serde_json::Error) -> String {
    if text.starts_with(LFS_POINTER) {
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

/// A value in which no key is lost.
struct UniqueKeys<'a> {
    twice: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for UniqueKeys<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for UniqueKeys<'_> {
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

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
        Number::from_f64(value).map(Json::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(UniqueKeys { twice: &mut *self.twice })? {
            list.push(value);
        }
        Ok(Json::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let (mut fields, mut seen) = (Vec::new(), HashSet::new());
        while let Some(key) = entries.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                *self.twice = Some(key.chars().take(128).collect());
                return Err(A::Error::custom("a key appears twice"));
            }
            let value = entries.next_value_seed(UniqueKeys { twice: &mut *self.twice })?;
            fields.push((key, value));
        }
        Ok(Json::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> String {
        parse_object(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_key_twice_is_refused_at_every_depth_by_name() {
        assert_eq!(refused(r#"{"a": 1, "a": 1}"#), "`a` appears twice in one object, at line 1");
        assert_eq!(refused("{\"b\": [{\"c\": 1,\n\"c\": 2}]}"), "`c` appears twice in one object, at line 2");
        assert!(parse_object(br#"{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}"#).is_ok());
    }

    #[test]
    fn what_python_takes_and_json_does_not_is_refused_with_its_place() {
        for text in [r#"{"a": NaN}"#, r#"{"a": Infinity}"#, r#"{"a": 1e999}"#, r#"{"a": 1,}"#, "{'a': 1}"] {
            assert!(refused(text).contains("line 1 column"), "{text}: {}", refused(text));
        }
    }

    #[test]
    fn what_editors_and_python_let_pass_is_named() {
        for text in [r#"{"a": NaN}"#, "{\"a\": [\n-Infinity]}"] {
            assert!(refused(text).ends_with("; NaN and Infinity are no JSON, and no field may have them"), "{text}");
        }
        for text in ["{\"a\": 1, // one\n\"b\": 2}", "# a\n{}"] {
            assert!(refused(text).ends_with("; JSON has no comments"), "{text}");
        }
        assert!(refused("version https://git-lfs.github.com/spec/v1\noid").contains("git lfs pull"));
    }

    #[test]
    fn more_values_than_settings_have_are_refused_before_they_are_parsed() {
        let of = |values: usize| format!("{{\"a\": [{}0]}}", "0,".repeat(values - 1));
        // Behind `{`, `:` and `[` there is one each; the numbers after the first come behind commas.
        assert!(parse_object(of(MAX_VALUES - 2).as_bytes()).is_ok());
        assert_eq!(refused(&of(MAX_VALUES - 1)), "it may have 262145 values, the limit is 262144");
    }

    #[test]
    fn keys_keep_the_order_in_which_they_are_written() {
        let fields = parse_ordered(br#"{"z": {"b": 1, "a": 2.5}, "a": null}"#).unwrap();
        let number = |value: f64| move |json: &Json| json.as_f64() == Some(value);
        let [(z, Json::Object(inner)), (a, Json::Null)] = &fields[..] else { panic!("{fields:?}") };
        let [(b, one), (last, other)] = &inner[..] else { panic!("{inner:?}") };
        assert_eq!([z, a, b, last], ["z", "a", "b", "a"]);
        assert!(number(1.0)(one) && number(2.5)(other));
    }

    #[test]
    fn only_an_object_is_settings() {
        assert_eq!(refused("[]"), "it is a list, not an object");
        assert_eq!(refused("null"), "it is null, not an object");
        assert!(refused("").contains("EOF"));
        assert!(refused("{} {}").contains("trailing"));
    }

    #[test]
    fn deep_nesting_ends_in_an_error_and_not_in_the_stack() {
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(refused(&deep).contains("recursion limit"));
    }

    proptest! {
        #[test]
        fn what_has_no_key_twice_is_read_as_the_parser_reads_it(
            numbers in proptest::collection::vec(any::<i64>(), 0..4),
            real in -1e300f64..1e300,
            text in ".{0,8}",
        ) {
            let value = serde_json::json!({"n": numbers, "r": real, "t": {"u": text, "v": null, "w": true}});
            let text = value.to_string();
            let read: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(Value::Object(parse_object(text.as_bytes()).unwrap()), read);
        }
    }
}
