//! Expressions.

use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

use super::ast::{Arguments, Arithmetic, Comparison, Expr, Literal};
use super::error::{RenderError, failed, nested};
use super::execute::{Machine, Scope};
use super::given::Given;
use super::value::{Function, Kind, Value};
use super::{arithmetic, compare, format, strings};

impl<'t> Machine<'t> {
    pub(super) fn evaluate(&mut self, expr: &'t Expr, scope: &Rc<Scope>) -> Result<Value, RenderError> {
        self.budget.enter()?;
        let value = self.expression(expr, scope)?;
        self.budget.leave();
        Ok(value)
    }

    fn expression(&mut self, expr: &'t Expr, scope: &Rc<Scope>) -> Result<Value, RenderError> {
        Ok(match expr {
            Expr::Literal(Literal::None) => Value::None,
            Expr::Literal(Literal::Bool(value)) => Value::Bool(*value),
            Expr::Literal(Literal::Int(value)) => Value::Int(*value),
            Expr::Literal(Literal::Float(value)) => Value::Float(*value),
            Expr::Literal(Literal::Text(text)) => Value::Text(Arc::clone(text)),
            Expr::Name(name) => match scope.get(name).or_else(|| global(name)) {
                Some(value) => value,
                None => Value::Undefined(Arc::clone(name)),
            },
            Expr::List(elements) => self.elements(Kind::List, elements, scope)?,
            Expr::Tuple(elements) => self.elements(Kind::Tuple, elements, scope)?,
            Expr::Dict(entries) => self.dict(entries, scope)?,
            Expr::Attribute(operand, name) => {
                let operand = self.evaluate(operand, scope)?;
                self.attribute(&operand, name)?
            }
            Expr::Item(operand, index) => {
                let operand = self.evaluate(operand, scope)?;
                let index = self.evaluate(index, scope)?;
                self.item(&operand, &index)?
            }
            Expr::Slice(operand, bounds) => {
                let operand = self.evaluate(operand, scope)?;
                let mut bound = |at: usize| match &bounds[at] {
                    Some(bound) => self.evaluate(bound, scope),
                    None => Ok(Value::None),
                };
                let bounds = [bound(0)?, bound(1)?, bound(2)?];
                self.slice(&operand, &bounds)?
            }
            Expr::Call(callee, arguments) => {
                let callee = self.evaluate(callee, scope)?;
                let given = self.given(arguments, scope)?;
                self.call(&callee, given)?
            }
            Expr::Filter(operand, name, arguments) => {
                let Some(operand) = operand else { return failed("a filter has no operand") };
                let operand = self.evaluate(operand, scope)?;
                let given = self.given(arguments, scope)?;
                self.filter(name, operand, given)?
            }
            Expr::Test(operand, name, arguments) => {
                let operand = self.evaluate(operand, scope)?;
                let given = self.given(arguments, scope)?;
                Value::Bool(self.check(name, &operand, given)?)
            }
            Expr::Not(operand) => Value::Bool(!self.evaluate(operand, scope)?.is_true()),
            Expr::Negative(operand) => {
                let operand = self.evaluate(operand, scope)?;
                self.arithmetic(Arithmetic::Mul, &operand, &Value::Int(-1), "-")?
            }
            Expr::Positive(operand) => {
                let operand = self.evaluate(operand, scope)?;
                self.arithmetic(Arithmetic::Mul, &operand, &Value::Int(1), "+")?
            }
            Expr::Arithmetic(operator, left, right) => {
                let left = self.evaluate(left, scope)?;
                let right = self.evaluate(right, scope)?;
                self.operate(*operator, &left, &right)?
            }
            Expr::Concat(parts) => {
                let mut out = String::new();
                for part in parts {
                    let part = self.evaluate(part, scope)?;
                    part.print(&mut out, &mut self.budget)?;
                }
                Value::Text(Arc::from(out))
            }
            Expr::Compare(left, operands) => self.compare(left, operands, scope)?,
            Expr::And(left, right) => {
                let left = self.evaluate(left, scope)?;
                if left.is_true() { self.evaluate(right, scope)? } else { left }
            }
            Expr::Or(left, right) => {
                let left = self.evaluate(left, scope)?;
                if left.is_true() { left } else { self.evaluate(right, scope)? }
            }
            Expr::Conditional(condition, value, otherwise) => {
                if self.evaluate(condition, scope)?.is_true() {
                    self.evaluate(value, scope)?
                } else if let Some(otherwise) = otherwise {
                    self.evaluate(otherwise, scope)?
                } else {
                    Value::Undefined(Arc::from("the value of an inline if without else"))
                }
            }
        })
    }

