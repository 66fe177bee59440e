//! Calls: functions, methods, macros, loops.

use std::rc::Rc;
use std::sync::Arc;

use super::ast::Expr;
use super::error::{RenderError, failed, nested};
use super::execute::{Machine, Scope};
use super::given::Given;
use super::value::{Function, Kind, Object, Value};
use super::{compare, methods};
use crate::text::clock;

impl<'t> Machine<'t> {
    pub(super) fn call(&mut self, callee: &Value, given: Given) -> Result<Value, RenderError> {
        match callee {
            Value::Function(function) => self.call_function(*function, given),
            Value::Method(method) => methods::call(self, &method.0, &method.1, given),
            Value::Object(Object::Macro, place) => self.call_macro(*place, given, None),
            Value::Object(Object::Loop, place) => self.call_loop(*place, given),
            Value::Object(Object::Cycler, place) => {
                let Some((items, at)) = self.cyclers.get_mut(*place) else { return Ok(Value::None) };
                let item = items.get(*at).cloned().unwrap_or(Value::None);
                *at = (*at + 1) % items.len().max(1);
                Ok(item)
            }
            Value::Object(Object::Joiner, place) => {
                let Some((separator, used)) = self.joiners.get_mut(*place) else { return Ok(Value::None) };
                let first = !std::mem::replace(used, true);
                Ok(if first { Value::text("") } else { Value::Text(Arc::clone(separator)) })
            }
            Value::Undefined(name) => failed(format!("'{name}' is undefined")),
            _ => failed(format!("'{}' object is not callable", callee.type_name())),
        }
    }

    fn call_function(&mut self, function: Function, given: Given) -> Result<Value, RenderError> {
        match function {
            Function::Range if given.named.is_empty() => self.range(&given.positional),
            Function::Range => failed("range() takes no keyword arguments"),
            Function::Dict => {
                let entries = self.entries("dict", given)?;
                nested(Value::from_entries(entries))
            }
            Function::Namespace => {
                let entries = self.entries("namespace", given)?;
                self.namespaces.push(entries);
                Ok(Value::Object(Object::Namespace, self.namespaces.len() - 1))
            }
            Function::Cycler if given.positional.is_empty() => failed("at least one item has to be provided"),
            Function::Cycler => {
                self.cyclers.push((given.positional, 0));
                Ok(Value::Object(Object::Cycler, self.cyclers.len() - 1))
            }
            Function::Joiner => {
                let [separator] = given.bind("joiner", ["sep"])?;
                let separator = match separator {
                    Some(separator) => separator.to_text(&mut self.budget)?,
                    None => Arc::from(", "),
                };
                self.joiners.push((separator, false));
                Ok(Value::Object(Object::Joiner, self.joiners.len() - 1))
            }
            Function::RaiseException => {
                let [message] = given.bind("raise_exception", ["message"])?;
                let message = message.unwrap_or(Value::None).to_text(&mut self.budget)?;
                Err(RenderError::Raised { message: message.to_string() })
            }
            Function::StrftimeNow => {
                let [format] = given.bind("strftime_now", ["format"])?;
                let format = format.unwrap_or(Value::None);
                let Some(format) = format.as_text() else { return failed("strftime_now takes a format") };
                self.budget.bytes(format.len().saturating_mul(16))?;
                match clock::strftime(self.now, format) {
                    Some(text) => Ok(Value::Text(Arc::from(text))),
                    None => failed(format!("strftime_now: unknown format {format:?}")),
                }
            }
        }
    }

