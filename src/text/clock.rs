//! `strftime` in UTC for the date that some chat templates print. Context is an argument: the time comes from the caller.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment in the proleptic Gregorian calendar, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Civil {
    year: i64,
    /// 1 to 12.
    month: usize,
    /// 1 to 31.
    day: i64,
    /// 0 is Sunday.
    weekday: usize,
    /// 1 to 366.
    day_of_year: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Civil {
    /// Days to dates as in H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    fn from_time(time: SystemTime) -> Self {
        let seconds = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX / 2),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX / 2),
        };
        let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let of_era = shifted.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        // Day of a year that begins on 1 March, so that the leap day comes last.
        let from_march = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * from_march + 2) / 153;
        let day = from_march - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let day_of_year = if month <= 2 { from_march - 305 } else { from_march + 60 + i64::from(leap) };
        Self {
            year,
            month: month as usize,
            day,
            weekday: (days + 4).rem_euclid(7) as usize,
            day_of_year,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }
}

/// C's `strftime` for the conversions templates use; `None` names nothing this function knows.
pub(super) fn strftime(time: SystemTime, format: &str) -> Option<String> {
    let civil = Civil::from_time(time);
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut conversion = characters.next()?;
        let padded = conversion != '-';
        if !padded {
            conversion = characters.next()?;
        }
        convert(&civil, conversion, padded, &mut out)?;
    }
    Some(out)
}

fn convert(civil: &Civil, conversion: char, padded: bool, out: &mut String) -> Option<()> {
    let month = *MONTHS.get(civil.month - 1)?;
    let weekday = *DAYS.get(civil.weekday)?;
    let twelve = (civil.hour + 11) % 12 + 1;
    let (value, width) = match conversion {
        'Y' => (civil.year, 4),
        'y' => (civil.year.rem_euclid(100), 2),
        'm' => (civil.month as i64, 2),
        'd' => (civil.day, 2),
        'j' => (civil.day_of_year, 3),
        'H' => (civil.hour, 2),
        'I' => (twelve, 2),
        'M' => (civil.minute, 2),
        'S' => (civil.second, 2),
        text => {
            match text {
                'B' => out.push_str(month),
                'b' => out.push_str(month.get(..3)?),
                'A' => out.push_str(weekday),
                'a' => out.push_str(weekday.get(..3)?),
                'p' => out.push_str(if civil.hour < 12 { "AM" } else { "PM" }),
                'Z' => out.push_str("UTC"),
                'z' => out.push_str("+0000"),
                '%' => out.push('%'),
                'F' => return ["Y", "-m", "-d"].iter().try_for_each(|part| dashed(civil, part, out)),
                'T' => write!(out, "{:02}:{:02}:{:02}", civil.hour, civil.minute, civil.second).ok()?,
                _ => return None,
            }
            return Some(());
        }
    };
    write!(out, "{value:0width$}", width = if padded { width } else { 0 }).ok()
}

/// One part of `%F`, with its dash in front.
fn dashed(civil: &Civil, part: &str, out: &mut String) -> Option<()> {
    let (dash, conversion) = part.split_at(part.len() - 1);
    out.push_str(dash);
    convert(civil, conversion.chars().next()?, true, out)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: i64, format: &str) -> Option<String> {
        let offset = Duration::from_secs(seconds.unsigned_abs());
        strftime(if seconds < 0 { UNIX_EPOCH - offset } else { UNIX_EPOCH + offset }, format)
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(at(0, "%A %d %B %Y %H:%M:%S %j").as_deref(), Some("Thursday 01 January 1970 00:00:00 001"));
        assert_eq!(at(951_782_400, "%F %a").as_deref(), Some("2000-02-29 Tue"));
        assert_eq!(at(1_735_603_199, "%d %b %Y %T %p %j").as_deref(), Some("30 Dec 2024 23:59:59 PM 365"));
        assert_eq!(at(1_709_251_200, "%-d %-m %y %I %j").as_deref(), Some("1 3 24 12 061"));
        assert_eq!(at(-1, "%F %T").as_deref(), Some("1969-12-31 23:59:59"));
    }

    #[test]
    fn every_day_of_a_century_follows_the_day_before() {
        let mut before = Civil::from_time(UNIX_EPOCH);
        for day in 1..36_525u64 {
            let civil = Civil::from_time(UNIX_EPOCH + Duration::from_secs(day * 86_400));
            assert_eq!(civil.weekday, (before.weekday + 1) % 7);
            let next = civil.day == before.day + 1 && civil.day_of_year == before.day_of_year + 1;
            let first = civil.day == 1 && civil.month == before.month % 12 + 1;
            let new_year = civil.day_of_year == 1 && civil.month == 1 && civil.year == before.year + 1;
            assert!(
                next || (first && (new_year || civil.day_of_year == before.day_of_year + 1)),
                "{before:?} {civil:?}"
            );
            before = civil;
        }
    }

    #[test]
    fn an_unknown_conversion_is_refused() {
        assert_eq!(at(0, "%Q"), None);
        assert_eq!(at(0, "%"), None);
        assert_eq!(at(0, "100%%").as_deref(), Some("100%"));
    }
}