    fn elements(&mut self, kind: Kind, elements: &'t [Expr], scope: &Rc<Scope>) -> Result<Value, RenderError> {
        self.budget.elements(elements.len())?;
        let elements = elements.iter().map(|element| self.evaluate(element, scope)).collect::<Result<Vec<_>, _>>()?;
        nested(Value::sequence(kind, elements))
    }

    fn dict(&mut self, entries: &'t [(Expr, Expr)], scope: &Rc<Scope>) -> Result<Value, RenderError> {
        let mut dict = Vec::new();
        for (key, value) in entries {
            let key = self.evaluate(key, scope)?;
            let value = self.evaluate(value, scope)?;
            compare::insert(&mut dict, key, value, &mut self.budget)?;
        }
        nested(Value::from_entries(dict))
    }

    /// Arguments, with what `*` and `**` bring.
    pub(super) fn given(&mut self, arguments: &'t Arguments, scope: &Rc<Scope>) -> Result<Given, RenderError> {
        let mut given = Given::default();
        for argument in &arguments.positional {
            given.positional.push(self.evaluate(argument, scope)?);
        }
        for (name, argument) in &arguments.named {
            let value = self.evaluate(argument, scope)?;
            given.name(Arc::clone(name), value)?;
        }
        if let Some(more) = &arguments.more_positional {
            let more = self.evaluate(more, scope)?;
            given.positional.extend(self.iterate(&more)?);
        }
        if let Some(more) = &arguments.more_named {
            let Value::Dict(more) = self.evaluate(more, scope)? else {
                return failed("argument after ** must be a mapping");
            };
            for (key, value) in &more.entries {
                let Some(key) = key.as_text() else { return failed("keywords must be strings") };
                given.name(Arc::clone(key), value.clone())?;
            }
        }
        Ok(given)
    }

    /// A filter of a block: a chain whose innermost has `operand`.
    pub(super) fn filter_with_operand(
        &mut self,
        filter: &'t Expr,
        operand: Value,
        scope: &Rc<Scope>,
    ) -> Result<Value, RenderError> {
        let Expr::Filter(inner, name, arguments) = filter else { return failed("not a filter") };
        let operand = match inner {
            Some(inner) => self.filter_with_operand(inner, operand, scope)?,
            None => operand,
        };
        let given = self.given(arguments, scope)?;
        self.filter(name, operand, given)
    }

