//! `%` and `str.format`.

use std::sync::Arc;

use super::ast::Name;
use super::error::{RenderError, failed};
use super::execute::Machine;
use super::value::{Kind, Value};
use super::{compare, numbers, strings};

/// How one value is printed.
#[derive(Clone, Debug, Default)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^` or `=`.
    align: Option<char>,
    /// `+` or a space.
    sign: Option<char>,
    alternate: bool,
    width: usize,
    thousands: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// Most characters of a width or a precision.
const MAX_WIDTH: usize = 10_000;

/// `text % value`.
pub(super) fn percent(machine: &mut Machine<'_>, text: &str, value: &Value) -> Result<Value, RenderError> {
    let tuple = match value {
        Value::Sequence(Kind::Tuple | Kind::Group, tuple) => Some(tuple.elements.clone()),
        _ => None,
    };
    // Python lets whatever has elements be left over, but for a tuple and a text.
    let has_elements = matches!(value, Value::Dict(_) | Value::Range(..) | Value::Undefined(_))
        || matches!(value, Value::Sequence(..)) && tuple.is_none();
    let mut arguments = tuple.unwrap_or_else(|| vec![value.clone()]).into_iter();
    let mut out = String::new();
    let mut rest = text;
    let mut used = false;
    machine.budget.bytes(text.len())?;
    while let Some((before, behind)) = rest.split_once('%') {
        out.push_str(before);
        let mut next = || arguments.next().map_or_else(|| failed("not enough arguments for format string"), Ok);
        let (key, behind) = match behind.strip_prefix('(') {
            Some(inside) => match inside.split_once(')') {
                Some((key, behind)) => (Some(key), behind),
                None => return failed("incomplete format key"),
            },
            None => (None, behind),
        };
        let flags = behind.trim_start_matches(['-', '+', ' ', '0', '#']);
        let mut spec = percent_flags(&behind[..behind.len() - flags.len()]);
        let (width, behind) = number(flags);
        let behind = match flags.strip_prefix('*') {
            Some(behind) => {
                let width = next()?.as_int().map_or_else(|| failed("* wants int"), Ok)?;
                if width < 0 {
                    spec.align = Some('<');
                }
                spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
                behind
            }
            None => {
                spec.width = width.unwrap_or(0);
                behind
            }
        };
        let behind = match behind.strip_prefix('.') {
            Some(behind) => {
                let (precision, behind) = number(behind);
                spec.precision = Some(precision.unwrap_or(0));
                behind
            }
            None => behind,
        };
        let behind = behind.trim_start_matches(['h', 'l', 'L']);
        let Some(kind) = behind.chars().next() else { return failed("incomplete format") };
        rest = &behind[kind.len_utf8()..];
        if kind == '%' {
            out.push('%');
            continue;
        }
        let argument = match key {
            Some(key) => {
                let Value::Dict(dict) = value else { return failed("format requires a mapping") };
                used = true;
                match compare::get(&dict.entries, &Value::text(key), &mut machine.budget)? {
                    Some(found) => found,
                    None => return failed(format!("'{key}'")),
                }
            }
            None => next()?,
        };
        percent_one(machine, &argument, kind, spec, &mut out)?;
    }
    out.push_str(rest);
    if arguments.next().is_some() && !(has_elements || used) {
        return failed("not all arguments converted during string formatting");
    }
    Ok(Value::Text(Arc::from(out)))
}

fn percent_flags(flags: &str) -> Spec {
    let mut spec = Spec { align: Some('>'), alternate: flags.contains('#'), ..Spec::default() };
    if flags.contains('0') {
        (spec.fill, spec.align) = (Some('0'), Some('='));
    }
    if flags.contains('-') {
        (spec.fill, spec.align) = (None, Some('<'));
    }
    spec.sign = if flags.contains('+') { Some('+') } else { flags.contains(' ').then_some(' ') };
    spec
}

fn number(text: &str) -> (Option<usize>, &str) {
    let behind = text.trim_start_matches(|character: char| character.is_ascii_digit());
    let digits = &text[..text.len() - behind.len()];
    ((!digits.is_empty()).then(|| digits.parse().unwrap_or(usize::MAX)), behind)
}

