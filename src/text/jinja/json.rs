//! `tojson` as transformers defines it: `json.dumps(value, ensure_ascii, indent, separators, sort_keys)`.

use std::cmp::Ordering;
use std::fmt::Write;
use std::sync::Arc;

use super::error::{RenderError, failed};
use super::execute::Machine;
use super::given::Given;
use super::methods::optional_text;
use super::value::{Kind, Value};
use super::{compare, numbers};

struct Style {
    ascii: bool,
    sorted: bool,
    /// What a level is indented by; absent where everything is on one line.
    indent: Option<String>,
    between: Arc<str>,
    behind_key: Arc<str>,
}

pub(super) fn dumps(machine: &mut Machine<'_>, value: &Value, given: Given) -> Result<Value, RenderError> {
    let [ascii, indent, separators, sorted] =
        given.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Text(text) | Value::Markup(text)) => Some(text.to_string()),
        Some(width) => match width.as_int() {
            Some(width) => Some(" ".repeat(usize::try_from(width).unwrap_or(0).min(64))),
            None => return failed("tojson: indent is neither a number nor a string"),
        },
    };
    let (between, behind_key) = match separators {
        None | Some(Value::None) => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
        Some(separators) => match <[Value; 2]>::try_from(machine.iterate(&separators)?) {
            Ok([between, behind_key]) => match (optional_text(Some(between))?, optional_text(Some(behind_key))?) {
                (Some(between), Some(behind_key)) => (between, behind_key),
                _ => return failed("tojson: separators are two strings"),
            },
            Err(_) => return failed("tojson: separators are two strings"),
        },
    };
    let style = Style { ascii: is_true(ascii), sorted: is_true(sorted), indent, between, behind_key };
    let mut out = String::new();
    write(machine, value, &style, 0, &mut out)?;
    Ok(Value::Text(Arc::from(out)))
}

fn write(
    machine: &mut Machine<'_>,
    value: &Value,
    style: &Style,
    level: usize,
    out: &mut String,
) -> Result<(), RenderError> {
    machine.budget.step()?;
    machine.budget.bytes(8)?;
    match value {
        Value::None => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Int(value) => out.push_str(&value.to_string()),
        Value::Float(value) => out.push_str(&float(*value)),
        Value::Text(text) | Value::Markup(text) => quote(machine, text, style.ascii, out)?,
        Value::Sequence(Kind::List | Kind::Tuple | Kind::Group, sequence) => {
            if sequence.elements.is_empty() {
                out.push_str("[]");
                return Ok(());
            }
            out.push('[');
            for (index, element) in sequence.elements.iter().enumerate() {
                separate(machine, style, index, level + 1, out)?;
                write(machine, element, style, level + 1, out)?;
            }
            new_line(machine, style, level, out)?;
            out.push(']');
        }
        Value::Dict(dict) => {
            if dict.entries.is_empty() {
                out.push_str("{}");
                return Ok(());
            }
            let entries = if style.sorted { sorted(machine, &dict.entries)? } else { dict.entries.clone() };
            out.push('{');
            for (index, (key, value)) in entries.iter().enumerate() {
                separate(machine, style, index, level + 1, out)?;
                match key {
                    Value::Text(text) | Value::Markup(text) => quote(machine, text, style.ascii, out)?,
                    Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                        out.push('"');
                        write(machine, key, style, level, out)?;
                        out.push('"');
                    }
                    _ => return failed(format!("keys must be str, int, float, bool or None, not {}", key.type_name())),
                }
                out.push_str(&style.behind_key);
                write(machine, value, style, level + 1, out)?;
            }
            new_line(machine, style, level, out)?;
            out.push('}');
        }
        _ => return failed(format!("object of type {} is not JSON serializable", value.type_name())),
    }
    Ok(())
}

fn sorted(machine: &mut Machine<'_>, entries: &[(Value, Value)]) -> Result<Vec<(Value, Value)>, RenderError> {
    machine.budget.elements(2 * entries.len())?;
    let mut entries = entries.to_vec();
    let mut error = None;
    entries.sort_by(|(left, _), (right, _)| match compare::order(left, right, &mut machine.budget) {
        Ok(order) => order.unwrap_or(Ordering::Equal),
        Err(failure) => {
            error.get_or_insert(failure);
            Ordering::Equal
        }
    });
    error.map_or(Ok(entries), Err)
}

fn separate(
    machine: &mut Machine<'_>,
    style: &Style,
    index: usize,
    level: usize,
    out: &mut String,
) -> Result<(), RenderError> {
    if index > 0 {
        machine.budget.bytes(style.between.len())?;
        out.push_str(&style.between);
    }
    new_line(machine, style, level, out)
}

fn new_line(machine: &mut Machine<'_>, style: &Style, level: usize, out: &mut String) -> Result<(), RenderError> {
    if let Some(indent) = &style.indent {
        machine.budget.bytes(indent.len().saturating_mul(level))?;
        out.push('\n');
        out.push_str(&indent.repeat(level));
    }
    Ok(())
}

fn float(value: f64) -> String {
    match value {
        _ if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => numbers::float(value),
    }
}

fn quote(machine: &mut Machine<'_>, text: &str, ascii: bool, out: &mut String) -> Result<(), RenderError> {
    machine.budget.bytes(text.len().saturating_mul(2))?;
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            // Supplementary private use is the caller's, who may mark text with it.
            _ if character >= ' ' && (!ascii || !('\u{7f}'..'\u{f0000}').contains(&character)) => {
                out.push(character);
            }
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a string does not fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
    Ok(())
}
