//! How much memory this process may take.

/// Bytes available: the kernel's `MemAvailable`, or what the control group leaves where that is less. `None` where the
/// system does not say (it is not Linux).
#[must_use]
pub fn available_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let system = read("/proc/meminfo").and_then(|text| parse_meminfo(&text));
    let limit = read("/sys/fs/cgroup/memory.max").and_then(|text| parse_number(&text));
    let used = read("/sys/fs/cgroup/memory.current").and_then(|text| parse_number(&text));
    let group = limit.map(|limit| limit.saturating_sub(used.unwrap_or(0)));
    match (system, group) {
        (Some(system), Some(group)) => Some(system.min(group)),
        (one, other) => one.or(other),
    }
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes = parse_number(line.trim().strip_suffix("kB")?)?;
    kibibytes.checked_mul(1024)
}

/// A number; `None` for `max`, which is how a control group says that it has no limit.
fn parse_number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        let meminfo = "MemTotal:       16318412 kB\nMemFree:  100 kB\nMemAvailable:   12000000 kB\n";
        assert_eq!(parse_meminfo(meminfo), Some(12_000_000 * 1024));
        assert_eq!(parse_meminfo("MemTotal: 1 kB\n"), None);
        assert_eq!(parse_number("max\n"), None);
        assert_eq!(parse_number("1048576\n"), Some(1_048_576));
    }
}
