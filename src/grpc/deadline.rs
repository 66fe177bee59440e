//! The `grpc-timeout` header. tonic reads it too, but ends such a call with CANCELLED, and not at all once the
//! response has begun; this server does it itself (see [`call`](super::call)).

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};

use crate::types::{Problem, ToProblem};

const HEADER: &str = "grpc-timeout";

/// A header that is not of the form of the gRPC specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("grpc-timeout is not of the form [0-9]{{1,8}}[HMSmun]")]
pub(super) struct BadTimeout;

impl ToProblem for BadTimeout {
    fn to_problem(&self) -> Problem {
        Problem::invalid("INVALID_TIMEOUT", HEADER, self)
    }
}

/// When the client stops waiting: the moment by which the call must have ended; `None` without a limit.
///
/// A timeout too large for the clock (`99999999H` is eleven thousand years) is no limit.
pub(super) fn deadline(headers: &HeaderMap, now: Instant) -> Result<Option<Instant>, BadTimeout> {
    match headers.get(HEADER) {
        None => Ok(None),
        Some(value) => Ok(now.checked_add(parse(value)?)),
    }
}

fn parse(value: &HeaderValue) -> Result<Duration, BadTimeout> {
    let (unit, digits) = value.as_bytes().split_last().ok_or(BadTimeout)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(BadTimeout);
    }
    let amount = digits.iter().fold(0u64, |amount, digit| amount * 10 + u64::from(digit - b'0'));
    Ok(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return Err(BadTimeout),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Duration, BadTimeout> {
        parse(&HeaderValue::from_bytes(text.as_bytes()).unwrap())
    }

    #[test]
    fn every_unit_is_read() {
        assert_eq!(of("2H"), Ok(Duration::from_secs(7200)));
        assert_eq!(of("3M"), Ok(Duration::from_secs(180)));
        assert_eq!(of("4S"), Ok(Duration::from_secs(4)));
        assert_eq!(of("5m"), Ok(Duration::from_millis(5)));
        assert_eq!(of("6u"), Ok(Duration::from_micros(6)));
        assert_eq!(of("0n"), Ok(Duration::ZERO));
        assert_eq!(of("99999999H"), Ok(Duration::from_secs(99_999_999 * 3600)));
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in ["", "S", "10", "1s", "-1S", "+1S", "1.5S", "123456789S", " 1S", "1S ", "1SS", "٣S", "1h"] {
            assert_eq!(of(bad), Err(BadTimeout), "{bad:?}");
        }
    }

    #[test]
    fn no_header_is_no_limit() {
        assert_eq!(deadline(&HeaderMap::new(), Instant::now()), Ok(None));
    }
}
