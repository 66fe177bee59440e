//! The fields of an object of JSON, taken one by one by name; what is left at the end is nobody's, and refused.

use std::ops::Range;

use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Deserializer, Value};

use super::refused::Refused;

/// Most fields of a request: each is looked at for every name that is taken.
const MAX_FIELDS: usize = 128;

/// Values longer than this are never neutral.
const MAX_NEUTRAL: usize = 256;

/// Characters of a name that an error shows.
const MAX_SHOWN: usize = 64;

/// What a request says, where each value is still text: a value may take many times its bytes, and is made for its own type
/// alone.
#[derive(Debug)]
pub(super) struct Fields {
    text: Bytes,
    /// Names, and where their values are.
    entries: Vec<(String, Range<usize>)>,
}

impl Fields {
    /// Find the fields of an object.
    ///
    /// # Errors
    /// [`Refused::Json`]: no JSON, no object, too many fields, or one twice.
    pub(super) fn parse(text: Bytes) -> Result<Self, Refused> {
        let mut scan = Scan { text: &text, at: 0 };
        let mut entries: Vec<(String, Range<usize>)> = Vec::new();
        scan.expect(b'{')?;
        if !scan.skip(b'}') {
            loop {
                let name = scan.value::<String>()?.0;
                scan.expect(b':')?;
                let range = scan.value::<IgnoredAny>()?.1;
                if entries.len() == MAX_FIELDS {
                    return Err(bad(format_args!("it has more than {MAX_FIELDS} fields")));
                }
                if entries.iter().any(|(other, _)| *other == name) {
                    return Err(bad(format_args!("{:?} is in it twice", shown(&name))));
                }
                entries.push((name, range));
                if !scan.skip(b',') {
                    break;
                }
            }
            scan.expect(b'}')?;
        }
        scan.end()?;
        Ok(Self { text, entries })
    }

    /// The text of a field's value, unless it is absent or null.
    pub(super) fn take_text(&mut self, name: &str) -> Option<Bytes> {
        let index = self.entries.iter().position(|(other, _)| other == name)?;
        let text = self.text.slice(self.entries.swap_remove(index).1);
        (text != "null").then_some(text)
    }

    /// A field, unless it is absent or null.
    ///
    /// # Errors
    /// It is not what it should be.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>, Refused> {
        let Some(text) = self.take_text(name) else { return Ok(None) };
        serde_json::from_slice(&text).map(Some).map_err(|error| Refused::field(name, reason(&error)))
    }

    /// A field that may be absent, and is then what it is by default.
    ///
    /// # Errors
    /// As [`Fields::take`].
    pub(super) fn or_default<T: DeserializeOwned + Default>(&mut self, name: &'static str) -> Result<T, Refused> {
        Ok(self.take(name)?.unwrap_or_default())
    }

    /// Fields that change nothing here, whatever they say.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.take_text(name)));
    }

    /// Fields that would change the answer and that nobody here knows what to do with: they may be there as long as they
    /// say what holds anyway.
    ///
    /// # Errors
    /// [`Refused::Unsupported`].
    pub(super) fn neutral(&mut self, fields: &[(&str, Neutral)]) -> Result<(), Refused> {
        for (name, neutral) in fields {
            let Some(text) = self.take_text(name) else { continue };
            let value: Option<Value> =
                (text.len() <= MAX_NEUTRAL).then(|| serde_json::from_slice(&text).ok()).flatten();
            if !value.is_some_and(|value| neutral.is(&value)) {
                return Err(Refused::Unsupported { field: (*name).to_owned() });
            }
        }
        Ok(())
    }

    /// Everything that is known was taken.
    ///
    /// # Errors
    /// [`Refused::Unknown`] of the first that is left.
    pub(super) fn finish(self) -> Result<(), Refused> {
        // Taking shuffles; the first in the text is named.
        match self.entries.into_iter().min_by_key(|(_, range)| range.start) {
            Some((name, _)) => Err(Refused::Unknown { field: shown(&name) }),
            None => Ok(()),
        }
    }
}

/// What a field may say without changing anything; absent and null are always that.
#[derive(Clone, Copy, Debug)]
pub(super) enum Neutral {
    /// Nothing at all.
    Absent,
    /// An empty list, object or text.
    Empty,
    /// This truth value.
    Bool(bool),
    /// This number.
    Number(f64),
    /// One of these texts, alone or as the only entry of a list.
    Text(&'static [&'static str]),
    /// An object whose `type` is `text`.
    TypeText,
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Empty, Value::Array(list)) => list.is_empty(),
            (Self::Empty, Value::Object(fields)) => fields.is_empty(),
            (Self::Empty, Value::String(text)) => text.is_empty(),
            (Self::Bool(neutral), Value::Bool(value)) => neutral == *value,
            (Self::Number(neutral), Value::Number(value)) => value.as_f64() == Some(neutral),
            (Self::Text(neutral), Value::String(text)) => neutral.contains(&text.as_str()),
            (Self::Text(neutral), Value::Array(list)) => {
                matches!(list.as_slice(), [Value::String(text)] if neutral.contains(&text.as_str()))
            }
            (Self::TypeText, Value::Object(fields)) => {
                fields.len() == 1 && fields.get("type").is_some_and(|kind| kind == "text")
            }
            _ => false,
        }
    }
}