fn percent_one(
    machine: &mut Machine<'_>,
    value: &Value,
    kind: char,
    mut spec: Spec,
    out: &mut String,
) -> Result<(), RenderError> {
    match kind {
        's' | 'r' | 'a' => {
            let mut text = String::new();
            match kind {
                's' => value.print(&mut text, &mut machine.budget)?,
                _ => value.represent(&mut text, &mut machine.budget)?,
            }
            if spec.align == Some('=') {
                (spec.fill, spec.align) = (None, Some('>'));
            }
            text_with(machine, &text, &spec, out)
        }
        'd' | 'i' | 'u' => {
            let whole = match value {
                Value::Float(value) if value.is_finite() => Some(value.trunc() as i64),
                _ => value.as_int(),
            };
            let Some(whole) = whole else {
                return failed(format!("%{kind} format: a real number is required, not {}", value.type_name()));
            };
            spec.kind = Some('d');
            number_with(machine, &Value::Int(whole), &spec, out)
        }
        'x' | 'X' | 'o' if value.as_int().is_none() => {
            failed(format!("%{kind} format: an integer is required, not {}", value.type_name()))
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' if value.as_float().is_none() => {
            failed(format!("must be real number, not {}", value.type_name()))
        }
        'x' | 'X' | 'o' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            spec.kind = Some(kind);
            number_with(machine, value, &spec, out)
        }
        'c' => {
            let text = match value.as_int() {
                Some(code) => u32::try_from(code).ok().and_then(char::from_u32).map(String::from),
                None => value.as_text().map(|text| text.to_string()),
            };
            text_with(machine, &text.unwrap_or_default(), &spec, out)
        }
        _ => failed(format!("unsupported format character '{kind}'")),
    }
}

/// `text.format(…)`.
pub(super) fn braces(
    machine: &mut Machine<'_>,
    text: &str,
    positional: &[Value],
    named: &[(Name, Value)],
) -> Result<Value, RenderError> {
    let mut out = String::new();
    let mut automatic = 0;
    fields(machine, text, positional, named, &mut automatic, 0, &mut out)?;
    Ok(Value::Text(Arc::from(out)))
}

fn fields(
    machine: &mut Machine<'_>,
    text: &str,
    positional: &[Value],
    named: &[(Name, Value)],
    automatic: &mut usize,
    depth: u32,
    out: &mut String,
) -> Result<(), RenderError> {
    machine.budget.bytes(text.len())?;
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let behind = &rest[at + 1..];
        let brace = &rest[at..=at];
        if behind.starts_with(brace) {
            out.push_str(brace);
            rest = &behind[1..];
            continue;
        }
        let Some(end) = field_end(behind).filter(|_| brace == "{") else {
            return failed(format!("single '{brace}' encountered in format string"));
        };
        let field = &behind[..end];
        rest = &behind[end + 1..];
        let (field, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = field.split_once('!').map_or((field, None), |(name, how)| (name, Some(how)));
        let value = resolve(machine, name, positional, named, automatic)?;
        let mut expanded = String::new();
        match spec.contains(['{', '}']) {
            true if depth > 0 => return failed("max string recursion exceeded"),
            true => fields(machine, spec, positional, named, automatic, depth + 1, &mut expanded)?,
            false => expanded.push_str(spec),
        }
        let mut converted = String::new();
        let value = match conversion {
            None => value,
            Some("s") => Value::Text(value.to_text(&mut machine.budget)?),
            Some("r" | "a") => {
                value.represent(&mut converted, &mut machine.budget)?;
                Value::Text(Arc::from(converted))
            }
            Some(other) => return failed(format!("unknown conversion specifier '{other}'")),
        };
        with_spec(machine, &value, &expanded, out)?;
    }
    out.push_str(rest);
    Ok(())
}

/// Where the field ends: fields may stand in its spec.
fn field_end(text: &str) -> Option<usize> {
    let mut open = 0;
    text.char_indices().find_map(|(at, character)| match character {
        '{' => {
            open += 1;
            None
        }
        '}' if open == 0 => Some(at),
        '}' => {
            open -= 1;
            None
        }
        _ => None,
    })
}

