//! `strftime` in UTC for the date that some chat templates print. Context is an argument: the time comes from the caller.
//!
//! What a template may write is what Python's `datetime.strftime` does with a time that knows no zone, in the C locale:
//! transformers calls that. The calendar is a library's.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};
use jiff::tz::TimeZone;

/// Conversions that mean the same in Python and in the library.
const CONVERSIONS: &str = "AaBbCcDdeFGgHhIjklMmnPpRrSsTtUuVWwXxYy%";

/// Python's `strftime`; `None` where the format asks for what neither Python nor C knows, or the year is none of
/// either's.
pub(super) fn strftime(time: SystemTime, format: &str) -> Option<String> {
    let format = for_library(format)?;
    let zoned = Timestamp::try_from(time).ok()?.to_zoned_datetime(TimeZone::UTC);
    let config = Config::new().custom(PosixCustom::new());
    BrokenDownTime::from(&zoned).to_string_with_config(&config, format).ok()
}

/// The format with what the library spells otherwise. Widths are refused: a few digits would ask for gigabytes.
fn for_library(format: &str) -> Option<String> {
    let mut out = String::with_capacity(format.len());
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let next = characters.next()?;
        let flag = (next == '-').then_some(next);
        match flag.map_or(Some(next), |_| characters.next())? {
            'f' => out.push_str("%6f"),
            // A time that knows no zone has none to print.
            'z' | 'Z' => {}
            conversion if CONVERSIONS.contains(conversion) => {
                out.push('%');
                out.extend(flag);
                out.push(conversion);
            }
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

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
    fn every_conversion_is_pythons() {
        const ALL: &str = concat!(
            "%A|%a|%B|%b|%C|%c|%D|%d|%e|%F|%f|%G|%g|%H|%h|%I|%j|%k|%l|%M|%m|%P|%p|%R|%r|%S|%T|%U|%u|%V|%W|%w|%X|%",
            "x|%Y|%y|%z|%Z|%%|%-d|%-m|%-H|%-I|%-M|%-S|%-j|%-y|%n|%t|%-e|%-k|%-l|%-U|%-V|%-Y",
        );
        // `datetime.strftime` of CPython 3.11 on glibc, without a zone, in the C locale.
        let expected = [
            (
                0,
                "Thursday|Thu|January|Jan|19|Thu Jan  1 00:00:00 1970|01/01/70|01| 1|1970-01-01|000000|1970|70|00|Jan|12|001| 0|12|00|01|am|AM|00:00|12:00:00 AM|00|00:00:00|00|4|01|00|4|00:00:00|01/01/70|1970|70|||%|1|1|0|12|0|0|1|70|\n|\t|1|0|12|0|1|1970",
            ),
            (
                1735603199,
                "Monday|Mon|December|Dec|20|Mon Dec 30 23:59:59 2024|12/30/24|30|30|2024-12-30|000000|2025|25|23|Dec|11|365|23|11|59|12|pm|PM|23:59|11:59:59 PM|59|23:59:59|52|1|01|53|1|23:59:59|12/30/24|2024|24|||%|30|12|23|11|59|59|365|24|\n|\t|30|23|11|52|1|2024",
            ),
            (
                1609459200,
                "Friday|Fri|January|Jan|20|Fri Jan  1 00:00:00 2021|01/01/21|01| 1|2021-01-01|000000|2020|20|00|Jan|12|001| 0|12|00|01|am|AM|00:00|12:00:00 AM|00|00:00:00|00|5|53|00|5|00:00:00|01/01/21|2021|21|||%|1|1|0|12|0|0|1|21|\n|\t|1|0|12|0|53|2021",
            ),
            (
                1767272405,
                "Thursday|Thu|January|Jan|20|Thu Jan  1 13:00:05 2026|01/01/26|01| 1|2026-01-01|000000|2026|26|13|Jan|01|001|13| 1|00|01|pm|PM|13:00|01:00:05 PM|05|13:00:05|00|4|01|00|4|13:00:05|01/01/26|2026|26|||%|1|1|13|1|0|5|1|26|\n|\t|1|13|1|0|1|2026",
            ),
            (
                1483228799,
                "Saturday|Sat|December|Dec|20|Sat Dec 31 23:59:59 2016|12/31/16|31|31|2016-12-31|000000|2016|16|23|Dec|11|366|23|11|59|12|pm|PM|23:59|11:59:59 PM|59|23:59:59|52|6|52|52|6|23:59:59|12/31/16|2016|16|||%|31|12|23|11|59|59|366|16|\n|\t|31|23|11|52|52|2016",
            ),
        ];
        for (seconds, text) in expected {
            assert_eq!(at(seconds, ALL).as_deref(), Some(text));
        }
    }

    #[test]
    fn what_python_does_not_know_is_refused() {
        for unknown in ["%Q", "%", "%-", "%10Y", "%4294967295d", "%:z", "%q", "%N", "%.f", "%é", "%-é"] {
            assert_eq!(at(0, unknown), None, "{unknown:?}");
        }
        assert_eq!(at(0, "100%%").as_deref(), Some("100%"));
        assert_eq!(strftime(UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) << 20), "%Y"), None);
    }
}
