//! Methods of Python's types.

use std::sync::Arc;

use super::error::{RenderError, failed, nested};
use super::execute::Machine;
use super::given::Given;
use super::value::{Kind, Object, Value};
use super::{compare, format, strings};

const TEXT: [&str; 41] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const DICT: [&str; 5] = ["copy", "get", "items", "keys", "values"];
const LIST: [&str; 3] = ["copy", "count", "index"];

/// Methods that Python has and a template may not call: they change their object, or are not implemented.
const UNSUPPORTED: [&str; 22] = [
    "append",
    "clear",
    "encode",
    "expandtabs",
    "extend",
    "fromkeys",
    "insert",
    "isidentifier",
    "isprintable",
    "maketrans",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "translate",
    "update",
    "add",
    "discard",
    "unescape",
    "striptags",
];

/// Whether a call of this method is refused where the template is compiled.
pub(super) fn is_unsupported(name: &str) -> bool {
    // The others fail where they are called, as they do in Jinja's sandbox.
    matches!(name, "encode" | "expandtabs" | "fromkeys" | "isidentifier" | "isprintable" | "maketrans" | "translate")
}

/// Whether the value has this method.
pub(super) fn exists(value: &Value, name: &str) -> bool {
    let names = match value {
        Value::Text(_) | Value::Markup(_) => &TEXT[..],
        Value::Dict(_) => &DICT,
        Value::Sequence(Kind::List, _) => &LIST,
        Value::Sequence(Kind::Tuple | Kind::Group, _) => &LIST[1..],
        Value::Range(..) => &LIST[1..],
        Value::Object(Object::Loop, _) => &["cycle", "changed"],
        Value::Object(Object::Cycler, _) => &["next", "reset"],
        Value::Float(_) => &["is_integer"],
        _ => &[],
    };
    names.contains(&name) || (UNSUPPORTED.contains(&name) && has_unsupported(value, name))
}

/// Attributes that are there, so that a dict's entry of the same name is hidden behind them, and cannot be called.
fn has_unsupported(value: &Value, name: &str) -> bool {
    match value {
        Value::Dict(_) => matches!(name, "clear" | "fromkeys" | "pop" | "popitem" | "setdefault" | "update"),
        Value::Sequence(Kind::List, _) => {
            matches!(name, "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort")
        }
        _ => false,
    }
}

pub(super) fn call(machine: &mut Machine<'_>, value: &Value, name: &str, given: Given) -> Result<Value, RenderError> {
    match value {
        Value::Text(text) | Value::Markup(text) => {
            machine.budget.bytes(text.len())?;
            of_text(machine, text, name, given)
        }
        Value::Dict(_) if has_unsupported(value, name) => failed(format!("the method '{name}' of a dict is not safe")),
        Value::Dict(dict) => {
            machine.budget.elements(2 * dict.entries.len())?;
            match name {
                "get" => {
                    let [key, default] = given.bind("get", ["key", "default"])?;
                    let Some(key) = key else { return failed("get expected at least 1 argument, got 0") };
                    compare::hashable(&key)?;
                    let found = compare::get(&dict.entries, &key, &mut machine.budget)?;
                    Ok(found.or(default).unwrap_or(Value::None))
                }
                _ => {
                    let [] = given.bind(name, [])?;
                    let entries = dict.entries.iter().cloned();
                    nested(match name {
                        "keys" => Value::sequence(Kind::Keys, entries.map(|(key, _)| key).collect()),
                        "values" => Value::sequence(Kind::Values, entries.map(|(_, value)| value).collect()),
                        "items" => items(entries),
                        _ => Some(value.clone()),
                    })
                }
            }
        }
        Value::Sequence(..) | Value::Range(..) => of_sequence(machine, value, name, given),
        Value::Object(Object::Loop, place) => of_loop(machine, *place, name, given),
        Value::Object(Object::Cycler, place) if name == "reset" => {
            if let Some((_, at)) = machine.cyclers.get_mut(*place) {
                *at = 0;
            }
            Ok(Value::None)
        }
        Value::Object(Object::Cycler, _) => machine.call(value, Given::default()),
        Value::Float(number) => Ok(Value::Bool(number.fract() == 0.0)),
        _ => failed(format!("'{}' object has no method '{name}'", value.type_name())),
    }
}

