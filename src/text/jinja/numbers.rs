//! Numbers as Python computes and prints them.

use super::ast::Arithmetic;
use super::execute::failed;
use super::{RenderError, Value};

/// `repr` of a float: the shortest digits that are it, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

pub(super) fn range_length(start: i64, stop: i64, step: i64) -> u64 {
    match step {
        1.. if start < stop => (stop.abs_diff(start) - 1) / step.unsigned_abs() + 1,
        ..=-1 if start > stop => (start.abs_diff(stop) - 1) / step.unsigned_abs() + 1,
        _ => 0,
    }
}

fn too_large<T>() -> Result<T, RenderError> {
    failed("the number does not fit 64 bits")
}

/// An operation of two numbers; `None` where one of them is none.
pub(super) fn arithmetic(operator: Arithmetic, left: &Value, right: &Value) -> Option<Result<Value, RenderError>> {
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

/// `round(value, digits)`: to the even neighbour in the exact decimal, as Python rounds.
pub(super) fn round(value: f64, digits: i64) -> f64 {
    match usize::try_from(digits) {
        Ok(digits) => format!("{value:.*}", digits.min(330)).parse().unwrap_or(value),
        Err(_) => {
            let scale = 10f64.powi(i32::try_from(-digits).unwrap_or(400).min(400));
            let scaled = value / scale;
            if scale.is_finite() { scaled.round_ties_even() * scale } else { 0.0 }
        }
    }
}
