//! Template variables as JSON text. The order of keys is kept: templates print it.

use crate::files::{Json, parse_ordered};
use crate::types::generate::TemplateValue;

/// Longest text: a value of it may take many times its bytes.
const MAX_BYTES: usize = 256 << 10;

/// A text that is no object of variables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadTemplateVariables {
    /// What is wrong with it.
    pub reason: String,
}

/// The variables of a text, in its order; none of an empty one.
///
/// # Errors
/// It is too long, not JSON, not an object, or has a key twice in one object.
pub fn template_variables(text: &[u8]) -> Result<Vec<(String, TemplateValue)>, BadTemplateVariables> {
    let bad = |reason: String| BadTemplateVariables { reason };
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if text.len() > MAX_BYTES {
        return Err(bad(format!("it has {} bytes, the limit is {MAX_BYTES}", text.len())));
    }
    let fields = parse_ordered(text).map_err(|error| bad(error.to_string()))?;
    Ok(variables(fields))
}

fn variables(fields: Vec<(String, Json)>) -> Vec<(String, TemplateValue)> {
    fields.into_iter().map(|(name, json)| (name, value(json))).collect()
}

fn value(json: Json) -> TemplateValue {
    match json {
        Json::Null => TemplateValue::Null,
        Json::Bool(value) => TemplateValue::Bool(value),
        Json::Number(number) => TemplateValue::Number(number.as_f64().unwrap_or_default()),
        Json::String(text) => TemplateValue::Text(text),
        Json::Array(items) => TemplateValue::List(items.into_iter().map(value).collect()),
        Json::Object(fields) => TemplateValue::Map(variables(fields)),
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
        assert_eq!(template_variables(text.as_bytes()).unwrap(), expected);
        assert_eq!(template_variables(b"").unwrap(), []);
    }

    #[test]
    fn what_is_no_object_of_json_is_refused() {
        let deep = format!("{}1{}", "{\"a\":".repeat(1000), "}".repeat(1000));
        let long = format!("{{\"a\": \"{}\"}}", "x".repeat(MAX_BYTES));
        for text in
            ["[]", "1", "{", "{} {}", "{\"a\": NaN}", r#"{"a": 1, "a": 2}"#, r#"{"b": {"a": 1, "a": 2}}"#, &deep, &long]
        {
            let refused = template_variables(text.as_bytes()).unwrap_err();
            assert!(!refused.reason.is_empty());
        }
    }
}
