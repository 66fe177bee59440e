//! Durations and byte sizes as people write them.

use std::time::Duration;

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No number in front.
    #[error("{text:?} does not start with a number")]
    NoNumber {
        /// The text.
        text: String,
    },
    /// The unit is unknown or missing.
    #[error("{text:?} has no unit of {allowed}")]
    Unit {
        /// The text.
        text: String,
        /// The known units.
        allowed: &'static str,
    },
    /// Larger than the program can count.
    #[error("{text:?} is too large")]
    TooLarge {
        /// The text.
        text: String,
    },
}

/// Split into the number and the unit behind it.
fn split(text: &str) -> Result<(u64, &str), UnitError> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|character: char| character.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(UnitError::NoNumber { text: text.to_owned() });
    }
    let number = number.parse().map_err(|_| UnitError::TooLarge { text: text.to_owned() })?;
    Ok((number, unit.trim()))
}

/// `250ms`, `30s`, `5m`, `1h`, and sums such as `1h30m`.
///
/// # Errors
/// [`UnitError`]: a bare number is refused, since seconds and milliseconds are both usual.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    loop {
        let (number, behind) = split(rest)?;
        let end = behind.find(|character: char| character.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, after) = behind.split_at(end);
        let millis = match unit.trim() {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(UnitError::Unit { text: text.to_owned(), allowed: "ms, s, m, h, d" }),
        };
        let too_large = || UnitError::TooLarge { text: text.to_owned() };
        let part = number.checked_mul(millis).map(Duration::from_millis).ok_or_else(too_large)?;
        total = total.checked_add(part).ok_or_else(too_large)?;
        rest = after.trim();
        if rest.is_empty() {
            return Ok(total);
        }
    }
}

/// `4096`, `64KiB`, `512MiB`, `8GiB`, `1TiB` (powers of 1024); `kB`, `MB`, `GB`, `TB` are powers of 1000, and a bare
/// `K`, `M`, `G`, `T` is a power of 1024.
///
/// # Errors
/// [`UnitError`].
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(UnitError::Unit { text: text.to_owned(), allowed: "KiB, MiB, GiB, TiB, kB, MB, GB, TB" }),
    };
    number.checked_mul(factor).ok_or_else(|| UnitError::TooLarge { text: text.to_owned() })
}

/// Bytes for people: `1.5 GiB`.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_may_be_sums() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration(" 30 s "), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "s", "30", "30x", "-1s", "1.5s", "1h30"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
        assert!(matches!(parse_duration("99999999999999999999s"), Err(UnitError::TooLarge { .. })));
        assert!(matches!(parse_duration("18446744073709551615d"), Err(UnitError::TooLarge { .. })));
    }

    #[test]
    fn sizes_know_both_families_of_units() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("64KiB"), Ok(65_536));
        assert_eq!(parse_bytes("8 GiB"), Ok(8 << 30));
        assert_eq!(parse_bytes("2g"), Ok(2 << 30));
        assert_eq!(parse_bytes("2GB"), Ok(2_000_000_000));
        for bad in ["", "GiB", "1.5GiB", "1PiB", "-1"] {
            assert!(parse_bytes(bad).is_err(), "{bad:?}");
        }
        assert!(matches!(parse_bytes("99999999TiB"), Err(UnitError::TooLarge { .. })));
    }

    #[test]
    fn sizes_print_for_people() {
        assert_eq!(format_bytes(512), "512 B");
        assert_eq!(format_bytes(1536), "1.5 KiB");
        assert_eq!(format_bytes(3 << 30), "3.0 GiB");
    }
}
