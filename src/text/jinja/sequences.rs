//! Iterating, indexing, slicing, and attributes.

use std::sync::Arc;

use super::error::{RenderError, failed, nested};
use super::execute::Machine;
use super::value::{Kind, Object, Value};
use super::{compare, methods, numbers};

/// Most elements of a range, as in Jinja's sandbox.
const MAX_RANGE: u64 = 100_000;

impl Machine<'_> {
    /// The elements of a value. A generator is empty afterwards.
    pub(super) fn iterate(&mut self, value: &Value) -> Result<Vec<Value>, RenderError> {
        match value {
            Value::Undefined(_) => Ok(Vec::new()),
            Value::Text(text) | Value::Markup(text) => {
                self.budget.elements(text.len())?;
                Ok(text.chars().map(|character| Value::text(character.encode_utf8(&mut [0; 4]))).collect())
            }
            Value::Sequence(_, sequence) => {
                self.budget.elements(sequence.elements.len())?;
                Ok(sequence.elements.clone())
            }
            Value::Dict(dict) => {
                self.budget.elements(dict.entries.len())?;
                Ok(dict.entries.iter().map(|(key, _)| key.clone()).collect())
            }
            Value::Range(start, stop, step) => {
                let length = numbers::range_length(*start, *stop, *step);
                self.budget.elements(usize::try_from(length).unwrap_or(usize::MAX))?;
                Ok((0..length as i64).map(|index| Value::Int(start + index * step)).collect())
            }
            Value::Object(Object::Generator, place) => {
                let items = self.generators.get_mut(*place).map(std::mem::take).unwrap_or_default();
                self.budget.elements(items.len())?;
                Ok(items.into())
            }
            _ => failed(format!("'{}' object is not iterable", value.type_name())),
        }
    }

    pub(super) fn generator(&mut self, items: Vec<Value>) -> Value {
        self.generators.push(items.into());
        Value::Object(Object::Generator, self.generators.len() - 1)
    }

    pub(super) fn range(&mut self, bounds: &[Value]) -> Result<Value, RenderError> {
        let bounds: Option<Vec<i64>> = bounds.iter().map(Value::as_int).collect();
        let (start, stop, step) = match bounds.as_deref() {
            Some([stop]) => (0, *stop, 1),
            Some([start, stop]) => (*start, *stop, 1),
            Some([_, _, 0]) => return failed("range() arg 3 must not be zero"),
            Some([start, stop, step]) => (*start, *stop, *step),
            _ => return failed("range() takes 1 to 3 integers"),
        };
        if numbers::range_length(start, stop, step) > MAX_RANGE {
            return Err(RenderError::Limit { limit: "the length of a range" });
        }
        Ok(Value::Range(start, stop, step))
    }

    /// Python's `len`.
    pub(super) fn length(&mut self, value: &Value) -> Result<usize, RenderError> {
        match value {
            Value::Undefined(_) => Ok(0),
            Value::Text(text) | Value::Markup(text) => {
                self.budget.bytes(text.len() / 16)?;
                Ok(text.chars().count())
            }
            Value::Sequence(_, sequence) => Ok(sequence.elements.len()),
            Value::Dict(dict) => Ok(dict.entries.len()),
            Value::Range(start, stop, step) => Ok(numbers::range_length(*start, *stop, *step) as usize),
            Value::Object(Object::Loop, place) => Ok(self.loops.get(*place).map_or(0, |state| state.items.len())),
            _ => failed(format!("object of type '{}' has no len()", value.type_name())),
        }
    }

    /// Python's `in`.
    pub(super) fn contains(&mut self, container: &Value, value: &Value) -> Result<bool, RenderError> {
        match (container, value) {
            (Value::Undefined(_), _) => Ok(false),
            (Value::Text(text) | Value::Markup(text), _) => {
                let Some(part) = value.as_text() else {
                    let found = value.type_name();
                    return failed(format!("'in <string>' requires string as left operand, not {found}"));
                };
                self.budget.bytes(text.len() / 4)?;
                Ok(text.contains(&**part))
            }
            (Value::Dict(dict), _) => {
                compare::hashable(value)?;
                Ok(compare::get(&dict.entries, value, &mut self.budget)?.is_some())
            }
            (Value::Sequence(_, sequence), _) => {
                for element in &sequence.elements {
                    if compare::equal(element, value, &mut self.budget)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            (Value::Range(start, stop, step), _) => Ok(value.as_int().is_some_and(|value| {
                let within =
                    if *step > 0 { (*start..*stop).contains(&value) } else { value <= *start && value > *stop };
                within && value.checked_sub(*start).is_some_and(|offset| offset % step == 0)
            })),
            (Value::Object(Object::Generator, _), _) => {
                for element in self.iterate(container)? {
                    if compare::equal(&element, value, &mut self.budget)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            _ => failed(format!("argument of type '{}' is not iterable", container.type_name())),
        }
    }

    /// `value.name`: a method or attribute, else an entry.
    pub(super) fn attribute(&mut self, value: &Value, name: &Arc<str>) -> Result<Value, RenderError> {
        if let Value::Undefined(missing) = value {
            return failed(format!("'{missing}' is undefined"));
        }
        if methods::exists(value, name) {
            return Ok(Value::Method((value.clone(), Arc::clone(name)).into()));
        }
        if let Some(found) = self.own_attribute(value, name)? {
            return Ok(found);
        }
        match value {
            Value::Dict(dict) => {
                let key = Value::Text(Arc::clone(name));
                let found = compare::get(&dict.entries, &key, &mut self.budget)?;
                Ok(found.unwrap_or_else(|| Value::Undefined(Arc::clone(name))))
            }
            _ => Ok(Value::Undefined(Arc::clone(name))),
        }
    }

    /// What is neither a method nor an entry.
    fn own_attribute(&mut self, value: &Value, name: &str) -> Result<Option<Value>, RenderError> {
        match value {
            Value::Object(Object::Namespace, place) => {
                let entries = self.namespaces.get(*place).map_or(&[][..], Vec::as_slice);
                compare::get(entries, &Value::text(name), &mut self.budget)
            }
            Value::Object(Object::Loop, place) => Ok(self.loop_attribute(*place, name)),
            Value::Object(Object::Macro, place) if name == "name" => {
                Ok(self.closures.get(*place).map(|closure| Value::Text(Arc::clone(&closure.declaration.name))))
            }
            Value::Object(Object::Cycler, place) if name == "current" => {
                Ok(self.cyclers.get(*place).and_then(|(items, at)| items.get(*at).cloned()))
            }
            Value::Sequence(Kind::Group, group) => Ok(match name {
                "grouper" => group.elements.first().cloned(),
                "list" => group.elements.get(1).cloned(),
                _ => None,
            }),
            _ => Ok(None),
        }
    }

    fn loop_attribute(&self, place: usize, name: &str) -> Option<Value> {
        let state = self.loops.get(place)?;
        let (index, length) = (state.index, state.items.len());
        let number = |value: usize| Some(Value::Int(value as i64));
        match name {
            "index" => number(index + 1),
            "index0" => number(index),
            "revindex" => number(length - index),
            "revindex0" => number(length - index - 1),
            "first" => Some(Value::Bool(index == 0)),
            "last" => Some(Value::Bool(index + 1 == length)),
            "length" => number(length),
            "depth" => number(state.depth + 1),
            "depth0" => number(state.depth),
            "previtem" => index.checked_sub(1).and_then(|index| state.items.get(index).cloned()),
            "nextitem" => state.items.get(index + 1).cloned(),
            _ => None,
        }
    }

    /// `value[index]`: an entry, else a method or attribute.
    pub(super) fn item(&mut self, value: &Value, index: &Value) -> Result<Value, RenderError> {
        if let Value::Undefined(missing) = value {
            return failed(format!("'{missing}' is undefined"));
        }
        let found = match (value, index.as_int()) {
            (Value::Dict(dict), _) => compare::get(&dict.entries, index, &mut self.budget)?,
            (Value::Sequence(Kind::List | Kind::Tuple | Kind::Group, sequence), Some(index)) => {
                place(index, sequence.elements.len()).and_then(|at| sequence.elements.get(at).cloned())
            }
            (Value::Range(start, stop, step), Some(index)) => {
                let length = numbers::range_length(*start, *stop, *step) as usize;
                place(index, length).map(|at| Value::Int(start + at as i64 * step))
            }
            (Value::Text(text) | Value::Markup(text), Some(index)) => self.character(text, index)?,
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        let Some(name) = index.as_text() else {
            let name = index.to_text(&mut self.budget)?;
            return Ok(Value::Undefined(name));
        };
        match value {
            Value::Dict(_) if !methods::exists(value, name) => Ok(Value::Undefined(Arc::clone(name))),
            _ => self.attribute(value, name),
        }
    }

    fn character(&mut self, text: &str, index: i64) -> Result<Option<Value>, RenderError> {
        if text.is_ascii() {
            self.budget.bytes(text.len() / 16)?;
            return Ok(place(index, text.len()).and_then(|at| text.get(at..=at)).map(Value::text));
        }
        self.budget.bytes(text.len())?;
        let at = if index < 0 { place(index, text.chars().count()) } else { usize::try_from(index).ok() };
        let found = at.and_then(|at| text.chars().nth(at));
        Ok(found.map(|character| Value::text(character.encode_utf8(&mut [0; 4]))))
    }

    /// `value[start:stop:step]`; absent bounds are `None`.
    pub(super) fn slice(&mut self, value: &Value, bounds: &[Value; 3]) -> Result<Value, RenderError> {
        let mut numbers = [None; 3];
        for (number, bound) in numbers.iter_mut().zip(bounds) {
            *number = match bound {
                Value::None => None,
                bound => match bound.as_int() {
                    Some(bound) => Some(bound),
                    None => return failed("slice indices must be integers or None"),
                },
            };
        }
        let [start, stop, step] = numbers;
        let step = step.unwrap_or(1);
        if step == 0 {
            return failed("slice step cannot be zero");
        }
        match value {
            Value::Undefined(missing) => failed(format!("'{missing}' is undefined")),
            Value::Text(text) | Value::Markup(text) => {
                self.budget.bytes(text.len())?;
                if text.is_ascii() {
                    let bytes = text.as_bytes();
                    let taken = places(start, stop, step, bytes.len()).map(|at| char::from(bytes[at]));
                    return Ok(Value::Text(Arc::from(taken.collect::<String>())));
                }
                self.budget.bytes(text.len().saturating_mul(4))?;
                let characters: Vec<char> = text.chars().collect();
                let taken = places(start, stop, step, characters.len()).map(|at| characters[at]);
                Ok(Value::Text(Arc::from(taken.collect::<String>())))
            }
            Value::Sequence(kind @ (Kind::List | Kind::Tuple | Kind::Group), sequence) => {
                self.budget.elements(sequence.elements.len())?;
                let taken = places(start, stop, step, sequence.elements.len());
                let taken = taken.map(|at| sequence.elements[at].clone()).collect();
                let kind = if *kind == Kind::Group { Kind::Tuple } else { *kind };
                nested(Value::sequence(kind, taken))
            }
            Value::Range(..) => {
                let elements = self.iterate(value)?;
                let taken = places(start, stop, step, elements.len()).map(|at| elements[at].clone()).collect();
                nested(Value::sequence(Kind::List, taken))
            }
            _ => failed(format!("'{}' object is not subscriptable", value.type_name())),
        }
    }
}

/// The place of an index that may count from the end.
pub(super) fn place(index: i64, length: usize) -> Option<usize> {
    let index = if index < 0 { index.checked_add(i64::try_from(length).ok()?)? } else { index };
    usize::try_from(index).ok().filter(|index| *index < length)
}

/// Places of a slice, as `slice.indices` gives them.
pub(super) fn places(start: Option<i64>, stop: Option<i64>, step: i64, length: usize) -> impl Iterator<Item = usize> {
    let size = i64::try_from(length).unwrap_or(i64::MAX);
    let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
    let clamp = |bound: i64| if bound < 0 { bound.saturating_add(size).max(low) } else { bound.min(high) };
    let start = start.map_or(if step > 0 { low } else { high }, clamp);
    let stop = stop.map_or(if step > 0 { high } else { low }, clamp);
    let count = numbers::range_length(start, stop, step) as i64;
    (0..count).filter_map(move |index| usize::try_from(start + index * step).ok())
}