/// `dict.items()`.
pub(super) fn items(entries: impl Iterator<Item = (Value, Value)>) -> Option<Value> {
    let pairs = entries.map(|(key, value)| Value::sequence(Kind::Tuple, vec![key, value]));
    Value::sequence(Kind::Items, pairs.collect::<Option<_>>()?)
}

fn of_loop(machine: &mut Machine<'_>, place: usize, name: &str, given: Given) -> Result<Value, RenderError> {
    let values = given.positional;
    if name == "changed" {
        let before = machine.loops.get_mut(place).and_then(|state| state.changed.take());
        let mut same = before.as_ref().is_some_and(|before| before.len() == values.len());
        for (before, now) in before.iter().flatten().zip(&values) {
            same = same && compare::equal(before, now, &mut machine.budget)?;
        }
        if let Some(state) = machine.loops.get_mut(place) {
            state.changed = Some(values);
        }
        return Ok(Value::Bool(!same));
    }
    let index = machine.loops.get(place).map_or(0, |state| state.index);
    match values.get(index % values.len().max(1)) {
        Some(value) => Ok(value.clone()),
        None => failed("no items for cycling given"),
    }
}

fn of_sequence(machine: &mut Machine<'_>, value: &Value, name: &str, given: Given) -> Result<Value, RenderError> {
    let elements = machine.iterate(value)?;
    let mut places = |wanted: &Value| -> Result<Vec<usize>, RenderError> {
        let mut places = Vec::new();
        for (at, element) in elements.iter().enumerate() {
            if compare::equal(element, wanted, &mut machine.budget)? {
                places.push(at);
            }
        }
        Ok(places)
    };
    match (name, given.positional.first()) {
        ("copy", None) => Ok(value.clone()),
        ("count", Some(wanted)) => Ok(Value::Int(places(wanted)?.len() as i64)),
        ("index", Some(wanted)) => match places(wanted)?.first() {
            Some(at) => Ok(Value::Int(*at as i64)),
            None => failed("the value is not in the list"),
        },
        ("copy" | "count" | "index", _) => failed(format!("{name}() takes exactly one argument")),
        _ => failed(format!("the method '{name}' of a list is not safe")),
    }
}

