//! Numbers as Python computes and prints them.

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
