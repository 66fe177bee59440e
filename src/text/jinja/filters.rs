//! Filters: those of one value here, those of many in [`collections`].

mod collections;

use std::sync::Arc;

use super::error::{RenderError, failed, nested};
use super::execute::Machine;
use super::given::Given;
use super::methods::{self, optional_int, optional_text};
use super::value::{Kind, Object, Value};
use super::{compare, format, json, numbers, strings};

const FILTERS: [&str; 45] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
    "wordcount",
];

/// Filters of Jinja that no chat template is known to use.
const UNSUPPORTED: [&str; 9] =
    ["filesizeformat", "pprint", "random", "striptags", "truncate", "urlencode", "urlize", "wordwrap", "xmlattr"];

/// # Errors
/// There is no such filter here.
pub(super) fn known(name: &str) -> Result<(), String> {
    if FILTERS.contains(&name) {
        return Ok(());
    }
    Err(if exists(name) {
        format!("the filter '{name}' is not supported")
    } else {
        format!("no filter named '{name}'")
    })
}

/// Whether Jinja has a filter that this implementation does not have.
pub(super) fn exists(name: &str) -> bool {
    UNSUPPORTED.contains(&name)
}

impl Machine<'_> {
    pub(super) fn filter(&mut self, name: &str, value: Value, given: Given) -> Result<Value, RenderError> {
        match name {
            "default" | "d" => {
                let [default, boolean] = given.bind(name, ["default_value", "boolean"])?;
                let replaced = value.is_undefined() || (boolean.is_some_and(|b| b.is_true()) && !value.is_true());
                Ok(if replaced { default.unwrap_or_else(|| Value::text("")) } else { value })
            }
            "tojson" => json::dumps(self, &value, given),
            "length" | "count" => {
                let [] = given.bind(name, [])?;
                Ok(Value::Int(self.length(&value)? as i64))
            }
            "attr" => {
                let [attribute] = given.bind(name, ["name"])?;
                let Some(attribute) = optional_text(attribute)? else { return failed("attr takes a name") };
                match value {
                    // The filter looks at attributes and never at entries.
                    Value::Dict(_) if !methods::exists(&value, &attribute) => Ok(Value::Undefined(attribute)),
                    _ => self.attribute(&value, &attribute),
                }
            }
            "abs" | "int" | "float" | "round" => self.number_filter(name, &value, given),
            "format" => {
                let text = value.to_text(&mut self.budget)?;
                let arguments = match (given.positional.is_empty(), given.named.is_empty()) {
                    (false, false) => return failed("can't handle positional and keyword arguments at the same time"),
                    (true, false) => {
                        let named = given.named.into_iter().map(|(name, value)| (Value::Text(name), value));
                        Value::from_entries(named.collect())
                    }
                    _ => Value::sequence(Kind::Tuple, given.positional),
                };
                format::percent(self, &text, &nested(arguments)?)
            }
            "items" => {
                let [] = given.bind(name, [])?;
                match &value {
                    Value::Undefined(_) => Ok(self.generator(Vec::new())),
                    Value::Dict(dict) => {
                        self.budget.elements(4 * dict.entries.len())?;
                        let items = nested(methods::items(dict.entries.iter().cloned()))?;
                        let items = self.iterate(&items)?;
                        Ok(self.generator(items))
                    }
                    _ => failed("can only get item pairs from a mapping"),
                }
            }
            _ => match self.collection_filter(name, &value, given)? {
                Ok(result) => Ok(result),
                Err(given) => self.text_filter(name, &value, given),
            },
        }
    }

    fn number_filter(&mut self, name: &str, value: &Value, given: Given) -> Result<Value, RenderError> {
        if let Value::Undefined(missing) = value {
            return failed(format!("'{missing}' is undefined"));
        }
        match name {
            "abs" => match value {
                Value::Float(number) => Ok(Value::Float(number.abs())),
                _ => match value.as_int().map(i64::checked_abs) {
                    Some(Some(number)) => Ok(Value::Int(number)),
                    _ => failed(format!("bad operand type for abs(): '{}'", value.type_name())),
                },
            },
            "int" => {
                let [default, base] = given.bind(name, ["default", "base"])?;
                let base = u32::try_from(optional_int(base)?.unwrap_or(10)).ok().filter(|base| (2..=36).contains(base));
                let found = match value {
                    Value::Float(number) if number.is_finite() => Some(number.trunc() as i64),
                    Value::Text(text) | Value::Markup(text) => parse_int(text, base.unwrap_or(10)),
                    _ => value.as_int(),
                };
                Ok(found.map_or(default.unwrap_or(Value::Int(0)), Value::Int))
            }
            "float" => {
                let [default] = given.bind(name, ["default"])?;
                let found = match value.as_text() {
                    Some(text) => text.trim().replace('_', "").parse().ok(),
                    None => value.as_float(),
                };
                Ok(found.map_or(default.unwrap_or(Value::Float(0.0)), Value::Float))
            }
            _ => {
                let [digits, method] = given.bind(name, ["precision", "method"])?;
                let digits = optional_int(digits)?.unwrap_or(0);
                let method = optional_text(method)?.unwrap_or_else(|| Arc::from("common"));
                let Some(number) = value.as_float() else { return failed("round takes a number") };
                let scale = 10f64.powi(i32::try_from(digits).unwrap_or(0));
                match (&*method, value.as_int()) {
                    ("common", Some(whole)) if digits >= 0 => Ok(Value::Int(whole)),
                    ("common", Some(_)) => Ok(Value::Int(numbers::round(number, digits) as i64)),
                    ("common", None) => Ok(Value::Float(numbers::round(number, digits))),
                    ("ceil", _) => Ok(Value::Float((number * scale).ceil() / scale)),
                    ("floor", _) => Ok(Value::Float((number * scale).floor() / scale)),
                    _ => failed("method must be common, ceil or floor"),
                }
            }
        }
    }

    fn text_filter(&mut self, name: &str, value: &Value, given: Given) -> Result<Value, RenderError> {
        let text = value.to_text(&mut self.budget)?;
        self.budget.bytes(text.len())?;
        let made = |text: String| match value {
            Value::Markup(_) => Value::Markup(Arc::from(text)),
            _ => Value::Text(Arc::from(text)),
        };
        match name {
            "trim" => {
                let [set] = given.bind(name, ["chars"])?;
                let set = optional_text(set)?;
                Ok(made(strings::strip(&text, set.as_deref(), true, true).to_owned()))
            }
            "replace" => {
                let [old, new, count] = given.bind(name, ["old", "new", "count"])?;
                let old = old.unwrap_or(Value::None).to_text(&mut self.budget)?;
                let new = new.unwrap_or(Value::None).to_text(&mut self.budget)?;
                methods::replace(self, &text, &old, &new, optional_int(count)?)
            }
            "indent" if value.as_text().is_none() => {
                failed(format!("indent takes a string, not {}", value.type_name()))
            }
            "indent" => self.indent(&text, given),
            "center" => {
                let [width] = given.bind(name, ["width"])?;
                let width = usize::try_from(optional_int(width)?.unwrap_or(80)).unwrap_or(0);
                self.budget.bytes(width)?;
                let left = strings::center_left(text.chars().count(), width);
                Ok(made(strings::pad(&text, width, ' ', left)))
            }
            _ => {
                let [] = given.bind(name, [])?;
                self.budget.bytes(text.len().saturating_mul(5))?;
                Ok(match name {
                    "upper" => made(text.to_uppercase()),
                    "lower" => made(text.to_lowercase()),
                    "capitalize" => made(strings::capitalize(&text)),
                    "title" => made(strings::title_words(&text)),
                    "string" if matches!(value, Value::Markup(_)) => value.clone(),
                    "string" => Value::Text(text),
                    "safe" => Value::Markup(text),
                    "escape" | "e" if matches!(value, Value::Markup(_)) => value.clone(),
                    "escape" | "e" | "forceescape" => Value::Markup(Arc::from(strings::escape(&text))),
                    "wordcount" => {
                        let is_word = |c: char| c == '_' || c.is_alphanumeric();
                        let words = text.split(|c| !is_word(c)).filter(|word| !word.is_empty());
                        Value::Int(words.count() as i64)
                    }
                    _ => return failed(format!("no filter named '{name}'")),
                })
            }
        }
    }

    fn indent(&mut self, text: &str, given: Given) -> Result<Value, RenderError> {
        let [width, first, blank] = given.bind("indent", ["width", "first", "blank"])?;
        let indention = match width {
            Some(Value::Text(text) | Value::Markup(text)) => text.to_string(),
            width => {
                let width = usize::try_from(optional_int(width)?.unwrap_or(4)).unwrap_or(0);
                self.budget.bytes(width)?;
                " ".repeat(width)
            }
        };
        let (first, blank) = (first.is_some_and(|b| b.is_true()), blank.is_some_and(|b| b.is_true()));
        // The line break makes the last line one, as in Jinja.
        let text = format!("{text}\n");
        let lines = strings::lines(&text, false);
        self.budget.bytes(text.len().saturating_add(lines.len().saturating_mul(indention.len())))?;
        let mut out = String::new();
        for (index, line) in lines.iter().enumerate() {
            out.push_str(if index > 0 { "\n" } else { "" });
            let indented = if index == 0 { first } else { blank || !line.is_empty() };
            out.push_str(if indented { &indention } else { "" });
            out.push_str(line);
        }
        Ok(Value::Text(Arc::from(out)))
    }

    /// `value[part]` for every part of `a.b.0`.
    fn path(&mut self, value: &Value, path: &Value) -> Result<Value, RenderError> {
        let Some(text) = path.as_text() else { return self.item(value, path) };
        let mut found = value.clone();
        for part in text.split('.') {
            let part = match part.parse() {
                Ok(index) if part.bytes().all(|byte| byte.is_ascii_digit()) => Value::Int(index),
                _ => Value::text(part),
            };
            found = self.item(&found, &part)?;
        }
        Ok(found)
    }

    /// What elements are compared by: an attribute where one is named, text in lower case unless case counts.
    fn sort_key(&mut self, value: &Value, attribute: Option<&Value>, sensitive: bool) -> Result<Value, RenderError> {
        let key = match attribute {
            Some(attribute) => self.path(value, attribute)?,
            None => value.clone(),
        };
        match &key {
            Value::Text(text) | Value::Markup(text) if !sensitive => {
                self.budget.bytes(text.len().saturating_mul(2))?;
                Ok(Value::Text(Arc::from(text.to_lowercase())))
            }
            _ => Ok(key),
        }
    }

    fn is_lazy(value: &Value) -> bool {
        matches!(value, Value::Object(Object::Generator, _))
    }

    /// Indices of `keys` in their order; equal ones stay as they are.
    fn ordered(&mut self, keys: &[Value], reverse: bool) -> Result<Vec<usize>, RenderError> {
        self.budget.elements(keys.len())?;
        let mut places: Vec<usize> = (0..keys.len()).collect();
        let mut error = None;
        places.sort_by(|left, right| {
            let (left, right) = if reverse { (right, left) } else { (left, right) };
            if error.is_some() {
                return std::cmp::Ordering::Equal;
            }
            match compare::order(&keys[*left], &keys[*right], &mut self.budget) {
                Ok(order) => order.unwrap_or(std::cmp::Ordering::Equal),
                Err(failure) => {
                    error = Some(failure);
                    std::cmp::Ordering::Equal
                }
            }
        });
        error.map_or(Ok(places), Err)
    }
}

/// Python's `int(text, base)`, and whole part of a number with a fraction.
fn parse_int(text: &str, base: u32) -> Option<i64> {
    let trimmed = text.trim().replace('_', "");
    let prefix = match base {
        16 => ["0x", "0X"],
        8 => ["0o", "0O"],
        2 => ["0b", "0B"],
        _ => ["", ""],
    };
    let digits = prefix.iter().find_map(|prefix| trimmed.strip_prefix(prefix)).unwrap_or(&trimmed);
    let whole = i64::from_str_radix(digits, base).ok();
    whole
        .or_else(|| trimmed.parse::<f64>().ok().filter(|number| number.is_finite()).map(|number| number.trunc() as i64))
}
