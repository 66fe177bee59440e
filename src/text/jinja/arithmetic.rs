//! Operations of two numbers, as Python computes them.

use super::ast::Arithmetic;
use super::error::{RenderError, failed};
use super::value::Value;

fn too_large<T>() -> Result<T, RenderError> {
    failed("the number does not fit 64 bits")
}

/// An operation of two numbers; `None` where one of them is none.
pub(super) fn apply(operator: Arithmetic, left: &Value, right: &Value) -> Option<Result<Value, RenderError>> {
    if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
        return Some(of_ints(operator, left, right));
    }
    let (left, right) = (left.as_float()?, right.as_float()?);
    let division = matches!(operator, Arithmetic::Div | Arithmetic::FloorDiv | Arithmetic::Mod);
    if division && right == 0.0 {
        return Some(failed("division by zero"));
    }
    Some(Ok(Value::Float(match operator {
        Arithmetic::Add => left + right,
        Arithmetic::Sub => left - right,
        Arithmetic::Mul => left * right,
        Arithmetic::Div => left / right,
        Arithmetic::FloorDiv => (left / right).floor(),
        Arithmetic::Mod => {
            let rest = left % right;
            if rest != 0.0 && (rest < 0.0) != (right < 0.0) { rest + right } else { rest }
        }
        Arithmetic::Pow => left.powf(right),
    })))
}

fn of_ints(operator: Arithmetic, left: i64, right: i64) -> Result<Value, RenderError> {
    let value = match operator {
        Arithmetic::Add => left.checked_add(right),
        Arithmetic::Sub => left.checked_sub(right),
        Arithmetic::Mul => left.checked_mul(right),
        Arithmetic::Div | Arithmetic::FloorDiv | Arithmetic::Mod if right == 0 => return failed("division by zero"),
        Arithmetic::Div => return Ok(Value::Float(left as f64 / right as f64)),
        Arithmetic::FloorDiv => left.checked_div(right).map(|quotient| {
            let inexact = left.checked_rem(right).is_some_and(|rest| rest != 0);
            quotient - i64::from(inexact && (left < 0) != (right < 0))
        }),
        Arithmetic::Mod => {
            left.checked_rem(right).map(|rest| if rest != 0 && (rest < 0) != (right < 0) { rest + right } else { rest })
        }
        Arithmetic::Pow if right < 0 && left == 0 => return failed("0.0 cannot be raised to a negative power"),
        Arithmetic::Pow if right < 0 => return Ok(Value::Float((left as f64).powf(right as f64))),
        Arithmetic::Pow => u32::try_from(right).ok().and_then(|right| left.checked_pow(right)).or(match left {
            0 | 1 => Some(left),
            _ => None,
        }),
    };
    value.map_or_else(too_large, |value| Ok(Value::Int(value)))
}