/// `0`, `name`, `name.attribute[key]`, or nothing for the next one.
fn resolve(
    machine: &mut Machine<'_>,
    name: &str,
    positional: &[Value],
    named: &[(Name, Value)],
    automatic: &mut usize,
) -> Result<Value, RenderError> {
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut path) = name.split_at(end);
    let position = match first {
        "" => {
            *automatic += 1;
            Some(*automatic - 1)
        }
        first => first.parse::<usize>().ok(),
    };
    let found = match position {
        Some(position) => positional.get(position).cloned(),
        None => named.iter().find(|(found, _)| &**found == first).map(|(_, value)| value.clone()),
    };
    let Some(mut value) = found else {
        return failed(format!(
            "no argument '{}' for the format string",
            position.map_or(first.to_owned(), |at| at.to_string())
        ));
    };
    while !path.is_empty() {
        if let Some(inside) = path.strip_prefix('[') {
            let Some((key, behind)) = inside.split_once(']') else { return failed("expected ']' in format string") };
            let key = key.parse().map_or_else(|_| Value::text(key), Value::Int);
            value = machine.item(&value, &key)?;
            path = behind;
        } else {
            let inside = &path[1..];
            let end = inside.find(['.', '[']).unwrap_or(inside.len());
            value = machine.attribute(&value, &Arc::from(&inside[..end]))?;
            path = &inside[end..];
        }
    }
    Ok(value)
}

/// `format(value, spec)`.
fn with_spec(machine: &mut Machine<'_>, value: &Value, spec: &str, out: &mut String) -> Result<(), RenderError> {
    if spec.is_empty() {
        return value.print(out, &mut machine.budget);
    }
    let Some(spec) = parse_spec(spec) else { return failed("invalid format specifier") };
    match value {
        Value::Bool(_) if spec.kind.is_none() => {
            let text = value.to_text(&mut machine.budget)?;
            text_with(machine, &text, &spec, out)
        }
        Value::Int(_) | Value::Float(_) | Value::Bool(_) => number_with(machine, value, &spec, out),
        Value::Text(text) | Value::Markup(text) if matches!(spec.kind, None | Some('s')) => {
            text_with(machine, text, &spec, out)
        }
        _ => failed(format!("unsupported format string passed to {}.__format__", value.type_name())),
    }
}

fn parse_spec(text: &str) -> Option<Spec> {
    let mut spec = Spec::default();
    let mut rest = text;
    let is_align = |character: char| matches!(character, '<' | '>' | '^' | '=');
    let mut characters = text.chars();
    let (first, second) = (characters.next()?, characters.next());
    if let Some(align) = second.filter(|character| is_align(*character)) {
        (spec.fill, spec.align) = (Some(first), Some(align));
        rest = characters.as_str();
    } else if is_align(first) {
        spec.align = Some(first);
        rest = &text[1..];
    }
    if let Some(sign) = rest.chars().next().filter(|character| matches!(character, '+' | '-' | ' ')) {
        spec.sign = Some(sign).filter(|sign| *sign != '-');
        rest = &rest[1..];
    }
    if let Some(behind) = rest.strip_prefix('#') {
        (spec.alternate, rest) = (true, behind);
    }
    if rest.starts_with('0') && spec.align.is_none() {
        (spec.fill, spec.align) = (Some('0'), Some('='));
    }
    let (width, behind) = number(rest);
    (spec.width, rest) = (width.unwrap_or(0), behind);
    if let Some(separator) = rest.chars().next().filter(|character| matches!(character, ',' | '_')) {
        (spec.thousands, rest) = (Some(separator), &rest[1..]);
    }
    if let Some(behind) = rest.strip_prefix('.') {
        let (precision, behind) = number(behind);
        (spec.precision, rest) = (Some(precision?), behind);
    }
    let mut kind = rest.chars();
    spec.kind = kind.next();
    kind.as_str().is_empty().then_some(spec)
}

fn checked(machine: &mut Machine<'_>, spec: &Spec) -> Result<(), RenderError> {
    if spec.width > MAX_WIDTH || spec.precision.is_some_and(|precision| precision > MAX_WIDTH) {
        return Err(RenderError::Limit { limit: "the width of a format" });
    }
    machine.budget.bytes(spec.width.saturating_add(spec.precision.unwrap_or(0)).saturating_mul(4))
}

fn text_with(machine: &mut Machine<'_>, text: &str, spec: &Spec, out: &mut String) -> Result<(), RenderError> {
    let unlimited = Spec { precision: None, ..spec.clone() };
    checked(machine, &unlimited)?;
    machine.budget.bytes(text.len())?;
    let end = spec.precision.and_then(|precision| text.char_indices().nth(precision)).map_or(text.len(), |(at, _)| at);
    let text = &text[..end];
    let left = match spec.align {
        Some('>') => usize::MAX,
        Some('^') => spec.width.saturating_sub(text.chars().count()) / 2,
        _ => 0,
    };
    out.push_str(&strings::pad(text, spec.width, spec.fill.unwrap_or(' '), left));
    Ok(())
}

