//! Template variables as JSON text: a protobuf Struct forgets the order of keys, which templates print.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::BadMessage;
use crate::types::generate::TemplateValue;

/// Longest text: a value of it may take many times its bytes.
const MAX_BYTES: usize = 256 << 10;

/// The variables of a text, in its order; none of an empty one.
///
/// # Errors
/// [`BadMessage::TemplateJson`]: too long, not JSON, not an object, a key twice in one object.
pub(super) fn template_variables(text: &str) -> Result<Vec<(String, TemplateValue)>, BadMessage> {
    let bad = |reason: String| BadMessage::TemplateJson { reason };
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if text.len() > MAX_BYTES {
        return Err(bad(format!("it has {} bytes, the limit is {MAX_BYTES}", text.len())));
    }
    match serde_json::from_str::<Ordered>(text) {
        Ok(Ordered(TemplateValue::Map(entries))) => Ok(entries),
        Ok(_) => Err(bad("it is not an object".to_owned())),
        Err(error) => Err(bad(error.to_string())),
    }
}

struct Ordered(TemplateValue);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OrderedVisitor).map(Self)
    }
}

struct OrderedVisitor;

impl<'de> Visitor<'de> for OrderedVisitor {
    type Value = TemplateValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<TemplateValue, E> {
        Ok(TemplateValue::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<TemplateValue, E> {
        Ok(TemplateValue::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<TemplateValue, E> {
        Ok(TemplateValue::Number(value as f64))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<TemplateValue, E> {
        Ok(TemplateValue::Number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<TemplateValue, E> {
        Ok(TemplateValue::Number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<TemplateValue, E> {
        Ok(TemplateValue::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<TemplateValue, A::Error> {
        let mut list = Vec::new();
        while let Some(Ordered(value)) = values.next_element()? {
            list.push(value);
        }
        Ok(TemplateValue::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<TemplateValue, A::Error> {
        let (mut map, mut seen) = (Vec::new(), std::collections::HashSet::new());
        while let Some((name, Ordered(value))) = entries.next_entry::<String, Ordered>()? {
            if !seen.insert(name.clone()) {
                let name: String = name.chars().take(64).collect();
                return Err(Error::custom(format!("the key {name:?} appears twice in one object")));
            }
            map.push((name, value));
        }
        Ok(TemplateValue::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_the_order_in_which_they_are_written_at_every_depth() {
        let text = r#"{"z": {"b": 1, "a": [null, true, "x", 1.5, {"d": -2, "c": 3}]}, "a": "last"}"#;
        let map = |entries: Vec<(&str, TemplateValue)>| {
            TemplateValue::Map(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
        };
        let number = TemplateValue::Number;
        let list = vec![
            TemplateValue::Null,
            TemplateValue::Bool(true),
            TemplateValue::Text("x".into()),
            number(1.5),
            map(vec![("d", number(-2.0)), ("c", number(3.0))]),
        ];
        let expected = vec![
            ("z".to_owned(), map(vec![("b", number(1.0)), ("a", TemplateValue::List(list))])),
            ("a".to_owned(), TemplateValue::Text("last".into())),
        ];
        assert_eq!(template_variables(text).unwrap(), expected);
        assert_eq!(template_variables("").unwrap(), []);
    }

    #[test]
    fn what_is_no_object_of_json_is_refused() {
        let deep = format!("{}1{}", "{\"a\":".repeat(1000), "}".repeat(1000));
        let long = format!("{{\"a\": \"{}\"}}", "x".repeat(MAX_BYTES));
        for text in
            ["[]", "1", "{", "{} {}", "{\"a\": NaN}", r#"{"a": 1, "a": 2}"#, r#"{"b": {"a": 1, "a": 2}}"#, &deep, &long]
        {
            let refused = template_variables(text).unwrap_err();
            assert_eq!(refused.field(), "chat.template_kwargs_json", "{refused}");
        }
    }
}