fn of_text(machine: &mut Machine<'_>, text: &str, name: &str, given: Given) -> Result<Value, RenderError> {
    let made = |text: String| Ok(Value::Text(Arc::from(text)));
    let every = |test: fn(char) -> bool| Ok(Value::Bool(!text.is_empty() && text.chars().all(test)));
    match name {
        "format" => return format::braces(machine, text, &given.positional, &given.named),
        "format_map" => {
            let [mapping] = given.bind(name, ["mapping"])?;
            let Some(Value::Dict(mapping)) = mapping else { return failed("format_map() takes a mapping") };
            let named = mapping.entries.iter().filter_map(|(key, value)| Some((key.as_text()?.clone(), value.clone())));
            let named: Vec<_> = named.collect();
            return format::braces(machine, text, &[], &named);
        }
        "strip" | "lstrip" | "rstrip" => {
            let [set] = given.bind(name, ["chars"])?;
            let set = optional_text(set)?;
            let (left, right) = (name != "rstrip", name != "lstrip");
            return made(strings::strip(text, set.as_deref(), left, right).to_owned());
        }
        "split" | "rsplit" => return split(machine, text, name, given),
        "partition" | "rpartition" => return partition(text, name, given),
        "splitlines" => {
            let [keep] = given.bind(name, ["keepends"])?;
            return texts(machine, &strings::lines(text, keep.is_some_and(|keep| keep.is_true())));
        }
        "replace" => {
            let [old, new, count] = given.bind(name, ["old", "new", "count"])?;
            let (Some(old), Some(new)) = (optional_text(old)?, optional_text(new)?) else {
                return failed("replace expected at least 2 arguments");
            };
            return replace(machine, text, &old, &new, optional_int(count)?);
        }
        "startswith" | "endswith" => return begins_or_ends(text, name, given),
        "removeprefix" | "removesuffix" => {
            let [affix] = given.bind(name, ["affix"])?;
            let Some(affix) = optional_text(affix)? else { return failed(format!("{name}() takes a string")) };
            let kept = if name == "removeprefix" { text.strip_prefix(&*affix) } else { text.strip_suffix(&*affix) };
            return made(kept.unwrap_or(text).to_owned());
        }
        "find" | "rfind" | "index" | "rindex" | "count" => return find(text, name, given),
        "join" => {
            let [parts] = given.bind(name, ["iterable"])?;
            let parts = machine.iterate(&parts.unwrap_or(Value::None))?;
            return join(machine, text, &parts, true);
        }
        "center" | "ljust" | "rjust" | "zfill" => return pad(machine, text, name, given),
        _ => {}
    }
    let [] = given.bind(name, [])?;
    machine.budget.bytes(text.len().saturating_mul(2))?;
    match name {
        "upper" => made(text.to_uppercase()),
        "lower" | "casefold" => made(text.to_lowercase()),
        "title" => made(strings::title(text)),
        "capitalize" => made(strings::capitalize(text)),
        "swapcase" => made(strings::swap_case(text)),
        "isalnum" => every(char::is_alphanumeric),
        "isalpha" => every(char::is_alphabetic),
        "isascii" => Ok(Value::Bool(text.is_ascii())),
        "isdigit" | "isdecimal" => every(|character| character.is_ascii_digit()),
        "isnumeric" => every(char::is_numeric),
        "isspace" => every(super::lexer::is_space),
        "islower" => Ok(Value::Bool(strings::all_cased(text, false))),
        "isupper" => Ok(Value::Bool(strings::all_cased(text, true))),
        "istitle" => Ok(Value::Bool(strings::is_title(text))),
        _ => failed(format!("'str' object has no method '{name}'")),
    }
}

pub(super) fn optional_text(value: Option<Value>) -> Result<Option<Arc<str>>, RenderError> {
    match value {
        None | Some(Value::None) => Ok(None),
        Some(Value::Text(text) | Value::Markup(text)) => Ok(Some(text)),
        Some(other) => failed(format!("expected str, not {}", other.type_name())),
    }
}

pub(super) fn optional_int(value: Option<Value>) -> Result<Option<i64>, RenderError> {
    match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => match value.as_int() {
            Some(number) => Ok(Some(number)),
            None => failed(format!("'{}' object cannot be interpreted as an integer", value.type_name())),
        },
    }
}

pub(super) fn texts(machine: &mut Machine<'_>, parts: &[&str]) -> Result<Value, RenderError> {
    machine.budget.elements(parts.len())?;
    machine.budget.bytes(parts.len().saturating_mul(16))?;
    nested(Value::list(parts.iter().map(|part| Value::text(part)).collect()))
}

fn split(machine: &mut Machine<'_>, text: &str, name: &str, given: Given) -> Result<Value, RenderError> {
    let [separator, limit] = given.bind(name, ["sep", "maxsplit"])?;
    let separator = optional_text(separator)?;
    if separator.as_deref() == Some("") {
        return failed("empty separator");
    }
    let limit = optional_int(limit)?.and_then(|limit| usize::try_from(limit).ok());
    // As many parts as there can be.
    machine.budget.bytes(text.len())?;
    let parts = match name {
        "split" => strings::split(text, separator.as_deref(), limit),
        _ => strings::rsplit(text, separator.as_deref(), limit),
    };
    texts(machine, &parts)
}

fn partition(text: &str, name: &str, given: Given) -> Result<Value, RenderError> {
    let [separator] = given.bind(name, ["sep"])?;
    let Some(separator) = optional_text(separator)?.filter(|separator| !separator.is_empty()) else {
        return failed("empty separator");
    };
    let parts = match name {
        "partition" => text.split_once(&*separator).map_or([text, "", ""], |(a, b)| [a, &separator, b]),
        _ => text.rsplit_once(&*separator).map_or(["", "", text], |(a, b)| [a, &separator, b]),
    };
    nested(Value::sequence(Kind::Tuple, parts.map(Value::text).to_vec()))
}

