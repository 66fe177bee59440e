//! How much memory this process may take.

use std::path::Path;

/// Bytes available: the least of what the kernel has left (`MemAvailable`, and the commit limit where it does not
/// overcommit), what every control group around the process leaves (v2 and v1, files in its page cache not counted:
/// they make room), and what its own limits leave (`ulimit -v`, `ulimit -d`). `None` where the system says nothing of
/// it (it is not Linux).
#[must_use]
pub fn available_memory() -> Option<u64> {
    System { root: Path::new("/") }.available()
}

/// Memory for messages where nothing else is asked for. A fixed amount is plenty anywhere; where there is little memory, a
/// part of it.
pub(super) fn default_message_memory() -> u64 {
    message_memory(available_memory())
}

fn message_memory(available: Option<u64>) -> u64 {
    available.map_or(u64::MAX, |bytes| bytes / 8).min(256 << 20)
}

/// The kernel's files, below a folder that tests choose.
struct System<'a> {
    root: &'a Path,
}

impl System<'_> {
    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(path.trim_start_matches('/'))).ok()
    }

    fn available(&self) -> Option<u64> {
        let mut left = vec![self.free(), self.commit(), self.limit("Max address space", "VmSize:")];
        left.push(self.limit("Max data size", "VmData:"));
        left.extend(self.groups());
        left.into_iter().flatten().min()
    }

    fn free(&self) -> Option<u64> {
        kibibytes(&self.read("/proc/meminfo")?, "MemAvailable:")
    }

    /// Where the kernel promises no more than it has (`vm.overcommit_memory` is 2).
    fn commit(&self) -> Option<u64> {
        let strict = number(&self.read("/proc/sys/vm/overcommit_memory")?) == Some(2);
        let meminfo = strict.then(|| self.read("/proc/meminfo")).flatten()?;
        Some(kibibytes(&meminfo, "CommitLimit:")?.saturating_sub(kibibytes(&meminfo, "Committed_AS:")?))
    }

    /// The soft limit of a line of `/proc/self/limits`, less what `/proc/self/status` says is used of it.
    fn limit(&self, label: &str, used: &str) -> Option<u64> {
        let limits = self.read("/proc/self/limits")?;
        let line = limits.lines().find_map(|line| line.strip_prefix(label))?;
        let limit = number(line.split_whitespace().next()?)?;
        let used = self.read("/proc/self/status").and_then(|status| kibibytes(&status, used)).unwrap_or(0);
        Some(limit.saturating_sub(used))
    }

    fn groups(&self) -> Vec<Option<u64>> {
        let own = self.read("/proc/self/cgroup").unwrap_or_default();
        let mut left = Vec::new();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            if controllers.is_empty() {
                left.extend(ancestors(path).map(|group| self.group_v2(&format!("/sys/fs/cgroup{group}"))));
            } else if controllers.split(',').any(|controller| controller == "memory") {
                left.extend(ancestors(path).map(|group| self.group_v1(&format!("/sys/fs/cgroup/memory{group}"))));
            }
        }
        if left.is_empty() {
            left.push(self.group_v2("/sys/fs/cgroup"));
        }
        left
    }

    fn group_v2(&self, group: &str) -> Option<u64> {
        let limit = number(&self.read(&format!("{group}/memory.max"))?)?;
        let used = self.read(&format!("{group}/memory.current")).and_then(|text| number(&text)).unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(self.page_cache(group, ""))))
    }

    fn group_v1(&self, group: &str) -> Option<u64> {
        let limit = number(&self.read(&format!("{group}/memory.limit_in_bytes"))?)?;
        let used = self.read(&format!("{group}/memory.usage_in_bytes")).and_then(|text| number(&text)).unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(self.page_cache(group, "total_"))))
    }

    /// Files that the kernel drops before it refuses memory.
    fn page_cache(&self, group: &str, prefix: &str) -> u64 {
        let stat = self.read(&format!("{group}/memory.stat")).unwrap_or_default();
        let value = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(&format!("{prefix}{name} ")));
            line.and_then(number).unwrap_or(0)
        };
        value("inactive_file") + value("active_file")
    }
}

/// `/a/b`, `/a` and the root; in a container the first ones may not be there.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_end_matches('/');
    std::iter::successors(Some(path), |path| path.rfind('/').map(|at| &path[..at]))
}

fn kibibytes(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    number(line.trim().strip_suffix("kB")?)?.checked_mul(1024)
}

/// A number; `None` for `max` and `unlimited`, which is how the kernel says that there is no limit.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal: 16318412 kB\nMemFree: 100 kB\nMemAvailable: 12000000 kB\nCommitLimit: 9000 kB\n\
                           Committed_AS: 4000 kB\n";

    fn available(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        System { root: root.path() }.available()
    }

    #[test]
    fn the_least_of_all_limits_counts() {
        let meminfo = ("proc/meminfo", MEMINFO);
        assert_eq!(available(&[]), None);
        assert_eq!(available(&[meminfo]), Some(12_000_000 * 1024));
        assert_eq!(available(&[meminfo, ("proc/sys/vm/overcommit_memory", "2\n")]), Some(5000 * 1024));
        assert_eq!(available(&[meminfo, ("proc/sys/vm/overcommit_memory", "0\n")]), Some(12_000_000 * 1024));
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax data size             unlimited unlimited bytes\n\
                      Max address space         536870912 unlimited bytes\n";
        let status = "Name: x\nVmSize:   1024 kB\nVmData:   8 kB\n";
        let files = [meminfo, ("proc/self/limits", limits), ("proc/self/status", status)];
        assert_eq!(available(&files), Some(536_870_912 - (1 << 20)));
    }

    #[test]
    fn messages_have_a_fixed_amount_or_a_part_of_little_memory() {
        assert_eq!([None, Some(64 << 30), Some(512 << 20)].map(message_memory), [256 << 20, 256 << 20, 64 << 20]);
    }

    #[test]
    fn control_groups_leave_what_their_processes_do_not_use() {
        let meminfo = ("proc/meminfo", MEMINFO);
        let stat = ("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 100\nactive_file 200\n");
        let v2 = [
            meminfo,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.max", "5000\n"),
            ("sys/fs/cgroup/a/memory.current", "1000\n"),
            stat,
        ];
        assert_eq!(available(&v2), Some(4300), "of the parent, files not counted");
        let v1 = [
            meminfo,
            ("proc/self/cgroup", "5:cpu:/x\n4:memory:/x\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "700\n"),
            ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "300\n"),
            ("sys/fs/cgroup/memory/x/memory.stat", "total_inactive_file 50\ntotal_active_file 0\n"),
        ];
        assert_eq!(available(&v1), Some(450));
        let inside = [meminfo, ("sys/fs/cgroup/memory.max", "900\n")];
        assert_eq!(available(&inside), Some(900));
    }
}