    /// What `dict(mapping or pairs, name=value, …)` holds.
    fn entries(&mut self, what: &str, given: Given) -> Result<Vec<(Value, Value)>, RenderError> {
        let mut entries = Vec::new();
        let mut positional = given.positional.into_iter();
        match (positional.next(), positional.next()) {
            (_, Some(_)) => return failed(format!("{what} expected at most 1 argument")),
            (Some(Value::Dict(dict)), None) => {
                self.budget.elements(2 * dict.entries.len())?;
                entries.clone_from(&dict.entries);
            }
            (Some(pairs), None) => {
                for pair in self.iterate(&pairs)? {
                    let [key, value] =
                        <[Value; 2]>::try_from(self.iterate(&pair)?).or_else(|_| failed("a dict is made of pairs"))?;
                    compare::insert(&mut entries, key, value, &mut self.budget)?;
                }
            }
            (None, None) => {}
        }
        for (name, value) in given.named {
            compare::insert(&mut entries, Value::Text(name), value, &mut self.budget)?;
        }
        Ok(entries)
    }

    pub(super) fn call_with_caller(
        &mut self,
        call: &'t Expr,
        caller: Value,
        scope: &Rc<Scope>,
    ) -> Result<Value, RenderError> {
        let Expr::Call(callee, arguments) = call else { return failed("expected a call") };
        let callee = self.evaluate(callee, scope)?;
        let given = self.given(arguments, scope)?;
        match callee {
            Value::Object(Object::Macro, place) => self.call_macro(place, given, Some(caller)),
            _ => self.call(&callee, given),
        }
    }

    fn call_macro(&mut self, place: usize, given: Given, caller: Option<Value>) -> Result<Value, RenderError> {
        let Some(closure) = self.closures.get(place).cloned() else { return failed("no such macro") };
        let declaration = closure.declaration;
        let scope = Scope::inside(&closure.scope);
        if let Some(caller) = caller {
            scope.set(&Arc::from("caller"), caller);
        }
        let mut positional = given.positional.into_iter();
        let mut named = given.named;
        for (name, default) in &declaration.parameters {
            let by_name = named.iter().position(|(found, _)| found == name).map(|at| named.remove(at).1);
            let value = match (positional.next(), by_name) {
                (Some(_), Some(_)) => {
                    return failed(format!("macro '{}' got multiple values for '{name}'", declaration.name));
                }
                (Some(value), None) | (None, Some(value)) => value,
                (None, None) => match default {
                    Some(default) => self.evaluate(default, &scope)?,
                    None => Value::Undefined(Arc::clone(name)),
                },
            };
            scope.set(name, value);
        }
        let more: Vec<Value> = positional.collect();
        if declaration.takes_positional {
            scope.set(&Arc::from("varargs"), nested(Value::sequence(Kind::Tuple, more))?);
        } else if !more.is_empty() {
            let (name, count) = (&declaration.name, declaration.parameters.len());
            return failed(format!("macro '{name}' takes not more than {count} argument(s)"));
        }
        if declaration.takes_named {
            let named = named.into_iter().map(|(name, value)| (Value::Text(name), value)).collect();
            scope.set(&Arc::from("kwargs"), nested(Value::from_entries(named))?);
        } else if let Some((name, value)) = named.into_iter().next() {
            // A caller may also be given by name.
            if &*name != "caller" {
                return failed(format!("macro '{}' takes no keyword argument '{name}'", declaration.name));
            }
            scope.set(&name, value);
        }
        let mut out = String::new();
        self.body(&declaration.body, &scope, &mut out)?;
        Ok(Value::Text(Arc::from(out)))
    }

    /// `loop(items)` in a loop that is `recursive`.
    fn call_loop(&mut self, place: usize, given: Given) -> Result<Value, RenderError> {
        let [items] = given.bind("loop", ["iterable"])?;
        let Some(items) = items else { return failed("loop() takes what to iterate over") };
        let Some(state) = self.loops.get(place) else { return failed("no such loop") };
        let Some((each, scope)) = state.recursive.clone() else {
            return failed("the loop must have the 'recursive' marker to be called recursively");
        };
        let depth = state.depth + 1;
        let mut out = String::new();
        self.run_loop(each, items, &scope, depth, &mut out)?;
        Ok(Value::Text(Arc::from(out)))
    }
}
