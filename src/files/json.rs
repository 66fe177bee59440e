//! JSON objects that people wrote: stricter than the parser, which keeps the last of two values of one key. Nesting is
//! bounded by the parser, size by whoever read the file.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why a text is not taken as settings.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Not JSON (which has no NaN and no infinities), or nested deeper than 128 levels.
    #[error(transparent)]
    Syntax(#[from] serde_json::Error),
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
}

/// Parse an object whose keys, at every depth, appear once.
///
/// # Errors
/// [`JsonError`].
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, JsonError> {
    let mut twice = None;
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let parsed = UniqueKeys { twice: &mut twice }.deserialize(&mut parser).and_then(|value| {
        parser.end()?;
        Ok(value)
    });
    let found = match parsed {
        Ok(Value::Object(object)) => return Ok(object),
        Ok(Value::Array(_)) => "a list",
        Ok(Value::String(_)) => "a string",
        Ok(Value::Number(_)) => "a number",
        Ok(Value::Bool(_)) => "true or false",
        Ok(Value::Null) => "null",
        // serde carries words only; the key is in `twice`.
        Err(error) => {
            return Err(match twice {
                Some(key) => JsonError::Duplicate { key, line: error.line() },
                None => JsonError::Syntax(error),
            });
        }
    };
    Err(JsonError::NotAnObject { found })
}

/// A value in which no key is lost.
struct UniqueKeys<'a> {
    twice: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for UniqueKeys<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for UniqueKeys<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(UniqueKeys { twice: &mut *self.twice })? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                *self.twice = Some(key.chars().take(128).collect());
                return Err(A::Error::custom("a key appears twice"));
            }
            let value = map.next_value_seed(UniqueKeys { twice: &mut *self.twice })?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
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