pub(super) fn replace(
    machine: &mut Machine<'_>,
    text: &str,
    old: &str,
    new: &str,
    count: Option<i64>,
) -> Result<Value, RenderError> {
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    machine.budget.bytes(text.len().saturating_add(found.min(count).saturating_mul(new.len())))?;
    Ok(Value::Text(Arc::from(text.replacen(old, new, count))))
}

fn begins_or_ends(text: &str, name: &str, given: Given) -> Result<Value, RenderError> {
    let [affixes, start, end] = given.bind(name, ["prefix", "start", "end"])?;
    let affixes = match affixes {
        Some(Value::Sequence(Kind::Tuple, affixes)) => affixes.elements.clone(),
        Some(affix) => vec![affix],
        None => return failed(format!("{name}() takes at least 1 argument")),
    };
    let Some((from, to)) = strings::window(text, optional_int(start)?, optional_int(end)?) else {
        return Ok(Value::Bool(false));
    };
    let text = &text[from..to];
    for affix in &affixes {
        let Some(affix) = affix.as_text() else {
            return failed(format!("{name} first arg must be str or a tuple of str, not {}", affix.type_name()));
        };
        if if name == "startswith" { text.starts_with(&**affix) } else { text.ends_with(&**affix) } {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn find(text: &str, name: &str, given: Given) -> Result<Value, RenderError> {
    let [part, start, end] = given.bind(name, ["sub", "start", "end"])?;
    let Some(part) = optional_text(part)? else { return failed(format!("{name}() takes a string")) };
    let window = strings::window(text, optional_int(start)?, optional_int(end)?);
    let found = window.and_then(|(from, to)| {
        let inside = &text[from..to];
        match name {
            "count" if part.is_empty() => Some(inside.chars().count() + 1),
            "count" => Some(inside.matches(&*part).count()),
            _ => {
                let at = if name.starts_with('r') { inside.rfind(&*part) } else { inside.find(&*part) };
                at.map(|at| text[..from + at].chars().count())
            }
        }
    });
    match found {
        Some(found) => Ok(Value::Int(found as i64)),
        None if name == "count" => Ok(Value::Int(0)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => failed("substring not found"),
    }
}

fn pad(machine: &mut Machine<'_>, text: &str, name: &str, given: Given) -> Result<Value, RenderError> {
    let [width, fill] = given.bind(name, ["width", "fillchar"])?;
    let width = optional_int(width)?.and_then(|width| usize::try_from(width).ok()).unwrap_or(0);
    let fill = optional_text(fill)?.and_then(|fill| fill.chars().next()).unwrap_or(' ');
    machine.budget.bytes(width.saturating_mul(4).saturating_add(text.len()))?;
    let length = text.chars().count();
    let padded = match name {
        "ljust" => strings::pad(text, width, fill, 0),
        "rjust" => strings::pad(text, width, fill, usize::MAX),
        "center" => strings::pad(text, width, fill, strings::center_left(length, width)),
        _ => {
            let sign = usize::from(text.starts_with(['+', '-']));
            let (sign, digits) = text.split_at(sign);
            sign.to_owned() + &strings::pad(digits, width.saturating_sub(sign.len()), '0', usize::MAX)
        }
    };
    Ok(Value::Text(Arc::from(padded)))
}

/// `separator.join(parts)`; a part that is no text is refused where `strict`, else printed.
pub(super) fn join(
    machine: &mut Machine<'_>,
    separator: &str,
    parts: &[Value],
    strict: bool,
) -> Result<Value, RenderError> {
    let mut out = String::new();
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            machine.budget.bytes(separator.len())?;
            out.push_str(separator);
        }
        if strict && part.as_text().is_none() {
            return failed(format!("sequence item {index}: expected str instance, {} found", part.type_name()));
        }
        part.print(&mut out, &mut machine.budget)?;
    }
    Ok(Value::Text(Arc::from(out)))
}
