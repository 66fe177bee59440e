//! Filters of many values.

use std::sync::Arc;

use super::super::ast::Arithmetic;
use super::super::compare;
use super::super::error::{RenderError, failed, nested};
use super::super::execute::Machine;
use super::super::given::Given;
use super::super::methods::{self, optional_int, optional_text};
use super::super::value::{Kind, Value};

fn is_true(value: Option<Value>) -> bool {
    value.is_some_and(|value| value.is_true())
}

/// An attribute that was named: `None` is none.
fn named(value: Option<Value>) -> Option<Value> {
    value.filter(|value| !matches!(value, Value::None))
}

impl Machine<'_> {
    /// The arguments come back where the filter is not one of these.
    pub(super) fn collection_filter(
        &mut self,
        name: &str,
        value: &Value,
        given: Given,
    ) -> Result<Result<Value, Given>, RenderError> {
        Ok(Ok(match name {
            "list" => {
                let [] = given.bind(name, [])?;
                let elements = self.iterate(value)?;
                nested(Value::list(elements))?
            }
            "first" | "last" => {
                let [] = given.bind(name, [])?;
                self.end(name == "first", value)?
            }
            "reverse" => {
                let [] = given.bind(name, [])?;
                self.reverse(value)?
            }
            "join" => {
                let [separator, attribute] = given.bind(name, ["d", "attribute"])?;
                let separator = separator.unwrap_or_else(|| Value::text("")).to_text(&mut self.budget)?;
                let mut parts = self.iterate(value)?;
                if let Some(attribute) = named(attribute) {
                    parts = parts.iter().map(|part| self.path(part, &attribute)).collect::<Result<_, _>>()?;
                }
                methods::join(self, &separator, &parts, false)?
            }
            "sum" => {
                let [attribute, start] = given.bind(name, ["attribute", "start"])?;
                let attribute = named(attribute);
                let mut sum = start.unwrap_or(Value::Int(0));
                for element in self.iterate(value)? {
                    let element = match &attribute {
                        Some(attribute) => self.path(&element, attribute)?,
                        None => element,
                    };
                    sum = self.operate(Arithmetic::Add, &sum, &element)?;
                }
                sum
            }
            "min" | "max" => {
                let [sensitive, attribute] = given.bind(name, ["case_sensitive", "attribute"])?;
                self.extreme(name == "max", value, is_true(sensitive), named(attribute).as_ref())?
            }
            "sort" => {
                let [reverse, sensitive, attribute] = given.bind(name, ["reverse", "case_sensitive", "attribute"])?;
                self.sort(value, is_true(reverse), is_true(sensitive), named(attribute).as_ref())?
            }
            "dictsort" => {
                let [sensitive, by, reverse] = given.bind(name, ["case_sensitive", "by", "reverse"])?;
                self.dict_sort(value, is_true(sensitive), by, is_true(reverse))?
            }
            "unique" => {
                let [sensitive, attribute] = given.bind(name, ["case_sensitive", "attribute"])?;
                self.unique(value, is_true(sensitive), named(attribute).as_ref())?
            }
            "groupby" => {
                let [attribute, default, sensitive] = given.bind(name, ["attribute", "default", "case_sensitive"])?;
                let Some(attribute) = attribute else { return failed("groupby takes an attribute") };
                self.group(value, &attribute, named(default), is_true(sensitive))?
            }
            "batch" | "slice" => {
                let [count, fill] = given.bind(name, ["count", "fill_with"])?;
                self.chunks(name == "batch", value, count, named(fill))?
            }
            "map" => self.map(value, given)?,
            "select" | "reject" => self.select(name == "select", false, value, given)?,
            "selectattr" | "rejectattr" => self.select(name == "selectattr", true, value, given)?,
            _ => return Ok(Err(given)),
        }))
    }

    fn end(&mut self, first: bool, value: &Value) -> Result<Value, RenderError> {
        if Self::is_lazy(value) {
            if !first {
                return failed("'generator' object is not reversible");
            }
            // The others remain for whoever goes on with it.
            let mut elements = self.iterate(value)?.into_iter();
            let found = elements.next();
            if let Value::Object(_, place) = value
                && let Some(rest) = self.generators.get_mut(*place)
            {
                *rest = elements.collect();
            }
            return Ok(found.unwrap_or_else(|| Value::Undefined(Arc::from("the first item of an empty sequence"))));
        }
        let elements = self.iterate(value)?;
        let found = if first { elements.first() } else { elements.last() };
        Ok(found.cloned().unwrap_or_else(|| Value::Undefined(Arc::from("an item of an empty sequence"))))
    }

    fn reverse(&mut self, value: &Value) -> Result<Value, RenderError> {
        if let Value::Text(text) | Value::Markup(text) = value {
            self.budget.bytes(text.len())?;
            return Ok(Value::Text(Arc::from(text.chars().rev().collect::<String>())));
        }
        let mut elements = self.iterate(value)?;
        elements.reverse();
        Ok(self.generator(elements))
    }

    fn extreme(
        &mut self,
        largest: bool,
        value: &Value,
        sensitive: bool,
        attribute: Option<&Value>,
    ) -> Result<Value, RenderError> {
        let mut best: Option<(Value, Value)> = None;
        for element in self.iterate(value)? {
            let key = self.sort_key(&element, attribute, sensitive)?;
            let better = match &best {
                None => true,
                Some((_, known)) => {
                    let order = compare::order(&key, known, &mut self.budget)?;
                    order == Some(if largest { std::cmp::Ordering::Greater } else { std::cmp::Ordering::Less })
                }
            };
            if better {
                best = Some((element, key));
            }
        }
        Ok(best.map_or_else(|| Value::Undefined(Arc::from("an item of an empty sequence")), |(element, _)| element))
    }

    fn sort(
        &mut self,
        value: &Value,
        reverse: bool,
        sensitive: bool,
        attribute: Option<&Value>,
    ) -> Result<Value, RenderError> {
        let elements = self.iterate(value)?;
        let attributes = attributes(attribute);
        let mut keys = Vec::with_capacity(elements.len());
        for element in &elements {
            let parts = match attributes.as_slice() {
                [] => vec![self.sort_key(element, None, sensitive)?],
                several => several
                    .iter()
                    .map(|attribute| self.sort_key(element, Some(attribute), sensitive))
                    .collect::<Result<_, _>>()?,
            };
            keys.push(nested(Value::list(parts))?);
        }
        let places = self.ordered(&keys, reverse)?;
        nested(Value::list(places.into_iter().map(|at| elements[at].clone()).collect()))
    }

    fn dict_sort(
        &mut self,
        value: &Value,
        sensitive: bool,
        by: Option<Value>,
        reverse: bool,
    ) -> Result<Value, RenderError> {
        let Value::Dict(dict) = value else { return failed("dictsort takes a mapping") };
        let by = match optional_text(by)?.as_deref() {
            None | Some("key") => 0,
            Some("value") => 1,
            _ => return failed("you can only sort by either \"key\" or \"value\""),
        };
        self.budget.elements(4 * dict.entries.len())?;
        let mut keys = Vec::with_capacity(dict.entries.len());
        for (key, value) in &dict.entries {
            keys.push(self.sort_key(if by == 0 { key } else { value }, None, sensitive)?);
        }
        let places = self.ordered(&keys, reverse)?;
        let pair = |at: usize| {
            let (key, value) = dict.entries[at].clone();
            Value::sequence(Kind::Tuple, vec![key, value])
        };
        nested(places.into_iter().map(pair).collect::<Option<_>>().and_then(Value::list))
    }

    fn unique(&mut self, value: &Value, sensitive: bool, attribute: Option<&Value>) -> Result<Value, RenderError> {
        let mut seen: Vec<Value> = Vec::new();
        let mut kept = Vec::new();
        for element in self.iterate(value)? {
            let key = self.sort_key(&element, attribute, sensitive)?;
            compare::hashable(&key)?;
            let mut known = false;
            for other in &seen {
                known = known || compare::equal(other, &key, &mut self.budget)?;
            }
            if !known {
                seen.push(key);
                kept.push(element);
            }
        }
        Ok(self.generator(kept))
    }

    fn group(
        &mut self,
        value: &Value,
        attribute: &Value,
        default: Option<Value>,
        sensitive: bool,
    ) -> Result<Value, RenderError> {
        let elements = self.iterate(value)?;
        let mut keys = Vec::with_capacity(elements.len());
        let mut names = Vec::with_capacity(elements.len());
        for element in &elements {
            let mut name = self.path(element, attribute)?;
            if let (true, Some(default)) = (name.is_undefined(), &default) {
                name = default.clone();
            }
            keys.push(self.sort_key(&name, None, sensitive)?);
            names.push(name);
        }
        let mut groups: Vec<(usize, Vec<Value>)> = Vec::new();
        for at in self.ordered(&keys, false)? {
            match groups.last_mut() {
                Some((first, group)) if compare::equal(&keys[*first], &keys[at], &mut self.budget)? => {
                    group.push(elements[at].clone());
                }
                _ => groups.push((at, vec![elements[at].clone()])),
            }
        }
        let group = |(first, elements): (usize, Vec<Value>)| {
            // Without case the group is named as its first element is.
            Value::sequence(Kind::Group, vec![names[first].clone(), Value::list(elements)?])
        };
        nested(groups.into_iter().map(group).collect::<Option<_>>().and_then(Value::list))
    }

    fn chunks(
        &mut self,
        batch: bool,
        value: &Value,
        count: Option<Value>,
        fill: Option<Value>,
    ) -> Result<Value, RenderError> {
        let elements = self.iterate(value)?;
        let count = optional_int(count)?.and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0);
        let Some(count) = count else { return failed("the number of chunks is not positive") };
        self.budget.elements(count)?;
        let mut chunks: Vec<Vec<Value>> = if batch {
            elements.chunks(count).map(<[Value]>::to_vec).collect()
        } else {
            let (size, more) = (elements.len() / count, elements.len() % count);
            let mut rest = elements.into_iter();
            (0..count).map(|at| rest.by_ref().take(size + usize::from(at < more)).collect()).collect()
        };
        if let Some(fill) = fill {
            let width = if batch { count } else { chunks.iter().map(Vec::len).max().unwrap_or(0) };
            for chunk in &mut chunks {
                self.budget.elements(width)?;
                chunk.resize(width, fill.clone());
            }
        }
        let chunks = chunks.into_iter().map(Value::list).collect::<Option<Vec<_>>>();
        let chunks = chunks.ok_or(RenderError::Limit { limit: "the nesting of values" })?;
        Ok(self.generator(chunks))
    }

    /// What is not true has no elements to `map` and `select`, whatever it is.
    fn elements_if_true(&mut self, value: &Value) -> Result<Vec<Value>, RenderError> {
        if value.is_true() { self.iterate(value) } else { Ok(Vec::new()) }
    }

    fn map(&mut self, value: &Value, mut given: Given) -> Result<Value, RenderError> {
        let elements = self.elements_if_true(value)?;
        let mut mapped = Vec::with_capacity(elements.len());
        if given.positional.is_empty() {
            let [attribute, default] = given.bind("map", ["attribute", "default"])?;
            let Some(attribute) = attribute else { return failed("map requires a filter argument") };
            for element in elements {
                let found = self.path(&element, &attribute)?;
                mapped.push(match &default {
                    Some(default) if found.is_undefined() => default.clone(),
                    _ => found,
                });
            }
        } else {
            let filter = given.positional.remove(0).to_text(&mut self.budget)?;
            for element in elements {
                self.budget.enter()?;
                let given = Given { positional: given.positional.clone(), named: given.named.clone() };
                mapped.push(self.filter(&filter, element, given)?);
                self.budget.leave();
            }
        }
        Ok(self.generator(mapped))
    }

    fn select(
        &mut self,
        wanted: bool,
        by_attribute: bool,
        value: &Value,
        mut given: Given,
    ) -> Result<Value, RenderError> {
        let attribute = match (by_attribute, given.positional.is_empty()) {
            (true, true) => return failed("missing parameter for attribute name"),
            (true, false) => Some(given.positional.remove(0)),
            (false, _) => None,
        };
        let test = match given.positional.is_empty() {
            true => None,
            false => Some(given.positional.remove(0).to_text(&mut self.budget)?),
        };
        let mut kept = Vec::new();
        for element in self.elements_if_true(value)? {
            let subject = match &attribute {
                Some(attribute) => self.path(&element, attribute)?,
                None => element.clone(),
            };
            let holds = match &test {
                Some(test) => {
                    let given = Given { positional: given.positional.clone(), named: given.named.clone() };
                    self.check(test, &subject, given)?
                }
                None => subject.is_true(),
            };
            if holds == wanted {
                kept.push(element);
            }
        }
        Ok(self.generator(kept))
    }
}

/// `a,b.c` as two attributes.
fn attributes(attribute: Option<&Value>) -> Vec<Value> {
    match attribute {
        None => Vec::new(),
        Some(Value::Text(text) | Value::Markup(text)) => text.split(',').map(Value::text).collect(),
        Some(other) => vec![other.clone()],
    }
}