    fn compare(
        &mut self,
        left: &'t Expr,
        operands: &'t [(Comparison, Expr)],
        scope: &Rc<Scope>,
    ) -> Result<Value, RenderError> {
        let mut left = self.evaluate(left, scope)?;
        for (comparison, right) in operands {
            let right = self.evaluate(right, scope)?;
            if !self.holds(*comparison, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    pub(super) fn holds(&mut self, comparison: Comparison, left: &Value, right: &Value) -> Result<bool, RenderError> {
        let mut order = || compare::order(left, right, &mut self.budget);
        Ok(match comparison {
            Comparison::Eq => compare::equal(left, right, &mut self.budget)?,
            Comparison::Ne => !compare::equal(left, right, &mut self.budget)?,
            Comparison::Lt => order()? == Some(Ordering::Less),
            Comparison::Le => matches!(order()?, Some(Ordering::Less | Ordering::Equal)),
            Comparison::Gt => order()? == Some(Ordering::Greater),
            Comparison::Ge => matches!(order()?, Some(Ordering::Greater | Ordering::Equal)),
            Comparison::In => self.contains(right, left)?,
            Comparison::NotIn => !self.contains(right, left)?,
        })
    }

    pub(super) fn operate(&mut self, operator: Arithmetic, left: &Value, right: &Value) -> Result<Value, RenderError> {
        match (operator, left, right) {
            (Arithmetic::Add, Value::Text(a), Value::Text(b)) => self.joined(a, b, false),
            (Arithmetic::Add, Value::Markup(a), Value::Markup(b)) => self.joined(a, b, true),
            (Arithmetic::Add, Value::Markup(a), Value::Text(b)) => {
                self.budget.bytes(b.len().saturating_mul(5))?;
                self.joined(a, &strings::escape(b), true)
            }
            (Arithmetic::Add, Value::Text(a), Value::Markup(b)) => {
                self.budget.bytes(a.len().saturating_mul(5))?;
                self.joined(&strings::escape(a), b, true)
            }
            (Arithmetic::Add, Value::Sequence(kind, a), Value::Sequence(other, b))
                if kind == other && matches!(kind, Kind::List | Kind::Tuple) =>
            {
                self.budget.elements(a.elements.len() + b.elements.len())?;
                nested(Value::sequence(*kind, [&a.elements[..], &b.elements[..]].concat()))
            }
            (Arithmetic::Mul, Value::Text(_) | Value::Markup(_) | Value::Sequence(..), count)
            | (Arithmetic::Mul, count, Value::Text(_) | Value::Markup(_) | Value::Sequence(..))
                if count.as_int().is_some() =>
            {
                let repeated = if left.as_int().is_some() { right } else { left };
                self.repeat(repeated, count.as_int().unwrap_or(0))
            }
            (Arithmetic::Mod, Value::Text(text) | Value::Markup(text), _) => format::percent(self, text, right),
            _ => self.arithmetic(operator, left, right, symbol(operator)),
        }
    }

    fn joined(&mut self, left: &str, right: &str, markup: bool) -> Result<Value, RenderError> {
        self.budget.bytes(left.len() + right.len())?;
        let text = Arc::from([left, right].concat());
        Ok(if markup { Value::Markup(text) } else { Value::Text(text) })
    }

    fn repeat(&mut self, value: &Value, count: i64) -> Result<Value, RenderError> {
        let count = usize::try_from(count).unwrap_or(0);
        match value {
            Value::Sequence(kind, sequence) => {
                self.budget.elements(sequence.elements.len().saturating_mul(count))?;
                let repeated = std::iter::repeat_n(&sequence.elements, count).flatten().cloned().collect();
                nested(Value::sequence(*kind, repeated))
            }
            _ => {
                let text = value.to_text(&mut self.budget)?;
                self.budget.bytes(text.len().saturating_mul(count))?;
                Ok(Value::Text(Arc::from(text.repeat(count))))
            }
        }
    }

    fn arithmetic(
        &mut self,
        operator: Arithmetic,
        left: &Value,
        right: &Value,
        symbol: &str,
    ) -> Result<Value, RenderError> {
        if let Some(result) = arithmetic::apply(operator, left, right) {
            return result;
        }
        match (left, right) {
            (Value::Undefined(name), _) | (_, Value::Undefined(name)) => failed(format!("'{name}' is undefined")),
            _ => failed(format!(
                "unsupported operand type(s) for {symbol}: '{}' and '{}'",
                left.type_name(),
                right.type_name()
            )),
        }
    }
}

fn symbol(operator: Arithmetic) -> &'static str {
    match operator {
        Arithmetic::Add => "+",
        Arithmetic::Sub => "-",
        Arithmetic::Mul => "*",
        Arithmetic::Div => "/",
        Arithmetic::FloorDiv => "//",
        Arithmetic::Mod => "%",
        Arithmetic::Pow => "**",
    }
}

/// What every template finds in its environment.
fn global(name: &str) -> Option<Value> {
    Some(Value::Function(match name {
        "range" => Function::Range,
        "dict" => Function::Dict,
        "namespace" => Function::Namespace,
        "cycler" => Function::Cycler,
        "joiner" => Function::Joiner,
        "raise_exception" => Function::RaiseException,
        "strftime_now" => Function::StrftimeNow,
        _ => return None,
    }))
}
