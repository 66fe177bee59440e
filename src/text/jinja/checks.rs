//! Tests: what stands behind `is`.

use super::ast::Comparison;
use super::error::{RenderError, failed};
use super::execute::Machine;
use super::given::Given;
use super::strings;
use super::value::{Kind, Object, Value};

const TESTS: [&str; 38] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
];

/// # Errors
/// There is no such test.
pub(super) fn known(name: &str) -> Result<(), String> {
    match TESTS.contains(&name) || name == "upper" {
        true => Ok(()),
        false => Err(format!("no test named '{name}'")),
    }
}

pub(super) fn takes_argument(name: &str) -> bool {
    comparison(name).is_some() || matches!(name, "divisibleby" | "sameas")
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        "==" | "eq" | "equalto" => Comparison::Eq,
        "!=" | "ne" => Comparison::Ne,
        "<" | "lt" | "lessthan" => Comparison::Lt,
        "<=" | "le" => Comparison::Le,
        ">" | "gt" | "greaterthan" => Comparison::Gt,
        ">=" | "ge" => Comparison::Ge,
        "in" => Comparison::In,
        _ => return None,
    })
}

impl Machine<'_> {
    pub(super) fn check(&mut self, name: &str, value: &Value, given: Given) -> Result<bool, RenderError> {
        if let Some(comparison) = comparison(name) {
            let [other] = given.bind(name, ["other"])?;
            let Some(other) = other else { return failed(format!("the test '{name}' takes an argument")) };
            return self.holds(comparison, value, &other);
        }
        match name {
            "divisibleby" => {
                let [number] = given.bind(name, ["num"])?;
                return match (value.as_int(), number.and_then(|number| number.as_int())) {
                    (Some(_), Some(0)) => failed("division by zero"),
                    (Some(value), Some(number)) => Ok(value.checked_rem(number).unwrap_or(0) == 0),
                    _ => failed("divisibleby compares integers"),
                };
            }
            "sameas" => {
                let [other] = given.bind(name, ["other"])?;
                let other = other.unwrap_or(Value::None);
                let same = std::mem::discriminant(value) == std::mem::discriminant(&other);
                return Ok(same && self.holds(Comparison::Eq, value, &other)?);
            }
            "filter" | "test" => {
                let Some(name_of) = value.as_text() else { return failed(format!("the test '{name}' takes a name")) };
                return Ok(if name == "test" {
                    known(name_of).is_ok()
                } else {
                    super::filters::known(name_of).is_ok()
                });
            }
            _ => {}
        }
        let [] = given.bind(name, [])?;
        Ok(match name {
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "true" => matches!(value, Value::Bool(true)),
            "false" => matches!(value, Value::Bool(false)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => value.as_float().is_some(),
            "string" => value.as_text().is_some(),
            "escaped" => matches!(value, Value::Markup(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            "sequence" => is_sequence(value),
            "iterable" => {
                is_sequence(value)
                    || matches!(value, Value::Sequence(..) | Value::Object(Object::Generator | Object::Loop, _))
            }
            "callable" => matches!(
                value,
                Value::Function(_) | Value::Method(_) | Value::Object(Object::Macro | Object::Loop | Object::Joiner, _)
            ),
            "odd" | "even" => match value {
                Value::Float(value) => (value.rem_euclid(2.0) == 1.0) == (name == "odd"),
                _ => match value.as_int() {
                    Some(value) => (value.rem_euclid(2) == 1) == (name == "odd"),
                    None => return failed(format!("the test '{name}' takes a number")),
                },
            },
            "lower" | "upper" => {
                let text = value.to_text(&mut self.budget)?;
                self.budget.bytes(text.len())?;
                strings::all_cased(&text, name == "upper")
            }
            _ => return failed(format!("no test named '{name}'")),
        })
    }
}

/// What has a length and elements at places.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value,
        Value::Text(_)
            | Value::Markup(_)
            | Value::Undefined(_)
            | Value::Dict(_)
            | Value::Range(..)
            | Value::Sequence(Kind::List | Kind::Tuple | Kind::Group, _)
    )
}
