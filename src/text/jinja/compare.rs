//! Equality, order and membership.

use std::cmp::Ordering;

use super::budget::Budget;
use super::error::{RenderError, failed};
use super::numbers;
use super::value::{Kind, Value};

impl Kind {
    fn is_tuple(self) -> bool {
        matches!(self, Self::Tuple | Self::Group)
    }
}

/// Python's `==`.
pub(super) fn equal(left: &Value, right: &Value, budget: &mut Budget) -> Result<bool, RenderError> {
    budget.step()?;
    if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
        return Ok(left == right);
    }
    if let (Some(left), Some(right)) = (left.as_float(), right.as_float()) {
        return Ok(left == right);
    }
    Ok(match (left, right) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Text(left) | Value::Markup(left), Value::Text(right) | Value::Markup(right)) => {
            budget.bytes(left.len().min(right.len()))?;
            left == right
        }
        (Value::Sequence(kind, left), Value::Sequence(other, right)) => {
            if (kind != other && !(kind.is_tuple() && other.is_tuple())) || left.elements.len() != right.elements.len()
            {
                return Ok(false);
            }
            for (left, right) in left.elements.iter().zip(&right.elements) {
                if !equal(left, right, budget)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Dict(left), Value::Dict(right)) => {
            if left.entries.len() != right.entries.len() {
                return Ok(false);
            }
            for (key, value) in &left.entries {
                match get(&right.entries, key, budget)? {
                    Some(other) if equal(value, &other, budget)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Range(..), Value::Range(..)) => {
            let of = |value: &Value| match value {
                Value::Range(start, stop, step) => match numbers::range_length(*start, *stop, *step) {
                    0 => (0, 0, 0),
                    1 => (1, *start, 0),
                    length => (length, *start, *step),
                },
                _ => (0, 0, 0),
            };
            of(left) == of(right)
        }
        (Value::Object(kind, index), Value::Object(other, place)) => kind == other && index == place,
        (Value::Function(left), Value::Function(right)) => left == right,
        _ => false,
    })
}

/// Python's `<` and its kin.
pub(super) fn order(left: &Value, right: &Value, budget: &mut Budget) -> Result<Option<Ordering>, RenderError> {
    budget.step()?;
    if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
        return Ok(Some(left.cmp(&right)));
    }
    if let (Some(left), Some(right)) = (left.as_float(), right.as_float()) {
        return Ok(left.partial_cmp(&right));
    }
    match (left, right) {
        (Value::Text(left) | Value::Markup(left), Value::Text(right) | Value::Markup(right)) => {
            budget.bytes(left.len().min(right.len()))?;
            // UTF-8 orders as code points do.
            Ok(Some(left.cmp(right)))
        }
        (Value::Sequence(kind, a), Value::Sequence(other, b))
            if (kind == other && *kind == Kind::List) || (kind.is_tuple() && other.is_tuple()) =>
        {
            for (left, right) in a.elements.iter().zip(&b.elements) {
                if !equal(left, right, budget)? {
                    return order(left, right, budget);
                }
            }
            Ok(Some(a.elements.len().cmp(&b.elements.len())))
        }
        (Value::Undefined(name), _) | (_, Value::Undefined(name)) => failed(format!("'{name}' is undefined")),
        _ => {
            failed(format!("'<' not supported between instances of '{}' and '{}'", left.type_name(), right.type_name()))
        }
    }
}

/// The value of a key.
pub(super) fn get(entries: &[(Value, Value)], key: &Value, budget: &mut Budget) -> Result<Option<Value>, RenderError> {
    for (found, value) in entries {
        if equal(found, key, budget)? {
            return Ok(Some(value.clone()));
        }
    }
    Ok(None)
}

/// Whether a key may be one: Python's `hash`.
pub(super) fn hashable(key: &Value) -> Result<(), RenderError> {
    match key {
        Value::Sequence(Kind::Tuple | Kind::Group, sequence) => sequence.elements.iter().try_for_each(hashable),
        Value::Sequence(..) | Value::Dict(_) => failed(format!("unhashable type: '{}'", key.type_name())),
        _ => Ok(()),
    }
}

/// Add or replace an entry.
pub(super) fn insert(
    entries: &mut Vec<(Value, Value)>,
    key: Value,
    value: Value,
    budget: &mut Budget,
) -> Result<(), RenderError> {
    hashable(&key)?;
    for (found, old) in entries.iter_mut() {
        if equal(found, &key, budget)? {
            *old = value;
            return Ok(());
        }
    }
    budget.elements(2)?;
    entries.push((key, value));
    Ok(())
}