fn number_with(machine: &mut Machine<'_>, value: &Value, spec: &Spec, out: &mut String) -> Result<(), RenderError> {
    checked(machine, spec)?;
    let negative = match value {
        Value::Float(value) => value.is_sign_negative(),
        _ => value.as_int().is_some_and(|value| value < 0),
    };
    let (prefix, mut digits) = match (spec.kind, value) {
        (None | Some('d' | 'n'), Value::Int(_) | Value::Bool(_)) => ("", magnitude(value).to_string()),
        (Some('x'), Value::Int(_) | Value::Bool(_)) => ("0x", format!("{:x}", magnitude(value))),
        (Some('X'), Value::Int(_) | Value::Bool(_)) => ("0X", format!("{:X}", magnitude(value))),
        (Some('o'), Value::Int(_) | Value::Bool(_)) => ("0o", format!("{:o}", magnitude(value))),
        (Some('b'), Value::Int(_) | Value::Bool(_)) => ("0b", format!("{:b}", magnitude(value))),
        _ => match float_digits(value.as_float().unwrap_or(0.0).abs(), spec) {
            Some(digits) => ("", digits),
            None => return failed(format!("unknown format code for object of type '{}'", value.type_name())),
        },
    };
    if let Some(separator) = spec.thousands {
        digits = grouped(&digits, separator);
    }
    let sign = if negative { "-" } else { spec.sign.map_or("", |sign| if sign == '+' { "+" } else { " " }) };
    let head = format!("{sign}{}", if spec.alternate { prefix } else { "" });
    let fill = spec.fill.unwrap_or(' ');
    let length = head.chars().count() + digits.chars().count();
    match spec.align {
        Some('=') => {
            out.push_str(&head);
            out.push_str(&strings::pad(&digits, spec.width.saturating_sub(head.chars().count()), fill, usize::MAX));
        }
        align => {
            let left = match align {
                Some('<') => 0,
                Some('^') => spec.width.saturating_sub(length) / 2,
                _ => usize::MAX,
            };
            out.push_str(&strings::pad(&(head + &digits), spec.width, fill, left));
        }
    }
    Ok(())
}

fn magnitude(value: &Value) -> u64 {
    value.as_int().unwrap_or(0).unsigned_abs()
}

fn float_digits(value: f64, spec: &Spec) -> Option<String> {
    let kind = spec.kind.unwrap_or(if spec.precision.is_some() { 'n' } else { 'r' });
    let precision = spec.precision.unwrap_or(6);
    if !value.is_finite() {
        let text = numbers::float(value);
        return Some(if kind.is_uppercase() { text.to_uppercase() } else { text });
    }
    Some(match kind {
        'r' => numbers::float(value),
        'f' | 'F' => format!("{value:.precision$}"),
        '%' => format!("{:.precision$}%", value * 100.0),
        'e' => exponent(&format!("{value:.precision$e}")),
        'E' => exponent(&format!("{value:.precision$e}")).to_uppercase(),
        'g' => general(value, precision.max(1), spec.alternate),
        'G' => general(value, precision.max(1), spec.alternate).to_uppercase(),
        // A precision without a kind: as `g`, with at least one digit behind the point.
        'n' if spec.kind.is_none() => {
            let text = general(value, precision.max(1), false);
            if text.contains(['.', 'e']) { text } else { text + ".0" }
        }
        'n' => general(value, precision.max(1), spec.alternate),
        _ => return None,
    })
}

/// Rust's `1.5e-7` as Python's `1.5e-07`.
fn exponent(text: &str) -> String {
    let Some((digits, exponent)) = text.split_once('e') else { return text.to_owned() };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

fn general(value: f64, precision: usize, alternate: bool) -> String {
    let scientific = format!("{value:.*e}", precision - 1);
    let power: i64 = scientific.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0);
    let trimmed = |text: String| match text.contains('.') && !alternate {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    if (-4..precision as i64).contains(&power) {
        let decimals = usize::try_from(precision as i64 - 1 - power).unwrap_or(0);
        return trimmed(format!("{value:.decimals$}"));
    }
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    exponent(&format!("{}e{power}", trimmed(digits.to_owned())))
}

fn grouped(digits: &str, separator: char) -> String {
    let end = digits.find(|character: char| !character.is_ascii_digit()).unwrap_or(digits.len());
    let (whole, rest) = digits.split_at(end);
    let mut out = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            out.push(separator);
        }
        out.push(digit);
    }
    out + rest
}