/// Goes through the text of an object.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn space(&mut self) {
        let rest = self.text.get(self.at..).unwrap_or_default();
        self.at += rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
    }

    fn skip(&mut self, byte: u8) -> bool {
        self.space();
        let found = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), Refused> {
        if self.skip(byte) {
            return Ok(());
        }
        Err(bad(format_args!("expected `{}` at byte {}", char::from(byte), self.at)))
    }

    /// A value, and where it is.
    fn value<T: DeserializeOwned>(&mut self) -> Result<(T, Range<usize>), Refused> {
        self.space();
        let begin = self.at;
        let mut values = Deserializer::from_slice(self.text.get(begin..).unwrap_or_default()).into_iter::<T>();
        let value = values.next().ok_or_else(|| bad(format_args!("it ends at byte {begin}")))?;
        let value = value.map_err(|error| bad(format_args!("at byte {begin}: {}", reason(&error))))?;
        self.at = begin + values.byte_offset();
        Ok((value, begin..self.at))
    }

    fn end(&mut self) -> Result<(), Refused> {
        self.space();
        if self.at == self.text.len() { Ok(()) } else { Err(bad(format_args!("there is more at byte {}", self.at))) }
    }
}

fn bad(reason: impl ToString) -> Refused {
    Refused::Json { reason: reason.to_string() }
}

/// Without the place, which is one within the value alone.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().chars().take(256).collect()
}

fn shown(name: &str) -> String {
    name.chars().take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Result<Fields, Refused> {
        Fields::parse(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn fields_are_taken_by_name_and_null_is_absent() {
        let mut fields =
            fields(" {\"a\" : 1,\"b\":[1,{\"c\":\"}\"}] , \"\\u0063\": null,\"d\":\"x\\n\", \"e\": -0.5e1}\n").unwrap();
        assert_eq!(fields.take::<u32>("a").unwrap(), Some(1));
        assert_eq!(fields.take::<u32>("a").unwrap(), None, "taken");
        assert_eq!(fields.take_text("b").unwrap(), "[1,{\"c\":\"}\"}]");
        assert_eq!(fields.take::<u32>("c").unwrap(), None);
        assert_eq!(fields.take::<String>("d").unwrap().as_deref(), Some("x\n"));
        assert_eq!(fields.take::<f64>("e").unwrap(), Some(-5.0));
        fields.finish().unwrap();
        self::fields("{}").unwrap().finish().unwrap();
    }

    #[test]
    fn what_is_left_is_refused_by_its_name() {
        let mut fields = fields(r#"{"z": 1, "a": 2, "b": 3}"#).unwrap();
        fields.ignore(&["a", "c"]);
        assert_eq!(fields.finish().unwrap_err().to_string(), "Unrecognized request argument supplied: z");
    }

    #[test]
    fn a_value_of_another_type_names_its_field() {
        let error = fields(r#"{"n": "two"}"#).unwrap().take::<u32>("n").unwrap_err();
        assert_eq!(error.to_string(), r#"n: invalid type: string "two", expected u32"#);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let many = format!("{{{}\"x\":1}}", (0..MAX_FIELDS).map(|n| format!("\"{n}\":1,")).collect::<String>());
        for text in [
            "",
            "[]",
            "1",
            "{",
            "{} x",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{\"a\":1 \"b\":2}",
            "{a:1}",
            "{\"a\":1}{}",
            "{\"a\":1,\"a\":2}",
            "{\"a\":tru}",
            "{\"a\":[1}",
            &many,
        ] {
            assert!(matches!(fields(text), Err(Refused::Json { .. })), "{text}");
        }
    }

    #[test]
    fn fields_that_nobody_knows_may_say_what_holds_anyway() {
        const KNOWN: &[(&str, Neutral)] = &[
            ("tools", Neutral::Empty),
            ("suffix", Neutral::Absent),
            ("best", Neutral::Number(1.0)),
            ("beam", Neutral::Bool(false)),
            ("format", Neutral::TypeText),
            ("modalities", Neutral::Text(&["text"])),
        ];
        let neutral = r#"{"tools": [], "suffix": null, "best": 1, "beam": false, "format": {"type": "text"},
            "modalities": ["text"]}"#;
        let mut fields = fields(neutral).unwrap();
        fields.neutral(KNOWN).unwrap();
        fields.finish().unwrap();
        for (text, name) in [
            (r#"{"tools": [{}]}"#, "tools"),
            (r#"{"suffix": ""}"#, "suffix"),
            (r#"{"best": 2}"#, "best"),
            (r#"{"beam": true}"#, "beam"),
            (r#"{"format": {"type": "json_object"}}"#, "format"),
            (r#"{"format": {"type": "text", "schema": 1}}"#, "format"),
            (r#"{"modalities": ["text", "audio"]}"#, "modalities"),
        ] {
            let refused = self::fields(text).unwrap().neutral(KNOWN).unwrap_err();
            assert_eq!(refused.to_string(), format!("{name} is not supported here"));
        }
    }
}
